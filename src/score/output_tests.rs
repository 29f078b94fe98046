//! Tests of names and bytes of the result files.

use super::*;
use crate::data::files::read_rows;
use crate::score::report::Pick;

fn config(mode: ScoreMode, output: &Path) -> ScoreConfig {
    let data_file = vec![output.with_file_name("rows.jsonl")];
    ScoreConfig { mode, output: output.into(), model: "m".into(), data_file, ..ScoreConfig::default() }
}

fn names(mode: ScoreMode, output: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let outputs = Outputs::plan(&config(mode, &dir.path().join(output))).unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    outputs.paths().into_iter().map(name).collect()
}

#[test]
fn choices_have_a_table_and_a_summary() {
    for output in ["scores", "scores.csv", "scores.JSON", "scores.jsonl"] {
        assert_eq!(names(ScoreMode::Choice, output), ["scores.csv", "scores.json"], "{output}");
    }
    assert_eq!(names(ScoreMode::Choice, "scores.v2"), ["scores.v2.csv", "scores.v2.json"]);
    assert_eq!(names(ScoreMode::Logprob, "scores.txt"), ["scores.txt"]);
}

#[test]
fn what_exists_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("new/scores");
    let mut config = config(ScoreMode::Choice, &output);
    Outputs::plan(&config).unwrap();
    std::fs::write(output.with_extension("json"), "old").unwrap();
    let error = Outputs::plan(&config).unwrap_err().to_string();
    assert!(error.contains("scores.json: field \"output\": the file exists already"), "{error}");
    config.overwrite = true;
    Outputs::plan(&config).unwrap();
    config.data_file = vec![output.with_extension("json")];
    let error = Outputs::plan(&config).unwrap_err().to_string();
    assert!(error.contains("would replace the data"), "{error}");
    config.mode = ScoreMode::Logprob;
    config.output = dir.path().to_owned();
    assert!(Outputs::plan(&config).unwrap_err().to_string().contains("a folder has this name"));
    config.output = "..".into();
    assert!(Outputs::plan(&config).is_err());
}

/// Two rows: one right, with texts that need quotes; one without gold.
fn scored() -> (ChoiceReport, Vec<Record>, Vec<Outcome>) {
    let text = concat!(
        r#"{"input":"1","output":"a\n","meta":{"id":"x, \"y\"","law":"=1+1"}}"#,
        "\n\n",
        r#"{"input":"2","output":"-c","meta":{"id":5,"line":"@"}}"#,
        "\n"
    );
    let records = read_rows(Path::new("rows.jsonl"), text.as_bytes()).unwrap();
    let outcomes = vec![
        Outcome {
            record: 0,
            logprobs: vec![-0.1, -1e-7],
            gold: Some(0),
            pick: Pick { sum: 0, norm: 1, sum_tied: false, norm_tied: false },
        },
        Outcome {
            record: 1,
            logprobs: vec![-2.0, -0.5],
            gold: None,
            pick: Pick { sum: 1, norm: 1, sum_tied: false, norm_tied: false },
        },
    ];
    let fields = ["law".to_owned(), "line".to_owned()];
    let report = ChoiceReport::of(&outcomes, &records, &["a".into(), "b,".into()], &fields);
    (report, records, outcomes)
}

#[test]
fn the_table_is_quoted_where_needed_and_exact() {
    let (report, records, outcomes) = scored();
    let (bytes, formulas) = table(&report, &records, &outcomes).unwrap();
    let expected = concat!(
        "id,line,file,gold,predicted,correct,logprob_a,\"logprob_b,\",predicted_norm,law,meta.line\r\n",
        "\"x, \"\"y\"\"\",1,rows.jsonl,a,a,true,-0.1,-1e-7,\"b,\",=1+1,(none)\r\n",
        "5,3,rows.jsonl,-c,\"b,\",,-2.0,-0.5,\"b,\",(none),@\r\n",
    );
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    assert_eq!(formulas, 2);
}

#[test]
fn the_summary_has_counts_and_the_options_that_matter() {
    let (report, ..) = scored();
    let mut config = config(ScoreMode::Choice, Path::new("scores"));
    let text = summary_json(&config, &report);
    config.threads = Some(1);
    config.overwrite = true;
    assert_eq!(text, summary_json(&config, &report), "machine options leave no trace");
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["mode"], "choice");
    assert_eq!(summary["accuracy"], 1.0);
    assert_eq!((&summary["num_rows"], &summary["num_with_gold"]), (&json!(2), &json!(1)));
    assert_eq!(summary["predicted_counts"], json!({ "a": 1, "b,": 1 }));
    assert_eq!(summary["confusion"]["a"], json!({ "a": 1, "b,": 0 }));
    assert_eq!(summary["by"]["law"]["(none)"]["accuracy"], Value::Null);
    assert_eq!(summary["by"]["law"]["=1+1"]["accuracy"], 1.0);
    assert_eq!(summary["config"]["data_file"], json!(["rows.jsonl"]));
}
