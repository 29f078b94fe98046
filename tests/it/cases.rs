//! The cases of `tests/data/cases` that need a model: each right answer there is a test. The model is `qwen3-tiny` with seed 1.
//!
//! Conversations, whose answers are token ids, are tested beside the encoder (`src/data/encode/case_tests.rs`).

#![allow(clippy::unwrap_used, reason = "a test ends where its helpers fail")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tanren::config::{Dtype, Format, Resume, ScoreConfig, ScoreMode, TrainConfig, variant};
use tanren::error::{Error, Result};
use tanren::model::open::write_random;
use tanren::score;
use tanren::session::Notice;
use tanren::train;
use tempfile::TempDir;

use crate::source::root;

fn case(name: &str) -> PathBuf {
    root().join("tests/data/cases").join(name)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A folder with the tiny model, and the notes of runs with it.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_random(variant("qwen3-tiny").unwrap(), &dir.path().join("model"), 1, Dtype::F32).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Rows written for this test.
    fn rows(&self, rows: &[Value]) -> PathBuf {
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        fs::write(self.path("rows.jsonl"), lines.join("\n")).unwrap();
        self.path("rows.jsonl")
    }

    fn scoring(&self, rows: PathBuf) -> ScoreConfig {
        ScoreConfig {
            mode: ScoreMode::Logprob,
            model: self.path("model").display().to_string(),
            data_file: vec![rows],
            output: self.path("scores.jsonl"),
            overwrite: true,
            threads: Some(2),
            format: Format::Plain,
            ..ScoreConfig::default()
        }
    }

    /// The log-probabilities of each row, and the notes.
    fn score(&self, config: &ScoreConfig) -> Result<(Vec<Vec<f64>>, String)> {
        let mut said = String::new();
        score::run(config, &score::Context::default(), &mut |event| {
            if let score::Event::Notice(Notice::Note(text) | Notice::Warning(text)) = event {
                said += &format!("{text}\n");
            }
        })?;
        let of_line = |line: &str| {
            let row: Value = serde_json::from_str(line).unwrap();
            row["token_logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        Ok((fs::read_to_string(&config.output).unwrap().lines().map(of_line).collect(), said))
    }

    /// The mean loss of the tokens of the rows.
    fn loss(&self, rows: PathBuf) -> Result<(f64, String)> {
        let (rows, said) = self.score(&self.scoring(rows))?;
        let all: Vec<f64> = rows.into_iter().flatten().collect();
        Ok((-all.iter().sum::<f64>() / all.len() as f64, said))
    }

    fn training(&self, rows: PathBuf) -> TrainConfig {
        TrainConfig {
            model: self.path("model").display().to_string(),
            train_file: vec![rows],
            output_dir: self.path("out"),
            threads: Some(2),
            lora_r: 4,
            format: Format::Plain,
            ..TrainConfig::default()
        }
    }

    /// Trains, and returns the notes and the learning rates by step.
    fn train(&self, config: &TrainConfig) -> Result<(String, Vec<f64>)> {
        let (mut said, mut rates) = (String::new(), Vec::new());
        train::run(config, &train::Context::default(), &mut |event| match event {
            train::Event::Notice(Notice::Note(text) | Notice::Warning(text)) => said += &format!("{text}\n"),
            train::Event::Audit { audit, .. } => said += &(audit.lines().join("\n") + "\n"),
            train::Event::Step(step) => rates.push(step.learning_rate),
            _ => {}
        })?;
        Ok((said, rates))
    }
}

/// Fails unless `result` is an error for the user with all `parts` in its message.
fn refused<T: std::fmt::Debug>(name: &str, result: Result<T>, parts: &[&str]) -> Error {
    let error = result.map_err(|error| (error.exit_code(), error.to_string(), error));
    let Err((2, message, error)) = error else { panic!("{name}: {error:?}") };
    for part in parts {
        assert!(message.contains(part), "{name}: no {part:?} in {message}");
    }
    error
}

fn near(name: &str, got: f64, wanted: f64, tolerance: f64) {
    assert!((got - wanted).abs() <= tolerance, "{name}: {got} is not {wanted}");
}

/// 08: padding on either side changes nothing.
#[test]
fn padded_rows_have_the_scores_of_bare_ones() {
    let bench = Bench::new();
    let case_json = json_of(&case("08-left-padding/case.json"));
    let wanted: Vec<f64> =
        case_json["token_logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    for name in case_json["rows"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let rows = case("08-left-padding").join(format!("{name}.jsonl"));
        let (scores, _) = bench.score(&bench.scoring(rows)).unwrap();
        assert_eq!(scores[0].len(), wanted.len(), "{name}");
        for (&got, &wanted) in scores[0].iter().zip(&wanted) {
            near(name, got, wanted, 1e-5);
        }
    }
}

/// 20: a resumed training with another number of steps prints a note about the learning rate.
#[test]
fn another_length_of_the_schedule_is_said() {
    let bench = Bench::new();
    let rows = bench.path("a.jsonl");
    fs::copy(case("20-resume/a.jsonl"), &rows).unwrap();
    let mut config = bench.training(rows);
    (config.batch_size, config.learning_rate, config.num_epochs) = (Some(4), 1e-3, 2.0);
    config.logging_steps = 1;
    let (_, rates) = bench.train(&config).unwrap();
    near("step 8", *rates.last().unwrap(), 1.25e-4, 1e-9);
    (config.num_epochs, config.resume) = (4.0, Some(Resume::Auto));
    let (said, rates) = bench.train(&config).unwrap();
    near("step 9", rates[0], 5e-4, 1e-9);
    assert!(said.contains("1.25e-4") && said.contains("5e-4"), "{said}");
    fs::copy(case("20-resume/b.jsonl"), &config.train_file[0]).unwrap();
    refused("other rows", bench.train(&config), &["rows"]);
}

/// 27: rows without anything to learn.
#[test]
fn rows_without_a_label_are_errors_or_skipped_and_counted() {
    let bench = Bench::new();
    let step = |name: &str, skip: bool| {
        let mut config = bench.training(case("27-nothing-to-learn").join(format!("{name}.jsonl")));
        (config.max_steps, config.skip_empty, config.overwrite) = (Some(1), skip, true);
        if name == "userlast" {
            config.format = Format::Chat;
        }
        bench.train(&config).map(|(said, _)| said)
    };
    for name in ["one", "first"] {
        refused(name, step(name, false), &[&format!("{name}.jsonl:1"), "nothing to learn", "--skip-empty"]);
    }
    let said = step("one", true).unwrap();
    assert!(said.contains("1 rows") && said.contains("skipped"), "{said}");
    let said = step("empty", false).unwrap();
    assert!(said.contains("empty.jsonl:1") && said.contains("empty"), "{said}");
    let said = step("userlast", false).unwrap();
    assert!(said.contains("userlast.jsonl:1"), "{said}");
}

/// 29: `config.json` as transformers reads it, or refused.
#[test]
fn edits_of_the_configuration_have_the_loss_of_transformers() {
    let bench = Bench::new();
    let path = bench.path("model/config.json");
    let config = json_of(&path);
    let case_json = json_of(&case("29-config/edits.json"));
    let rows = case("29-config/r.jsonl");
    let unchanged = bench.loss(rows.clone()).unwrap().0;
    near("unchanged", unchanged, case_json["loss_unchanged"].as_f64().unwrap(), 6e-5);
    for edit in case_json["edits"].as_array().unwrap() {
        let (name, right) = (edit["name"].as_str().unwrap(), edit["right"].as_str().unwrap());
        let mut edited = config.clone();
        let object = edited.as_object_mut().unwrap();
        for (key, value) in edit["edit_of_config_json"].as_object().unwrap() {
            match value.as_str() {
                Some("(removed)") => drop(object.remove(key)),
                _ => drop(object.insert(key.clone(), value.clone())),
            }
        }
        fs::write(&path, edited.to_string()).unwrap();
        let result = bench.loss(rows.clone());
        if name == "scaling_yarn" {
            // The case was written for a build without YaRN; its values are in the golden set `rope_variants`.
            assert!((result.unwrap().0 - unchanged).abs() > 1e-4, "{name} changes nothing");
            continue;
        }
        if right.starts_with("refused") || (right.contains("or refused") && result.is_err()) {
            let key = edit["edit_of_config_json"].as_object().unwrap().keys().next().unwrap();
            refused(name, result, &["config.json", if right == "refused" { "" } else { key }]);
            continue;
        }
        let (loss, said) = result.unwrap_or_else(|error| panic!("{name}: {error}"));
        near(name, loss, right[..6].parse().unwrap(), 6e-5);
        if right.contains("note") {
            let named = edit["edit_of_config_json"].as_object().unwrap().keys().any(|key| said.contains(key));
            assert!(named, "{name}: nothing is said of its keys: {said}");
        }
    }
    fs::write(&path, config.to_string()).unwrap();
}

/// 26b: the header of the weights with small edits.
#[test]
fn edits_of_the_header_of_the_weights_load_or_are_refused() {
    let bench = Bench::new();
    let path = bench.path("model/model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&whole[8..8 + header_len]).unwrap();
    let data = &whole[8 + header_len..];
    let end = data.len();
    let extra = |name: &str, dtype: &str, shape: Value, bytes: usize| {
        let mut header = header.clone();
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes] });
        header.insert(name.to_owned(), entry);
        file(&Value::Object(header).to_string(), &[data, &vec![0; bytes]].concat())
    };
    let with_metadata = |metadata: Option<Value>| {
        let mut header = header.clone();
        header.remove("__metadata__");
        header.extend(metadata.map(|value| ("__metadata__".to_owned(), value)));
        file(&Value::Object(header).to_string(), data)
    };
    let renamed = |rename: &dyn Fn(&str) -> String| {
        let of_name = |(name, value): (&String, &Value)| match name.as_str() {
            "__metadata__" => (name.clone(), value.clone()),
            _ => (rename(name), value.clone()),
        };
        let header: Map<String, Value> = header.iter().map(of_name).collect();
        file(&Value::Object(header).to_string(), data)
    };
    let text = Value::Object(header.clone()).to_string();
    for edit in json_of(&case("26b-safetensors/edits.json")).as_array().unwrap() {
        let (name, right) = (edit["name"].as_str().unwrap(), edit["right"].as_str().unwrap());
        let bytes = match name {
            "asis" => whole.clone(),
            "no_metadata" => with_metadata(None),
            "metadata_empty" => with_metadata(Some(json!({}))),
            "metadata_null" => with_metadata(Some(Value::Null)),
            "metadata_number" => with_metadata(Some(json!({ "total": 1 }))),
            "odd_header_len" => file(&format!("{text}   "), data),
            "zero_size" => extra("extra.empty", "F32", json!([0, 7]), 0),
            "zero_size_front" => {
                let mut header = header.clone();
                header.insert(
                    "a.empty".into(),
                    json!({ "dtype": "I64", "shape": [0], "data_offsets": [0, 0] }),
                );
                file(&Value::Object(header).to_string(), data)
            }
            "scalar_i64" => extra("pos", "I64", json!([]), 8),
            "f8_extra" => extra("scale", "F8_E4M3", json!([4]), 4),
            "u16_extra" => extra("u", "U16", json!([2]), 4),
            "trailing_bytes" => [&whole[..], &[0, 0]].concat(),
            "truncated" => whole[..whole.len() - 4].to_vec(),
            "shared" => {
                let mut header = header.clone();
                header.insert("lm_head.weight".into(), header["model.embed_tokens.weight"].clone());
                file(&Value::Object(header).to_string(), data)
            }
            "dup_key" => {
                let (first, value) = header.iter().find(|(name, _)| *name != "__metadata__").unwrap();
                file(&format!("{{{}:{value},{}", json!(first), &text[1..]), data)
            }
            "prefix_model" => renamed(&|name| format!("model.{name}")),
            "no_model_prefix" => renamed(&|name| name.strip_prefix("model.").unwrap_or(name).to_owned()),
            other => panic!("an unknown case: {other}"),
        };
        fs::write(&path, bytes).unwrap();
        let result = bench.loss(case("26b-safetensors/r.jsonl"));
        if right.starts_with("refused") {
            let parts: &[&str] = match name {
                "prefix_model" => &["model.model."],
                "no_model_prefix" => &["without the prefix", "model."],
                "dup_key" => &["twice"],
                "shared" => &["overlap"],
                _ => &["model.safetensors"],
            };
            refused(name, result, parts);
            continue;
        }
        let (loss, said) = result.unwrap_or_else(|error| panic!("{name}: {error}"));
        near(name, loss, 8.4626, 6e-5);
        if right.contains("named as unused") || right.starts_with("as f8_extra") {
            let extra = ["extra.empty", "a.empty", "pos", "scale", "not used: u"];
            assert!(extra.iter().any(|extra| said.contains(extra)), "{name}: {said}");
        }
    }
}

/// A safetensors file.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// 32: labels that are not the tokens at their places.
#[test]
fn shifted_and_unrelated_labels_are_said() {
    let bench = Bench::new();
    let loss = bench.loss(case("32-labels/ok.jsonl")).unwrap().0;
    near("ok", loss, json_of(&case("32-labels/case.json"))["ok"]["loss"].as_f64().unwrap(), 6e-5);
    for (name, word) in [("shifted", "shifted"), ("unrelated", "unrelated.jsonl:1")] {
        let mut config = bench.training(case("32-labels").join(format!("{name}.jsonl")));
        (config.max_steps, config.overwrite) = (Some(1), true);
        let (said, _) = bench.train(&config).unwrap();
        assert!(said.contains(word), "{name}: {said}");
    }
}

/// 34: a dropout of 1, which would drop every input.
#[test]
fn a_dropout_of_one_is_refused_before_anything_is_trained() {
    let bench = Bench::new();
    let mut config = bench.training(bench.rows(&[json!({ "input": "a", "output": "b" })]));
    config.lora_dropout = 1.0;
    refused("dropout", bench.train(&config), &["lora_dropout"]);
    assert!(!config.output_dir.exists());
}

/// 35: tables and arrays; packed rows have the scores that they have alone.
#[test]
fn tables_and_arrays_are_read_and_packing_changes_nothing() {
    let bench = Bench::new();
    for (name, rows) in [("a.csv", 2), ("array.json", 1), ("array-many-lines.json", 1)] {
        let scores = bench.score(&bench.scoring(case("35-files-and-packing").join(name))).unwrap().0;
        assert_eq!(scores.len(), rows, "{name}");
    }
    let mut config = bench.scoring(case("35-files-and-packing/packing.jsonl"));
    let mut of_size = |size| {
        config.batch_size = Some(size);
        bench.score(&config).unwrap().0
    };
    let alone = of_size(1);
    for size in [4, 9] {
        for (row, (packed, alone)) in of_size(size).iter().zip(&alone).enumerate() {
            assert_eq!(packed.len(), alone.len());
            for (&packed, &alone) in packed.iter().zip(alone) {
                near(&format!("row {row} of {size}"), packed, alone, 1e-5);
            }
        }
    }
}

/// 38: a token of the tokenizer that the model has no row for.
#[test]
fn a_token_beyond_the_vocabulary_is_named_with_its_row() {
    let bench = Bench::new();
    let folder = case("38-token-beyond-vocabulary");
    fs::copy(folder.join("tokenizer_config.json"), bench.path("model/tokenizer_config.json")).unwrap();
    let mut config = bench.training(folder.join("rows.jsonl"));
    config.format = Format::Auto;
    let parts = ["rows.jsonl:", "<think>", "4096", "below 4096"];
    refused("training", bench.train(&config), &parts);
    assert!(!config.output_dir.join("adapter_config.json").exists());
}
