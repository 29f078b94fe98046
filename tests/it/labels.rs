//! Trainings and scorings with labels: what must not change an update, what is published, and what comes back from it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde_json::{Value, json};
use tanren::config::{
    ClassWeights, LrScheduler, Numbers, ScoreConfig, ScoreMode, TargetModules, TrainConfig,
};
use tanren::formats::adapter::read_adapter;
use tanren::rng::{Purpose, Stream};
use tanren::score::{self, Findings};
use tanren::train::Context;

use crate::train::{train, train_until};

fn model(case: &str) -> String {
    format!("{}/tests/golden/{case}/model", env!("CARGO_MANIFEST_DIR"))
}

/// Rows whose label says something about their first token; `label` gets a number from 0 to below 1.
fn write_rows(path: &Path, rows: usize, seed: u64, types: bool, label: impl Fn(f64) -> Value) {
    let mut stream = Stream::new(seed, Purpose::Split, 0);
    let mut text = String::new();
    for id in 0..rows {
        let len = 3 + stream.below(14) as usize;
        let ids: Vec<u32> = (0..len).map(|_| 5 + stream.below(50)).collect();
        let mut row = json!({ "id": id, "input_ids": ids, "label": label(f64::from(ids[0] - 5) / 50.0) });
        if types {
            row["token_type_ids"] = (0..len).map(|t| u32::from(2 * t > len)).collect();
        }
        text += &format!("{row}\n");
    }
    std::fs::write(path, text).unwrap();
}

struct Setup {
    dir: tempfile::TempDir,
    config: TrainConfig,
}

fn setup(case: &str, types: bool, task: &str, label: impl Fn(f64) -> Value + Copy) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_rows(&path("train.jsonl"), 48, 1, types, label);
    write_rows(&path("eval.jsonl"), 12, 2, types, label);
    let config = TrainConfig {
        model: model(case),
        train_file: vec![path("train.jsonl")],
        eval_file: vec![path("eval.jsonl")],
        output_dir: path("out"),
        threads: Some(2),
        batch_size: Some(8),
        max_steps: Some(24),
        learning_rate: 5e-3,
        lr_scheduler: LrScheduler::Constant,
        lora_r: 4,
        lora_alpha: 8.0,
        logging_steps: 1,
        task: task.to_owned().try_into().unwrap(),
        loss: if task == "regress" { tanren::config::Loss::Mse } else { tanren::config::Loss::CrossEntropy },
        ..TrainConfig::default()
    };
    Setup { dir, config }
}

fn scoring(setup: &Setup, mode: ScoreMode, output: &str) -> ScoreConfig {
    ScoreConfig {
        mode,
        model: setup.config.model.clone(),
        adapter: Some(setup.config.output_dir.clone()),
        data_file: setup.config.eval_file.clone(),
        output: setup.dir.path().join(output),
        threads: Some(2),
        ..ScoreConfig::default()
    }
}

fn scored(config: &ScoreConfig) -> (Findings, String) {
    let summary = score::run(config, &Context::default(), &mut |_| ()).unwrap();
    (summary.findings, std::fs::read_to_string(&config.output).unwrap())
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The bytes of the published adapter.
fn published(config: &TrainConfig) -> Vec<u8> {
    std::fs::read(config.output_dir.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn every_family_learns_and_scores_what_it_was_trained_for() {
    let number = |x: f64| json!(x);
    let class = |x: f64| json!((3.0 * x) as u32);
    let name = |x: f64| json!(if x < 0.5 { "low" } else { "high" });
    for (case, types, task, is_named) in [
        ("bert_regress", true, "regress", false),
        ("xlmr_regress", false, "regress", false),
        ("modernbert_regress", false, "regress", false),
        ("bert_regress", true, "classify", false),
        ("qwen3_seqcls", false, "classify", true),
        ("gpt2_lora", false, "classify", false),
        ("llama_lora", false, "regress", false),
    ] {
        let setup = match (task, is_named) {
            ("regress", _) => setup(case, types, task, number),
            (_, true) => setup(case, types, task, name),
            (_, false) => setup(case, types, task, class),
        };
        let summary = train(&setup.config);
        let eval = summary.eval.unwrap();
        let log = std::fs::read_to_string(setup.config.output_dir.join("training_log.jsonl")).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let losses: Vec<f64> = lines.filter_map(|line| line["loss"].as_f64()).collect();
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..6]), mean(&losses[losses.len() - 6..]));
        assert!(last < first, "{case} {task}: {last} after {first}");
        assert_eq!(eval.eval_r2.is_some(), task == "regress", "{case}");
        assert_eq!(eval.eval_accuracy.is_some(), task == "classify", "{case}");
        assert!(eval.eval_perplexity.is_none());
        // The folder says how to make the model.
        let out = &setup.config.output_dir;
        let config = json_of(&out.join("config.json"));
        let adapter = read_adapter(out).unwrap();
        assert_eq!(adapter.config.task_type.as_deref(), Some("SEQ_CLS"));
        assert!(config["architectures"][0].as_str().unwrap().ends_with("ForSequenceClassification"));
        let outputs = config["num_labels"].as_u64().unwrap() as usize;
        assert_eq!(config["id2label"].as_object().unwrap().len(), outputs);
        assert_eq!(
            outputs,
            if task == "regress" {
                1
            } else if is_named {
                2
            } else {
                3
            }
        );
        if is_named {
            assert_eq!(config["id2label"], json!({ "0": "high", "1": "low" }));
        }
        // Scoring finds what the evaluation found, by itself and by name.
        let mode = task.to_owned().try_into().unwrap();
        let (found, text) = scored(&scoring(&setup, ScoreMode::Auto, "auto.jsonl"));
        let Findings::Labels(report) = found else { panic!("{found:?}") };
        let metrics = report.metrics.unwrap();
        assert!(
            (metrics.loss - eval.eval_loss).abs() < 1e-6 * eval.eval_loss.max(1.0),
            "{case}: {metrics:?}"
        );
        assert_eq!((metrics.accuracy, metrics.r2.is_some()), (eval.eval_accuracy, eval.eval_r2.is_some()));
        assert_eq!(scored(&scoring(&setup, mode, "named.jsonl")).1, text, "{case}");
        let line: Value = serde_json::from_str(text.lines().nth(3).unwrap()).unwrap();
        assert_eq!((&line["id"], line["logits"].as_array().unwrap().len()), (&json!(3), outputs));
        assert_eq!(line["probabilities"].is_array(), task == "classify");
        if is_named {
            assert!(["low", "high"].contains(&line["prediction"].as_str().unwrap()));
        }
        let (_, table) = scored(&scoring(&setup, ScoreMode::Auto, "table.csv"));
        assert!(
            table.starts_with("id,line,file,label,prediction,") && table.lines().count() == 13,
            "{table}"
        );
    }
}

/// The same runs on the CPU in f32 and through the kernels in bf16, recorded, in exactly the planned memory.
#[cfg(feature = "emulated")]
#[test]
fn kernels_and_the_processor_train_the_same() {
    let number = |x: f64| json!(x);
    let class = |x: f64| json!((3.0 * x) as u32);
    let several = |x: f64| json!([u32::from(x < 0.6), u32::from(x > 0.3)]);
    for (case, types, task, loss) in [
        ("bert_regress", true, "regress", "sigmoid_mse"),
        ("xlmr_regress", false, "classify", "cross_entropy"),
        ("modernbert_regress", false, "regress", "mse"),
        ("qwen3_seqcls", false, "classify", "bce"),
        ("gpt2_lora", false, "classify", "cross_entropy"),
        ("llama_lora", false, "regress", "mse"),
    ] {
        let run = |device: &str| {
            let mut setup = match (task, loss) {
                ("regress", _) => setup(case, types, task, number),
                (_, "bce") => setup(case, types, task, several),
                _ => setup(case, types, task, class),
            };
            let config = &mut setup.config;
            config.loss = loss.to_owned().try_into().unwrap();
            config.device = device.to_owned().try_into().unwrap();
            if device == "emulated" {
                config.dtype = tanren::config::Dtype::Bf16;
            }
            if task == "classify" && loss == "cross_entropy" {
                config.class_weights = Some(ClassWeights::Numbers(Numbers(vec![1.0, 2.0, 0.5])));
                config.label_smoothing = Some(0.1);
            }
            config.lora_dropout = 0.1;
            config.learning_rate = 2e-3;
            config.weight_decay = 0.1;
            config.max_steps = Some(8);
            let summary = train(config);
            let log = std::fs::read_to_string(config.output_dir.join("training_log.jsonl")).unwrap();
            let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let losses: Vec<f64> = lines.filter_map(|line| line["loss"].as_f64()).collect();
            let scoring = ScoreConfig {
                device: config.device,
                dtype: config.dtype,
                ..scoring(&setup, ScoreMode::Auto, "scores.jsonl")
            };
            let Findings::Labels(report) = scored(&scoring).0 else { panic!() };
            let (found, eval) = (report.metrics.unwrap().loss, summary.eval.unwrap().eval_loss);
            // Scoring has neither weights nor smoothing.
            if setup.config.class_weights.is_none() {
                assert!((found - eval).abs() < 1e-2 * eval.max(1.0), "{case} {device}: {found} {eval}");
            }
            (losses, eval)
        };
        let ((cpu, eval), (gpu, gpu_eval)) = (run("cpu"), run("emulated"));
        for (a, b) in cpu.iter().chain([&eval]).zip(gpu.iter().chain([&gpu_eval])) {
            assert!((a - b).abs() < 1.5e-2 * a.max(1.0), "{case} {task} {loss}: {cpu:?} {gpu:?}");
        }
    }
}

#[test]
fn batches_passes_and_accumulation_change_no_update() {
    let tensors = |config: &TrainConfig| {
        train(config);
        read_adapter(&config.output_dir).unwrap().tensors
    };
    let class = |x: f64| json!((3.0 * x) as u32);
    let of = |edit: fn(&mut TrainConfig)| {
        let mut setup = setup("bert_regress", true, "classify", class);
        setup.config.learning_rate = 1e-3;
        setup.config.class_weights = Some(ClassWeights::Numbers(Numbers(vec![1.0, 2.0, 0.5])));
        setup.config.label_smoothing = Some(0.1);
        setup.config.lora_dropout = 0.1;
        setup.config.max_steps = Some(4);
        edit(&mut setup.config);
        tensors(&setup.config)
    };
    let whole = of(|_| ());
    for edit in [
        (|config| {
            config.batch_size = Some(2);
            config.gradient_accumulation_steps = 4;
        }) as fn(&mut TrainConfig),
        |config| config.max_tokens_per_pass = 20,
        |config| config.activation_policy = tanren::config::ActivationPolicy::Checkpoint,
    ] {
        for (name, tensor) in of(edit) {
            let expected = &whole[&name];
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 2e-5;
            assert!(tensor.data.iter().zip(&expected.data).all(near), "{name}");
        }
    }
    let other = of(|config| config.class_weights = None);
    assert!(other.iter().any(|(name, tensor)| whole[name] != *tensor));
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    let number = |x: f64| json!(10.0 * x - 3.0);
    let mut whole = setup("modernbert_regress", false, "regress", number);
    whole.config.loss = tanren::config::Loss::SigmoidMse;
    whole.config.target_shift = tanren::config::TargetShift::Minmax;
    whole.config.lora_dropout = 0.2;
    whole.config.save_steps = Some(3);
    train(&whole.config);
    let mut part = setup("modernbert_regress", false, "regress", number);
    part.config = TrainConfig { output_dir: part.config.output_dir.clone(), ..whole.config.clone() };
    assert!(train_until(&part.config, 5).is_err());
    part.config.resume = Some(tanren::config::Resume::Auto);
    train(&part.config);
    assert_eq!(published(&part.config), published(&whole.config));
    // Predictions are in the units of the rows.
    let (_, text) = scored(&scoring(&whole, ScoreMode::Regress, "scores.jsonl"));
    let settings = json_of(&whole.config.output_dir.join("label_settings.json"));
    let [offset, scale] = ["target_offset", "target_scale"].map(|key| settings[key][0].as_f64().unwrap());
    assert!(offset < 0.0 && scale > 5.0, "{settings}");
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let share = 1.0 / (1.0 + (-line["logits"][0].as_f64().unwrap()).exp());
        assert!((line["prediction"].as_f64().unwrap() - (share * scale + offset)).abs() < 1e-5);
    }
    // Training goes on from the adapter, with its own loss and labels.
    let options = [
        ("model", whole.config.model.clone()),
        ("train_file", whole.config.train_file[0].display().to_string()),
        ("output_dir", whole.dir.path().join("on").display().to_string()),
        ("init_adapter", whole.config.output_dir.display().to_string()),
        ("max_steps", "1".to_owned()),
    ];
    let on = TrainConfig::from_pairs(options.clone()).unwrap();
    assert_eq!((on.task.to_string(), on.loss.to_string()), ("regress".into(), "sigmoid_mse".into()));
    train(&on);
    let kept = json_of(&on.output_dir.join("label_settings.json"));
    assert_eq!(kept, settings);
    let more = options.into_iter().chain([("task", "classify".to_owned())]);
    assert!(TrainConfig::from_pairs(more).unwrap_err().to_string().contains("says something else"));
}

#[test]
fn what_contradicts_a_task_is_refused_by_name() {
    let class = |x: f64| json!((3.0 * x) as u32);
    let base = setup("bert_regress", true, "classify", class);
    let refused = |edit: &dyn Fn(&mut TrainConfig)| {
        let mut config = base.config.clone();
        edit(&mut config);
        tanren::train::run(&config, &Context::default(), &mut |_| ()).unwrap_err().to_string()
    };
    for (edit, part) in [
        (&(|c: &mut TrainConfig| c.share_prefix = true) as &dyn Fn(&mut TrainConfig), "share_prefix"),
        (&|c| c.num_labels = Some(2), "num_labels"),
        (&|c| c.metric_for_best_model = "eval_r2".into(), "metric_for_best_model"),
        (&|c| c.task = "causal".to_owned().try_into().unwrap(), "bert models predict no next tokens"),
        (&|c| c.target_modules = TargetModules::List(vec!["q_proj".into()]), "q_proj"),
        (&|c| c.truncation = tanren::config::Truncation::PromptLeft, "truncation"),
    ] {
        let error = refused(edit);
        assert!(error.contains(part), "{part}: {error}");
    }
    train(&base.config);
    // A mode that is not that of the adapter, and a run in the place of another one.
    let error = score::run(&scoring(&base, ScoreMode::Regress, "x.jsonl"), &Context::default(), &mut |_| ());
    assert!(error.unwrap_err().to_string().contains("use --mode classify"));
    assert!(refused(&|_| ()).contains("already holds a run"));
    let mut again = base.config.clone();
    again.overwrite = true;
    train(&again);
    assert!(again.output_dir.join("config.json").is_file());
}
