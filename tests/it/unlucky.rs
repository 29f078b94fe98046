//! Files that change, vanish or cannot be read while a run needs them, and values that no machine can hold: an error with its exit
//! code, never a signal, and nothing is published.
//!
//! `TANREN_CHANGES=50 cargo test --test it unlucky` changes the weights more often than the default.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, and what they measured")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use tanren::config::{Resume, ScoreConfig, TrainConfig};
use tanren::error::{Error, Result};
use tanren::score;
use tanren::train::{self, Context, Event};

use crate::cli::tanren;
use crate::train::{setup, train as run_to_the_end};

/// Ways to change a file of weights.
#[derive(Debug, Clone, Copy)]
enum Change {
    Truncate,
    Overwrite,
    Replace,
    Remove,
}

impl Change {
    const ALL: [Self; 4] = [Self::Truncate, Self::Overwrite, Self::Replace, Self::Remove];

    fn make(self, weights: &Path) {
        let file = || fs::OpenOptions::new().write(true).open(weights).unwrap();
        match self {
            Self::Truncate => file().set_len(4096).unwrap(),
            Self::Overwrite => {
                let length = fs::metadata(weights).unwrap().len();
                file().write_all_at(&vec![0x3f; 1000], length - 1000).unwrap();
            }
            Self::Replace => {
                let other = weights.with_extension("other");
                fs::copy(weights, &other).unwrap();
                fs::rename(&other, weights).unwrap();
            }
            Self::Remove => fs::remove_file(weights).unwrap(),
        }
    }
}

/// A copy of the small model of the trainings, whose weights may be changed.
fn copy_model(config: &mut TrainConfig, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(&config.model).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    config.model = to.display().to_string();
    to.join("model.safetensors")
}

fn rounds() -> usize {
    std::env::var("TANREN_CHANGES").map_or(1, |number| number.parse().unwrap())
}

/// Runs a training and calls `act` before its first step and after every step, with the number of steps.
fn train_with(config: &TrainConfig, mut act: impl FnMut(u64)) -> Result<(), Error> {
    let watch = &mut |event: Event<'_>| match event {
        Event::Started { done, .. } => act(done),
        Event::Step(step) => act(step.step),
        _ => {}
    };
    train::run(config, &Context::default(), watch).map(drop)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[test]
fn weights_that_change_during_a_training_end_it_and_nothing_is_published() {
    let mut runs = 0;
    for round in 0..rounds() {
        for change in Change::ALL {
            let mut setup = setup(|c| c.max_steps = Some(4));
            let weights = copy_model(&mut setup.config, &setup.dir.path().join("model"));
            let at = round as u64 % 4;
            let result = train_with(&setup.config, |step| {
                if step == at {
                    change.make(&weights);
                }
            });
            let error = result.expect_err(&format!("{change:?} at {at}"));
            assert_eq!(error.exit_code(), 3, "{change:?} at {at}: {error}");
            assert!(error.to_string().contains("model.safetensors"), "{error}");
            let left = names(&setup.config.output_dir);
            let published = left.iter().filter(|n| n.starts_with("checkpoint") || n.starts_with("adapter"));
            assert_eq!(published.count(), 0, "{change:?} at {at}: {left:?}");
            runs += 1;
        }
    }
    println!("{runs} trainings, exit code 3 in each");
}

#[test]
fn checkpoints_from_before_the_change_stay() {
    let mut setup = setup(|c| (c.max_steps, c.save_steps) = (Some(4), Some(1)));
    let weights = copy_model(&mut setup.config, &setup.dir.path().join("model"));
    let whole = fs::read(&weights).unwrap();
    let result = train_with(&setup.config, |step| {
        if step == 3 {
            Change::Overwrite.make(&weights);
        }
    });
    assert_eq!(result.unwrap_err().exit_code(), 3);
    let left = names(&setup.config.output_dir);
    assert!(left.contains(&"checkpoint-2".into()) && !left.contains(&"checkpoint-3".into()), "{left:?}");
    // With the weights back in their place the run goes on.
    fs::write(&weights, whole).unwrap();
    setup.config.resume = Some(Resume::Auto);
    assert_eq!(run_to_the_end(&setup.config).global_step, 4);
}

#[test]
fn weights_that_change_during_a_scoring_end_it_and_nothing_is_written() {
    let mut runs = 0;
    for round in 0..rounds() {
        for change in Change::ALL {
            let mut setup = setup(|_| ());
            let weights = copy_model(&mut setup.config, &setup.dir.path().join("model"));
            let config = ScoreConfig {
                model: setup.config.model.clone(),
                data_file: setup.config.train_file.clone(),
                output: setup.dir.path().join("scores.jsonl"),
                batch_size: Some(4),
                threads: Some(1),
                ..ScoreConfig::default()
            };
            let mut seen = 0;
            let result = score::run(&config, &Context::default(), &mut |event| {
                if matches!(event, score::Event::Scoring { .. }) {
                    seen += 1;
                    if seen == 1 + round % 5 {
                        change.make(&weights);
                    }
                }
            });
            let error = result.expect_err(&format!("{change:?}"));
            assert_eq!(error.exit_code(), 3, "{change:?}: {error}");
            assert!(!config.output.exists(), "{change:?}");
            runs += 1;
        }
    }
    println!("{runs} scorings, exit code 3 in each");
}

#[test]
fn an_output_folder_that_vanishes_ends_the_run_and_is_not_made_again() {
    for moved in [false, true] {
        let setup = setup(|c| (c.max_steps, c.logging_steps) = (Some(4), 100));
        let (out, elsewhere) = (setup.config.output_dir.clone(), setup.dir.path().join("elsewhere"));
        let result = train_with(&setup.config, |step| {
            if step == 2 && moved {
                fs::rename(&out, &elsewhere).unwrap();
                fs::create_dir(&out).unwrap();
            } else if step == 2 {
                fs::remove_dir_all(&out).unwrap();
            }
        });
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains("output folder was removed, moved or replaced"), "{error}");
        assert_eq!(out.exists(), moved, "it is not made again");
        assert!(!moved || names(&out).is_empty(), "nothing lands in another folder");
    }
}

#[test]
fn overwrite_removes_a_run_and_nothing_else() {
    let mut setup = setup(|c| (c.max_steps, c.save_steps) = (Some(2), Some(1)));
    let out = setup.config.output_dir.clone();
    run_to_the_end(&setup.config);
    setup.config.overwrite = true;
    setup.config.max_steps = Some(1);
    for foreign in ["notes.txt", "checkpoint-best", "checkpoint-7", "runs"] {
        let path = out.join(foreign);
        if foreign.contains('.') {
            fs::write(&path, "mine").unwrap();
        } else {
            fs::create_dir(&path).unwrap();
            fs::write(path.join("mine"), "mine").unwrap();
        }
        let before = names(&out);
        let error = train_with(&setup.config, |_| ()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(foreign) && error.to_string().contains("overwrite"), "{error}");
        assert_eq!(names(&out), before);
        if foreign.contains('.') { fs::remove_file(path) } else { fs::remove_dir_all(path) }.unwrap();
    }
    // A file that was put into a checkpoint of ours is not removed with it.
    fs::write(out.join("checkpoint-1/notes.txt"), "mine").unwrap();
    let error = train_with(&setup.config, |_| ()).unwrap_err().to_string();
    assert!(error.contains("checkpoint-1"), "{error}");
    fs::remove_file(out.join("checkpoint-1/notes.txt")).unwrap();
    run_to_the_end(&setup.config);
    let left = names(&out);
    assert!(left.contains(&"checkpoint-1".into()) && !left.contains(&"checkpoint-2".into()), "{left:?}");
}

#[test]
fn a_checkpoint_that_cannot_be_read_is_no_reason_to_start_afresh() {
    let mut setup = setup(|c| (c.max_steps, c.save_steps) = (Some(2), Some(1)));
    let out = setup.config.output_dir.clone();
    run_to_the_end(&setup.config);
    setup.config.resume = Some(Resume::Auto);
    setup.config.max_steps = Some(3);
    // Reading a folder as a file fails like a broken disk does, for every user.
    for name in ["MANIFEST.json", "optimizer.safetensors"] {
        let path = out.join("checkpoint-2").join(name);
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let result = train_with(&setup.config, |_| ());
        let unreadable = name == "MANIFEST.json";
        match result {
            Err(error) if unreadable => {
                assert_eq!(error.exit_code(), 3, "{error}");
                assert!(error.to_string().contains(name), "{error}");
            }
            // A folder where the manifest promises a file is damage: the older checkpoint is good.
            other => assert!(!unreadable && other.is_ok(), "{name}: {other:?}"),
        }
        if unreadable {
            fs::remove_dir(&path).unwrap();
            fs::write(&path, whole).unwrap();
        }
    }
}

#[test]
fn results_do_not_go_into_a_model_folder() {
    let mut setup = setup(|_| ());
    let weights = copy_model(&mut setup.config, &setup.dir.path().join("model"));
    let model = weights.parent().unwrap();
    let before = names(model);
    for dry_run in [false, true] {
        setup.config.dry_run = dry_run;
        setup.config.output_dir = model.to_owned();
        let error = train_with(&setup.config, |_| ()).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("holds a model"), "{error}");
    }
    let config = ScoreConfig {
        model: setup.config.model.clone(),
        data_file: setup.config.train_file.clone(),
        output: model.join("scores.jsonl"),
        ..ScoreConfig::default()
    };
    let error = score::run(&config, &Context::default(), &mut |_| ()).map(drop).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("model folder"), "{error}");
    assert_eq!(names(model), before);
}

#[test]
fn a_billion_steps_are_planned_at_once() {
    for tokens in [None, Some(64)] {
        let setup = setup(|c| {
            (c.max_steps, c.dry_run, c.tokens_per_batch) = (Some(1_000_000_000), true, tokens);
            c.batch_size = Some(4).filter(|_| tokens.is_none());
        });
        // Looked at one by one they would take days.
        train_with(&setup.config, |_| ()).unwrap();
    }
}

#[test]
fn a_run_that_is_longer_than_its_plan_looked_ahead_goes_on_in_its_room() {
    // 24 rows in batches of 64 tokens: an epoch has a handful of steps, and the plan looks at ten epochs.
    let setup = setup(|c| (c.max_steps, c.tokens_per_batch, c.batch_size) = (Some(120), Some(64), None));
    let mut last = 0;
    train_with(&setup.config, |step| last = step).unwrap();
    assert_eq!(last, 120);
}

#[test]
fn numbers_that_no_machine_holds_are_errors() {
    let setup = setup(|_| ());
    let (model, rows) = (setup.config.model.clone(), setup.config.train_file[0].display().to_string());
    let out = setup.config.output_dir.display().to_string();
    let base = ["train", "--model", &model, "--train-file", &rows, "--output-dir", &out, "--dry-run"];
    let numbers =
        ["9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616"];
    for option in [
        "--max-steps",
        "--num-epochs",
        "--batch-size",
        "--eval-batch-size",
        "--tokens-per-batch",
        "--gradient-accumulation-steps",
        "--max-seq-length",
        "--max-tokens-per-pass",
        "--threads",
        "--lora-r",
        "--save-total-limit",
        "--warmup-steps",
        "--logging-steps",
        "--save-steps",
    ] {
        for number in numbers {
            let run = tanren(&[&base[..], &[option, number]].concat());
            // Steps between events that never come are no mistake, where the number can be written at all.
            let harmless = ["--warmup-steps", "--logging-steps", "--save-steps"].contains(&option);
            let codes: &[i32] = if harmless { &[0, 2] } else { &[2] };
            assert!(
                run.code.is_some_and(|code| codes.contains(&code)),
                "{option} {number}: {:?} {}",
                run.code,
                run.err
            );
            assert!(!run.err.contains("INTERNAL"), "{option} {number}: {}", run.err);
            // Whoever gave many options has to know which one it is.
            let key = option.trim_start_matches("--").replace('-', "_");
            let named = run.err.contains(&format!("field \"{key}\"")) || run.err.contains(option);
            assert!(run.code == Some(0) || named, "{option} {number}: {}", run.err);
        }
    }
    // The same in a file, and for a path that no option can hold.
    let file = setup.dir.path().join("run.toml");
    for number in &numbers[1..] {
        fs::write(&file, format!("lora_r = 8\nmax_steps = {number} # far\n")).unwrap();
        let run = tanren(&[&base[..], &["--config", file.to_str().unwrap()]].concat());
        let parts = ["run.toml:2", "field \"max_steps\"", number, "at most 9223372036854775807"];
        assert!(run.code == Some(2) && parts.iter().all(|part| run.err.contains(part)), "{}", run.err);
    }
    let odd = std::os::unix::ffi::OsStrExt::from_bytes(b"rows\xFF.jsonl");
    let output = crate::cli::program()
        .args(&base[..7])
        .arg("--eval-file")
        .arg::<&std::ffi::OsStr>(odd)
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && err.contains("field \"eval_file\": not UTF-8"), "{err}");
    for number in numbers {
        for option in ["--tokens", "--sequence-length"] {
            let run = tanren(&["inspect", "plan", "--variant", "qwen3-tiny", option, number]);
            assert_eq!(run.code, Some(2), "{option} {number}: {}", run.err);
        }
    }
}

#[test]
fn an_error_that_quotes_a_file_stays_short() {
    let mut setup = setup(|_| ());
    let weights = copy_model(&mut setup.config, &setup.dir.path().join("model"));
    let model = setup.config.model.clone();
    let dir = setup.dir.path();
    let long = "k\u{1b}[2J".repeat(200_000);
    let key = json!(long).to_string();
    let rows = dir.join("long.jsonl");
    fs::write(&rows, format!("{{{key}:1,{key}:2}}\n")).unwrap();
    let whole = fs::read(&weights).unwrap();
    let header = format!("{{{key}:{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}}}");
    let hostile = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &whole].concat();
    let config = Path::new(&model).join("config.json");
    let toml = dir.join("long.toml");
    fs::write(&toml, format!("\"{}\" = 1\n", "k".repeat(1 << 19))).unwrap();
    let file = setup.config.train_file[0].display().to_string();
    let (rows, toml) = (rows.display().to_string(), toml.display().to_string());
    let out = dir.join("short").display().to_string();
    let short = |args: &[&str]| {
        let run = tanren(args);
        assert_eq!(run.code, Some(2), "{}", run.err.chars().take(2000).collect::<String>());
        assert!(run.err.len() < 4000, "{args:?}: {} bytes", run.err.len());
        assert!(!run.err.contains('\u{1b}'), "{args:?}");
    };
    short(&["train", "--model", &model, "--train-file", &rows, "--output-dir", &out]);
    short(&["train", "--config", &toml, "--model", &model, "--train-file", &file, "--output-dir", &out]);
    fs::write(&weights, hostile).unwrap();
    short(&["train", "--model", &model, "--train-file", &file, "--output-dir", &out]);
    fs::write(&weights, whole).unwrap();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replacen("\"qwen3\"", &key, 1)).unwrap();
    short(&["train", "--model", &model, "--train-file", &file, "--output-dir", &out]);
}
