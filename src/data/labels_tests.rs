//! Labels of rows: kinds that fit a task, numbers that are moved, and rows that are refused.

use std::path::Path;

use super::*;
use crate::data::files::read_rows;

fn rows(labels: &[&str]) -> Vec<Record> {
    let text: String = labels
        .iter()
        .map(|label| match *label {
            "" => "{\"input_ids\":[5,6,7]}\n".to_owned(),
            label => format!("{{\"input_ids\":[5,6,7],\"label\":{label}}}\n"),
        })
        .collect();
    if labels.is_empty() {
        return Vec::new();
    }
    read_rows(Path::new("rows.jsonl"), text.as_bytes()).unwrap()
}

fn options(task: Task, loss: Loss) -> LabelOptions {
    LabelOptions { task, loss, num_labels: None, target_shift: TargetShift::None }
}

const CLASSES: LabelOptions = LabelOptions {
    task: Task::Classify,
    loss: Loss::CrossEntropy,
    num_labels: None,
    target_shift: TargetShift::None,
};

fn limits() -> RowLimits {
    RowLimits {
        max_seq_length: 8,
        max_position_embeddings: 16,
        truncation: Truncation::Error,
        skip_empty: false,
        needs_labels: true,
        vocab_size: 10,
        token_types: Some(2),
        pool: Pool::First,
        pad_token_id: Some(0),
    }
}

fn encoded(options: LabelOptions, labels: &[&str]) -> Vec<Label> {
    let rows = rows(labels);
    let scheme = LabelScheme::of(options, &Known::default(), &rows, &[]).unwrap();
    scheme.encode(&rows, &limits()).unwrap().0.into_iter().map(|example| example.label).collect()
}

fn refused(options: LabelOptions, known: &Known, train: &[&str], eval: &[&str]) -> String {
    let (train, eval) = (rows(train), rows(eval));
    let scheme = LabelScheme::of(options, known, &train, &eval);
    let all = scheme.and_then(|scheme| {
        scheme.encode(&train, &limits())?;
        if eval.is_empty() { Ok(()) } else { scheme.encode(&eval, &limits()).map(drop) }
    });
    all.unwrap_err().to_string()
}

#[test]
fn classes_come_as_numbers_and_as_names() {
    let class = Label::Class;
    assert_eq!(encoded(CLASSES, &["2", "0", "\"1\""]), [class(2), class(0), class(1)]);
    assert_eq!(encoded(CLASSES, &["\"no\"", "\"yes\"", "\"maybe\""]), [class(1), class(2), class(0)]);
    let scheme = |options, known: &Known, labels: &[&str]| {
        LabelScheme::of(options, known, &rows(labels), &[]).unwrap()
    };
    let some = Known::default();
    assert_eq!(scheme(CLASSES, &some, &["0", "4"]).num_labels, 5);
    let more = LabelOptions { num_labels: Some(4), ..CLASSES };
    assert_eq!(scheme(more, &some, &["0", "1"]).num_labels, 4);
    let named = scheme(more, &some, &["\"b\"", "\"a\""]);
    assert_eq!(named.labels.unwrap(), ["a", "b", "LABEL_2", "LABEL_3"]);
    // Those of the model, if they hold the rows' own.
    let names = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
    let known = Known { of_model: Some((3, names(&["pos", "neg", "neutral"]))), ..Known::default() };
    let own = scheme(CLASSES, &known, &["\"neg\"", "\"pos\""]);
    assert_eq!((own.num_labels, own.labels), (3, names(&["pos", "neg", "neutral"])));
    assert_eq!(scheme(CLASSES, &known, &["\"a\"", "\"b\""]).labels, names(&["a", "b"]));
    assert_eq!(scheme(CLASSES, &known, &["0", "1"]).num_labels, 3);
    assert_eq!(scheme(CLASSES, &known, &["0", "3"]).num_labels, 4);
}

#[test]
fn labels_that_are_no_classes_are_refused_at_their_row() {
    let none = Known::default();
    for (train, eval, parts) in [
        (&["0", "1", "0.5"][..], &[][..], ["rows.jsonl:3", "whole number"]),
        (&["0", "-1"], &[], ["rows.jsonl:2", "whole number"]),
        (&["\"a\"", "1"], &[], ["rows.jsonl:2", "name of a class"]),
        (&["0", "[1, 0]"], &[], ["rows.jsonl:2", "--loss bce"]),
        (&["\"a\"", "\"b\""], &["\"c\""], ["", ""]),
        (&["0", "1"], &["\"b\""], ["rows.jsonl:1", "whole number"]),
        (&["0", "0"], &[], ["one class", "--num-labels"]),
        (&["0", "1", ""], &[], ["rows.jsonl:3: field \"label\": the row has no label", "--skip-empty"]),
        (&["999999"], &[], ["too many classes", "without gaps"]),
    ] {
        if parts[0].is_empty() {
            // A name that only the evaluation has is a class, too.
            let scheme = LabelScheme::of(CLASSES, &none, &rows(train), &rows(eval)).unwrap();
            assert_eq!(scheme.num_labels, 3);
            continue;
        }
        let error = refused(CLASSES, &none, train, eval);
        assert!(parts.iter().all(|part| error.contains(part)), "{train:?} {eval:?}: {error}");
    }
    let few = LabelOptions { num_labels: Some(2), ..CLASSES };
    assert!(refused(few, &none, &["0", "2"], &[]).contains("at least 3"));
}

#[test]
fn numbers_are_moved_and_come_back() {
    let numbers = |numbers: &[f32]| Label::Numbers(numbers.to_vec());
    let mse = options(Task::Regress, Loss::Mse);
    assert_eq!(encoded(mse, &["0.5", "\"-2\"", "[3]"]), [numbers(&[0.5]), numbers(&[-2.0]), numbers(&[3.0])]);
    assert_eq!(encoded(mse, &["[0.5, 1]", "[2, 3]"]), [numbers(&[0.5, 1.0]), numbers(&[2.0, 3.0])]);
    let least = LabelOptions { target_shift: TargetShift::Min, ..mse };
    assert_eq!(encoded(least, &["0.5", "-2", "3"]), [numbers(&[2.5]), numbers(&[0.0]), numbers(&[5.0])]);
    let range =
        LabelOptions { target_shift: TargetShift::Minmax, ..options(Task::Regress, Loss::SigmoidMse) };
    assert_eq!(encoded(range, &["1", "3", "2"]), [numbers(&[0.0]), numbers(&[1.0]), numbers(&[0.5])]);
    let scheme = LabelScheme::of(range, &Known::default(), &rows(&["1", "3"]), &[]).unwrap();
    assert_eq!((scheme.in_units(0, 0.0), scheme.untrained(0, 0.5)), (2.0, 2.0));
    let bce = options(Task::Classify, Loss::Bce);
    assert_eq!(encoded(bce, &["[1, 0]", "[0, 0.5]"]), [numbers(&[1.0, 0.0]), numbers(&[0.0, 0.5])]);
    for (options, labels, part) in [
        (mse, &["1", "[1, 2]"][..], "expected a number"),
        (mse, &["[1, 2]", "1"], "a list of 2 numbers"),
        (mse, &["1", "\"x\""], "rows.jsonl:2"),
        (bce, &["[1, 2]"], "0 to 1"),
        (range, &["1", "1"], "no range"),
        (LabelOptions { num_labels: Some(2), ..mse }, &["1"], "num_labels"),
    ] {
        let error = refused(options, &Known::default(), labels, &[]);
        assert!(error.contains(part), "{labels:?}: {error}");
    }
}

#[test]
fn an_adapter_to_start_from_keeps_its_meaning() {
    let scheme = LabelScheme::of(CLASSES, &Known::default(), &rows(&["\"b\"", "\"a\""]), &[]).unwrap();
    let known = Known { scheme: Some(scheme.clone()), ..Known::default() };
    assert_eq!(LabelScheme::of(CLASSES, &known, &rows(&["\"b\""]), &[]).unwrap(), scheme);
    assert!(refused(CLASSES, &known, &["\"c\""], &[]).contains("one of \"a\", \"b\""));
    let other = options(Task::Regress, Loss::Mse);
    assert!(refused(other, &known, &["1"], &[]).contains("expected classify"));
}

#[test]
fn rows_are_checked_and_padding_is_taken_off() {
    let of = |text: &str, limits: RowLimits| {
        let rows = read_rows(Path::new("rows.jsonl"), text.as_bytes()).unwrap();
        let scheme =
            LabelScheme::of(options(Task::Regress, Loss::Mse), &Known::default(), &rows, &[]).unwrap();
        scheme.encode(&rows, &limits)
    };
    let padded =
        r#"{"input_ids":[0,5,6,0,0],"token_type_ids":[0,0,1,1,1],"attention_mask":[0,1,1,1,1],"label":1}"#;
    let (examples, audit) = of(padded, limits()).unwrap();
    assert_eq!(
        (&examples[0].input_ids[..], &examples[0].token_type_ids[..]),
        (&[5, 6, 0, 0][..], &[0, 1, 1, 1][..])
    );
    assert!(audit.lines()[0].contains("1 with a label"), "{:?}", audit.lines());
    let (examples, _) = of(padded, RowLimits { pool: Pool::Last, ..limits() }).unwrap();
    assert_eq!(examples[0].input_ids, [5, 6]);
    for (text, part) in [
        (r#"{"input_ids":[10],"label":1}"#, "input_ids[0]"),
        (r#"{"input_ids":[1,2],"token_type_ids":[0,2],"label":1}"#, "token_type_ids[1]"),
        (r#"{"input_ids":[],"label":1}"#, "no token"),
        (r#"{"input_ids":[1,1,1,1,1,1,1,1,1],"label":1}"#, "raise --max-seq-length to 9"),
        (r#"{"input_ids":[1],"labels":[1]}"#, "needs rows of token ids with a label"),
        (r#"{"text":"a","label":1}"#, "needs rows of token ids with a label"),
    ] {
        let error = of(text, limits()).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("rows.jsonl:1"), "{text}: {error}");
    }
    let two = "{\"input_ids\":[1],\"label\":1}\n{\"input_ids\":[2]}\n";
    assert_eq!(of(two, RowLimits { skip_empty: true, ..limits() }).unwrap().1.skipped_empty, 1);
    let scored = of(two, RowLimits { needs_labels: false, ..limits() }).unwrap().0;
    assert_eq!((scored.len(), &scored[1].label), (2, &Label::None));
    let types = RowLimits { token_types: None, ..limits() };
    assert!(of(r#"{"input_ids":[1],"token_type_ids":[0],"label":1}"#, types).is_ok());
}
