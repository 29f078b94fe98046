//! Conversations that tools get wrong, with the ids and labels that transformers' rendering gives (tests/data/cases).

use std::path::{Path, PathBuf};

use super::*;
use crate::data::files::read_rows;
use crate::data::template::ChatTemplate;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases")
}

/// The tokenizer of a case: that of the tiny model or one of the tests, with the edits and the configuration of the case.
fn tokenizer(case: &Value, template: &str) -> Tokenizer {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = match case["tokenizer"].as_str().unwrap() {
        "that of the tiny model" => root.join("assets/tiny_tokenizer/tokenizer.json"),
        other => root.join("tests/data").join(other.trim_start_matches("../")),
    };
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let edits = case["tokenizer_edit"]["added_tokens"].as_object();
    for (content, changes) in edits.into_iter().flatten() {
        let mut tokens = json["added_tokens"].as_array_mut().unwrap().iter_mut();
        let token = tokens.find(|token| token["content"] == content.as_str()).unwrap();
        token.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    }
    let mut config = case["tokenizer_config"].clone();
    config["chat_template"] = template.into();
    Tokenizer::from_parts(json.to_string().as_bytes(), &config.to_string()).unwrap()
}

fn encode(tokenizer: &Tokenizer, template: &str, entry: &Value) -> Result<Example> {
    let renderer = Renderer::InProcess(ChatTemplate::compile(template, "case/chat_template.jinja").unwrap());
    let format = if entry["format"] == "plain" { Format::Plain } else { Format::Chat };
    let mut options = EncodeOptions::new(format, 4096);
    match entry["option"].as_str() {
        None => {}
        Some("mask_history = true") => options.mask_history = true,
        Some(other) => panic!("{other}"),
    }
    let records = read_rows(Path::new("rows.jsonl"), format!("{}\n", entry["row"]).as_bytes())?;
    let encoder = Encoder::new(tokenizer, Some(&renderer), options)?;
    encoder.encode_all(&records, &|_| Ok(())).map(|(mut examples, _)| examples.remove(0))
}

/// Whether ids and labels are those of the case, but for what follows the last label.
fn right(example: &Example, entry: &Value, labels: &str) -> bool {
    let numbers = |value: &Value| -> Vec<i64> {
        value.as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect()
    };
    let (ids, labels) = (numbers(&entry["input_ids"]), numbers(&entry[labels]));
    let used = labels.iter().rposition(|&label| label != IGNORE_INDEX).unwrap() + 1;
    let got: Vec<i64> = example.input_ids.iter().map(|&id| i64::from(id)).collect();
    let cut = |numbers: &[i64]| numbers.get(..used).map(<[i64]>::to_vec);
    cut(&got) == cut(&ids)
        && cut(&example.labels) == cut(&labels)
        && example.labels[used..].iter().all(|l| *l == IGNORE_INDEX)
}

#[test]
fn every_case_gets_the_ids_and_labels_of_transformers_or_is_refused_by_name() {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("chat_template.jinja").is_file())
        .collect();
    folders.sort();
    let (mut rows, mut wrong) = (0, Vec::new());
    for folder in &folders {
        let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        let template = std::fs::read_to_string(folder.join("chat_template.jinja")).unwrap();
        let tokenizer = tokenizer(&case, &template);
        for entry in case["rows"].as_array().unwrap() {
            rows += 1;
            let name = format!("{} {}", folder.file_name().unwrap().display(), entry["name"]);
            let refused = entry["refuse"].as_str().or(entry["or_refuse"].as_str());
            match encode(&tokenizer, &template, entry) {
                Ok(example) if entry["refuse"].is_string() => {
                    wrong.push(format!("{name}: not refused: {example:?}"))
                }
                Ok(example) => {
                    let too = entry["labels_too"].is_array() && right(&example, entry, "labels_too");
                    if !too && !right(&example, entry, "labels") {
                        wrong.push(format!(
                            "{name}: {:?}\n got {:?}\n for {:?}",
                            entry["text"],
                            crate::data::audit::masked_preview(&example, &tokenizer).unwrap(),
                            example.input_ids
                        ));
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    let named = refused.is_some_and(|field| text.contains(field));
                    if !named || !text.starts_with("error[DATA] rows.jsonl:1: ") || error.exit_code() != 2 {
                        wrong.push(format!("{name}: {text}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {rows} rows:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!((folders.len(), rows), (16, 40), "a case is missing");
}
