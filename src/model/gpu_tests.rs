//! The whole model through the GPU kernels: recorded passes, policies, adapters and prefixes in one batch, a long training.

#![cfg(feature = "emulated")]

use half::bf16;

use super::adapter::Adapter;
use super::decoder::{Decoder, DropoutStep, PassOptions};
use super::policy::Policy;
use super::recorded::PendingScores;
use super::tables::PassCapacity;
use super::weights::{Role, Weights};
use crate::batch::{Batch, TokenTarget};
use crate::config::{BaseDropoutMode, LoraConfig, ModelConfig, Slot, TargetModules, variant};
use crate::device::Device;
use crate::device::arch::Chip;
use crate::ops::attention::PlanCapacity;
use crate::ops::linear_cross_entropy::TargetScore;
use crate::ops::testing::{cpu, kernel_device, relative_rms, unchecked_kernel_device};
use crate::optim::{Optimizer, Update};
use crate::rng::{Purpose, Stream};
use crate::tensor::Real;

const VOCAB: usize = 200;

fn config(num_hidden_layers: usize) -> ModelConfig {
    let base = variant("qwen3-tiny").unwrap().model_config().unwrap();
    let base = base.with_num_hidden_layers(num_hidden_layers).with_blocks(|block| {
        (block.attn.heads, block.attn.kv_heads, block.attn.head_dim, block.mlp.size) = (4, 2, 32, 96);
    });
    ModelConfig {
        hidden_size: 64,
        vocab_size: VOCAB,
        max_position_embeddings: 512,
        initializer_range: 0.1,
        ..base
    }
}

/// A model whose numbers bf16 holds, in any type.
fn model<T: Real>(device: &Device, num_hidden_layers: usize) -> Decoder<T> {
    let config = config(num_hidden_layers);
    let mut index = 0;
    let weights = Weights::build(&config, |_, [rows, cols], role| {
        index += 1;
        let mut stream = Stream::new(7, Purpose::ModelInit, index);
        let value = |_| match role {
            Role::Matrix | Role::Conv1d => 0.1 * stream.normal(),
            Role::Bias => 0.0,
            Role::Norm => 1.0 + 0.1 * stream.normal(),
        };
        let values = (0..rows * cols).map(value);
        let values: Vec<T> = values.map(|x| T::from_f32(bf16::from_f32(x).to_f32())).collect();
        device.tensor(rows, cols, &values)
    });
    Decoder { weights: weights.unwrap(), config }
}

/// An adapter with a B that is not zero, in f32.
fn adapter(device: &Device, layers: usize, r: usize, dropout: f64) -> Adapter<f32> {
    let lora = LoraConfig { r, alpha: 2.0 * r as f64, dropout, ..LoraConfig::default() };
    let dry = super::init::dry::<f32>(&Device::dry(), &config(layers)).unwrap();
    let mut adapter = Adapter::<f32>::new(device, &lora, &config(layers), &dry, r as u64).unwrap();
    fill(device, &mut adapter, 100 * r as u32);
    adapter
}

/// Gives an adapter other numbers, magnitudes near 1.
fn fill<T: Real>(device: &Device, adapter: &mut Adapter<T>, mut index: u32) {
    adapter
        .set_from_peft(device, |_, shape| {
            index += 1;
            let mut stream = Stream::new(9, Purpose::AdapterInit, index);
            let (mean, size) = match shape {
                [_] => (1.0, 0.3),
                _ => (0.0, 0.3 / (*shape.last().unwrap() as f32).sqrt()),
            };
            let value = |_| bf16::from_f32(mean + size * stream.normal()).to_f32();
            Ok((0..shape.iter().product()).map(value).collect())
        })
        .unwrap();
}

/// A new adapter with DoRA on v and down.
fn dora_adapter(device: &Device, model: &Decoder<bf16>, dropout: f64) -> Adapter<f32> {
    let lora = LoraConfig {
        r: 20,
        alpha: 20.0,
        dropout,
        target_modules: TargetModules::List(vec!["v_proj".into(), "down_proj".into()]),
        use_dora: true,
        ..LoraConfig::default()
    };
    Adapter::new(device, &lora, &model.config, &model.weights, 3).unwrap()
}

/// Sequences `(length, adapter, prefix)`; every third token carries loss.
fn batch(sequences: &[(usize, usize, Option<usize>)], shift: usize) -> Batch {
    let mut batch = Batch::default();
    for (i, &(len, adapter, prefix)) in sequences.iter().enumerate() {
        let token = |t: usize| ((i * 31 + t * 17 + shift * 5) % VOCAB) as u32;
        let start = batch.total_tokens();
        batch.push_segment(&(0..len).map(token).collect::<Vec<_>>(), prefix, adapter);
        for t in (0..len).filter(|t| t % 3 == 2 || t + 1 == len) {
            batch.targets.tokens_mut().unwrap().push(TokenTarget {
                row: start + t,
                token: token(t + 1),
                weight: 1.0,
            });
        }
    }
    batch
}

fn options(dropout: Option<DropoutStep>) -> PassOptions<'static> {
    PassOptions { scale: 0.01, dropout, policies: &[] }
}

/// Scores and gradients of one pass.
fn pass<T: Real<Stat = f32>>(
    device: &Device,
    model: &Decoder<T>,
    adapters: &[Adapter<T>],
    batch: &Batch,
    options: PassOptions<'_>,
) -> (Vec<TargetScore>, Vec<f32>) {
    let mut grads: Vec<_> = adapters.iter().map(|a| a.zeros_like(device).unwrap()).collect();
    let scores = model.score_and_backward(device, batch, adapters, &mut grads, options).unwrap();
    (scores, numbers(device, &grads))
}

fn numbers(device: &Device, adapters: &[Adapter<f32>]) -> Vec<f32> {
    adapters.iter().flat_map(|a| a.to_peft(device).unwrap()).flat_map(|(_, t)| t.data).collect()
}

#[test]
fn recorded_passes_have_the_bits_of_direct_ones() {
    let device = kernel_device(1);
    device.reserve(64 << 20).unwrap();
    let model = model::<bf16>(&device, 3);
    let adapters = vec![adapter(&device, 3, 4, 0.1).cast::<bf16>(&device).unwrap()];
    let mut grads = vec![adapters[0].zeros_like(&device).unwrap()];
    let batches = [
        batch(&[(40, 0, None), (9, 0, None), (1, 0, None)], 0),
        batch(&[(3, 0, None)], 1),
        batch(&[(30, 0, None), (7, 0, Some(0)), (11, 0, Some(0))], 2),
    ];
    let direct = |step: u64| {
        let dropout = Some(DropoutStep { seed: 5, step });
        pass(&device, &model, &adapters, &batches[step as usize], options(dropout))
    };
    let expected: Vec<_> = (0..3).map(direct).collect();
    let capacity = batches.iter().map(PassCapacity::of).fold(PassCapacity::default(), PassCapacity::max);
    let capacity = PassCapacity {
        plan: PlanCapacity {
            query_rows: capacity.tokens() + 30,
            key_rows: capacity.tokens() + 30,
            ..capacity.plan
        },
        targets: capacity.targets + 5,
        target_rows: capacity.target_rows + 9,
        ..capacity
    };
    let dropout = |step| options(Some(DropoutStep { seed: 5, step }));
    let step = Some(DropoutStep { seed: 5, step: 0 });
    let tables = model.pass_tables(&device, capacity, (&adapters, &grads), None, step).unwrap();
    let mut recorded = model.record(&device, tables, (&adapters, &mut grads), dropout(0)).unwrap();
    let mut before = vec![0.0; numbers(&device, &grads).len()];
    for (step, (batch, (scores, gradient))) in batches.iter().zip(&expected).enumerate().chain(
        // Once more, after larger batches were there.
        batches.iter().zip(&expected).enumerate(),
    ) {
        let mut copy = PendingScores::new(&device);
        let args = (&adapters[..], dropout(step as u64));
        recorded.start(&model, &device, batch, args, &mut copy).unwrap();
        assert_eq!(&copy.finish().unwrap().tokens(), scores, "step {step}");
        let after = numbers(&device, &grads);
        // Gradients accumulate, so only the first one has the bits; the others agree to rounding.
        let added: Vec<f32> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        assert!(relative_rms(&added, gradient) < 1e-5, "step {step}");
        if before.iter().all(|&x| x == 0.0) {
            assert_eq!(&after, gradient);
        }
        before = after;
    }
    let larger = batch(&[(capacity.tokens() + 1, 0, None)], 0);
    let mut copy = PendingScores::new(&device);
    assert!(recorded.start(&model, &device, &larger, (&adapters, dropout(0)), &mut copy).is_err());
}

#[test]
fn recorded_passes_with_dora_measure_the_norms_anew() {
    let device = kernel_device(4);
    device.reserve(64 << 20).unwrap();
    let model = model::<bf16>(&device, 2);
    let batch = batch(&[(20, 0, None), (9, 1, None)], 0);
    let needed = PassCapacity::of(&batch);
    let rows = needed.tokens() + 7;
    let plan = PlanCapacity { query_rows: rows, key_rows: rows, ..needed.plan };
    let capacity = PassCapacity { plan, target_rows: needed.target_rows + 3, ..needed };
    for p in [0.0, 0.1] {
        // The other adapter has all layers as targets, and no magnitudes.
        let mut adapters = vec![
            dora_adapter(&device, &model, p).cast::<bf16>(&device).unwrap(),
            adapter(&device, 2, 4, p).cast::<bf16>(&device).unwrap(),
        ];
        fill(&device, &mut adapters[0], 1000);
        let options = options((p > 0.0).then_some(DropoutStep { seed: 5, step: 3 }));
        let mut grads: Vec<_> = adapters.iter().map(|a| a.zeros_like(&device).unwrap()).collect();
        let tables =
            model.pass_tables(&device, capacity, (&adapters, &grads), None, options.dropout).unwrap();
        let mut recorded = model.record(&device, tables, (&adapters, &mut grads), options).unwrap();
        for round in 0..2 {
            fill(&device, &mut adapters[0], 2000 + 100 * round);
            for tensor in grads.iter_mut().flat_map(Adapter::tensors_mut) {
                let zeros = vec![0.0; tensor.len()];
                device.write(tensor, &zeros).unwrap();
            }
            let (expected, gradient) = pass(&device, &model, &adapters, &batch, options);
            let mut copy = PendingScores::new(&device);
            recorded.start(&model, &device, &batch, (&adapters, options), &mut copy).unwrap();
            assert_eq!(copy.finish().unwrap().tokens(), expected, "dropout {p}, round {round}");
            assert_eq!(numbers(&device, &grads), gradient, "dropout {p}, round {round}");
        }
    }
}

/// The masks of the frozen model are those of the step, whatever was recorded; everything else is as in direct passes.
#[test]
fn recorded_passes_draw_the_masks_of_the_model_anew() {
    let device = kernel_device(4);
    device.reserve(64 << 20).unwrap();
    let text = r#"{"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200, "n_positions": 64,
        "initializer_range": 0.2, "embd_pdrop": 0.2, "resid_pdrop": 0.1, "attn_pdrop": 0.0}"#;
    let config = ModelConfig::from_json(std::path::Path::new("config.json"), text).unwrap();
    let config = config.with_base_dropout(BaseDropoutMode::Config).unwrap();
    let weights = super::init::random::<bf16>(&device, &config, 3).unwrap();
    let model = Decoder { config, weights };
    let lora = LoraConfig { r: 4, alpha: 8.0, dropout: 0.0, ..LoraConfig::default() };
    let mut adapter = Adapter::<f32>::new(&device, &lora, &model.config, &model.weights, 1).unwrap();
    fill(&device, &mut adapter, 50);
    let adapters = vec![adapter.cast::<bf16>(&device).unwrap()];
    let batch = batch(&[(20, 0, None), (9, 0, None)], 0);
    let of = |step| options(Some(DropoutStep { seed: 5, step }));
    let direct = [3, 4].map(|step| pass(&device, &model, &adapters, &batch, of(step)));
    assert_ne!(direct[0], direct[1]);
    assert_ne!(direct[0], pass(&device, &model, &adapters, &batch, options(None)));
    let mut grads = vec![adapters[0].zeros_like(&device).unwrap()];
    let tables =
        model.pass_tables(&device, PassCapacity::of(&batch), (&adapters, &grads), None, of(0).dropout);
    let mut recorded = model.record(&device, tables.unwrap(), (&adapters, &mut grads), of(0)).unwrap();
    for (step, (scores, gradient)) in [3, 4].into_iter().zip(direct) {
        for tensor in grads.iter_mut().flat_map(Adapter::tensors_mut) {
            let zeros = vec![0.0; tensor.len()];
            device.write(tensor, &zeros).unwrap();
        }
        let mut copy = PendingScores::new(&device);
        recorded.start(&model, &device, &batch, (&adapters, of(step)), &mut copy).unwrap();
        assert_eq!(copy.finish().unwrap().tokens(), scores, "step {step}");
        assert_eq!(numbers(&device, &grads), gradient, "step {step}");
    }
}

#[test]
fn new_magnitudes_are_the_norms_of_the_weights() {
    let device = kernel_device(5);
    let model = model::<bf16>(&device, 1);
    let adapter = dora_adapter(&device, &model, 0.0);
    for slot in [Slot::V, Slot::Down] {
        let number = model.weights.sites.number(0, slot).unwrap();
        let weight = model.weights.linears[number].weight.dense();
        let magnitude = adapter.params(number).unwrap().magnitude.as_ref().unwrap();
        let numbers = device.read(weight).unwrap();
        for (row, magnitude) in numbers.chunks(weight.cols()).zip(device.read(magnitude).unwrap()) {
            let norm = row.iter().map(|w| w.to_f64() * w.to_f64()).sum::<f64>().sqrt();
            assert!((f64::from(magnitude) / norm - 1.0).abs() < 1e-6, "{magnitude} {norm}");
        }
    }
}

#[test]
fn policies_do_not_change_a_bit() {
    let device = kernel_device(2);
    let model = model::<bf16>(&device, 3);
    let adapters = vec![adapter(&device, 3, 4, 0.2).cast::<bf16>(&device).unwrap()];
    let batch = batch(&[(33, 0, None), (17, 0, None)], 0);
    let dropout = Some(DropoutStep { seed: 1, step: 2 });
    let expected = pass(&device, &model, &adapters, &batch, options(dropout));
    for policy in [Policy::DropGateUp, Policy::Checkpoint] {
        let options = PassOptions { policies: &[policy; 3], ..options(dropout) };
        assert!(pass(&device, &model, &adapters, &batch, options) == expected, "{policy:?}");
    }
}

#[test]
fn adapters_and_prefixes_in_one_batch_agree_with_the_cpu() {
    let (device, cpu) = (kernel_device(3), cpu());
    let ranks = [2, 16, 5];
    let narrow: Vec<Adapter<bf16>> =
        ranks.iter().map(|&r| adapter(&device, 2, r, 0.0).cast(&device).unwrap()).collect();
    let wide: Vec<Adapter<f32>> = ranks.iter().map(|&r| adapter(&cpu, 2, r, 0.0)).collect();
    let batch = batch(
        &[(20, 1, None), (6, 1, Some(0)), (9, 1, Some(0)), (4, 1, Some(2)), (15, 0, None), (8, 2, None)],
        0,
    );
    let (scores, grads) = pass(&device, &model::<bf16>(&device, 2), &narrow, &batch, options(None));
    let (expected, expected_grads) = pass(&cpu, &model::<f32>(&cpu, 2), &wide, &batch, options(None));
    let error = scores.iter().zip(&expected).map(|(a, b)| (a.logprob - b.logprob).abs()).sum::<f64>();
    let mean = error / scores.len() as f64;
    assert!(mean < 0.02, "{mean}");
    let error = relative_rms(&grads, &expected_grads);
    assert!(error < 0.05, "{error}");
}

/// Losses of fifty steps, and the trained numbers.
fn train<T: Real<Stat = f32>>(device: &Device) -> (Vec<f64>, Vec<f32>) {
    let model = model::<T>(device, 2);
    let (mut optimizer, adapter) = Optimizer::<T>::with_master(device, adapter(device, 2, 8, 0.0)).unwrap();
    let mut adapters = vec![adapter];
    let mut grads = vec![adapters[0].zeros_like(device).unwrap()];
    let mut losses = Vec::new();
    for step in 0..50 {
        let batch = batch(&[(24, 0, None), (13, 0, None), (20, 0, None)], step % 5);
        let scale = 1.0 / batch.targets.len() as f64;
        for tensor in grads[0].tensors_mut() {
            tensor.data_mut().fill(0.0);
        }
        let options = PassOptions { scale, ..options(None) };
        let scores = model.score_and_backward(device, &batch, &adapters, &mut grads, options).unwrap();
        losses.push(-scale * scores.iter().map(|s| s.logprob).sum::<f64>());
        let update = Update {
            learning_rate: 2e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: Some(1.0),
        };
        optimizer.update(device, &update, &mut adapters[0], &grads[0]).unwrap();
    }
    let trained = optimizer.trained_to_peft(device, &adapters[0]).unwrap();
    (losses, trained.into_iter().flat_map(|(_, t)| t.data).collect())
}

#[test]
fn fifty_steps_in_bf16_stay_near_those_in_f32() {
    let device = unchecked_kernel_device();
    let (losses, trained) = train::<bf16>(&device);
    let (expected, expected_trained) = train::<f32>(&cpu());
    assert!(expected[49] < 0.7 * expected[0], "it learns: {expected:?}");
    let drift: Vec<f64> = losses.iter().zip(&expected).map(|(a, b)| a - b).collect();
    let largest = drift.iter().fold(0.0f64, |m, d| m.max(d.abs()));
    let mean = (drift.iter().sum::<f64>() / 50.0).abs();
    let distance = relative_rms(&trained, &expected_trained);
    assert!(largest <= 1.5e-2 && mean <= 2e-3 && distance <= 2e-2, "{largest:e} {mean:e} {distance:e}");
}

/// Launches of a pass forward, and of one in both directions.
fn launches(layers: usize) -> [u64; 2] {
    let device = Device::dry_gpu(Chip::RTX_3080);
    let model = Decoder {
        weights: super::init::dry::<bf16>(&device, &config(layers)).unwrap(),
        config: config(layers),
    };
    let adapters = vec![adapter(&device, layers, 16, 0.0).cast::<bf16>(&device).unwrap()];
    let mut grads = vec![adapters[0].zeros_like(&device).unwrap()];
    let batch = batch(&[(40, 0, None)], 0);
    let count = || device.take_ledger().launches().map(|(_, count)| count).sum();
    device.take_ledger();
    model.score(&device, &batch, &adapters).unwrap();
    let forward = count();
    model.score_and_backward(&device, &batch, &adapters, &mut grads, options(None)).unwrap();
    [forward, count()]
}

#[test]
fn a_dry_pass_with_dora_launches_what_a_real_one_does() {
    let launches = |device: &Device, model: &Decoder<bf16>| -> u64 {
        let adapters = vec![dora_adapter(device, model, 0.1).cast::<bf16>(device).unwrap()];
        let mut grads = vec![adapters[0].zeros_like(device).unwrap()];
        let options = options(Some(DropoutStep { seed: 1, step: 2 }));
        device.take_ledger();
        model.score_and_backward(device, &batch(&[(9, 0, None)], 0), &adapters, &mut grads, options).unwrap();
        device.take_ledger().launches().map(|(_, count)| count).sum()
    };
    let (dry, real) = (Device::dry_gpu(Chip::RTX_3080), kernel_device(6));
    let weights = super::init::dry::<bf16>(&dry, &config(2)).unwrap();
    let planned = launches(&dry, &Decoder { weights, config: config(2) });
    assert_eq!(planned, launches(&real, &model::<bf16>(&real, 2)));
}

#[test]
fn a_block_takes_at_most_twelve_launches_in_each_direction() {
    let ([forward, both], [next_forward, next_both]) = (launches(4), launches(5));
    let per_block = [next_forward - forward, (next_both - next_forward) - (both - forward)];
    assert!(per_block.iter().all(|&launches| launches <= 12), "{per_block:?}");
}
