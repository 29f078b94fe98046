//! Advice in errors, followed once: what a message says to do is done, and then it works.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::{accepted, tanren};
use crate::source::{read, root};

/// A folder with a small random model.
fn tiny() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tiny");
    accepted(&["init", "--variant", "qwen3-tiny", "--output-dir", text(&model), "--seed", "1"], &[]);
    (dir, model)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn write(dir: &TempDir, name: &str, content: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

/// Shows rows as training would take them. The error must hold `advice`.
fn inspect(model: &Path, rows: &Path, more: &[&str], advice: Option<&str>) -> String {
    let args = [&["inspect", "data", "--model", text(model), "--data-file", text(rows)], more].concat();
    let Some(advice) = advice else { return accepted(&args, &["supervised"]) };
    let run = tanren(&args);
    assert_eq!(run.code, Some(2), "{args:?}: {}", run.err);
    let fix = run.err.split("fix: ").nth(1).unwrap_or_else(|| panic!("{}", run.err));
    assert!(fix.contains(advice), "{args:?}: {}", run.err);
    run.err
}

#[test]
fn rows_beyond_the_positions_of_the_model() {
    let (dir, model) = tiny();
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(32);
    fs::write(&path, config.to_string()).unwrap();
    let row = |words: usize| json!({ "input": "word ".repeat(words), "output": "4" }).to_string() + "\n";
    let rows = write(&dir, "rows.jsonl", &(row(60) + &row(1)));
    for more in [&[][..], &["--max-seq-length", "61"]] {
        let error = inspect(&model, &rows, more, Some("shorten them to the 32 positions of the model"));
        assert!(!error.contains("fix: --max-seq-length"), "{error}");
    }
    // Each piece of the advice.
    inspect(&model, &rows, &["--truncation", "prompt-left"], None);
    inspect(&model, &rows, &["--truncation", "skip"], None);
    let short = write(&dir, "short.jsonl", &row(1));
    inspect(&model, &short, &[], None);
    // Where an option is what stops the row, the option is the advice.
    let rows = write(&dir, "rows.jsonl", &row(3));
    let error = inspect(&model, &rows, &["--max-seq-length", "8"], Some("--max-seq-length "));
    let length = error.split("fix: --max-seq-length ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    inspect(&model, &rows, &["--max-seq-length", &length], None);
}

#[test]
fn a_template_that_changes_earlier_turns() {
    let (dir, model) = tiny();
    let case = "tests/data/cases/04-think-history";
    fs::copy(root().join(case).join("chat_template.jinja"), model.join("chat_template.jinja")).unwrap();
    let case: Value = serde_json::from_str(&read(&format!("{case}/case.json"))).unwrap();
    let row = case["rows"].as_array().unwrap().iter().find(|row| row["name"] == "both").unwrap();
    let rows = write(&dir, "rows.jsonl", &format!("{}\n", row["row"]));
    let error = inspect(&model, &rows, &[], Some("pass --mask-history to learn the last answer only"));
    assert!(error.contains("field \"messages[1]\"") && !error.contains("if the template"), "{error}");
    inspect(&model, &rows, &["--mask-history"], None);
    // Where the last answer alone would be refused as well, the advice is another one, and helps.
    let mut row = row["row"].clone();
    row["messages"].as_array_mut().unwrap().push(json!({ "role": "user", "content": "3+3?" }));
    let other = "use a template that keeps what the row says, or change the row to what the template shows";
    let rows = write(&dir, "rows.jsonl", &format!("{row}\n"));
    inspect(&model, &rows, &[], Some(other));
    inspect(&model, &rows, &["--mask-history"], Some(other));
    let shown = row.to_string().replace("<think>\\none and one\\n</think>\\n\\n", "");
    let shown = shown.replace("<think>\\ntwo and two\\n</think>\\n\\n", "");
    assert!(!shown.contains("think"), "{shown}");
    inspect(&model, &write(&dir, "rows.jsonl", &format!("{shown}\n")), &[], None);
}

#[test]
fn lists_in_the_cells_of_a_table() {
    let (dir, model) = tiny();
    // What pandas writes of a column of lists, which is no JSON.
    let python =
        "messages\n\"[{'role': 'user', 'content': '2+2?'}, {'role': 'assistant', 'content': '4'}]\"\n";
    let error = inspect(&model, &write(&dir, "rows.csv", python), &[], Some("write it as JSON: with pandas"));
    assert!(error.contains("rows.csv:2: field \"messages\"") && error.contains("json.dumps"), "{error}");
    // The two ways of the advice: JSON in the cell, and JSON Lines.
    let turns = json!([{ "role": "user", "content": "2+2?" }, { "role": "assistant", "content": "4" }]);
    let cell = format!("messages\n\"{}\"\n", turns.to_string().replace('"', "\"\""));
    let of_table = inspect(&model, &write(&dir, "rows.csv", &cell), &[], None);
    assert!(of_table.contains("JSON text, read as the list or object that it holds: messages"), "{of_table}");
    let of_lines =
        inspect(&model, &write(&dir, "rows.jsonl", &json!({ "messages": turns }).to_string()), &[], None);
    assert_eq!(of_table.lines().next(), of_lines.lines().next());
    assert!(!of_lines.contains("JSON text"), "{of_lines}");
}

#[test]
fn a_table_under_the_name_of_json_lines() {
    let (dir, model) = tiny();
    for (content, advice, name) in [
        ("input,output\n2+2?,4\n", "name the file .csv", "rows.csv"),
        ("\"input\",\"output\"\n\"2+2?\",\"4\"\n", "name the file .csv", "rows.csv"),
        ("input\toutput\n2+2?\t4\n", "name the file .tsv", "rows.tsv"),
    ] {
        inspect(&model, &write(&dir, "rows.jsonl", content), &[], Some(advice));
        inspect(&model, &write(&dir, name, content), &[], None);
    }
    let content = "input;output\n2+2?;4\n";
    inspect(
        &model,
        &write(&dir, "rows.jsonl", content),
        &[],
        Some("write commas between the cells and name the file .csv"),
    );
    inspect(&model, &write(&dir, "rows.csv", &content.replace(';', ",")), &[], None);
    let error =
        inspect(&model, &write(&dir, "rows.jsonl", "2+2? 4\n"), &[], Some("write one JSON object per line"));
    let example = error.split("for example ").nth(1).unwrap().trim().to_owned();
    inspect(&model, &write(&dir, "rows.jsonl", &example), &[], None);
}

#[test]
fn keys_that_are_missing() {
    let (dir, model) = tiny();
    let error = inspect(
        &model,
        &write(&dir, "rows.jsonl", "{}\n"),
        &[],
        Some("remove the line, or write a row like"),
    );
    let example = error.split("a row like ").nth(1).unwrap().trim().to_owned();
    inspect(&model, &write(&dir, "rows.jsonl", &example), &[], None);
    let error =
        inspect(&model, &write(&dir, "rows.jsonl", "{\"input\": \"2+2?\"}\n"), &[], Some("rows are {"));
    assert!(!error.contains("got keys"), "{error}");
    let rows = |key: &str| format!("{{\"input\": \"2+2?\", \"{key}\": \"4\"}}\n");
    inspect(
        &model,
        &write(&dir, "rows.jsonl", &rows("outptu")),
        &[],
        Some("rename \"outptu\" to \"output\""),
    );
    inspect(&model, &write(&dir, "rows.jsonl", &rows("output")), &[], None);
}

#[test]
fn an_adapter_to_start_from_brings_its_settings() {
    let (dir, model) = tiny();
    let rows = write(&dir, "rows.jsonl", "{\"input\": \"2+2?\", \"output\": \"4\"}\n");
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let base = [
        "train",
        "--model",
        text(&model),
        "--train-file",
        text(&rows),
        "--max-steps",
        "1",
        "--device",
        "cpu",
    ];
    let settings =
        ["--lora-r", "3", "--lora-alpha", "7", "--use-rslora", "--target-modules", "q_proj", "up_proj"];
    accepted(&[&base[..], &settings, &["--lora-dropout", "0.1", "--output-dir", text(&first)]].concat(), &[]);
    let start = ["--init-adapter", text(&first), "--output-dir", text(&second)];
    accepted(&[&base[..], &start].concat(), &["r 3, alpha 7, dropout 0.1, rsLoRA, on q_proj,up_proj"]);
    let config = |dir: &Path| -> Value {
        serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
    };
    assert_eq!(config(&first), config(&second));
    // A contradiction names both, and its advice is to leave the option out, which is the run above.
    let run = tanren(&[&base[..], &start, &["--overwrite", "--lora-r", "8"]].concat());
    let parts = ["field \"lora_r\"", "adapter_config.json", "got 8, expected 3", "leave lora_r out"];
    assert!(run.code == Some(2) && parts.iter().all(|part| run.err.contains(part)), "{}", run.err);
    let run = tanren(&[&base[..], &start, &["--overwrite", "--target-modules", "q_proj"]].concat());
    assert!(run.code == Some(2) && run.err.contains("leave target_modules out"), "{}", run.err);
}
