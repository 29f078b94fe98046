//! Random runs through the GPU kernels in bf16 beside the same runs on the CPU in f32: rows of any shape,
//! batches filled in any way, shared prefixes, every policy. Each run has exactly the planned memory.

#![cfg(feature = "emulated")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use serde_json::json;
use tanren::config::{
    ActivationPolicy, BlockNumbers, ByName, DeviceChoice, Dtype, TargetModules, TrainConfig,
};
use tanren::train::{Context, Event, run};

use crate::train::{Setup, setup};

/// Maximum difference of losses of steps and evaluations, relative to the larger of 1 and the loss: twice the
/// maximum of 600 such runs.
const LIMIT: f64 = 1.5e-2;

/// A row: its shared prefix and the length of it that it uses, its own tokens, and which of them are
/// supervised.
#[derive(Debug, Clone)]
struct Row {
    start: Option<Index>,
    shared: usize,
    own: Vec<u32>,
    supervised: Supervised,
}

#[derive(Debug, Clone)]
enum Supervised {
    Last,
    All,
    From(Index),
    Every(usize),
}

fn row() -> impl Strategy<Value = Row> {
    let own = prop_oneof![
        prop::collection::vec(0u32..311, 2..5),
        prop::collection::vec(0u32..311, 5..40),
        prop::collection::vec(0u32..311, 50..68),
    ];
    let supervised = prop_oneof![
        Just(Supervised::Last),
        Just(Supervised::All),
        any::<Index>().prop_map(Supervised::From),
        (2usize..9).prop_map(Supervised::Every),
    ];
    (any::<Option<Index>>(), 1usize..60, own, supervised).prop_map(|(start, shared, own, supervised)| Row {
        start,
        shared,
        own,
        supervised,
    })
}

fn write(path: &Path, rows: &[Row]) {
    // Prefixes with common prefixes, so that prefixes have prefixes.
    let starts: [Vec<u32>; 3] = [0, 20, 45]
        .map(|at| (0..60).map(|t| if t < at { t * 7 % 311 } else { (t * 13 + at) % 311 }).collect());
    let mut text = String::new();
    for row in rows {
        let mut ids = row.start.map_or(Vec::new(), |start| start.get(&starts)[..row.shared].to_vec());
        ids.extend(&row.own);
        let last = ids.len() - 1;
        let has_loss = |i: usize| {
            i == last
                || match row.supervised {
                    Supervised::Last => false,
                    Supervised::All => true,
                    Supervised::From(first) => i >= first.index(ids.len()),
                    Supervised::Every(n) => i.is_multiple_of(n),
                }
        };
        let labels: Vec<i64> =
            ids.iter().enumerate().map(|(i, &id)| if has_loss(i) { id.into() } else { -100 }).collect();
        text += &format!("{}\n", json!({ "input_ids": ids, "labels": labels }));
    }
    std::fs::write(path, text).unwrap();
}

/// The options that decide how rows become passes, and what a pass computes.
#[derive(Debug, Clone)]
struct Options {
    batch_size: Option<usize>,
    tokens_per_batch: Option<usize>,
    eval_batch_size: Option<usize>,
    gradient_accumulation_steps: usize,
    max_tokens_per_pass: usize,
    share_prefix: bool,
    activation_policy: ActivationPolicy,
    use_dora: bool,
    lora_dropout: f64,
    lora_r: usize,
    target_modules: Vec<&'static str>,
    layers_to_transform: Option<Vec<usize>>,
    rank_of_last: Option<usize>,
    seed: u64,
}

fn options() -> impl Strategy<Value = Options> {
    let batches = prop_oneof![
        (1usize..7).prop_map(|rows| (Some(rows), None)),
        select(vec![130, 190, 600]).prop_map(|tokens| (None, Some(tokens)))
    ];
    let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let policies = [
        ActivationPolicy::Auto,
        ActivationPolicy::KeepAll,
        ActivationPolicy::DropGateUp,
        ActivationPolicy::Checkpoint,
    ];
    let of_batches =
        (batches, prop::option::of(1usize..7), select(vec![1, 1, 2, 3]), select(vec![130, 256, 4096]));
    let of_passes =
        (any::<bool>(), select(policies.to_vec()), prop::bool::weighted(0.25), select(vec![0.0, 0.0, 0.2]));
    let blocks = prop::option::weighted(0.3, subsequence(vec![0, 1, 2], 1..=2));
    let rank = prop::option::weighted(0.3, select(vec![1, 3, 17, 33]));
    let of_adapters =
        (select(vec![1, 4, 16, 20]), subsequence(modules.to_vec(), 1..=7), 0u64..100, blocks, rank);
    (of_batches, of_passes, of_adapters).prop_map(|(batches, passes, adapters)| Options {
        batch_size: batches.0.0,
        tokens_per_batch: batches.0.1,
        eval_batch_size: batches.1,
        gradient_accumulation_steps: batches.2,
        max_tokens_per_pass: batches.3,
        share_prefix: passes.0,
        activation_policy: passes.1,
        use_dora: passes.2,
        lora_dropout: passes.3,
        lora_r: adapters.0,
        target_modules: adapters.1,
        seed: adapters.2,
        layers_to_transform: adapters.3,
        rank_of_last: adapters.4,
    })
}

/// Losses of all steps and evaluations. A run on an emulator reserves the memory of its plan, so a wrong plan
/// makes it fail.
fn losses(config: &TrainConfig) -> Vec<f64> {
    let mut losses = Vec::new();
    let done = run(config, &Context::default(), &mut |event| match event {
        Event::Step(log) => losses.push(log.loss),
        Event::Evaluated { metrics, .. } => losses.push(metrics.eval_loss),
        _ => {}
    });
    done.unwrap();
    losses
}

fn configured(options: &Options, rows: &[Row], eval: &[Row]) -> Setup {
    setup(|c| {
        let eval_file = c.train_file[0].with_file_name("eval.jsonl");
        write(&c.train_file[0], rows);
        write(&eval_file, eval);
        c.eval_file = vec![eval_file];
        (c.num_epochs, c.max_steps, c.eval_steps, c.learning_rate) = (4.0, Some(3), Some(2), 1e-3);
        (c.batch_size, c.tokens_per_batch) = (options.batch_size, options.tokens_per_batch);
        (c.eval_batch_size, c.max_tokens_per_pass) = (options.eval_batch_size, options.max_tokens_per_pass);
        c.gradient_accumulation_steps = options.gradient_accumulation_steps;
        (c.share_prefix, c.activation_policy) = (options.share_prefix, options.activation_policy);
        (c.use_dora, c.lora_dropout, c.lora_r) = (options.use_dora, options.lora_dropout, options.lora_r);
        c.target_modules =
            TargetModules::List(options.target_modules.iter().map(|&m| m.to_owned()).collect());
        c.layers_to_transform = options.layers_to_transform.clone().map(BlockNumbers);
        // The last of the layers that have an adapter.
        let last = options.target_modules[options.target_modules.len() - 1].to_owned();
        c.rank_pattern = options.rank_of_last.map(|r| ByName(vec![(last, r)]));
        c.seed = options.seed;
    })
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 64, ..ProptestConfig::with_cases(12) })]

    #[test]
    fn random_runs_in_bf16_follow_those_on_the_cpu(
        options in options(),
        rows in prop::collection::vec(row(), 1..12),
        eval in prop::collection::vec(row(), 1..6),
    ) {
        let mut setup = configured(&options, &rows, &eval);
        let expected = losses(&setup.config);
        setup.config.output_dir = setup.dir.path().join("emulated");
        (setup.config.device, setup.config.dtype) = (DeviceChoice::Emulated, Dtype::Bf16);
        let got = losses(&setup.config);
        prop_assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            prop_assert!((got - expected).abs() <= LIMIT * expected.abs().max(1.0), "{} {}", got, expected);
        }
    }
}
