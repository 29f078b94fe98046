//! kill -9 at random moments of a run that saves every step: every visible checkpoint is whole, the newest never goes back, and
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
        .args(["--batch-size", "2", "--max-steps", &STEPS.to_string(), "--lora-dropout", "0.1"])
        .args(["--save-steps", "1", "--save-total-limit", "3", "--resume", "auto", "--threads", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
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

#[test]
fn no_kill_breaks_or_loses_a_checkpoint() {
    let kills: u32 = std::env::var("TANREN_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..20u32)
        .map(|i| {
            let ids: Vec<u32> = (0..12).map(|t| (i * 31 + t * 7) % 311).collect();
            let labels: Vec<i64> =
                ids.iter().enumerate().map(|(t, &id)| if t < 6 { -100 } else { i64::from(id) }).collect();
            format!("{}\n", json!({ "input_ids": ids, "labels": labels }))
        })
        .collect();
    std::fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    let whole = dir.path().join("whole");
    assert!(command(dir.path(), &whole).status().unwrap().success());

    let mut stream = Stream::new(11, Purpose::Split, 0);
    let (mut hits, mut runs) = (0, 0);
    while hits < kills {
        runs += 1;
        assert!(runs <= kills, "nearly every run ended before its first kill");
        let out = dir.path().join(format!("killed-{runs}"));
        let mut newest = 0;
        while hits < kills && newest < STEPS {
            let mut child = command(dir.path(), &out).spawn().unwrap();
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
    assert!(command(dir, out).status().unwrap().success());
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
