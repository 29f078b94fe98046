//! Files and folders that this user may not read or write: an error with path, exit code 3 and what to do.
//!
//! Tests of CI run as root, whom no permission stops. There the program is started as `nobody`, where
//! `setpriv` can do that; paths that lead through a file are refused to everybody.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, and what they leave out")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::cli::{accepted, tanren};

/// The user and group `nobody` of most systems.
const NOBODY: &str = "65534";

/// A model, rows, an adapter with a checkpoint, and a configuration, which everybody may read; in folders
/// that everybody may enter.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        open_to_all(dir.path(), 0o755);
        let place = Self { dir };
        let (model, run) = (place.text("model"), place.text("run"));
        accepted(&["init", "--variant", "qwen3-tiny", "--output-dir", &model, "--seed", "1"], &[]);
        fs::write(place.path("rows.jsonl"), "{\"input\": \"2+2?\", \"output\": \"4\"}\n").unwrap();
        fs::write(place.path("run.toml"), "max_steps = 1\n").unwrap();
        accepted(&place.train("run").iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        fs::create_dir(place.path("free")).unwrap();
        open_to_all(&place.path("free"), 0o777);
        // A run that nobody goes on with, in a folder of its own.
        assert!(Command::new("cp").args(["-r", &run, &place.text("free/run")]).status().unwrap().success());
        assert!(
            Command::new("chmod").args(["-R", "a+rwX", &place.text("free/run")]).status().unwrap().success()
        );
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A training of one step that saves, into the folder `out`.
    fn train(&self, out: &str) -> Vec<String> {
        let [model, rows, config, out] = ["model", "rows.jsonl", "run.toml", out].map(|name| self.text(name));
        [
            "train",
            "--model",
            &model,
            "--train-file",
            &rows,
            "--config",
            &config,
            "--output-dir",
            &out,
            "--device",
            "cpu",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn score(&self, out: &str) -> Vec<String> {
        let [model, rows, adapter, out] = ["model", "rows.jsonl", "run", out].map(|name| self.text(name));
        [
            "score",
            "--model",
            &model,
            "--data-file",
            &rows,
            "--adapter",
            &adapter,
            "--output",
            &out,
            "--device",
            "cpu",
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout == b"0\n")
}

/// How to start a program as somebody whom permissions stop; or why that cannot be done here.
fn somebody() -> Result<Vec<String>, String> {
    if !is_root() {
        return Ok(Vec::new());
    }
    let program = env!("CARGO_BIN_EXE_tanren");
    let start =
        ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"].map(str::to_owned).to_vec();
    let started =
        Command::new(&start[0]).args(&start[1..]).args([program, "--version"]).stdout(Stdio::null()).status();
    match started {
        Ok(status) if status.success() => Ok(start),
        Ok(status) => Err(format!("setpriv cannot start {program} as {NOBODY}: {status}")),
        Err(error) => Err(format!("this is root, and there is no setpriv: {error}")),
    }
}

/// Runs `args` as `start` says: exit code, and what was said.
fn run_as(start: &[String], args: &[String]) -> (Option<i32>, String) {
    let words: Vec<&str> = start
        .iter()
        .map(String::as_str)
        .chain([env!("CARGO_BIN_EXE_tanren")])
        .chain(args.iter().map(String::as_str))
        .collect();
    let output = Command::new(words[0])
        .args(&words[1..])
        .current_dir("/")
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_may_not_be_read_or_written_is_named() {
    let start = match somebody() {
        Ok(start) => start,
        Err(why) => {
            println!("skipped: {why}");
            return;
        }
    };
    let place = Place::new();
    // Without a closed path all of it works, or the errors below would have other reasons.
    for args in [place.train("free/a"), place.score("free/a.jsonl")] {
        let (code, err) = run_as(&start, &args);
        assert_eq!(code, Some(0), "{args:?}: {err}");
    }
    let again = |name: &str| [place.train(name), vec!["--resume".to_owned(), "auto".to_owned()]].concat();
    let from =
        |name: &str| [place.train(name), vec!["--init-adapter".to_owned(), place.text("run")]].concat();
    for (closed, args) in [
        ("rows.jsonl", place.train("free/b")),
        ("run.toml", place.train("free/b")),
        ("model", place.train("free/b")),
        ("model/config.json", place.train("free/b")),
        ("model/tokenizer.json", place.train("free/b")),
        ("model/tokenizer_config.json", place.train("free/b")),
        ("model/model.safetensors", place.train("free/b")),
        ("run/adapter_model.safetensors", from("free/b")),
        ("run/adapter_config.json", from("free/b")),
        ("free/run/checkpoint-1/MANIFEST.json", again("free/run")),
        ("rows.jsonl", place.score("free/b.jsonl")),
        ("run/adapter_config.json", place.score("free/b.jsonl")),
        ("run/adapter_model.safetensors", place.score("free/b.jsonl")),
        ("run/text_settings.json", place.score("free/b.jsonl")),
    ] {
        let before = fs::metadata(place.path(closed)).unwrap().permissions();
        open_to_all(&place.path(closed), 0o000);
        let (code, err) = run_as(&start, &args);
        assert!(code == Some(3) && err.contains(closed), "{closed}: {code:?} {err}");
        assert!(err.contains("check the permissions"), "{closed}: {err}");
        fs::set_permissions(place.path(closed), before).unwrap();
    }
    // A folder that may be read and not be changed.
    for args in [place.train("b"), place.score("b.jsonl")] {
        let (code, err) = run_as(&start, &args);
        assert!(code == Some(3) && err.contains("check the permissions"), "{args:?}: {code:?} {err}");
    }
    assert!(!place.path("b").exists() && !place.path("b.jsonl").exists());
}

#[test]
fn a_path_that_leads_through_a_file_is_named() {
    let place = Place::new();
    let through = "rows.jsonl/x";
    let with = |option: &str, args: Vec<String>| {
        let mut args = args;
        match args.iter().position(|arg| arg == option) {
            Some(at) => args[at + 1] = place.text(through),
            None => args.extend([option.to_owned(), place.text(through)]),
        }
        args
    };
    let mut cases: Vec<Vec<String>> = Vec::new();
    for option in
        ["--train-file", "--eval-file", "--config", "--model", "--output-dir", "--init-adapter", "--resume"]
    {
        cases.push(with(option, place.train("free/c")));
    }
    for option in ["--data-file", "--model", "--adapter", "--output"] {
        cases.push(with(option, place.score("free/c.jsonl")));
    }
    for args in cases {
        let run = tanren(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(matches!(run.code, Some(2 | 3)), "{args:?}: {:?} {}", run.code, run.err);
        assert!(
            run.err.contains("error[") && run.err.contains("rows.jsonl") && run.err.contains("fix: "),
            "{args:?}: {}",
            run.err
        );
        assert!(!run.err.contains("INTERNAL"), "{args:?}: {}", run.err);
    }
}
