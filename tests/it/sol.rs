//! The share of the speed of light: in every line of a log, in results, scores and plans, and in no file that is compared.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde_json::Value;
use tanren::config::{Resume, ScoreConfig, ScoreMode, TrainConfig};
use tanren::error::Error;
use tanren::score;
use tanren::session::Notice;
use tanren::train::{Context, Event, StepLog, Summary, run};

use crate::cli::{accepted, tanren};
use crate::train::{Setup, setup, train_until};

/// The output of a run: its notes about `sol`, its steps, and its end.
fn watched(config: &TrainConfig) -> (Vec<String>, Vec<StepLog>, Summary) {
    let (mut notes, mut steps) = (Vec::new(), Vec::new());
    let summary = run(config, &Context::default(), &mut |event| match event {
        Event::Notice(Notice::Note(note)) if note.contains("sol") => notes.push(note),
        Event::Step(log) => steps.push(*log),
        _ => {}
    });
    (notes, steps, summary.unwrap())
}

fn log(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("training_log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// True if a file of a finished run knows `sol`, other than its log.
fn elsewhere(dir: &Path, step: u64) -> bool {
    let checkpoint = dir.join(format!("checkpoint-{step}"));
    let files: Vec<_> = [dir, &checkpoint]
        .into_iter()
        .flat_map(|dir| std::fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e != "jsonl"))
        .collect();
    assert!(files.iter().any(|path| path.ends_with("trainer_state.json")), "{files:?}");
    files.iter().any(|path| {
        let bytes = std::fs::read(path).unwrap();
        [&b"sol\""[..], b"sol "].iter().any(|word| bytes.windows(word.len()).any(|found| found == *word))
    })
}

fn is_share(sol: f64) -> bool {
    sol > 0.0 && sol <= 1.2
}

#[test]
fn every_line_of_a_log_has_the_share_of_the_measured_rate() {
    // All rows in every step: steps of equal work, of which every second one has a line.
    let setup = setup(|c| (c.batch_size, c.max_steps, c.logging_steps) = (Some(24), Some(4), 2));
    let (notes, steps, summary) = watched(&setup.config);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].starts_with("sol is a share of ") && notes[0].contains("of this processor"),
        "{notes:?}"
    );

    let work = |log: &StepLog| log.sol.unwrap() * log.step_seconds;
    for step in &steps {
        assert!(is_share(step.sol.unwrap()), "{step:?}");
        assert!((work(step) / work(&steps[0]) - 1.0).abs() < 1e-9, "{steps:?}");
    }
    let over = |steps: &[StepLog]| {
        steps.iter().map(work).sum::<f64>() / steps.iter().map(|s| s.step_seconds).sum::<f64>()
    };
    let rows = log(&setup.config.output_dir);
    let close = |found: &Value, expected: f64| (found.as_f64().unwrap() / expected - 1.0).abs() < 1e-9;
    assert!(rows.len() == 3 && close(&rows[0]["sol"], over(&steps[..2])), "{rows:?}");
    assert!(close(&rows[1]["sol"], over(&steps[2..])) && close(&rows[2]["train_sol"], over(&steps)));
    assert!((summary.sol.unwrap() / over(&steps) - 1.0).abs() < 1e-9);
    assert!(!elsewhere(&setup.config.output_dir, 4));
}

#[test]
fn a_resumed_run_goes_on_with_it_and_ends_with_the_same_adapter() {
    let whole = setup(|c| c.max_steps = Some(4));
    watched(&whole.config);
    let mut part = setup(|c| c.max_steps = Some(4));
    part.config.train_file = whole.config.train_file.clone();
    assert!(matches!(train_until(&part.config, 2), Err(Error::Interrupted { step: 2, .. })));
    part.config.resume = Some(Resume::Auto);
    let (_, steps, summary) = watched(&part.config);
    assert!(steps.len() == 2 && is_share(summary.sol.unwrap()), "{steps:?}");
    assert!(log(&part.config.output_dir)[..4].iter().all(|row| is_share(row["sol"].as_f64().unwrap())));
    let adapter =
        |setup: &Setup| std::fs::read(setup.config.output_dir.join("adapter_model.safetensors")).unwrap();
    assert!(adapter(&whole) == adapter(&part));
}

#[cfg(feature = "emulated")]
#[test]
fn an_emulator_has_no_speed_of_light() {
    use tanren::config::{DeviceChoice, Dtype};

    let setup = setup(|c| {
        (c.device, c.dtype, c.max_steps) = (DeviceChoice::Emulated, Dtype::Bf16, Some(1));
    });
    let (notes, steps, summary) = watched(&setup.config);
    assert_eq!((notes.len(), steps[0].sol, summary.sol), (0, None, None), "{notes:?}");
    let rows = log(&setup.config.output_dir);
    assert!(rows.len() == 2 && rows[0]["sol"].is_null() && rows[1]["train_sol"].is_null(), "{rows:?}");
    assert!(!rows[0].as_object().unwrap().contains_key("sol"));
}

#[test]
fn scores_have_it_beside_their_files_and_not_in_them() {
    let setup = setup(|_| ());
    let config = ScoreConfig {
        mode: ScoreMode::Logprob,
        model: setup.config.model.clone(),
        data_file: setup.config.train_file.clone(),
        output: setup.dir.path().join("scores.jsonl"),
        threads: Some(2),
        ..ScoreConfig::default()
    };
    let mut notes = 0;
    let summary = score::run(&config, &score::Context::default(), &mut |event| {
        notes +=
            usize::from(matches!(event, score::Event::Notice(Notice::Note(note)) if note.contains("sol")));
    });
    let (sol, text) = (summary.unwrap().sol, std::fs::read_to_string(&config.output).unwrap());
    assert!(is_share(sol.unwrap()) && notes == 1, "{sol:?} {notes}");
    assert!(!text.contains("sol"));
}

#[test]
fn the_share_of_a_plan_is_the_formula_by_the_predicted_seconds_and_the_sheet_value() {
    let plan = ["inspect", "plan", "--variant", "Qwen3-0.6B", "--gpu", "rtx3080", "--tokens", "1024"];
    let json = accepted(&[&plan[..], &["--json"]].concat(), &[]);
    let json: Value = serde_json::from_str(&json).unwrap();
    // Two sequences of 512 tokens of which 51 carry loss, by hand in `src/model/model_flops.rs`.
    let work = json["step_model_flops"].as_u64().unwrap();
    assert_eq!(work, 2_140_236_939_264);
    let (sol, secs) = (&json["prediction"]["sol"], &json["prediction"]["step_secs"]);
    let expected = work as f64 / (secs.as_f64().unwrap() * 59.5e12);
    assert!((sol.as_f64().unwrap() / expected - 1.0).abs() < 1e-12 && is_share(expected), "{sol} {expected}");
    accepted(&plan, &[&format!("sol {:.0}%", 100.0 * expected)]);
}

#[test]
fn the_command_shows_it_with_every_step_and_with_the_result() {
    let setup = setup(|c| c.max_steps = Some(1));
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let config = &setup.config;
    let (rows, out) = (path(&config.train_file[0]), path(&config.output_dir));
    let common = ["--model", &config.model, "--device", "cpu"];
    let train = ["train", "--train-file", &rows, "--output-dir", &out, "--max-steps", "1"];
    let run = tanren(&[&train[..], &common].concat());
    assert_eq!(run.code, Some(0), "{}", run.err);
    let step = run.err.lines().find(|line| line.starts_with("step 1/1  loss ")).unwrap();
    assert!(step.contains(" tokens/s  sol ") && step.contains("%  ") && step.len() <= 100, "{step}");
    assert!(run.out.contains(" tokens/s, sol "), "{}", run.out);
    assert!(run.err.contains("note: sol is a share of "), "{}", run.err);
    let scores = path(&setup.dir.path().join("scores.jsonl"));
    let score = ["score", "--data-file", &rows, "--adapter", &out, "--output", &scores];
    accepted(&[&score[..], &common].concat(), &[" tokens/s, sol "]);
}
