//! Scoring from file to file: against transformers + PEFT, and choices against the same answers scored one by one.
//!
//! Bytes are equal for any number of threads. For other batch sizes they are compared with a tolerance: a matrix product
//! over fewer rows may take another kernel, which rounds differently.

#![allow(clippy::unwrap_used, reason = "a test ends where its helpers fail")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tanren::config::{Dtype, Format, ScoreConfig, ScoreMode, variant};
use tanren::error::{Error, Result};
use tanren::formats::safetensors::TensorFile;
use tanren::model::open::write_random;
use tanren::score::{self, ChoiceReport, Context, Event, Findings, Summary};
use tanren::session::Notice;
use tempfile::TempDir;

/// A folder with a random `qwen3-tiny` and files of rows.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_random(variant("qwen3-tiny").unwrap(), &dir.path().join("model"), 3, Dtype::F32).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn rows(&self, name: &str, rows: &[Value]) -> PathBuf {
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        std::fs::write(self.path(name), lines.join("\n")).unwrap();
        self.path(name)
    }

    fn config(&self, mode: ScoreMode, data_file: PathBuf, output: &str) -> ScoreConfig {
        ScoreConfig {
            mode,
            model: self.path("model").display().to_string(),
            data_file: vec![data_file],
            output: self.path(output),
            threads: Some(2),
            ..ScoreConfig::default()
        }
    }
}

fn run(config: &ScoreConfig) -> Result<Summary> {
    score::run(config, &Context::default(), &mut |_| ())
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn report(summary: Summary) -> ChoiceReport {
    match summary.findings {
        Findings::Choice(report) => report,
        other => panic!("{other:?}"),
    }
}

/// Header and rows of a table.
fn table(path: &Path) -> (Vec<String>, Vec<Vec<String>>) {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let texts = |record: &csv::StringRecord| record.iter().map(str::to_owned).collect::<Vec<_>>();
    let header = texts(reader.headers().unwrap());
    (header, reader.records().map(|record| texts(&record.unwrap())).collect())
}

/// The log-probabilities of a table, by row and choice.
fn logprobs(path: &Path) -> Vec<Vec<f64>> {
    let (header, rows) = table(path);
    let columns: Vec<usize> = (0..header.len()).filter(|&i| header[i].starts_with("logprob_")).collect();
    rows.iter().map(|row| columns.iter().map(|&i| row[i].parse().unwrap()).collect()).collect()
}

const ANSWERS: [&str; 4] = ["yes", "no, never", "うまい", "a"];

/// Questions of several lengths, with an answer of `ANSWERS` or none of them.
fn questions() -> Vec<Value> {
    let question = |i: usize| "why so? ".repeat(1 + 7 * i % 11);
    (0..9)
        .map(|i| {
            let output = if i == 4 { "perhaps" } else { ANSWERS[i % 4] };
            let law = ["x", "y"][i % 2];
            json!({ "input": question(i), "output": output, "meta": { "id": i, "law": law } })
        })
        .collect()
}

#[test]
fn log_probabilities_are_those_of_transformers_and_peft() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3_lora");
    let json: Value = serde_json::from_slice(&std::fs::read(case.join("case.json")).unwrap()).unwrap();
    let batches = json["steps"][0]["micro_batches"].as_array().unwrap();
    let rows: Vec<Value> = batches.iter().flat_map(|batch| batch.as_array().unwrap().clone()).collect();
    let expected = TensorFile::open(&case.join("expected.safetensors")).unwrap();
    let bench = Bench { dir: tempfile::tempdir().unwrap() };
    let data = bench.rows("rows.jsonl", &rows);
    for (name, adapter) in [("base", None), ("adapter", Some(case.join("adapter_init")))] {
        for batch_size in [1, 8] {
            let output = format!("{name}{batch_size}.jsonl");
            let config = ScoreConfig {
                model: case.join("model").display().to_string(),
                adapter: adapter.clone(),
                batch_size: Some(batch_size),
                ..bench.config(ScoreMode::Logprob, data.clone(), &output)
            };
            let summary = run(&config).unwrap();
            assert_eq!((summary.num_rows, summary.num_skipped), (rows.len(), 0));
            let lines = lines(&config.output);
            let got: Vec<f64> = lines.iter().flat_map(|line| numbers(&line["token_logprobs"])).collect();
            let expected = expected.get(&format!("label_logprobs_{name}")).unwrap().to_f32().unwrap();
            assert_eq!(got.len(), expected.len());
            for (got, expected) in got.iter().zip(expected.iter()) {
                assert!((got - f64::from(*expected)).abs() < 2e-5, "{name}: {got} {expected}");
            }
            let Findings::Logprob(report) = summary.findings else { panic!() };
            let mean = -got.iter().sum::<f64>() / got.len() as f64;
            assert!(report.num_tokens == got.len() && (report.loss - mean).abs() < 1e-9);
            for (line, row) in lines.iter().zip(1..) {
                let logprobs = numbers(&line["token_logprobs"]);
                assert_eq!(line["line"], row);
                assert_eq!(line["file"], data.display().to_string());
                assert_eq!(line["num_tokens"], logprobs.len());
                assert_eq!(line["logprob"].as_f64().unwrap(), logprobs.iter().sum::<f64>());
            }
        }
    }
}

#[test]
fn choices_on_a_shared_prompt_are_the_rows_scored_one_by_one() {
    let bench = Bench::new();
    for format in [Format::Plain, Format::Chat] {
        let data = bench.rows("rows.jsonl", &questions());
        let config = ScoreConfig {
            format,
            choices: Some(ANSWERS.map(str::to_owned).to_vec()),
            by: vec!["law".into()],
            ..bench.config(ScoreMode::Choice, data, &format!("{format}.csv"))
        };
        let mut warnings = Vec::new();
        let summary = score::run(&config, &Context::default(), &mut |event| {
            if let Event::Notice(Notice::Warning(text)) = event {
                warnings.push(text);
            }
        });
        let report = report(summary.unwrap());
        assert!(
            warnings.iter().any(|w| w.contains("1 of 9 rows have an answer that is not")),
            "{warnings:?}"
        );
        assert_eq!((report.overall.num_rows, report.overall.num_with_gold), (9, 8));
        assert_eq!(report.by[0].values["x"].num_rows, 5);

        let singles: Vec<Value> = questions()
            .iter()
            .flat_map(|row| ANSWERS.map(|answer| json!({ "input": row["input"], "output": answer })))
            .collect();
        let data = bench.rows("singles.jsonl", &singles);
        let single =
            ScoreConfig { format, ..bench.config(ScoreMode::Logprob, data, &format!("{format}.jsonl")) };
        run(&single).unwrap();
        // The last token of a row ends the answer; it has no part in a choice.
        let one_by_one: Vec<f64> = lines(&single.output)
            .iter()
            .map(|line| numbers(&line["token_logprobs"]))
            .map(|tokens| tokens[..tokens.len() - 1].iter().sum())
            .collect();
        let shared = logprobs(&config.output).concat();
        assert_eq!(shared.len(), one_by_one.len());
        for (shared, single) in shared.iter().zip(&one_by_one) {
            assert!((shared - single).abs() < 1e-4, "{shared} {single}");
        }

        let (header, rows) = table(&config.output);
        assert_eq!(header[..6], ["id", "line", "file", "gold", "predicted", "correct"]);
        let right = rows.iter().filter(|row| row[5] == "true").count();
        assert_eq!(
            (rows[4][3].as_str(), rows[4][5].as_str(), right),
            ("perhaps", "", report.overall.num_correct)
        );
        for (row, logprobs) in rows.iter().zip(one_by_one.chunks(ANSWERS.len())) {
            let best = (0..4).max_by(|&i, &j| logprobs[i].total_cmp(&logprobs[j])).unwrap();
            assert_eq!(row[4], ANSWERS[best]);
        }
    }
}

#[test]
fn conversations_are_scored_like_inputs_and_outputs() {
    let bench = Bench::new();
    let turn = |role: &str, content: &Value| json!({ "role": role, "content": content });
    let pairs = questions();
    let turns: Vec<Value> = pairs
        .iter()
        .map(|row| json!({ "messages": [turn("user", &row["input"]), turn("assistant", &row["output"])] }))
        .collect();
    let mut results = Vec::new();
    for (name, rows) in [("pairs", pairs), ("turns", turns)] {
        let data = bench.rows(&format!("{name}.jsonl"), &rows);
        let config = ScoreConfig { format: Format::Chat, ..bench.config(ScoreMode::Choice, data, name) };
        let report = report(run(&config).unwrap());
        assert_eq!(report.choices, ["a", "no, never", "perhaps", "yes", "うまい"]);
        results.push((logprobs(&bench.path(&format!("{name}.csv"))), report.overall));
    }
    assert_eq!(results[0], results[1]);
}

#[test]
fn threads_change_no_byte_and_batches_only_the_rounding() {
    let bench = Bench::new();
    let data = bench.rows("rows.jsonl", &questions());
    for (mode, extensions) in [(ScoreMode::Choice, &["csv", "json"][..]), (ScoreMode::Logprob, &["jsonl"])] {
        let config = |name: &str| bench.config(mode, data.clone(), &format!("{name}.jsonl"));
        let read = |name: &str| {
            extensions
                .iter()
                .map(|e| std::fs::read(bench.path(&format!("{name}.{e}"))).unwrap())
                .collect::<Vec<_>>()
        };
        run(&config("base")).unwrap();
        run(&ScoreConfig { threads: Some(1), ..config("one_thread") }).unwrap();
        assert!(read("base") == read("one_thread"), "{mode}");
        run(&config("again")).unwrap();
        assert!(read("base") == read("again"), "{mode}");
        for (name, batch_size, tokens_per_batch, max_tokens_per_pass) in
            [("one_row", Some(1), None, 4096), ("tokens", None, Some(64), 4096), ("passes", Some(8), None, 1)]
        {
            let other = ScoreConfig { batch_size, tokens_per_batch, max_tokens_per_pass, ..config(name) };
            run(&other).unwrap();
            let numbers_of = |name: &str| match mode {
                ScoreMode::Choice => logprobs(&bench.path(&format!("{name}.csv"))).concat(),
                _ => lines(&config(name).output).iter().flat_map(|l| numbers(&l["token_logprobs"])).collect(),
            };
            let (base, other) = (numbers_of("base"), numbers_of(name));
            assert_eq!(base.len(), other.len());
            assert!(base.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-5), "{mode} {name}");
        }
    }
}

#[test]
fn a_stopped_run_writes_nothing() {
    let bench = Bench::new();
    let data = bench.rows("rows.jsonl", &questions());
    for mode in [ScoreMode::Choice, ScoreMode::Logprob] {
        for stop_at in 0..4 {
            let asked = Arc::new(AtomicUsize::new(0));
            let stop = move || asked.fetch_add(1, Ordering::Relaxed) >= stop_at;
            let context = Context { stop: Some(Arc::new(stop)), ..Context::default() };
            let config = ScoreConfig { batch_size: Some(3), ..bench.config(mode, data.clone(), "out.csv") };
            let error = score::run(&config, &context, &mut |_| ()).unwrap_err();
            assert!(matches!(error, Error::Stopped { .. }), "{error}");
        }
    }
    let names: Vec<_> =
        std::fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == "model" || name == "rows.jsonl"), "{names:?}");
}

#[test]
fn an_existing_output_is_kept_without_overwrite() {
    let bench = Bench::new();
    let data = bench.rows("rows.jsonl", &questions());
    let mut config = bench.config(ScoreMode::Choice, data, "out");
    std::fs::write(bench.path("out.json"), "mine").unwrap();
    let error = run(&config).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("out.json"), "{error}");
    assert_eq!(std::fs::read(bench.path("out.json")).unwrap(), b"mine");
    assert!(!bench.path("out.csv").exists());
    config.overwrite = true;
    let summary = run(&config).unwrap();
    assert_eq!(summary.files, [bench.path("out.csv"), bench.path("out.json")]);
    let written: Value = serde_json::from_slice(&std::fs::read(bench.path("out.json")).unwrap()).unwrap();
    assert_eq!(written["num_rows"], 9);
}

#[test]
fn lengths_and_limits_follow_the_options() {
    let bench = Bench::new();
    let data = bench.rows("rows.jsonl", &questions());
    let config = |name: &str| ScoreConfig {
        max_seq_length: 32,
        ..bench.config(ScoreMode::Choice, data.clone(), name)
    };
    let error = run(&config("error")).unwrap_err().to_string();
    assert!(error.contains("of the rows do not fit into 32 tokens"), "{error}");
    let skip = run(&ScoreConfig { truncation: tanren::config::Truncation::Skip, ..config("skip") }).unwrap();
    assert!(skip.num_skipped > 0 && skip.num_rows + skip.num_skipped == 9, "{skip:?}");
    let cut = ScoreConfig { truncation: tanren::config::Truncation::PromptLeft, ..config("cut") };
    assert_eq!(run(&cut).unwrap().num_rows, 9);
    let limited = ScoreConfig { limit: Some(2), ..bench.config(ScoreMode::Choice, data.clone(), "limit") };
    let summary = run(&limited).unwrap();
    assert_eq!(summary.num_rows, 2);
    assert_eq!(report(summary).choices.len(), 5, "choices come from the whole file");
}

#[test]
fn rows_without_output_are_scored_or_left_out() {
    let bench = Bench::new();
    let unlabelled = [json!({ "input": "q", "output": "" }), json!({ "input": "r", "output": "" })];
    let data = bench.rows("rows.jsonl", &unlabelled);
    let config = ScoreConfig {
        choices: Some(ANSWERS.map(str::to_owned).to_vec()),
        ..bench.config(ScoreMode::Choice, data, "out")
    };
    let overall = report(run(&config).unwrap()).overall;
    assert_eq!((overall.num_rows, overall.num_with_gold, overall.accuracy), (2, 0, None));
    let skipping = ScoreConfig { skip_empty: true, overwrite: true, ..config };
    let error = run(&skipping).unwrap_err().to_string();
    assert!(error.contains("no row is left: got 2 rows without an answer"), "{error}");
}

#[test]
fn the_example_is_a_valid_configuration() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/lawqa/score.toml");
    let config = ScoreConfig::from_file(&path).unwrap();
    assert_eq!(config.mode, ScoreMode::Choice);
    config.check_supported().unwrap();
}
