//! The command line from outside: exit codes, streams, messages, and what happens when a stream is full.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::source::root;

/// What a run of the program left.
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tanren"));
    command.current_dir(root()).stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
    command
}

pub(crate) fn tanren(args: &[&str]) -> Outcome {
    let output = program().args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs `args`, which must fail with `code` and an error that holds all `parts` and a fix.
pub(crate) fn refused(args: &[&str], code: i32, parts: &[&str]) {
    let run = tanren(args);
    assert_eq!(run.code, Some(code), "{args:?}: {}", run.err);
    for part in parts.iter().chain(&["error[", "fix: "]) {
        assert!(run.err.contains(part), "{args:?}: no {part:?} in {}", run.err);
    }
    assert!(!run.err.contains("panicked"), "{}", run.err);
}

/// Runs `args`, which must end well, and gives its standard output, which must hold all `parts`.
pub(crate) fn accepted(args: &[&str], parts: &[&str]) -> String {
    let run = tanren(args);
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.err);
    for part in parts {
        assert!(run.out.contains(part), "{args:?}: no {part:?} in {}", run.out);
    }
    run.out
}

/// A folder with a small random model.
fn tiny() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tiny");
    let path = model.to_str().unwrap();
    accepted(&["init", "--variant", "qwen3-tiny", "--output-dir", path, "--seed", "1"], &["parameters"]);
    (dir, model)
}

fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

const VALID: &str = "examples/lawqa/valid.jsonl";

#[test]
fn every_command_explains_itself() {
    for (args, parts) in [
        (&["--help"][..], &["train", "score", "inspect", "init", "Exit codes"][..]),
        (
            &["train", "--help"],
            &["--train-file", "--lora-r", "--resume", "--dry-run", "--per-device-train-batch-size"],
        ),
        (&["score", "--help"], &["--data-file", "--choices", "--adapter", "--output"]),
        (&["inspect", "--help"], &["model", "tokenizer", "data", "plan", "kernels"]),
        (&["inspect", "model", "--help"], &["MODEL"]),
        (&["inspect", "tokenizer", "--help"], &["MODEL", "TEXT"]),
        (&["inspect", "data", "--help"], &["--data-file", "--format", "--rows"]),
        (&["inspect", "plan", "--help"], &["--train-file", "--max-tokens-per-pass"]),
        (&["init", "--help"], &["--variant", "--output-dir", "--seed", "--dtype"]),
        (&["--version"], &[env!("CARGO_PKG_VERSION")]),
    ] {
        accepted(args, parts);
    }
    assert!(!tanren(&["--help"]).out.contains("render-template"));
}

#[test]
fn wrong_usage_ends_with_2_and_a_suggestion() {
    for (args, part) in [
        (&["train", "--learnig-rate", "1"][..], "--learning-rate"),
        (&["trian"], "train"),
        (&["inspect", "data", "--model", "m"], "--data-file"),
        (&["init", "--variant", "qwen3-tiny"], "--output-dir"),
    ] {
        let run = tanren(args);
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(run.err.contains(part), "{args:?}: {}", run.err);
    }
    assert_eq!(tanren(&[]).code, Some(2));
}

#[test]
fn missing_and_broken_files_are_named_with_a_fix() {
    let (dir, model) = tiny();
    let missing = dir.path().join("rows of tomorrow.jsonl");
    let data = ["inspect", "data", "--model", str(&model), "--data-file"];
    refused(&[&data[..], &[str(&missing)]].concat(), 3, &[str(&missing)]);
    let broken = dir.path().join("broken.jsonl");
    fs::write(&broken, "{\"input\":\"q\",\"output\":\"a\"}\n{\"input\":\"q\",\"output\":7}\n").unwrap();
    refused(&[&data[..], &[str(&broken)]].concat(), 2, &["broken.jsonl:2", "\"output\"", "got 7"]);
    refused(&["inspect", "model", str(dir.path())], 2, &["no config.json"]);
    refused(&["inspect", "tokenizer", str(dir.path())], 2, &["no tokenizer.json"]);
    let nowhere = dir.path().join("nowhere");
    let run = tanren(&["inspect", "model", str(&nowhere)]);
    assert!(matches!(run.code, Some(2 | 3)), "{}", run.err);
    assert!(run.err.contains("error[") && run.err.contains("nowhere"), "{}", run.err);
}

#[test]
fn a_config_file_with_an_unknown_key_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    fs::write(&file, "model = \"m\"\nlearning_rat = 1e-4\n").unwrap();
    refused(&["train", "--config", str(&file)], 2, &["run.toml:2", "did you mean learning_rate?"]);
    fs::write(&file, "model = \"m\"\n\ndata_fil = \"x\"\n").unwrap();
    refused(&["score", "--config", str(&file)], 2, &["run.toml:3", "did you mean data_file?"]);
    refused(&["train", "--config", str(&dir.path().join("no.toml"))], 3, &["no.toml"]);
}

#[test]
fn init_writes_a_model_that_inspect_understands() {
    let (dir, model) = tiny();
    let model = str(&model);
    accepted(
        &["inspect", "model", model],
        &[
            "qwen3",
            "q_proj",
            "down_proj",
            "model.safetensors",
            "F32",
            "shape of qwen3-tiny",
            "tokenizer.json",
            "lora_r",
        ],
    );
    let out = accepted(&["inspect", "model", "--model", model], &[]);
    assert!(!out.contains("MISSING") && !out.contains("not used"), "{out}");
    accepted(
        &["inspect", "tokenizer", model, "H 質問", "--text", "x"],
        &["4,096", "chat template", "What is 2 + 2?", "\"H\"", "\"質問\"", "tokens: 1, bytes: 1"],
    );
    // A model is never replaced, not even by the same one.
    refused(
        &["init", "--variant", "qwen3-tiny", "--output-dir", model],
        2,
        &["holds a model", "config.json", "name another folder"],
    );
    let other = dir.path().join("other");
    refused(
        &["init", "--variant", "qwen3-tini", "--output-dir", str(&other)],
        2,
        &["did you mean qwen3-tiny"],
    );
    assert!(!other.exists());
}

#[test]
fn init_gives_the_same_bytes_for_a_seed_and_half_of_them_as_bf16() {
    let dir = tempfile::tempdir().unwrap();
    let weights = |name: &str, more: &[&str]| {
        let path = dir.path().join(name);
        let args = ["init", "--variant", "qwen3-tiny", "--output-dir", str(&path)];
        accepted(&[&args[..], more].concat(), &[]);
        fs::read(path.join("model.safetensors")).unwrap()
    };
    let first = weights("a", &["--seed", "3"]);
    assert!(first == weights("b", &["--seed", "3"]));
    assert!(first != weights("c", &["--seed", "4"]));
    let half = weights("d", &["--seed", "3", "--dtype", "bf16"]);
    assert!(half.len() < first.len() * 6 / 10, "{} {}", half.len(), first.len());
    accepted(&["inspect", "model", str(&dir.path().join("d"))], &["BF16"]);
}

#[test]
fn the_built_in_variants_are_listed() {
    accepted(
        &["inspect", "model"],
        &["Qwen3-0.6B", "Qwen2.5-7B", "qwen3-tiny", "GPT-2", "124,439,808", "XLM-R-base", "parameters"],
    );
}

#[test]
fn the_kernels_of_the_build_are_shown() {
    use tanren::device::kernels::{Kernel, NVCC};
    let symbols = Kernel::ALL.iter().map(|kernel| kernel.symbol());
    let parts: Vec<&str> = ["compiler", NVCC, "machine code", "kernels"].into_iter().chain(symbols).collect();
    accepted(&["inspect", "kernels"], &parts);
}

#[test]
fn data_is_shown_with_what_is_learned() {
    let (dir, model) = tiny();
    let rows = fs::read_to_string(root().join(VALID)).unwrap().lines().count();
    let args = ["inspect", "data", "--model", str(&model), "--data-file", VALID];
    let out =
        accepted(&[&args[..], &["--max-seq-length", "4096"]].concat(), &["supervised", "tokens per row"]);
    assert!(out.starts_with(&format!("{rows} rows, ")), "{out}");
    // Two rows in full, each with its answer between marks, since nothing here can underline.
    assert_eq!(out.matches('«').count(), 2, "{out}");
    accepted(&[&args[..], &["--max_seq_length", "4096", "--format", "chat", "--rows", "1"]].concat(), &["«"]);
    // Text of a file must not move the cursor.
    let file = dir.path().join("escape.jsonl");
    fs::write(&file, "{\"input\":\"a\\u001b[2J\",\"output\":\"b\"}\n").unwrap();
    let args = ["inspect", "data", "--model", str(&model), "--data-file", str(&file)];
    assert!(!accepted(&args, &[]).contains('\u{1b}'));
}

#[test]
fn a_length_that_no_row_can_have_is_refused_wherever_it_is_given() {
    let (dir, model) = tiny();
    let file = dir.path().join("rows.jsonl");
    fs::write(&file, "{\"input\":\"2+2?\",\"output\":\"4\"}\n").unwrap();
    let (model, file, out) = (str(&model), str(&file), dir.path().join("out"));
    for length in ["0", "1", "16777217"] {
        let more = ["--model", model, "--max-seq-length", length];
        let parts = ["field \"max_seq_length\"", length, "2 to 16777216"];
        refused(&[&["inspect", "data", "--data-file", file][..], &more].concat(), 2, &parts);
        refused(&[&["inspect", "plan", "--train-file", file][..], &more].concat(), 2, &parts);
        refused(
            &[&["train", "--train-file", file, "--output-dir", str(&out)][..], &more].concat(),
            2,
            &parts,
        );
        refused(&[&["score", "--data-file", file, "--output", str(&out)][..], &more].concat(), 2, &parts);
    }
    accepted(
        &["inspect", "data", "--data-file", file, "--model", model, "--max-seq-length", "16777216"],
        &["1 rows"],
    );
}

#[test]
fn rows_with_tools_are_scored_by_the_template_that_they_were_trained_with() {
    let (dir, model) = tiny();
    let templates = model.join("additional_chat_templates");
    fs::create_dir(&templates).unwrap();
    let source = "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n\
                  {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    fs::write(templates.join("tool_use.jinja"), source).unwrap();
    let (_, default) = source.split_once("{% endfor %}").unwrap();
    fs::write(model.join("chat_template.jinja"), default).unwrap();
    let turns = r#"[{"role":"user","content":"2+2?"},{"role":"assistant","content":"4"}]"#;
    let tools = r#"[{"type":"function","function":{"name":"add"}}]"#;
    let rows = |name: &str, tools: Option<&str>| {
        let tools = tools.map_or(String::new(), |tools| format!(",\"tools\":{tools}"));
        let path = dir.path().join(name);
        fs::write(&path, format!("{{\"messages\":{turns}{tools}}}\n")).unwrap();
        str(&path).to_owned()
    };
    let (with, without) = (rows("with.jsonl", Some(tools)), rows("without.jsonl", None));
    let adapter = dir.path().join("adapter");
    let train = [
        "train",
        "--model",
        str(&model),
        "--train-file",
        &with,
        "--output-dir",
        str(&adapter),
        "--device",
        "cpu",
    ];
    accepted(&[&train[..], &["--max-steps", "1"]].concat(), &[]);
    let warned = |data: &str, name: &str| {
        let out = dir.path().join(name);
        let args = [
            "score",
            "--model",
            str(&model),
            "--adapter",
            str(&adapter),
            "--data-file",
            data,
            "--device",
            "cpu",
        ];
        let run = tanren(&[&args[..], &["--output", str(&out)]].concat());
        assert_eq!(run.code, Some(0), "{}", run.err);
        run.err.contains("the chat template of rows with tools is another one")
    };
    assert!(!warned(&with, "a.jsonl"));
    fs::write(templates.join("tool_use.jinja"), source.replace("{{ m.role }}", "{{ m.role }}:")).unwrap();
    assert!(warned(&with, "b.jsonl"));
    assert!(!warned(&without, "c.jsonl"), "it plays no part there");
}

#[test]
fn names_with_underscores_are_accepted() {
    let (dir, model) = tiny();
    let file = dir.path().join("rows.jsonl");
    fs::write(&file, "{\"input\":\"2+2?\",\"output\":\"4\"}\n").unwrap();
    let args = ["inspect", "plan", "--model", str(&model), "--train_file", str(&file), "--lora_r", "3"];
    let out = accepted(&args, &["r 3,", "weights", "adapter", "activations", "peak", "GFLOP", "lora_matmul"]);
    assert!(!out.contains("output "), "{out}");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn full_and_closed_streams_change_nothing() {
    let (_dir, model) = tiny();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for args in [&["inspect", "model"][..], &["inspect", "model", str(&model)], &["--help"]] {
        let status = program().args(args).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{args:?}");
    }
    let output = program().args(["inspect", "model"]).stdout(full()).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(err.matches("cannot be written").count(), 1, "{err}");
    // A reader that goes away, as `head -1` does.
    let mut child = program().args(["inspect", "model", str(&model)]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // An error stays an error where nobody can read it.
    let failing = program().args(["inspect", "model", "/"]).stderr(full()).status().unwrap();
    assert_eq!(failing.code(), Some(2));
}

#[test]
fn a_hostile_chat_template_is_an_error_and_takes_nothing_down() {
    let (_dir, model) = tiny();
    let start = Instant::now();
    for template in [
        "{% set a = 'xxxxxxxx' %}{% for i in range(30) %}{% set a = a ~ a %}{% endfor %}{% set a='x' %}{% set ns = namespace(a='x') %}{% for i in range(40) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
    ] {
        fs::write(model.join("chat_template.jinja"), template).unwrap();
        let data = ["inspect", "data", "--model", str(&model), "--data-file", VALID, "--format", "chat"];
        refused(&data, 2, &["TEMPLATE", "chat_template.jinja"]);
        refused(&["inspect", "tokenizer", str(&model)], 2, &["TEMPLATE"]);
    }
    // Far above what it takes; without limits it would not end.
    assert!(start.elapsed() < Duration::from_secs(120));
    accepted(
        &["inspect", "data", "--model", str(&model), "--data-file", VALID, "--max-seq-length", "4096"],
        &["supervised"],
    );
}

#[test]
fn the_template_process_ends_with_its_input() {
    let output = program().arg("render-template").output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
}
