//! Fields of a row by their type, and the errors for those that are missing or of another type.

use std::ops::{Deref, DerefMut};

use serde_json::{Map, Value};

use crate::error::{Error, InputError, Result};
use crate::formats::strict_json;

/// A row whose keys are taken out as they are read, and what was found on the way.
#[derive(Debug)]
pub(super) struct Row {
    values: Map<String, Value>,
    /// Keys whose list or object was written as JSON text.
    pub(super) json_texts: Vec<String>,
    /// Keys inside turns that nobody reads.
    pub(super) unread: Vec<String>,
}

impl Row {
    pub(super) fn new(values: Map<String, Value>) -> Self {
        Self { values, json_texts: Vec::new(), unread: Vec::new() }
    }

    /// The keys that are left.
    pub(super) fn into_values(self) -> Map<String, Value> {
        self.values
    }

    /// Whether `key` says anything. What is null does not, nor does an empty cell of a table, which is taken
    /// out.
    pub(super) fn says(&mut self, key: &str) -> bool {
        if self.values.get(key).is_some_and(|value| value == "") {
            self.values.remove(key);
        }
        self.values.get(key).is_some_and(|value| !value.is_null())
    }
}

impl Deref for Row {
    type Target = Map<String, Value>;

    fn deref(&self) -> &Self::Target {
        &self.values
    }
}

impl DerefMut for Row {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.values
    }
}

/// A list, or a list as JSON text: tables have no other way to write one.
pub(super) fn array(row: &mut Row, key: &str) -> Result<Vec<Value>> {
    match row.remove(key) {
        Some(Value::Array(items)) => Ok(items),
        Some(Value::String(text)) => match strict_json::parse(&text) {
            Ok(Value::Array(items)) => {
                row.json_texts.push(key.to_owned());
                Ok(items)
            }
            _ => no_list(key, text).into(),
        },
        Some(other) => {
            wrong_type("wrong type", &other, "an array").field(key).fix("write it as [...]").into()
        }
        None => missing(row, key).into(),
    }
}

/// The error for a text in the place of a list.
fn no_list(key: &str, text: String) -> InputError {
    let looks_like_one = text.trim_start().starts_with('[');
    let error =
        wrong_type("wrong type", &Value::String(text), "an array, or an array as JSON text").field(key);
    match looks_like_one {
        // Such as [{'role': 'user', ...}].
        true => error.fix(format!(
            "write it as JSON: with pandas df['{key}'].map(json.dumps) before to_csv, or to_json('rows.jsonl', orient='records', \
             lines=True) in its place"
        )),
        false => error.fix("write it as [...]"),
    }
}

/// An object, or an object as JSON text; none if there is none.
pub(super) fn object(row: &mut Row, key: &str, fix: &str) -> Result<Option<Map<String, Value>>> {
    if !row.says(key) {
        row.remove(key);
        return Ok(None);
    }
    let refuse = |value: &Value| wrong_type("wrong type", value, "an object").field(key).fix(fix).into();
    match row.remove(key) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(Value::String(text)) => match strict_json::parse(&text) {
            Ok(Value::Object(object)) => {
                row.json_texts.push(key.to_owned());
                Ok(Some(object))
            }
            _ => refuse(&Value::String(text)),
        },
        Some(other) => refuse(&other),
    }
}

pub(super) fn string(row: &mut Row, key: &str) -> Result<String> {
    match row.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => wrong_type("wrong type", &other, "a string")
            .field(key)
            .fix("write the value as a string, in quotes")
            .into(),
        None => missing(row, key).into(),
    }
}

pub(super) fn missing(row: &Row, key: &str) -> InputError {
    let mut error = Error::input("DATA", "the field is missing").field(key);
    // Keys that were read already are not the ones that are wrong.
    if !row.is_empty() {
        error = error.got(format!("keys {}", keys(row)));
    }
    let twin = row.keys().map(|k| (strsim::damerau_levenshtein(k, key), k)).min().filter(|(d, _)| *d <= 2);
    match twin {
        Some((_, near)) => error.fix(format!("rename \"{near}\" to \"{key}\"")),
        None => error.fix(
            "rows are {\"input\", \"output\"}, {\"messages\": [...]}, {\"instruction\", \"input\", \"output\"}, \
             {\"conversations\": [...]}, {\"prompt\", \"completion\"}, {\"text\"} or {\"input_ids\", \"labels\"}; rename the keys of \
             your file",
        ),
    }
}

pub(super) fn wrong_type(what: &str, got: &Value, expected: &str) -> InputError {
    Error::input("DATA", what).got(super::short(got)).expected(expected)
}

/// The keys that are left of a row.
pub(super) fn keys(row: &Row) -> String {
    row.keys().take(12).map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ")
}
