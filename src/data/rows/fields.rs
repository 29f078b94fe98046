//! Fields of a row by their type, and the errors for those that are missing or of another type.

use serde_json::{Map, Value};

use crate::error::{Error, InputError, Result};

/// A row whose keys are taken out as they are read.
pub(super) type Row = Map<String, Value>;

pub(super) fn array(row: &mut Row, key: &str) -> Result<Vec<Value>> {
    match row.remove(key) {
        Some(Value::Array(items)) => Ok(items),
        Some(other) => {
            wrong_type("wrong type", &other, "an array").field(key).fix("write it as [...]").into()
        }
        None => missing(row, key).into(),
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
