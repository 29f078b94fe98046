//! Whole trainings on a small model: what must not change an update, resuming, stopping, evaluation, rotation.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, and what they measured")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tanren::config::{Dtype, MemorySize, Resume, TargetModules, TrainConfig};
use tanren::error::Error;
use tanren::formats::adapter::read_adapter;
use tanren::formats::safetensors::TensorFile;
use tanren::model::open::write_random;
use tanren::rng::{Purpose, Stream};
use tanren::train::{Context, Event, Summary, run};

/// A model of 3 layers with a vocabulary of 311.
fn model() -> String {
    format!("{}/tests/golden/qwen3_lora/model", env!("CARGO_MANIFEST_DIR"))
}

/// `rows` rows of 5 to 30 tokens, the last few of each supervised.
pub(crate) fn write_rows(path: &Path, rows: usize, seed: u64) {
    let mut stream = Stream::new(seed, Purpose::Split, 0);
    let mut text = String::new();
    for _ in 0..rows {
        let len = 5 + stream.below(26) as usize;
        let ids: Vec<u32> = (0..len).map(|_| stream.below(311)).collect();
        let prompt = 1 + stream.below(len as u32 - 1) as usize;
        let labels: Vec<i64> =
            ids.iter().enumerate().map(|(i, &id)| if i < prompt { -100 } else { i64::from(id) }).collect();
        text += &format!("{}\n", json!({ "input_ids": ids, "labels": labels }));
    }
    std::fs::write(path, text).unwrap();
}

/// A folder with rows, and the settings of a short run in it.
pub(crate) struct Setup {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: TrainConfig,
}

pub(crate) fn setup(edit: impl FnOnce(&mut TrainConfig)) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    write_rows(&dir.path().join("train.jsonl"), 24, 1);
    write_rows(&dir.path().join("eval.jsonl"), 6, 2);
    let mut config = TrainConfig {
        model: model(),
        train_file: vec![dir.path().join("train.jsonl")],
        output_dir: dir.path().join("out"),
        threads: Some(2),
        batch_size: Some(4),
        max_steps: Some(3),
        learning_rate: 1e-2,
        lora_r: 4,
        lora_alpha: 8.0,
        logging_steps: 1,
        ..TrainConfig::default()
    };
    edit(&mut config);
    Setup { dir, config }
}

pub(crate) fn train(config: &TrainConfig) -> Summary {
    run(config, &Context::default(), &mut |_| ()).unwrap()
}

/// Runs until `steps` steps are done in all, then asks to stop.
pub(crate) fn train_until(config: &TrainConfig, steps: u64) -> Result<Summary, Error> {
    let done = Arc::new(AtomicU64::new(0));
    let seen = done.clone();
    let stop: Arc<dyn Fn() -> bool + Send + Sync> = Arc::new(move || seen.load(Ordering::SeqCst) >= steps);
    let context = Context { stop: Some(stop), ..Context::default() };
    run(config, &context, &mut |event| {
        if let Event::Step(log) = event {
            done.store(log.step, Ordering::SeqCst);
        }
    })
}

fn tensors(dir: &Path) -> Vec<(String, Vec<f32>)> {
    read_adapter(dir).unwrap().tensors.into_iter().map(|(name, t)| (name, t.data)).collect()
}

/// Norm of the difference of two adapters relative to the norm of the first.
fn difference(a: &Path, b: &Path) -> f64 {
    relative(&tensors(a), &tensors(b))
}

fn relative(a: &[(String, Vec<f32>)], b: &[(String, Vec<f32>)]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for ((name, a), (other, b)) in a.iter().zip(b) {
        assert_eq!((name, a.len()), (other, b.len()));
        difference += a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        norm += a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
    }
    (difference / norm).sqrt()
}

/// What watchers are shown is what the log and the picture have: the mean over the steps since the line before.
#[test]
fn lines_of_the_log_are_events_with_the_loss_of_the_same_steps() {
    let setup = setup(|config| (config.max_steps, config.logging_steps) = (Some(5), 2));
    let (mut steps, mut logged) = (Vec::new(), Vec::new());
    run(&setup.config, &Context::default(), &mut |event| match event {
        Event::Step(step) => steps.push(step.loss),
        Event::Logged(line) => logged.push((line.step, line.loss)),
        _ => {}
    })
    .unwrap();
    let mean = |from: usize, to: usize| steps[from..to].iter().sum::<f64>() / (to - from) as f64;
    assert_eq!(logged, [(2, mean(0, 2)), (4, mean(2, 4)), (5, mean(4, 5))]);
    let losses = |rows: Vec<Value>| -> Vec<(u64, f64)> {
        rows.iter().filter_map(|row| Some((row["step"].as_u64()?, row["loss"].as_f64()?))).collect()
    };
    assert_eq!(losses(log(&setup.config.output_dir)), logged);
    let state = std::fs::read_to_string(setup.config.output_dir.join("trainer_state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(losses(state["log_history"].as_array().unwrap().clone()), logged);
}

/// The first moments after the first step: the clipped gradient times 0.1.
fn first_gradient(dir: &Path) -> Vec<(String, Vec<f32>)> {
    let file = TensorFile::open(&dir.join("checkpoint-1/optimizer.safetensors")).unwrap();
    let names: Vec<String> = file.names().filter(|n| n.starts_with("exp_avg.")).map(str::to_owned).collect();
    names.into_iter().map(|n| (n.clone(), file.get(&n).unwrap().to_f32().unwrap())).collect()
}

fn log(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("training_log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn batch_size_accumulation_packing_and_passes_do_not_change_an_update() {
    // The starting adapter of a golden: no gradient is zero there.
    let start = Path::new(&model()).with_file_name("adapter_init");
    for dropout in [0.0, 0.3] {
        let with = |edit: fn(&mut TrainConfig)| {
            let setup = setup(|c| {
                (c.lora_dropout, c.init_adapter, c.save_steps) = (dropout, Some(start.clone()), Some(1));
                c.learning_rate = 2e-4;
                edit(c);
            });
            train(&setup.config);
            setup
        };
        let reference = with(|c| c.batch_size = Some(8));
        let cases: [fn(&mut TrainConfig); 5] = [
            |c| (c.batch_size, c.gradient_accumulation_steps) = (Some(4), 2),
            |c| (c.batch_size, c.gradient_accumulation_steps) = (Some(1), 8),
            |c| (c.batch_size, c.max_tokens_per_pass) = (Some(8), 40),
            |c| (c.batch_size, c.max_tokens_per_pass) = (Some(8), 1),
            |c| (c.batch_size, c.threads) = (Some(8), Some(1)),
        ];
        for (i, edit) in cases.into_iter().enumerate() {
            let other = with(edit);
            let (a, b) = (&reference.config.output_dir, &other.config.output_dir);
            let gradient = relative(&first_gradient(a), &first_gradient(b));
            let update = difference(&a.join("checkpoint-1"), &b.join("checkpoint-1"));
            // Adam divides by the size of the gradient: where that is about its epsilon, an update magnifies rounding.
            let third = difference(a, b);
            let measured =
                format!("gradient {gradient:.1e}, adapter {update:.1e}, after 3 steps {third:.1e}");
            println!("case {i}, dropout {dropout}: {measured}");
            assert!(gradient < 2e-6 && update < 1e-6 && third < 1e-5, "case {i}: {measured}");
            for (a, b) in log(a).iter().zip(&log(b)).filter(|(a, _)| a.get("loss").is_some()) {
                let (a, b) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
                assert!((a / b - 1.0).abs() < 1e-6, "case {i}: {a} {b}");
            }
        }
    }
}

#[test]
fn batches_filled_by_tokens_train_the_same_rows() {
    // A budget that holds every row makes one micro-batch per epoch, as a large enough batch does.
    let by_rows = setup(|c| c.batch_size = Some(24));
    let by_tokens = setup(|c| (c.batch_size, c.tokens_per_batch) = (None, Some(100_000)));
    train(&by_rows.config);
    train(&by_tokens.config);
    assert!(difference(&by_rows.config.output_dir, &by_tokens.config.output_dir) < 1e-5);
}

#[test]
fn a_shared_prefix_changes_nothing_but_the_work() {
    let edit = |c: &mut TrainConfig| {
        let path = c.train_file[0].clone();
        let prompt: Vec<u32> = (0..40).map(|i| i * 7 % 311).collect();
        let mut text = String::new();
        for i in 0..8u32 {
            let mut ids = prompt.clone();
            ids.extend([(100 + i) % 311, 5, i]);
            let labels: Vec<i64> =
                ids.iter().enumerate().map(|(t, &id)| if t < 41 { -100 } else { i64::from(id) }).collect();
            text += &format!("{}\n", json!({ "input_ids": ids, "labels": labels }));
        }
        std::fs::write(path, text).unwrap();
        (c.batch_size, c.save_steps) = (Some(8), Some(1));
        c.init_adapter = Some(Path::new(&model()).with_file_name("adapter_init"));
    };
    let apart = setup(edit);
    let shared = setup(|c| {
        edit(c);
        c.share_prefix = true;
    });
    let (_, _) = (train(&apart.config), train(&shared.config));
    let (a, b) = (&apart.config.output_dir, &shared.config.output_dir);
    let gradient = relative(&first_gradient(a), &first_gradient(b));
    assert!(gradient < 1e-6, "{gradient:e}");
    let flops = |setup: &Setup| log(&setup.config.output_dir).last().unwrap()["total_flos"].as_f64().unwrap();
    assert!(flops(&shared) < 0.5 * flops(&apart));
}

#[test]
fn a_run_resumed_after_any_step_gives_the_same_bytes() {
    let edit = |c: &mut TrainConfig| {
        // 24 rows in micro-batches of 3, 2 of them a step: 4 steps an epoch, 3 epochs.
        (c.batch_size, c.gradient_accumulation_steps, c.max_steps) = (Some(3), 2, None);
        (c.lora_dropout, c.weight_decay, c.warmup_steps) = (0.2, 0.01, Some(2));
        c.save_steps = Some(1000);
    };
    let whole = setup(edit);
    assert_eq!(train(&whole.config).global_step, 12);
    let files = ["adapter_model.safetensors", "optimizer.safetensors", "rng_state.json"];
    let bytes = |dir: &Path| -> Vec<Vec<u8>> {
        files.iter().map(|f| std::fs::read(dir.join("checkpoint-12").join(f)).unwrap()).collect()
    };
    let expected = bytes(&whole.config.output_dir);
    for k in 1..12 {
        let mut part = setup(edit);
        part.config.train_file = whole.config.train_file.clone();
        match train_until(&part.config, k) {
            Err(Error::Interrupted { step, checkpoint }) => {
                assert_eq!((step, checkpoint.is_dir()), (k, true));
            }
            other => panic!("{other:?}"),
        }
        part.config.resume = Some(Resume::Auto);
        assert_eq!(train(&part.config).global_step, 12);
        assert!(bytes(&part.config.output_dir) == expected, "resumed after step {k}");
    }
    assert!(whole.dir.path().exists());
}

#[test]
fn threads_do_not_change_a_byte() {
    let with = |threads| {
        let setup = setup(|c| (c.threads, c.lora_dropout) = (Some(threads), 0.1));
        train(&setup.config);
        std::fs::read(setup.config.output_dir.join("adapter_model.safetensors")).unwrap()
    };
    let one = with(1);
    assert!(one == with(2) && one == with(3));
}

#[test]
fn resuming_with_other_settings_or_rows_is_refused() {
    let setup = setup(|c| c.save_steps = Some(1));
    train(&setup.config);
    let resumed = |edit: &dyn Fn(&mut TrainConfig)| {
        let mut config = setup.config.clone();
        (config.resume, config.max_steps) = (Some(Resume::Auto), Some(5));
        edit(&mut config);
        run(&config, &Context::default(), &mut |_| ())
    };
    for (name, edit) in [
        ("learning_rate", &(|c: &mut TrainConfig| c.learning_rate = 1.0) as &dyn Fn(&mut TrainConfig)),
        ("seed", &|c| c.seed = 7),
        ("batch_size", &|c| c.batch_size = Some(5)),
        ("training rows", &|c| c.train_file.push(c.train_file[0].clone())),
    ] {
        let error = resumed(edit).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("fix:"), "{error}");
    }
    assert_eq!(resumed(&|c| c.threads = Some(1)).unwrap().global_step, 5);
}

#[test]
fn an_output_folder_with_a_run_is_only_touched_if_asked() {
    let mut setup = setup(|_| ());
    train(&setup.config);
    let again = |config: &TrainConfig| run(config, &Context::default(), &mut |_| ());
    let error = again(&setup.config).unwrap_err().to_string();
    assert!(error.contains("--resume auto") && error.contains("--overwrite"), "{error}");
    (setup.config.overwrite, setup.config.max_steps) = (true, Some(1));
    assert_eq!(again(&setup.config).unwrap().global_step, 1);
    assert!(!setup.config.output_dir.join("checkpoint-3").exists());
}

#[test]
fn the_best_checkpoint_survives_rotation_and_becomes_the_adapter() {
    let setup = setup(|c| {
        c.eval_file = vec![c.train_file[0].with_file_name("eval.jsonl")];
        // Steps so long that the model gets worse.
        (c.learning_rate, c.max_steps) = (0.5, Some(6));
        (c.eval_steps, c.save_steps, c.save_total_limit) = (Some(1), Some(1), Some(1));
        c.load_best_model_at_end = true;
    });
    let summary = train(&setup.config);
    let out = &setup.config.output_dir;
    let evals: Vec<(u64, f64)> =
        log(out).iter().filter_map(|row| Some((row["step"].as_u64()?, row["eval_loss"].as_f64()?))).collect();
    assert_eq!(evals.len(), 6);
    let best = evals.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(summary.best_metric, Some(best.1));
    let checkpoint = out.join(format!("checkpoint-{}", best.0));
    assert_eq!(summary.best_model_checkpoint.as_deref(), Some(checkpoint.as_path()));
    let adapter = |dir: &Path| std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
    assert_eq!(adapter(out), adapter(&checkpoint));
    let checkpoints: Vec<PathBuf> = std::fs::read_dir(out)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("checkpoint-"))
        .collect();
    let last = out.join("checkpoint-6");
    assert!(checkpoints.contains(&checkpoint) && checkpoints.contains(&last), "{checkpoints:?}");
    assert!(checkpoints.len() <= 2, "{checkpoints:?}");
    let state: Value =
        serde_json::from_slice(&std::fs::read(out.join("trainer_state.json")).unwrap()).unwrap();
    assert_eq!(state["best_model_checkpoint"], json!(format!("checkpoint-{}", best.0)));
    assert_eq!(state["global_step"], json!(6));
    assert!(state["log_history"].as_array().unwrap().len() == 12);
}

#[test]
fn early_stopping_ends_a_run_that_gets_worse() {
    let setup = setup(|c| {
        c.eval_fraction = Some(0.2);
        (c.learning_rate, c.max_steps, c.eval_steps) = (5.0, Some(30), Some(1));
        c.early_stopping_patience = Some(2);
    });
    let summary = train(&setup.config);
    assert!(summary.stopped_early && summary.global_step < 30, "{summary:?}");
    // Resuming it is not training on.
    let resumed = train(&TrainConfig { resume: Some(Resume::Auto), ..setup.config.clone() });
    assert_eq!((resumed.global_step, resumed.stopped_early), (summary.global_step, true));
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_publishes_nothing() {
    let setup = setup(|c| (c.learning_rate, c.max_grad_norm, c.max_steps) = (1e30, 0.0, Some(5)));
    let error = run(&setup.config, &Context::default(), &mut |_| ()).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(error.to_string().contains("train.jsonl:"), "{error}");
    assert!(!setup.config.output_dir.join("adapter_model.safetensors").exists());
}

#[test]
fn a_dry_run_plans_the_memory_that_the_run_takes_and_writes_nothing() {
    for edit in [
        (|_| ()) as fn(&mut TrainConfig),
        |c| c.lora_dropout = 0.1,
        |c| c.target_modules = TargetModules::List(vec!["q_proj".into(), "v_proj".into()]),
    ] {
        // One batch of all rows: the longest pass of the plan is that of the run.
        let mut setup = setup(|c| {
            (c.batch_size, c.max_steps) = (Some(24), Some(2));
            edit(c);
        });
        setup.config.dry_run = true;
        let mut planned = None;
        run(&setup.config, &Context::default(), &mut |event| {
            if let Event::Planned(plan) = event {
                planned = Some(plan.clone());
            }
        })
        .unwrap();
        assert!(!setup.config.output_dir.exists());
        setup.config.dry_run = false;
        let summary = train(&setup.config);
        let planned = planned.unwrap();
        assert_eq!(summary.peak_bytes, planned.peak_bytes, "{planned:?}");
        let flos = log(&setup.config.output_dir).last().unwrap()["total_flos"].as_f64().unwrap();
        assert!(
            (flos / (2.0 * planned.step_flops as f64) - 1.0).abs() < 0.01,
            "{flos} {}",
            planned.step_flops
        );
    }
}

#[test]
fn a_dry_run_can_be_stopped_wherever_it_is() {
    // Too little memory for the first choice: the plan searches for what blocks may keep.
    let mut setup = setup(|c| (c.dry_run, c.max_steps) = (true, Some(2)));
    let mut planned = |limit| {
        setup.config.memory_limit = limit;
        let mut bytes = 0;
        let watch = &mut |event: Event<'_>| {
            if let Event::Planned(plan) = event {
                bytes = plan.peak_bytes;
            }
        };
        run(&setup.config, &Context::default(), watch).map(|_| bytes)
    };
    let peak = planned(None).unwrap();
    let limit = (0..40)
        .map(|i| MemorySize::from_bytes(peak - peak * i / 100))
        .take_while(|limit| planned(Some(*limit)).is_ok());
    setup.config.memory_limit = limit.last();
    // Runs until the question number `last`; how many there were, and how many of them behind the rows.
    let run_until = |last: u64| {
        let asked = Arc::new(AtomicU64::new(0));
        let counted = asked.clone();
        let context = Context::default().stop_when(move || counted.fetch_add(1, Ordering::SeqCst) >= last);
        let mut of_rows = 0;
        let result = run(&setup.config, &context, &mut |event| {
            if let Event::Audit { .. } = event {
                of_rows = asked.load(Ordering::SeqCst);
            }
        });
        (result, asked.load(Ordering::SeqCst), of_rows)
    };
    let (result, questions, of_rows) = run_until(u64::MAX);
    result.unwrap();
    assert!(of_rows >= 48, "{of_rows}: every row is read and tokenised");
    assert!(questions - of_rows > 20, "{}: every trial of the search asks", questions - of_rows);
    for last in (0..questions).step_by(5) {
        let (result, ..) = run_until(last);
        let error = result.map(drop).unwrap_err();
        assert_eq!((error.code(), error.exit_code()), ("STOPPED", 130), "{last} of {questions}: {error}");
    }
    assert!(!setup.config.output_dir.exists());
}

#[test]
fn an_adapter_can_start_from_another_one() {
    let first = setup(|_| ());
    train(&first.config);
    let second = setup(|c| {
        c.init_adapter = Some(first.config.output_dir.clone());
        (c.max_steps, c.learning_rate) = (Some(1), 1e-9);
    });
    train(&second.config);
    assert!(difference(&first.config.output_dir, &second.config.output_dir) < 1e-5);
    let other_rank = setup(|c| {
        c.init_adapter = Some(first.config.output_dir.clone());
        c.lora_r = 8;
    });
    let error = run(&other_rank.config, &Context::default(), &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("lora_r") && error.contains("got 8, expected 4"), "{error}");
}

#[test]
fn dora_and_rslora_runs_write_what_peft_expects() {
    let setup = setup(|c| (c.use_dora, c.use_rslora) = (true, true));
    train(&setup.config);
    let out = &setup.config.output_dir;
    let config: Value =
        serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["use_dora"], &config["use_rslora"]), (&json!(true), &json!(true)));
    let file = TensorFile::open(&out.join("adapter_model.safetensors")).unwrap();
    let name = "base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector";
    assert_eq!(file.get(name).unwrap().shape(), [64]);
}

#[test]
fn weights_in_bf16_train_like_the_same_weights_in_f32() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = tanren::config::variant("qwen3-tiny").unwrap();
    let losses = [Dtype::F32, Dtype::Bf16].map(|dtype| {
        let model = dir.path().join(dtype.to_string());
        write_random(tiny, &model, 3, dtype).unwrap();
        let setup = setup(|c| (c.model, c.max_steps) = (model.display().to_string(), Some(2)));
        train(&setup.config);
        let rows = log(&setup.config.output_dir);
        rows.iter().filter_map(|row| row["loss"].as_f64()).collect::<Vec<_>>()
    });
    assert_eq!(losses[0].len(), 2);
    for (f32, bf16) in losses[0].iter().zip(&losses[1]) {
        // Rounding a weight to 8 bits changes the loss, but not by much.
        let relative = (f32 / bf16 - 1.0).abs();
        assert!(relative > 0.0 && relative < 1e-3, "{f32} {bf16}");
    }
}

#[test]
fn a_row_that_no_batch_can_hold_is_found_before_the_first_step() {
    for file in ["train.jsonl", "eval.jsonl"] {
        let setup = setup(|c| {
            (c.batch_size, c.tokens_per_batch) = (None, Some(40));
            c.eval_file = vec![c.train_file[0].with_file_name("eval.jsonl")];
            let long: Vec<u32> = (0..50).collect();
            let row = json!({ "input_ids": long, "labels": long });
            let path = c.train_file[0].with_file_name(file);
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, format!("{text}{row}\n")).unwrap();
        });
        let error = run(&setup.config, &Context::default(), &mut |_| ()).unwrap_err().to_string();
        let line = if file == "train.jsonl" { 25 } else { 7 };
        let expected = format!("{file}:{line}: the row is longer than a whole micro-batch: got 50 tokens");
        assert!(error.contains(&expected), "{error}");
    }
}
