//! A whole optimizer step: forward, backward, gradient norm, AdamW. Its rate is tokens per second.
//!
//! With a GPU: Qwen3-0.6B and 1.7B in bf16 with random weights, LoRA of rank 16 on all linear layers, sequences of 512 tokens of
//! which a tenth carries loss; the launches of a step recorded once and replayed, as training does it, and started one by one.
//! Beside criterion's report: the share of the floor (the roofline of the card over the ledger of the step), the launches, the
//! memory that was reserved, and the share of a step's wall time that its launches take when nothing else is done between them.
//! `TANREN_BENCH_MEMORY_GIB=9.3` runs within that much memory and says which sizes do not fit. Without it that is an error like any
//! other: the other sizes are measured, and the exit code tells. `TANREN_BENCH_QUICK=1` takes Qwen3-0.6B at 2,176 and 4,352 tokens,
//! without criterion: seconds each. An argument is a part of a name; nothing is made for other sizes.
//!
//! Without one: widths of Qwen3-0.6B with 2 blocks and a vocabulary of 16384 in f32 on the CPU. "2 supervised" is an answer of
//! one letter and the end token; "all supervised" can skip nothing.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints what it found")]

#[path = "common/mod.rs"]
mod common;

use std::cell::Cell;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput};
use half::bf16;
use tanren::batch::{Batch, Targets, TokenTarget};
use tanren::config::{LoraConfig, ModelConfig, variant};
use tanren::device::{Card, Class, Device, PendingCopy};
use tanren::error::{Error, Result};
use tanren::model::weights::Role;
use tanren::model::{
    Adapter, Decoder, DropoutStep, PassCapacity, PassOptions, PendingScores, RecordedPass, Weights, init,
};
use tanren::optim::{Optimizer, Update};
use tanren::rng::{Purpose, Stream};
use tanren::tensor::Real;

use common::{LORA_R, ROW};

/// The first two rows of the table.
const HEADER: &str =
    "| step | tokens/s | ms | GPU busy | of floor | launches | GiB |\n|---|---:|---:|---:|---:|---:|---:|";

fn main() -> Result<()> {
    let mut criterion = common::criterion();
    match Device::cuda(0) {
        Ok(device) => on_gpu(&mut criterion, &device)?,
        Err(reason) => {
            eprintln!("train_step: on the CPU, there is no GPU to measure: {reason}");
            on_cpu(&mut criterion)?;
        }
    }
    criterion.final_summary();
    Ok(())
}

/// One row through a small model.
fn on_cpu(criterion: &mut Criterion) -> Result<()> {
    let device = common::device()?;
    let config = ModelConfig { vocab_size: 16_384, ..model("qwen3-0.6b")?.with_num_hidden_layers(2) };
    let weights = init::random(&device, &config, 0)?;
    let mut step = Step::<f32>::new(&device, config, weights)?;
    let mut group = criterion.benchmark_group("train_step");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(ROW as u64));
    for (dropout, note) in [(0.0, ""), (0.05, ", dropout")] {
        step.adapters[0].set_dropout(dropout);
        for (supervised, name) in [(2, "2"), (ROW - 1, "all")] {
            let batch = batch(ROW, ROW, supervised, step.decoder.config.vocab_size);
            // An error would be timed in silence.
            device.run(|| step.run(&batch))?;
            group.bench_function(format!("1 row of {ROW}, {name} supervised{note}"), |bencher| {
                bencher.iter(|| device.run(|| step.run(&batch)));
            });
        }
    }
    group.finish();
    Ok(())
}

/// Packed sequences through whole models.
fn on_gpu(criterion: &mut Criterion, device: &Device) -> Result<()> {
    println!("train_step on {}", device.label());
    println!("{HEADER}");
    let cap = std::env::var("TANREN_BENCH_MEMORY_GIB").ok().and_then(|gib| gib.parse::<f64>().ok());
    let (models, sizes): (&[&str], &[usize]) = match common::is_quick() {
        true => (&["qwen3-0.6b"], &[2176, 4352]),
        false => (&["qwen3-0.6b", "qwen3-1.7b"], &[2176, 4352, 8704]),
    };
    let filters = common::filters();
    let (mut measured, mut failure) = (0, None);
    for &name in models {
        let config = model(name)?;
        for &tokens in sizes {
            let names =
                ["launch by launch", "recorded"].map(|how| format!("train_step/{name} {tokens} {how}"));
            if !filters.is_empty() && !names.iter().any(|n| filters.iter().any(|part| n.contains(part))) {
                continue;
            }
            let batch = batch(tokens, 512, 51, config.vocab_size);
            match measure(criterion, device, name, &config, &batch, cap) {
                Ok(()) => measured += 1,
                Err(error @ Error::Device { .. }) => {
                    println!("{name} {tokens}: {error}");
                    // Under a cap it is an answer that a size does not fit, unless nothing does.
                    if cap.is_none() || !out_of_memory(&error) || measured == 0 {
                        failure.get_or_insert(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Weights of a million numbers over and over: a step takes as long with them, and drawing half a billion takes longer.
fn weights(device: &Device, config: &ModelConfig) -> Result<Weights<bf16>> {
    const PERIOD: usize = 1_048_573;
    let mut stream = Stream::new(0, Purpose::ModelInit, 0);
    let range = config.initializer_range as f32;
    let drawn: Vec<bf16> = (0..PERIOD).map(|_| bf16::from_f32(stream.normal() * range)).collect();
    Weights::build(config, |_, [rows, cols], role| {
        let len = rows * cols;
        let mut values = Vec::with_capacity(len);
        match role {
            Role::Matrix | Role::Conv1d => {
                while values.len() < len {
                    values.extend_from_slice(&drawn[..PERIOD.min(len - values.len())]);
                }
            }
            Role::Bias => values.resize(len, bf16::ZERO),
            Role::Norm => values.resize(len, bf16::ONE),
        }
        device.tensor(rows, cols, &values)
    })
}

fn out_of_memory(error: &Error) -> bool {
    let full =
        |what: &str| ["out of memory", "out of reserved memory"].iter().any(|text| what.contains(text));
    matches!(error, Error::Device { what, .. } if full(what))
}

fn measure(
    criterion: &mut Criterion,
    device: &Device,
    name: &str,
    config: &ModelConfig,
    batch: &Batch,
    cap: Option<f64>,
) -> Result<()> {
    let free = device.card_memory()?.map_or(0, |memory| memory.free_bytes);
    let bytes = cap.map_or(free / 100 * 95, |gib| (gib * (1u64 << 30) as f64) as u64);
    device.reserve(bytes)?;
    let result = measure_reserved(criterion, device, name, config, batch);
    device.reserve(0)?;
    result
}

fn measure_reserved(
    criterion: &mut Criterion,
    device: &Device,
    name: &str,
    config: &ModelConfig,
    batch: &Batch,
) -> Result<()> {
    let mut step = Step::<bf16>::new(device, config.clone(), weights(device, config)?)?;
    let tokens = batch.total_tokens();
    let failure = Cell::new(None);
    step.run(batch)?;
    if !common::is_quick() {
        let mut group = criterion.benchmark_group("train_step");
        group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(tokens as u64));
        group.bench_function(format!("{name} {tokens} launch by launch"), |bencher| {
            bencher.iter_custom(|steps| {
                timed(device, &failure, || (0..steps).try_for_each(|_| step.run(batch).map(drop)))
            });
        });
        group.finish();
    }
    step.record(batch)?;
    step.replayed(batch, 2)?;
    device.take_ledger();
    step.replayed(batch, 1)?;
    let ledger = device.take_ledger();
    if !common::is_quick() {
        let mut group = criterion.benchmark_group("train_step");
        group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(tokens as u64));
        group.bench_function(format!("{name} {tokens} recorded"), |bencher| {
            bencher.iter_custom(|steps| timed(device, &failure, || step.replayed(batch, steps)));
        });
        group.finish();
    }

    let wall = timed(device, &failure, || step.replayed(batch, 10)).as_secs_f64() / 10.0;
    if let Some(error) = failure.take() {
        return Err(error);
    }
    let (result, alone) = device.time(|| step.launches_alone(10))?;
    result?;
    let alone = alone.unwrap_or(0.0) / 10.0;
    let work = ledger.total();
    let floor = Card::of_label(device.label()).map(|card| card.floor_secs(work.flops, work.bytes));
    println!(
        "| {name} {tokens} | {:.0} | {:.2} | {} | {} | {} | {:.2} |",
        tokens as f64 / wall,
        1e3 * wall,
        percent(alone / wall),
        floor.map_or("-".into(), |floor| percent(floor / wall)),
        ledger.launches().map(|(_, count)| count).sum::<u64>(),
        device.arena().map_or(0.0, |arena| arena.high_water_bytes as f64 / (1u64 << 30) as f64),
    );
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// Wall time of `work`, with everything that it started; no time at all after an error, which is left in `failure`.
fn timed(device: &Device, failure: &Cell<Option<Error>>, work: impl FnOnce() -> Result<()>) -> Duration {
    let start = Instant::now();
    match work().and_then(|()| device.synchronize()) {
        Ok(()) => start.elapsed(),
        Err(error) => {
            failure.set(Some(error));
            Duration::ZERO
        }
    }
}

fn model(name: &str) -> Result<ModelConfig> {
    let found = variant(name).ok_or_else(|| Error::input("CONFIG", format!("{name} is not built in")))?;
    found.model_config()
}

/// Sequences of `len` tokens, in all `tokens`; the last `supervised` tokens of each carry loss.
fn batch(tokens: usize, len: usize, supervised: usize, vocab_size: usize) -> Batch {
    let (mut batch, mut targets) = (Batch::default(), Vec::new());
    while batch.total_tokens() < tokens {
        let start = batch.total_tokens();
        let len = len.min(tokens - start);
        let ids: Vec<u32> = (start..start + len).map(|i| (i * 7919 % vocab_size) as u32).collect();
        batch.push_segment(&ids, None, 0);
        let first = len.saturating_sub(1 + supervised);
        let target = |row: usize| TokenTarget { row: start + row, token: ids[row + 1], weight: 1.0 };
        targets.extend((first..len.saturating_sub(1)).map(target));
    }
    batch.targets = Targets::Tokens(targets);
    batch
}

/// What a step reads and changes.
struct Step<'a, T: Real<Stat = f32>> {
    device: &'a Device,
    decoder: Decoder<T>,
    adapters: Vec<Adapter<T>>,
    grads: Vec<Adapter<f32>>,
    optimizer: Optimizer<T>,
    recorded: Option<RecordedPass<T>>,
}

impl<'a, T: Real<Stat = f32>> Step<'a, T> {
    fn new(device: &'a Device, config: ModelConfig, weights: Weights<T>) -> Result<Self> {
        let decoder = Decoder { weights, config };
        let lora = LoraConfig { r: LORA_R, ..LoraConfig::default() };
        let master =
            Adapter::<f32>::new(&device.class(Class::Master), &lora, &decoder.config, &decoder.weights, 0)?;
        let (optimizer, adapter) = Optimizer::<T>::with_master(device, master)?;
        let grads = vec![adapter.zeros_like(device)?];
        Ok(Self { device, decoder, adapters: vec![adapter], grads, optimizer, recorded: None })
    }

    fn update(&self) -> Update {
        Update {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: Some(1.0),
        }
    }

    fn options(&self, batch: &Batch) -> PassOptions<'static> {
        let dropout = Some(DropoutStep { seed: 0, step: self.optimizer.step() });
        PassOptions { scale: 1.0 / batch.total_weight(), dropout, policies: &[] }
    }

    /// One step, every launch by itself.
    fn run(&mut self, batch: &Batch) -> Result<f64> {
        for tensor in self.grads.iter_mut().flat_map(Adapter::tensors_mut) {
            tensor.data_mut().fill(0.0);
        }
        let (options, update) = (self.options(batch), self.update());
        let (device, adapters, grads) = (self.device, &self.adapters, &mut self.grads);
        let scores = self.decoder.score_and_backward(device, batch, adapters, grads, options)?;
        self.optimizer.update(device, &update, &mut self.adapters[0], &self.grads[0])?;
        Ok(-options.scale * scores.iter().map(|s| s.logprob).sum::<f64>())
    }

    fn record(&mut self, batch: &Batch) -> Result<()> {
        self.optimizer.prepare(self.device, &mut self.adapters[0], &self.grads[0])?;
        let options = self.options(batch);
        let (device, adapters) = (self.device, &self.adapters);
        let with = (adapters.as_slice(), self.grads.as_slice());
        let tables =
            self.decoder.pass_tables(device, PassCapacity::of(batch), with, None, options.dropout)?;
        self.recorded = Some(self.decoder.record(device, tables, (adapters, &mut self.grads), options)?);
        Ok(())
    }

    /// Steps as training takes them: the next one is on its way before the results of this one are there.
    fn replayed(&mut self, batch: &Batch, steps: u64) -> Result<()> {
        let mut boxes = [(); 2].map(|()| (PendingScores::new(self.device), PendingCopy::new(self.device)));
        for step in 0..=steps {
            if step < steps {
                let (options, update) = (self.options(batch), self.update());
                let (scores, norm) = &mut boxes[step as usize % 2];
                if let Some(recorded) = &mut self.recorded {
                    let args = (&self.adapters[..], options);
                    recorded.start(&self.decoder, self.device, batch, args, scores)?;
                }
                let (adapter, grads) = (&mut self.adapters[0], &self.grads[0]);
                self.optimizer.start_update(self.device, &update, adapter, grads, norm)?;
            }
            if step > 0 {
                let (scores, norm) = &mut boxes[(step as usize - 1) % 2];
                scores.finish()?;
                self.optimizer.finish_update(norm)?;
            }
        }
        Ok(())
    }

    /// The launches of steps back to back, without a batch or a result in between.
    fn launches_alone(&self, steps: u64) -> Result<()> {
        let Some(recorded) = &self.recorded else { return Ok(()) };
        (0..steps).try_for_each(|_| self.device.replay(recorded.graph()))
    }
}
