//! What the README says about the flags of other tools, line by line, through the command line.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use crate::cli::tanren;
use crate::source::read;

/// The rows of the table "Coming from": the tool, what is accepted, and what is refused.
fn table() -> Vec<[String; 3]> {
    let text = read("README.md");
    let section = text.split("## Coming from").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    rows.map(|line| match cells(line).as_slice() {
        [_, tool, fine, refused, _] => [tool.clone(), fine.clone(), refused.clone()],
        other => panic!("{other:?}"),
    })
    .collect()
}

/// The pieces of code in a cell.
fn code(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// A run that is only planned, with flags, or with keys in a file where they are written `key = value`.
fn plan(given: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    let row = |i: usize| format!("{{\"input\": \"{i} + 1 = ?\", \"output\": \"{}\"}}\n", i + 1);
    fs::write(&rows, (0..40).map(row).collect::<String>()).unwrap();
    let (rows, out) = (rows.to_str().unwrap(), dir.path().join("out"));
    let base =
        ["train", "--model", "qwen3-tiny", "--train-file", rows, "--dry-run", "true", "--device", "cpu"];
    let mut args: Vec<&str> = base.into_iter().chain(["--output-dir", out.to_str().unwrap()]).collect();
    let file = dir.path().join("run.toml");
    match given.starts_with("--") {
        true => args.extend(given.split_whitespace()),
        false => {
            fs::write(&file, given).unwrap();
            args.extend(["--config", file.to_str().unwrap()]);
        }
    }
    let run = tanren(&args);
    (run.code, run.err)
}

#[test]
fn every_flag_that_is_claimed_is_accepted() {
    let table = table();
    assert_eq!(table.len(), 6, "{table:?}");
    for [tool, fine, _] in &table {
        for given in code(fine) {
            let (code, err) = plan(&given);
            assert_eq!(code, Some(0), "{tool}: {given}: {err}");
        }
    }
}

#[test]
fn every_flag_that_is_said_to_be_refused_is_refused_with_advice() {
    for [tool, _, refused] in &table() {
        for given in code(refused) {
            let (code, err) = plan(&given);
            assert!(
                code == Some(2) && err.contains("error[CONFIG]") && err.contains("fix: "),
                "{tool}: {given}: {err}"
            );
        }
    }
    // The check would see an unknown flag.
    assert_eq!(plan("--frobnicate true").0, Some(2));
}
