//! A whole optimizer step: forward, backward, gradient norm, AdamW. Its rate is tokens per second.
//!
//! The model has the widths of Qwen3-0.6B with 2 blocks and a vocabulary of 16384, random weights, LoRA of rank 16 on all
//! linear layers. "2 supervised" is an answer of one letter and the end token; "all supervised" can skip nothing.

mod common;

use criterion::{SamplingMode, Throughput};
use tanren::batch::{Batch, Target};
use tanren::config::{LoraConfig, ModelConfig, TargetModules, variant};
use tanren::device::Device;
use tanren::error::{Error, Result};
use tanren::model::{Adapter, Decoder, DropoutStep, PassOptions, init};
use tanren::optim::{Optimizer, Update};

use common::{LORA_R, ROW};

fn main() -> Result<()> {
    let mut criterion = common::criterion();
    let device = common::device()?;
    let config = model()?;
    let decoder = Decoder { weights: init::random::<f32>(&device, &config, 0)?, config };
    let lora = LoraConfig {
        r: LORA_R,
        alpha: 32.0,
        dropout: 0.0,
        target_modules: TargetModules::AllLinear,
        use_rslora: false,
        use_dora: false,
    };
    let adapter = Adapter::new(&device, &lora, &decoder.config, &decoder.weights, 0)?;
    let mut step = Step {
        grads: vec![adapter.zeros_like(&device)?],
        optimizer: Optimizer::new(&device, &adapter)?,
        adapters: vec![adapter],
        device: &device,
        decoder: &decoder,
    };
    let mut group = criterion.benchmark_group("step");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(ROW as u64));
    for (dropout, note) in [(0.0, ""), (0.05, ", dropout")] {
        step.adapters[0].set_dropout(dropout);
        for (supervised, name) in [(2, "2"), (ROW - 1, "all")] {
            let batch = batch(supervised, decoder.config.vocab_size);
            // An error would be timed in silence.
            device.run(|| step.run(&batch))?;
            group.bench_function(format!("1 row of {ROW}, {name} supervised{note}"), |bencher| {
                bencher.iter(|| device.run(|| step.run(&batch)));
            });
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// Qwen3-0.6B, cut down to what a benchmark can wait for.
fn model() -> Result<ModelConfig> {
    let config = variant("qwen3-0.6b").and_then(|v| v.model_config());
    let config = config.ok_or_else(|| Error::from(Error::input("CONFIG", "qwen3-0.6b is not built in")))?;
    Ok(ModelConfig { num_hidden_layers: 2, vocab_size: 16_384, ..config })
}

/// One row whose last `supervised` tokens carry loss.
fn batch(supervised: usize, vocab_size: usize) -> Batch {
    let ids: Vec<u32> = (0..ROW).map(|i| (i * 7919 % vocab_size) as u32).collect();
    let mut batch = Batch::default();
    batch.push_segment(&ids, None, 0);
    let target = |row: usize| Target { row, token: ids[row + 1], weight: 1.0 };
    batch.targets = (ROW - 1 - supervised..ROW - 1).map(target).collect();
    batch
}

/// What a step reads and changes.
struct Step<'a> {
    device: &'a Device,
    decoder: &'a Decoder<f32>,
    adapters: Vec<Adapter<f32>>,
    grads: Vec<Adapter<f32>>,
    optimizer: Optimizer<f32>,
}

impl Step<'_> {
    fn run(&mut self, batch: &Batch) -> Result<f64> {
        for tensor in self.grads.iter_mut().flat_map(Adapter::tensors_mut) {
            tensor.data_mut().fill(0.0);
        }
        let scale = 1.0 / batch.total_weight();
        let dropout = Some(DropoutStep { seed: 0, step: self.optimizer.step() });
        let (device, adapters, grads) = (self.device, &self.adapters, &mut self.grads);
        let options = PassOptions { scale, dropout, policies: &[] };
        let scores = self.decoder.score_and_backward(device, batch, adapters, grads, options)?;
        let norm = self.optimizer.grad_norm(device, &self.grads[0]);
        let update = Update {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: Some(1.0),
        };
        self.optimizer.apply(device, &update, norm, &mut self.adapters[0], &self.grads[0])?;
        Ok(-scale * scores.iter().map(|s| s.logprob).sum::<f64>())
    }
}
