//! What is written of the outputs of a head for labels.

use super::*;
use crate::config::Loss;
use crate::data::files::read_rows;

fn scheme(task: Task, loss: Loss, num_labels: usize, labels: Option<&[&str]>) -> LabelScheme {
    let labels = labels.map(|names| names.iter().map(|&name| name.to_owned()).collect());
    LabelScheme { task, loss, num_labels, labels, target_offset: Vec::new(), target_scale: Vec::new() }
}

fn rows(text: &str) -> Vec<Record> {
    read_rows(Path::new("rows.jsonl"), text.as_bytes()).unwrap()
}

#[test]
fn lines_and_tables_say_the_same_of_classes() {
    let scheme = scheme(Task::Classify, Loss::CrossEntropy, 2, Some(&["no", "yes"]));
    let records = rows("{\"input_ids\":[1],\"label\":\"yes\",\"id\":7}\n{\"input_ids\":[2]}\n");
    let example = |label, record| Example { input_ids: vec![1], label, record, ..Example::default() };
    let examples = [example(Label::Class(1), 0), example(Label::None, 1)];
    let outcomes =
        [Outcome { example: 0, logits: vec![0.0, 0.5] }, Outcome { example: 1, logits: vec![0.25, 0.25] }];
    let text = String::from_utf8(lines(&scheme, &records, &examples, &outcomes)).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&lines[0]["id"], &lines[0]["prediction"], &lines[0]["correct"]),
        (&json!(7), &json!("yes"), &json!(true))
    );
    let share = 1.0 / (1.0 + (-0.5f64).exp());
    assert!((lines[0]["probabilities"][1].as_f64().unwrap() - share).abs() < 1e-12);
    // Equal outputs are the first class, and a row without a label is neither right nor wrong.
    assert_eq!((&lines[1]["prediction"], &lines[1]["label"]), (&json!("no"), &Value::Null));
    assert!(lines[1].get("correct").is_none());
    let table = String::from_utf8(table(&scheme, &records, &examples, &outcomes).unwrap()).unwrap();
    let first: Vec<&str> = table.lines().take(2).collect();
    let header = "id,line,file,label,prediction,correct,logit_no,logit_yes,probability_no,probability_yes";
    assert_eq!(first[0], header);
    assert!(first[1].starts_with("7,1,rows.jsonl,yes,yes,true,0.0,0.5,"), "{}", first[1]);
}

#[test]
fn numbers_are_in_the_units_of_the_rows() {
    let moved = LabelScheme {
        target_offset: vec![-2.0],
        target_scale: vec![4.0],
        ..scheme(Task::Regress, Loss::SigmoidMse, 1, None)
    };
    assert_eq!(prediction(&moved, &[0.0]), json!(0.0));
    assert_eq!(prediction(&scheme(Task::Regress, Loss::Mse, 2, None), &[0.5, -1.0]), json!([0.5, -1.0]));
    let several = scheme(Task::Classify, Loss::Bce, 3, None);
    assert_eq!(prediction(&several, &[0.5, -1.0, 0.0]), json!([0, 2]));
    assert_eq!(is_right(&several, &Label::Numbers(vec![1.0, 0.0, 1.0]), &[0.5, -1.0, 0.0]), Some(true));
    assert_eq!(probabilities(&several, &[0.0])[0], 0.5);
}
