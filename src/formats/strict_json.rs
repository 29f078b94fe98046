//! Strict JSON: duplicate keys and integers out of range are errors.
//!
//! `serde_json` keeps the last of two equal keys, so two programs may read the same file differently, and it
//! rounds a 30-digit integer to a float, which changes ids. [`parse`] reads values of rows; [`UniqueMap`] is
//! one object of a known kind, with a bounded number of entries.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::shorten;

/// Maximum entries of a [`UniqueMap`]: the maximum number of tensors in an index.
const MAX_ENTRIES: usize = 1_000_000;

/// The fault of a text, and its byte position (from 1).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) column: usize,
    pub(crate) what: String,
}

/// Parses one JSON value that fills `text`.
pub(crate) fn parse(text: &str) -> Result<Value, Flaw> {
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
                return Err(twice(&key));
            }
            let value = entries.next_value_seed(Strict)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The error of a duplicate key.
pub(crate) fn twice<E: serde::de::Error>(key: &str) -> E {
    E::custom(format!("the key {:?} is there twice", shorten(key)))
}

/// An object whose keys are all different.
#[derive(Debug)]
pub(crate) struct UniqueMap<V>(pub(crate) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Object<V> {
            type Value = UniqueMap<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if entries.len() == MAX_ENTRIES {
                        return Err(A::Error::custom(format!("more than {MAX_ENTRIES} entries")));
                    }
                    match entries.entry(key) {
                        Entry::Vacant(place) => place.insert(map.next_value()?),
                        Entry::Occupied(place) => return Err(twice(place.key())),
                    };
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Object(PhantomData))
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
    fn a_map_refuses_duplicates_however_they_are_spelled() {
        let read = |text: &str| serde_json::from_str::<UniqueMap<u8>>(text);
        assert_eq!(read(r#"{"b":1,"a":2}"#).unwrap().0.len(), 2);
        let error = read(r#"{"a":1,"\u0061":2}"#).unwrap_err().to_string();
        assert!(error.contains("the key \"a\" is there twice"), "{error}");
        assert!(read("[1]").is_err());
        let long = "k".repeat(1 << 20);
        let error = read(&format!("{{\"{long}\":1,\"{long}\":2}}")).unwrap_err().to_string();
        assert!(error.len() < 300, "{} bytes", error.len());
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
