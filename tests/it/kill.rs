//! SIGTERM saves and says so. kill -9 at random moments of a run that saves every step: every visible checkpoint is whole, the newest never goes back, and
//! the run that was killed and resumed again and again ends with the bytes of one that was not.
//!
//! `TANREN_KILLS=100 cargo test --test it kill` repeats it more often than the default.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, and what they measured")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tanren::formats::checkpoint;
use tanren::rng::{Purpose, Stream};

const STEPS: u64 = 300;

fn command(dir: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tanren"));
    let root = env!("CARGO_MANIFEST_DIR");
    command
        .arg("train")
        .args(["--model", &format!("{root}/tests/golden/qwen3_lora/model")])
        .arg("--train-file")
        .arg(dir.join("rows.jsonl"))
        .arg("--output-dir")
        .arg(out)
        .args(["--batch-size", "2", "--lora-dropout", "0.1", "--save-total-limit", "3"])
        .args(["--resume", "auto", "--threads", "1", "--lr-scheduler", "constant"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// The run that is killed.
fn every_step(dir: &Path, out: &Path) -> Command {
    let mut command = command(dir, out);
    command.args(["--max-steps", &STEPS.to_string(), "--save-steps", "1"]);
    command
}

/// The visible checkpoints, each of which must verify, newest last.
fn checkpoints(out: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(out) else { return Vec::new() };
    let mut steps = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("checkpoint-") {
            steps.push(checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}")).step());
        }
    }
    steps.sort_unstable();
    steps
}

/// Twenty rows to learn.
fn write_rows(dir: &Path) {
    let rows: String = (0..20u32)
        .map(|i| {
            let ids: Vec<u32> = (0..12).map(|t| (i * 31 + t * 7) % 311).collect();
            let labels: Vec<i64> =
                ids.iter().enumerate().map(|(t, &id)| if t < 6 { -100 } else { i64::from(id) }).collect();
            format!("{}\n", json!({ "input_ids": ids, "labels": labels }))
        })
        .collect();
    std::fs::write(dir.join("rows.jsonl"), rows).unwrap();
}

#[test]
fn a_terminated_run_saves_says_so_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    write_rows(dir.path());
    let out = dir.path().join("out");
    // Only signals save: the steps themselves do not. So many steps that the signal comes in time.
    let long = |out: &Path| {
        let mut command = command(dir.path(), out);
        command.args(["--save-steps", "100000", "--max-steps", "20000", "--logging-steps", "1"]);
        command
    };
    let mut child = long(&out).stderr(Stdio::piped()).spawn().unwrap();
    let log = out.join("training_log.jsonl");
    let started = || std::fs::read_to_string(&log).is_ok_and(|text| text.lines().count() > 3);
    while !started() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before the signal");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(6), "{said}");
    let steps = checkpoints(&out);
    assert_eq!(steps.len(), 1, "{steps:?}");
    assert!(
        said.contains(&format!("stopped at step {}", steps[0])) && said.contains("--resume auto"),
        "{said}"
    );
    // What comes after is what would have come: another three steps from there.
    let until = (steps[0] + 3).to_string();
    let mut rest = command(dir.path(), &out);
    assert!(rest.args(["--max-steps", &until, "--logging-steps", "1"]).status().unwrap().success());
    assert_eq!(checkpoints(&out).last(), Some(&(steps[0] + 3)));
}

#[test]
fn a_terminated_dry_run_ends_at_once_and_says_that_it_was_stopped() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    // A pipe in the place of the rows: the program waits for the second row until the signal was sent.
    let rows = dir.path().join("rows.jsonl");
    assert!(Command::new("mkfifo").arg(&rows).status().unwrap().success());
    for (signal, command_name) in [("-TERM", "train"), ("-INT", "train"), ("-INT", "plan")] {
        let mut command = command(dir.path(), &dir.path().join("out"));
        match command_name {
            "train" => command.args(["--max-steps", "2", "--dry-run"]),
            _ => {
                let args: Vec<_> = command.get_args().skip(1).map(ToOwned::to_owned).collect();
                command = Command::new(env!("CARGO_BIN_EXE_tanren"));
                command.args(["inspect", "plan"]).args(args).stdout(Stdio::null())
            }
        };
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = std::fs::OpenOptions::new().write(true).open(&rows).unwrap();
        let row = "{\"input_ids\": [1, 2, 3], \"labels\": [-100, 2, 3]}\n";
        pipe.write_all(row.as_bytes()).unwrap();
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        // Whoever does not listen would read this row, plan the run and end well. Who did may be gone.
        let _ = pipe.write_all(row.as_bytes());
        drop(pipe);
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(130), "{command_name} {signal}: {said}");
        assert!(said.contains("interrupted[STOPPED]") && said.contains("nothing was written"), "{said}");
        assert!(!dir.path().join("out").exists());
    }
}

#[test]
fn no_kill_breaks_or_loses_a_checkpoint() {
    let kills: u32 = std::env::var("TANREN_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let dir = tempfile::tempdir().unwrap();
    write_rows(dir.path());
    let whole = dir.path().join("whole");
    assert!(every_step(dir.path(), &whole).status().unwrap().success());

    let mut stream = Stream::new(11, Purpose::Split, 0);
    let (mut hits, mut runs) = (0, 0);
    while hits < kills {
        runs += 1;
        assert!(runs <= kills, "nearly every run ended before its first kill");
        let out = dir.path().join(format!("killed-{runs}"));
        let mut newest = 0;
        while hits < kills && newest < STEPS {
            let mut child = every_step(dir.path(), &out).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(u64::from(20 + stream.below(600))));
            hits += u32::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
            let last = checkpoints(&out).last().copied().unwrap_or(0);
            assert!(last >= newest, "the newest checkpoint was {newest} and is {last}");
            newest = last;
        }
        finish(dir.path(), &out, &whole);
    }
    println!("{hits} kills hit {runs} runs of {STEPS} steps that save every step");
}

/// Ends a run that was killed and compares it with one that was not.
fn finish(dir: &Path, out: &Path, whole: &Path) {
    assert!(every_step(dir, out).status().unwrap().success());
    let bytes = |out: &Path| {
        ["adapter_model.safetensors", "optimizer.safetensors"]
            .map(|f| std::fs::read(out.join(format!("checkpoint-{STEPS}")).join(f)).unwrap())
    };
    assert!(bytes(whole) == bytes(out));
    let leftovers: Vec<_> = std::fs::read_dir(out)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(".tmp-") || name.starts_with(".old-"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}
