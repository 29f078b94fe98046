//! Tests of gold answers, choices and fields.

use std::path::Path;

use super::*;
use crate::data::files::read_rows;

fn records(lines: &[&str]) -> Vec<Record> {
    read_rows(Path::new("rows.jsonl"), lines.join("\n").as_bytes()).unwrap()
}

fn outputs(texts: &[&str]) -> Vec<Record> {
    let line = |text: &&str| serde_json::json!({ "input": "q", "output": text }).to_string();
    let lines: Vec<String> = texts.iter().map(line).collect();
    records(&lines.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn choices_are_the_distinct_outputs_in_order() {
    let records = outputs(&["b", " a", "b\n", "", "a"]);
    let choices = from_data(distinct(&records).unwrap()).unwrap();
    assert_eq!(choices, [" a", "b"], "white space at the ends makes no other answer");
    assert_eq!(place(&choices, "a"), Some(0));
    assert_eq!(place(&choices, "b\n"), Some(1));
    assert_eq!(place(&choices, "c"), None);
}

#[test]
fn too_many_and_too_few_outputs_are_errors_with_their_number() {
    let texts: Vec<String> = (0..27).map(|i| format!("answer {i}")).collect();
    let records = outputs(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let error = from_data(distinct(&records).unwrap()).unwrap_err().to_string();
    assert!(error.contains("got 27 distinct answers, expected 2 to 26; fix: pass --choices"), "{error}");
    assert!(from_data(distinct(&records[..26]).unwrap()).is_ok());
    assert!(from_data(distinct(&records[..1]).unwrap()).is_err());
}

#[test]
fn the_last_assistant_turn_is_gold() {
    let turns = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"b"}]}"#;
    let open = r#"{"messages":[{"role":"user","content":"q"}]}"#;
    let ids = r#"{"input_ids":[1,2],"labels":[-100,2]}"#;
    let records = records(&[turns, open, ids]);
    assert_eq!(gold_text(&records[0]).unwrap(), Some("b"));
    assert_eq!(gold_text(&records[1]).unwrap(), None);
    let error = gold_text(&records[2]).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:3") && error.contains("--mode logprob"), "{error}");
}

#[test]
fn rows_without_an_answer_and_rows_with_another_one_are_told_apart() {
    let asks = |last: &str| {
        let turns = r#"{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"role":"user","content":"and?"}"#;
        format!(r#"{{"messages":[{turns}{last}]}}"#)
    };
    let answers = asks(r#",{"role":"assistant","content":"b"}"#);
    let other = asks(r#",{"role":"assistant","content":"perhaps"}"#);
    let records = records(&[&answers, &asks(""), r#"{"input":"q","output":" "}"#, &other, &asks("")]);
    let choices = ["a".to_owned(), "b".to_owned()];
    let outcome = |i: usize| Outcome {
        record: i,
        gold: gold_text(&records[i]).unwrap().and_then(|text| place(&choices, text)),
        pick: pick(&[-1.0, -2.0], &choices),
        logprobs: vec![-1.0, -2.0],
    };
    let warnings_of = |rows: &[usize]| {
        let outcomes: Vec<Outcome> = rows.iter().map(|&i| outcome(i)).collect();
        warnings(&ChoiceReport::of(&outcomes, &records, &choices, &[]), &outcomes, &records)
    };
    let all = warnings_of(&[0, 1, 2, 3, 4]);
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[0].starts_with("3 of 5 rows have no answer (rows.jsonl:2 is the first)"), "{}", all[0]);
    assert!(
        all[1].starts_with("1 of 5 rows have an answer that is not among the choices (rows.jsonl:4"),
        "{}",
        all[1]
    );
    assert_eq!(warnings_of(&[1, 4]).len(), 1);
    assert!(warnings_of(&[0]).is_empty());
}

#[test]
fn a_field_that_no_row_has_is_an_error() {
    let records = records(&[r#"{"input":"q","output":"a","meta":{"law":"x","kind":"y"}}"#]);
    let by = |names: &[&str]| fields(&names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>(), &records);
    assert_eq!(by(&["law", "law"]).unwrap(), ["law"]);
    let error = by(&["lwa"]).unwrap_err().to_string();
    assert!(error.contains("got lwa, expected kind, law"), "{error}");
}
