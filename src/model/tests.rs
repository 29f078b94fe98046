//! The whole model in f64: gradients against central differences, adapters in one batch, prefixes, pruning.

use super::adapter::Adapter;
use super::decoder::{Decoder, DropoutStep, PassOptions};
use super::init;
use super::policy::Policy;
use super::weights::Weight;
use crate::batch::{Batch, Targets, TokenTarget};
use crate::config::block::{EmbedSpec, LearnedPositions, Wiring};
use crate::config::{Family, LoraConfig, ModelConfig, Slot, TargetModules, variant};
use crate::device::{ByClass, Class, Device, Tensor};
use crate::ops::testing::{check_gradient, cpu, random, relative_rms};
use crate::tensor::Real;
use half::bf16;

/// A model of three tiny blocks.
fn model(family: Family) -> Decoder<f64> {
    model_of(family, 3)
}

fn model_of(family: Family, num_hidden_layers: usize) -> Decoder<f64> {
    let config = config(family, num_hidden_layers);
    let weights = init::random(&cpu(), &config, 3).unwrap();
    Decoder { config, weights }
}

fn config(family: Family, num_hidden_layers: usize) -> ModelConfig {
    let name = if family == Family::Gpt2 { "gpt2" } else { "qwen3-tiny" };
    let base = variant(name).unwrap().model_config().unwrap().with_num_hidden_layers(num_hidden_layers);
    let base = base.with_blocks(|block| {
        (block.attn.heads, block.attn.head_dim, block.mlp.size) = (4, 6, 20);
        if family == Family::Gpt2 {
            (block.attn.kv_heads, block.attn.head_dim) = (4, 3);
        } else {
            block.attn.kv_heads = 2;
            (block.attn.qkv_bias, block.attn.qk_norm) = (family == Family::Qwen2, family == Family::Qwen3);
        }
    });
    let positions = base.embed.positions.map(|positions| LearnedPositions { rows: 64, ..positions });
    ModelConfig {
        family,
        hidden_size: 12,
        vocab_size: 37,
        max_position_embeddings: 64,
        initializer_range: 0.4,
        tie_word_embeddings: family != Family::Llama,
        embed: EmbedSpec { positions, ..base.embed },
        ..base
    }
}

fn lora(modules: &[&str], dropout: f64, use_dora: bool) -> LoraConfig {
    LoraConfig {
        r: 3,
        alpha: 6.0,
        dropout,
        target_modules: match modules {
            [] => TargetModules::AllLinear,
            names => TargetModules::List(names.iter().map(|n| (*n).to_owned()).collect()),
        },
        use_dora,
        ..LoraConfig::default()
    }
}

/// An adapter whose B is not zero, so that no gradient is.
fn adapter(device: &Device, model: &Decoder<f64>, config: &LoraConfig, seed: u64) -> Adapter<f64> {
    let mut adapter = Adapter::new(device, config, &model.config, &model.weights, seed).unwrap();
    for (i, tensor) in adapter.tensors_mut().into_iter().enumerate() {
        let noise = random::<f64>(device, tensor.rows(), tensor.cols(), seed as u32 * 1000 + i as u32);
        for (x, n) in tensor.data_mut().iter_mut().zip(noise.data()) {
            *x += 0.1 * n;
        }
    }
    adapter
}

/// Sequences of these lengths with a few targets each; `(length, adapter)`.
fn batch(sequences: &[(usize, usize)]) -> Batch {
    let mut batch = Batch::default();
    for (i, &(len, adapter)) in sequences.iter().enumerate() {
        let ids: Vec<u32> = (0..len).map(|t| ((i * 11 + t * 7) % 37) as u32).collect();
        let start = batch.total_tokens();
        batch.push_segment(&ids, None, adapter);
        for t in (0..len).filter(|t| t % 3 == 2 || t + 1 == len) {
            batch.targets.tokens_mut().unwrap().push(TokenTarget {
                row: start + t,
                token: (t * 5 % 37) as u32,
                weight: 1.0,
            });
        }
    }
    batch
}

/// Every block keeps all.
fn options(scale: f64, dropout: Option<DropoutStep>) -> PassOptions<'static> {
    PassOptions { scale, dropout, policies: &[] }
}

fn loss_and_grads(
    device: &Device,
    model: &Decoder<f64>,
    batch: &Batch,
    adapters: &[Adapter<f64>],
    dropout: Option<DropoutStep>,
) -> (f64, Vec<Adapter<f64>>) {
    let mut grads: Vec<_> = adapters.iter().map(|a| a.zeros_like(device).unwrap()).collect();
    let scores =
        model.score_and_backward(device, batch, adapters, &mut grads, options(0.25, dropout)).unwrap();
    let loss =
        scores.iter().zip(batch.targets.tokens()).map(|(s, t)| -s.logprob * f64::from(t.weight)).sum::<f64>();
    (0.25 * loss, grads)
}

#[test]
fn gradients_of_every_family_agree_with_central_differences() {
    let device = cpu();
    let dropout = Some(DropoutStep { seed: 1, step: 2 });
    // A block without an adapter between two, ranks and scales of single layers.
    let some_blocks = LoraConfig {
        target_modules: TargetModules::List(
            ["q_proj", "k_proj", "up_proj", "down_proj"].map(str::to_owned).into(),
        ),
        exclude_modules: Some(TargetModules::List(vec!["layers.2.self_attn.k_proj".to_owned()])),
        layers_to_transform: Some(vec![0, 2]),
        rank_pattern: vec![("layers.2.*".to_owned(), 1), ("q_proj".to_owned(), 5)],
        alpha_pattern: vec![("up_proj".to_owned(), 0.5)],
        ..lora(&[], 0.3, false)
    };
    for (family, layers, lora) in [
        (Family::Qwen2, 3, lora(&[], 0.0, false)),
        (Family::Qwen3, 2, lora(&[], 0.3, false)),
        (Family::Llama, 3, lora(&["k_proj", "down_proj"], 0.0, false)),
        (Family::Qwen3, 2, lora(&["o_proj", "up_proj"], 0.3, false)),
        // The only block is the last one and the lowest one.
        (Family::Qwen3, 1, lora(&[], 0.3, false)),
        (Family::Qwen2, 1, lora(&["gate_proj"], 0.0, false)),
        (Family::Qwen3, 4, some_blocks),
        (Family::Gpt2, 3, lora(&[], 0.0, false)),
        (Family::Gpt2, 2, lora(&["c_attn", "c_proj"], 0.3, false)),
        (Family::Gpt2, 1, lora(&["c_attn"], 0.3, false)),
    ] {
        let model = model_of(family, layers);
        let batch = batch(&[(9, 0), (1, 0), (5, 0)]);
        let mut adapters = vec![adapter(&device, &model, &lora, 1)];
        let (_, grads) = loss_and_grads(&device, &model, &batch, &adapters, dropout);
        let names: Vec<String> = adapters[0].named_tensors().into_iter().map(|(n, _)| n).collect();
        for (i, (name, grad)) in names.iter().zip(grads[0].tensors()).enumerate() {
            let at = device.tensor(grad.rows(), grad.cols(), adapters[0].tensors()[i].data()).unwrap();
            let cell = std::cell::RefCell::new(&mut adapters);
            check_gradient(&device, name, &at, grad.data(), |moved: &Tensor<f64>| {
                let mut adapters = cell.borrow_mut();
                adapters[0].tensors_mut()[i].data_mut().copy_from_slice(moved.data());
                loss_and_grads(&device, &model, &batch, &adapters, dropout).0
            });
            cell.borrow_mut()[0].tensors_mut()[i].data_mut().copy_from_slice(at.data());
        }
    }
}

#[test]
fn three_adapters_in_one_batch_equal_three_batches() {
    let device = cpu();
    let model = model(Family::Qwen3);
    let kinds = [lora(&[], 0.0, false), lora(&["q_proj", "down_proj"], 0.0, false), lora(&[], 0.0, true)];
    let adapters: Vec<_> =
        kinds.iter().enumerate().map(|(i, k)| adapter(&device, &model, k, i as u64)).collect();
    let sequences = [(7, 1), (4, 0), (6, 2), (3, 1), (5, 0)];
    let mixed = batch(&sequences);
    let (loss, grads) = loss_and_grads(&device, &model, &mixed, &adapters, None);
    let mut alone = 0.0;
    for which in 0..3 {
        // The same rows and targets; those of the other adapters without weight.
        let mut one = mixed.clone();
        for target in one.targets.tokens_mut().unwrap() {
            let segment = mixed.segments.iter().find(|s| s.rows().contains(&target.row)).unwrap();
            target.weight = if segment.adapter == which { 1.0 } else { 0.0 };
        }
        let (loss, other) = loss_and_grads(&device, &model, &one, &adapters, None);
        alone += loss;
        for (a, b) in grads[which].tensors().into_iter().zip(other[which].tensors()) {
            assert!(relative_rms(a.data(), b.data()) < 1e-12, "adapter {which}");
        }
        for (i, grads) in other.iter().enumerate().filter(|(i, _)| *i != which) {
            assert!(grads.tensors().iter().all(|t| t.data().iter().all(|&g| g == 0.0)), "adapter {i}");
        }
    }
    assert!((loss - alone).abs() < 1e-12);
}

#[test]
fn a_shared_prefix_equals_whole_sequences() {
    let device = cpu();
    let model = model(Family::Qwen2);
    let adapters = [adapter(&device, &model, &lora(&[], 0.0, false), 1)];
    let prompt: Vec<u32> = (0..10).map(|t| t * 3 % 37).collect();
    let endings: [&[u32]; 3] = [&[4, 5, 6], &[7], &[8, 9]];
    let (mut shared, mut apart) = (Batch::default(), Batch::default());
    // The prompt itself is in two parts, and carries loss in the middle.
    let first = shared.push_segment(&prompt[..4], None, 0);
    let root = shared.push_segment(&prompt[4..], Some(first), 0);
    shared.targets.tokens_mut().unwrap().push(TokenTarget { row: 5, token: 1, weight: 3.0 });
    let mut ends = Vec::new();
    for (i, ending) in endings.iter().enumerate() {
        shared.targets.tokens_mut().unwrap().push(TokenTarget { row: 9, token: ending[0], weight: 1.0 });
        let start = apart.total_tokens();
        apart.push_segment(&[&prompt[..], ending].concat(), None, 0);
        apart.targets.tokens_mut().unwrap().push(TokenTarget { row: start + 5, token: 1, weight: 1.0 });
        apart.targets.tokens_mut().unwrap().push(TokenTarget {
            row: start + 9,
            token: ending[0],
            weight: 1.0,
        });
        apart.targets.tokens_mut().unwrap().push(TokenTarget {
            row: start + 9 + ending.len(),
            token: 30,
            weight: 2.0,
        });
        let end = shared.total_tokens() + ending.len() - 1;
        shared.push_segment(ending, Some(root), 0);
        ends.push(TokenTarget { row: end, token: 30, weight: 2.0 });
        assert_eq!(shared.segments[i + 2].position_offset, 10);
    }
    shared.targets.tokens_mut().unwrap().extend(ends);
    let (loss, grads) = loss_and_grads(&device, &model, &shared, &adapters, None);
    let (expected, expected_grads) = loss_and_grads(&device, &model, &apart, &adapters, None);
    assert!((loss / expected - 1.0).abs() < 1e-12, "{loss} {expected}");
    for (a, b) in grads[0].tensors().into_iter().zip(expected_grads[0].tensors()) {
        assert!(relative_rms(a.data(), b.data()) < 1e-11);
    }
}

#[test]
fn packing_order_and_splitting_do_not_change_the_gradient() {
    let device = cpu();
    let model = model(Family::Qwen3);
    let adapters = [adapter(&device, &model, &lora(&[], 0.0, false), 1)];
    let sequences = [(7, 0), (4, 0), (1, 0), (12, 0)];
    let (loss, grads) = loss_and_grads(&device, &model, &batch(&sequences), &adapters, None);
    let mut total = 0.0;
    let mut summed = vec![adapters[0].zeros_like(&device).unwrap()];
    let whole = batch(&sequences);
    for segment in whole.segments.iter().rev() {
        let mut one = Batch::default();
        one.push_segment(&whole.input_ids[segment.rows()], None, 0);
        let own = whole.targets.tokens().iter().filter(|t| segment.rows().contains(&t.row));
        let moved = own.map(|t| TokenTarget { row: t.row - segment.start, ..*t });
        one.targets = Targets::Tokens(moved.collect());
        let scores =
            model.score_and_backward(&device, &one, &adapters, &mut summed, options(0.25, None)).unwrap();
        total -= 0.25 * scores.iter().map(|s| s.logprob).sum::<f64>();
    }
    assert!((loss / total - 1.0).abs() < 1e-13);
    for (a, b) in grads[0].tensors().into_iter().zip(summed[0].tensors()) {
        assert!(relative_rms(a.data(), b.data()) < 1e-12);
    }
}

#[test]
fn logits_of_some_rows_are_those_of_all_rows() {
    let device = cpu();
    let model = model(Family::Llama);
    let batch = batch(&[(6, 0), (3, 0)]);
    let all = model.logits(&device, &batch, &[], &(0..9).collect::<Vec<_>>()).unwrap();
    let some = model.logits(&device, &batch, &[], &[1, 5, 8]).unwrap();
    for (i, row) in [1, 5, 8].into_iter().enumerate() {
        assert!(relative_rms(some.row(i), all.row(row)) < 1e-12);
    }
}

#[test]
fn work_below_the_lowest_adapter_is_skipped() {
    let device = cpu();
    let model = model(Family::Qwen3);
    let batch = batch(&[(20, 0)]);
    let flops = |modules: &[&str], top_only: bool| {
        let adapter = adapter(&device, &model, &lora(modules, 0.0, false), 1);
        let mut grads = vec![adapter.zeros_like(&device).unwrap()];
        assert_eq!(adapter.params(0).is_some(), !top_only);
        device.take_ledger();
        model.score_and_backward(&device, &batch, &[adapter], &mut grads, options(1.0, None)).unwrap();
        let ledger = device.take_ledger();
        ledger.entries().find(|e| e.0 == "attention.backward").map_or(0, |e| e.1)
    };
    // With adapters on the MLP only, the lowest block needs no gradient of its attention.
    assert_eq!(flops(&[], false), 3);
    assert_eq!(flops(&["gate_proj"], true), 2);
}

/// Two prompts with continuations, and a sequence alone.
fn shared_batch() -> Batch {
    let mut batch = Batch::default();
    for prompt in [0u32, 5] {
        let ids: Vec<u32> = (0..7).map(|t| (prompt + t * 3) % 37).collect();
        let root = batch.push_segment(&ids, None, 0);
        for ending in [[4, 5, 6], [9, 8, 7]] {
            let start = batch.total_tokens();
            batch.push_segment(&ending, Some(root), 0);
            batch.targets.tokens_mut().unwrap().push(TokenTarget { row: start + 1, token: 3, weight: 0.5 });
            batch.targets.tokens_mut().unwrap().push(TokenTarget { row: start + 2, token: 30, weight: 1.0 });
        }
    }
    let start = batch.total_tokens();
    batch.push_segment(&[1, 2, 3], None, 0);
    batch.targets.tokens_mut().unwrap().push(TokenTarget { row: start + 2, token: 1, weight: 1.0 });
    batch
}

#[test]
fn what_blocks_keep_changes_memory_and_work_and_not_a_bit() {
    use Policy::{Checkpoint, DropGateUp, KeepAll};
    let device = cpu();
    let dropout = Some(DropoutStep { seed: 1, step: 2 });
    for (family, modules, p, dora) in [
        (Family::Qwen3, vec![], 0.0, false),
        (Family::Qwen2, vec![], 0.3, false),
        (Family::Qwen3, vec![], 0.3, true),
        (Family::Llama, vec!["down_proj"], 0.3, true),
        (Family::Qwen3, vec!["v_proj", "up_proj"], 0.0, false),
    ] {
        let model = model(family);
        let adapters = [adapter(&device, &model, &lora(&modules, p, dora), 1)];
        let batch = shared_batch();
        let run = |policies: &[Policy]| {
            let mut grads = vec![adapters[0].zeros_like(&device).unwrap()];
            let options = PassOptions { policies, ..options(0.25, dropout) };
            device.reset_peak();
            device.take_ledger();
            let scores = model.score_and_backward(&device, &batch, &adapters, &mut grads, options).unwrap();
            let flops = device.take_ledger().total().flops;
            (scores, grads.remove(0), device.peak_by_class(), flops)
        };
        let (scores, grads, kept, flops) = run(&[]);
        for policies in [
            &[KeepAll; 3][..],
            &[DropGateUp; 3],
            &[Checkpoint; 3],
            &[Checkpoint, DropGateUp, KeepAll],
            &[KeepAll, Checkpoint],
            &[DropGateUp, KeepAll, Checkpoint],
        ] {
            let (other_scores, other, other_kept, other_flops) = run(policies);
            assert_eq!(scores, other_scores, "{policies:?}");
            for (a, b) in grads.tensors().into_iter().zip(other.tensors()) {
                assert!(a.data() == b.data(), "{family} {modules:?} {policies:?}");
            }
            if policies != [KeepAll; 3] {
                assert!(other_flops > flops, "{policies:?}");
                assert!(other_kept.get(Class::GateUp) < kept.get(Class::GateUp), "{policies:?}");
            }
            let checkpointed = policies == [Checkpoint; 3];
            assert_eq!(other_kept.get(Class::Qkv) == 0, checkpointed, "{policies:?} {other_kept:?}");
        }
    }
}

#[test]
fn what_is_computed_again_leaves_out_the_down_projection() {
    let device = Device::dry();
    let config = model(Family::Qwen3).config;
    let model = Decoder { weights: init::dry::<f32>(&device, &config).unwrap(), config };
    let adapters =
        [Adapter::new(&device, &lora(&["q_proj"], 0.0, false), &model.config, &model.weights, 1).unwrap()];
    let mut batch = batch(&[(20, 0)]);
    // All rows carry loss, so that the last block is like the others.
    let target = |row| TokenTarget { row, token: 1, weight: 1.0 };
    batch.targets = Targets::Tokens((0..20).map(target).collect());
    let products = |policy: Policy| {
        let mut grads = vec![adapters[0].zeros_like(&device).unwrap()];
        let options = PassOptions { policies: &[policy; 3], ..options(1.0, None) };
        device.take_ledger();
        model.score_and_backward(&device, &batch, &adapters, &mut grads, options).unwrap();
        let ledger = device.take_ledger();
        let of = |name: &str| ledger.entries().find(|e| e.0 == name).map_or(0, |e| e.2.flops);
        of("lora_matmul.forward") + of("lora_matmul.recompute")
    };
    let (forward, c) = (products(Policy::KeepAll), &model.config);
    assert_eq!(forward, 3 * 2 * 20 * linear_numbers(c, |_| true));
    let gate_up = linear_numbers(c, |slot| matches!(slot, Slot::Gate | Slot::Up));
    assert_eq!(products(Policy::DropGateUp) - forward, 3 * 2 * 20 * gate_up);
    assert_eq!(
        products(Policy::Checkpoint) - forward,
        3 * 2 * 20 * linear_numbers(c, |slot| slot != Slot::Down)
    );
}

/// Weights of some layers of a block.
fn linear_numbers(config: &ModelConfig, which: impl Fn(Slot) -> bool) -> u64 {
    let linears = config.blocks[0].linears(config.hidden_size).filter(|linear| which(linear.slot));
    linears.map(|linear| linear.shape.iter().product::<usize>() as u64).sum()
}

#[test]
fn bf16_is_planned_in_half_the_bytes_and_refused_by_the_cpu() {
    fn parts<T: Real>(device: &Device) -> (Decoder<T>, Vec<Adapter<T>>) {
        let config = model(Family::Qwen3).config;
        let model = Decoder { weights: init::dry::<T>(device, &config).unwrap(), config };
        let lora = lora(&[], 0.1, true);
        let adapter = Adapter::new(device, &lora, &model.config, &model.weights, 1).unwrap();
        (model, vec![adapter])
    }
    fn peak<T: Real>() -> ByClass {
        let device = Device::dry();
        let (model, adapters) = parts::<T>(&device);
        let mut grads = vec![adapters[0].zeros_like(&device.class(Class::Gradient)).unwrap()];
        model
            .score_and_backward(&device, &batch(&[(40, 0)]), &adapters, &mut grads, options(1.0, None))
            .unwrap();
        device.peak_by_class()
    }
    let (wide, narrow) = (peak::<f32>(), peak::<bf16>());
    assert_eq!(wide.get(Class::Gradient), narrow.get(Class::Gradient));
    let rest = |all: ByClass| all.total() - all.get(Class::Gradient);
    // Statistics stay f32.
    assert!(rest(narrow) * 2 > rest(wide) && rest(narrow) * 18 < rest(wide) * 10, "{wide:?} {narrow:?}");

    let (model, adapters) = parts::<bf16>(&Device::dry());
    let error = model.score(&cpu(), &batch(&[(3, 0)]), &adapters).unwrap_err();
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().contains("bf16"), "{error}");
}

#[test]
fn a_batch_without_targets_costs_nothing_and_a_bad_one_is_refused() {
    let device = cpu();
    let model = model(Family::Qwen3);
    let adapters = [adapter(&device, &model, &lora(&[], 0.0, false), 1)];
    let mut empty = batch(&[(5, 0)]);
    empty.targets.tokens_mut().unwrap().clear();
    let (loss, grads) = loss_and_grads(&device, &model, &empty, &adapters, None);
    assert_eq!(loss, 0.0);
    assert!(grads[0].tensors().iter().all(|t| t.data().iter().all(|&g| g == 0.0)));
    for bad in [batch(&[(65, 0)]), batch(&[(5, 1)])] {
        assert!(model.score(&device, &bad, &adapters).is_err());
    }
}

/// The same weights with the norms behind the residual addition.
fn post_norm(family: Family, layers: usize) -> Decoder<f64> {
    wired(family, layers, Wiring::PostNorm)
}

/// A model whose norms stand so, and are not 1, so that none can be left out.
fn wired(family: Family, layers: usize, wiring: Wiring) -> Decoder<f64> {
    let config = config(family, layers).with_blocks(|block| block.wiring = wiring);
    let mut model = Decoder { weights: init::random(&cpu(), &config, 3).unwrap(), config };
    for (i, norm) in model.weights.norms.iter_mut().enumerate() {
        let noise = random::<f64>(&cpu(), 1, norm.weight.cols(), 50 + i as u32);
        norm.weight.data_mut().iter_mut().zip(noise.data()).for_each(|(x, n)| *x += 0.3 * n);
    }
    model
}

#[test]
fn norms_behind_the_addition_have_right_gradients_under_every_policy() {
    let device = cpu();
    let dropout = Some(DropoutStep { seed: 1, step: 2 });
    for (layers, modules) in [(1, vec![]), (2, vec![]), (3, vec!["k_proj", "down_proj"])] {
        let model = post_norm(Family::Qwen3, layers);
        let batch = batch(&[(9, 0), (1, 0), (5, 0)]);
        let mut adapters = vec![adapter(&device, &model, &lora(&modules, 0.3, false), 1)];
        let (loss, grads) = loss_and_grads(&device, &model, &batch, &adapters, dropout);
        for policy in [Policy::DropGateUp, Policy::Checkpoint] {
            let mut again = vec![adapters[0].zeros_like(&device).unwrap()];
            let options = PassOptions { policies: &[policy; 3], ..options(0.25, dropout) };
            model.score_and_backward(&device, &batch, &adapters, &mut again, options).unwrap();
            for (a, b) in grads[0].tensors().into_iter().zip(again[0].tensors()) {
                assert_eq!(a.data(), b.data(), "{policy:?}");
            }
        }
        assert_ne!(
            loss,
            loss_and_grads(&device, &model_of(Family::Qwen3, layers), &batch, &adapters, dropout).0
        );
        for (i, grad) in grads[0].tensors().into_iter().enumerate() {
            let at = device.tensor(grad.rows(), grad.cols(), adapters[0].tensors()[i].data()).unwrap();
            let cell = std::cell::RefCell::new(&mut adapters);
            check_gradient(&device, &format!("{layers} {i}"), &at, grad.data(), |moved: &Tensor<f64>| {
                let mut adapters = cell.borrow_mut();
                adapters[0].tensors_mut()[i].data_mut().copy_from_slice(moved.data());
                loss_and_grads(&device, &model, &batch, &adapters, dropout).0
            });
            cell.borrow_mut()[0].tensors_mut()[i].data_mut().copy_from_slice(at.data());
        }
    }
}

/// With sublayers that give 0, what is left is the norms: all of them where they stand behind the addition, else the last.
#[test]
fn the_wiring_says_which_norms_the_stream_goes_through() {
    let device = cpu();
    for wiring in [Wiring::PreNorm, Wiring::PostNorm] {
        let mut model = wired(Family::Qwen3, 2, wiring);
        for number in 0..model.weights.sites.len() {
            if matches!(model.weights.sites[number].slot, Slot::O | Slot::Down) {
                let Weight::Dense(weight) = &mut model.weights.linears[number].weight;
                weight.data_mut().fill(0.0);
            }
        }
        let batch = batch(&[(1, 0)]);
        let logits = model.logits(&device, &batch, &[], &[0]).unwrap();
        let (hidden, table) = (model.config.hidden_size, model.weights.embed_tokens.data());
        let mut x: Vec<f64> = table[batch.input_ids[0] as usize * hidden..][..hidden].to_vec();
        let last = model.weights.norms.len() - 1;
        for (i, norm) in model.weights.norms.iter().enumerate() {
            if wiring == Wiring::PostNorm || i == last {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / hidden as f64;
                let rstd = 1.0 / (mean + norm.spec.eps).sqrt();
                x.iter_mut().zip(norm.weight.data()).for_each(|(x, w)| *x *= rstd * w);
            }
        }
        for (token, got) in logits.data().iter().enumerate() {
            let head = &model.weights.logit_matrix().data()[token * hidden..][..hidden];
            let expected: f64 = head.iter().zip(&x).map(|(h, x)| h * x).sum();
            assert!((got - expected).abs() < 1e-12, "{wiring:?} {token}: {got} {expected}");
        }
    }
}
