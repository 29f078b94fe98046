//! One JSON object becomes one of the three row forms; the caller adds file and line to the errors.

use serde_json::{Map, Value};

use super::jsonl::{Body, Message};
use crate::batch::IGNORE_INDEX;
use crate::error::{Error, InputError, Result};

/// Splits a row into its body and its meta data.
pub(super) fn parse(value: Value) -> Result<(Body, Map<String, Value>)> {
    let mut row = match value {
        Value::Object(row) => row,
        Value::Array(_) => {
            return wrong_type("a row must be an object", &value, "an object")
                .fix("write each object on its own line (jq -c '.[]' file.json)")
                .into();
        }
        _ => {
            return wrong_type("a row must be an object", &value, "an object")
                .fix("write rows like {\"input\": \"2+2?\", \"output\": \"4\"}")
                .into();
        }
    };
    let forms = ["input", "messages", "input_ids"].map(|key| row.contains_key(key));
    if forms.iter().filter(|&&there| there).count() > 1 {
        return Error::input("DATA", "the row mixes two forms")
            .got(keys(&row))
            .expected("\"input\" and \"output\", or \"messages\", or \"input_ids\" and \"labels\"")
            .fix("keep the keys of one form")
            .into();
    }
    let body = match forms {
        [_, true, _] => Body::Messages(messages(&mut row)?),
        [_, _, true] => tokenised(&mut row)?,
        _ => Body::InputOutput { input: string(&mut row, "input")?, output: string(&mut row, "output")? },
    };
    let mut meta = match row.remove("meta") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(meta)) => meta,
        Some(other) => {
            return wrong_type("wrong type", &other, "an object")
                .field("meta")
                .fix("write \"meta\": {\"id\": ...} or leave it out")
                .into();
        }
    };
    for (key, value) in row {
        meta.entry(key).or_insert(value);
    }
    Ok((body, meta))
}

fn messages(row: &mut Map<String, Value>) -> Result<Vec<Message>> {
    let turns = array(row, "messages")?;
    if turns.is_empty() {
        return Error::input("DATA", "the conversation is empty")
            .field("messages")
            .fix("give at least a user and an assistant turn, or remove the row")
            .into();
    }
    turns.into_iter().enumerate().map(|(i, turn)| message(turn, i)).collect()
}

fn message(turn: Value, index: usize) -> Result<Message> {
    let Value::Object(mut extra) = turn else {
        return wrong_type("wrong type", &turn, "an object")
            .field(format!("messages[{index}]"))
            .fix("write turns like {\"role\": \"user\", \"content\": \"...\"}")
            .into();
    };
    let path = |key: &str| format!("messages[{index}].{key}");
    let role = match extra.remove("role") {
        Some(Value::String(role)) if !role.is_empty() => role,
        other => {
            return wrong_type(
                "no role",
                &other.unwrap_or_default(),
                "\"user\", \"assistant\" or \"system\"",
            )
            .field(path("role"))
            .fix("say who speaks")
            .into();
        }
    };
    // Turns that only call tools have no content in the files of other tools.
    let silent = matches!(extra.get("content"), None | Some(Value::Null)) && extra.contains_key("tool_calls");
    let content = match extra.remove("content") {
        Some(Value::String(content)) => content,
        _ if silent => String::new(),
        other => {
            return wrong_type("wrong type", &other.unwrap_or_default(), "a string")
                .field(path("content"))
                .fix("write the text of the turn as one string")
                .into();
        }
    };
    Ok(Message { role, content, extra })
}

fn tokenised(row: &mut Map<String, Value>) -> Result<Body> {
    let input_ids = numbers(row, "input_ids", "a token id (0 to 4294967295)", |n| u32::try_from(n).ok())?;
    let labels = numbers(row, "labels", "a token id, or -100 where not supervised", |n| {
        (n == IGNORE_INDEX || u32::try_from(n).is_ok()).then_some(n)
    })?;
    if labels.len() != input_ids.len() {
        return Error::input("DATA", "wrong length")
            .field("labels")
            .got(format!("{} labels", labels.len()))
            .expected(format!("{}, one per token of \"input_ids\"", input_ids.len()))
            .fix("give one label per token, -100 where not supervised; labels are not shifted")
            .into();
    }
    Ok(Body::Tokenised { input_ids, labels })
}

fn numbers<T>(
    row: &mut Map<String, Value>,
    key: &str,
    expected: &str,
    accept: impl Fn(i64) -> Option<T>,
) -> Result<Vec<T>> {
    let one = |(i, value): (usize, Value)| {
        value.as_i64().and_then(&accept).ok_or_else(|| {
            let error = wrong_type("wrong number", &value, expected).field(format!("{key}[{i}]"));
            error.fix("write the rows again with the tokenizer of this model").into()
        })
    };
    array(row, key)?.into_iter().enumerate().map(one).collect()
}

fn array(row: &mut Map<String, Value>, key: &str) -> Result<Vec<Value>> {
    match row.remove(key) {
        Some(Value::Array(items)) => Ok(items),
        Some(other) => {
            wrong_type("wrong type", &other, "an array").field(key).fix("write it as [...]").into()
        }
        None => missing(row, key).into(),
    }
}

fn string(row: &mut Map<String, Value>, key: &str) -> Result<String> {
    match row.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => wrong_type("wrong type", &other, "a string")
            .field(key)
            .fix("write the value as a string, in quotes")
            .into(),
        None => missing(row, key).into(),
    }
}

fn missing(row: &Map<String, Value>, key: &str) -> InputError {
    let error = Error::input("DATA", "the field is missing").field(key).got(format!("keys {}", keys(row)));
    let twin = row.keys().map(|k| (strsim::damerau_levenshtein(k, key), k)).min().filter(|(d, _)| *d <= 2);
    match twin {
        Some((_, near)) => error.fix(format!("rename \"{near}\" to \"{key}\"")),
        None => error.fix(
            "rows are {\"input\", \"output\"}, {\"messages\": [...]} or {\"input_ids\", \"labels\"}; rename the keys of your file",
        ),
    }
}

fn wrong_type(what: &str, got: &Value, expected: &str) -> InputError {
    Error::input("DATA", what).got(got).expected(expected)
}

fn keys(row: &Map<String, Value>) -> String {
    let keys: Vec<String> = row.keys().take(12).map(|k| format!("{k:?}")).collect();
    if keys.is_empty() { "none".into() } else { keys.join(", ") }
}
