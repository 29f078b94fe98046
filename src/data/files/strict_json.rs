//! JSON without silent damage: duplicate keys and integers that do not fit are errors, both with their byte column.
//!
//! `serde_json` keeps the last of two equal keys and turns a 30-digit integer into a rounded float. In a data file the first
//! hides a broken converter and the second changes ids, so both are refused here.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What is wrong with a text, and at which byte of it (from 1).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) column: usize,
    pub(super) what: String,
}

/// Parses one JSON value that fills `text`.
pub(super) fn parse(text: &str) -> Result<Value, Flaw> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(value) => match oversized_integer(text) {
            Some(flaw) => Err(flaw),
            None => Ok(value),
        },
        Err(error) => {
            // serde_json appends " at line 1 column 7"; the place is reported by the caller in its own way.
            let full = error.to_string();
            let what = full.rsplit_once(" at line ").map_or(full.as_str(), |(what, _)| what).to_owned();
            Err(Flaw { column: error.column().max(1), what })
        }
    }
}

/// The first integer outside `i64::MIN..=u64::MAX`. `text` must be valid JSON.
fn oversized_integer(text: &str) -> Option<Flaw> {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'"' => {
                i += 1;
                while i < bytes.len() && bytes[i] != b'"' {
                    i += if bytes[i] == b'\\' { 2 } else { 1 };
                }
                i += 1;
            }
            b'-' | b'0'..=b'9' => {
                let start = i;
                while i < bytes.len() && matches!(bytes[i], b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9') {
                    i += 1;
                }
                let number = &text[start..i];
                let integer = !number.contains(['.', 'e', 'E']);
                if integer && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    let what = "the integer does not fit 64 bits".to_owned();
                    return Some(Flaw { column: start + 1, what });
                }
            }
            _ => i += 1,
        }
    }
    None
}

/// Builds a [`Value`] and refuses duplicate keys at any depth.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("the number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(Strict)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key:?} is there twice")));
            }
            let value = entries.next_value_seed(Strict)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn duplicate_keys_are_found_at_any_depth() {
        let flaw = parse(r#"{"a":1,"b":[{"c":1,"c":2}]}"#).unwrap_err();
        assert_eq!(flaw.what, "the key \"c\" is there twice");
        assert!(parse(r#"{"a":{"b":1},"b":1}"#).is_ok());
    }

    #[test]
    fn integers_keep_every_digit_or_are_refused() {
        assert_eq!(parse("18446744073709551615").unwrap(), Value::from(u64::MAX));
        assert_eq!(parse("-9223372036854775808").unwrap(), Value::from(i64::MIN));
        let flaw = parse(r#"{"id": 123456789012345678901234567890}"#).unwrap_err();
        assert_eq!(flaw, Flaw { column: 8, what: "the integer does not fit 64 bits".into() });
        assert!(parse(r#"{"id": "123456789012345678901234567890\"99999999999999999999999"}"#).is_ok());
        assert_eq!(parse("1e3").unwrap(), Value::from(1000.0));
    }

    #[test]
    fn deep_nesting_is_an_error_not_a_crash() {
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "[\\[\\]{}\",:0-9a\\\\. eE+-]{0,40}") {
            let _ = parse(&text);
        }
    }
}
