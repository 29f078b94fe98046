//! Typed access to the keys of a `config.json`. Every reader names the key and its line if the value is
//! wrong.

use std::path::Path;

use serde_json::{Map, Value};

use super::Family;
use crate::error::{Error, InputError, Result};

/// The keys of a `config.json`, with its path and text.
pub(super) struct ConfigFile<'a> {
    path: &'a Path,
    text: &'a str,
    keys: Map<String, Value>,
}

impl<'a> ConfigFile<'a> {
    pub(super) fn parse(path: &'a Path, text: &'a str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(Value::Object(keys)) => Ok(Self { path, text, keys }),
            Ok(_) => Error::input("MODEL", "config.json must hold a JSON object")
                .path(path)
                .line(1)
                .fix("name the folder of a Hugging Face model")
                .into(),
            Err(error) => Error::input("MODEL", format!("not JSON: {error}"))
                .path(path)
                .line(error.line())
                .fix("download config.json again")
                .into(),
        }
    }

    /// An error about `key`, with the line it is on.
    pub(super) fn error(&self, key: &str, what: impl Into<String>) -> InputError {
        let error = Error::input("MODEL", what).path(self.path).field(key);
        let quoted = format!("\"{key}\"");
        match self.text.lines().position(|line| line.trim_start().starts_with(&quoted)) {
            Some(index) => error.line(index + 1),
            None => error,
        }
    }

    /// The value of a key, null where it is absent or null.
    pub(super) fn value(&self, key: &str) -> &Value {
        self.keys.get(key).unwrap_or(&Value::Null)
    }

    /// True if the key is present, even if it is null.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// True if the key is present and not null.
    pub(super) fn has(&self, key: &str) -> bool {
        !self.value(key).is_null()
    }

    /// The family that `model_type` names.
    pub(super) fn family(&self) -> Result<Family> {
        let value = self.value("model_type");
        match value.as_str().and_then(Family::from_model_type) {
            Some(family) => Ok(family),
            None => self
                .error("model_type", "this build has no such model family")
                .got(value)
                .expected(Family::names())
                .fix("use a model of one of these families")
                .into(),
        }
    }

    /// A whole number of at least 0.
    pub(super) fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let value = match (self.value(key), default) {
            (Value::Null, Some(default)) => return Ok(default),
            (value, _) => value,
        };
        match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
            Some(size) => Ok(size),
            None => self
                .error(key, if value.is_null() { "the key is missing" } else { "not a size" })
                .got(value)
                .expected("a whole number")
                .fix("check that config.json is complete")
                .into(),
        }
    }

    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.value(key) {
            Value::Null => Ok(default),
            value => match value.as_f64() {
                Some(number) => Ok(number),
                None => self
                    .error(key, "not a number")
                    .got(value)
                    .expected("a number")
                    .fix("check config.json")
                    .into(),
            },
        }
    }

    /// A truth value; absent or null is false.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        match self.value(key) {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(*flag),
            value => self
                .error(key, "not a truth value")
                .got(value)
                .expected("true or false")
                .fix("check config.json")
                .into(),
        }
    }

    /// A token id or a list of them. Old files write "none" as -1.
    pub(super) fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let value = self.value(key);
        let ids = match value {
            Value::Null => Some(Vec::new()),
            value if value.as_i64() == Some(-1) => Some(Vec::new()),
            Value::Array(values) => values.iter().map(one).collect(),
            value => one(value).map(|id| vec![id]),
        };
        match ids {
            Some(ids) => Ok(ids),
            None => self
                .error(key, "not a token id")
                .got(value)
                .expected("a whole number or a list of them")
                .fix("check config.json")
                .into(),
        }
    }

    /// `rope_theta`, at the top level or, as transformers 5 writes it, inside `rope_parameters`.
    pub(super) fn rope_theta(&self) -> Result<f64> {
        match self.value("rope_parameters").get("rope_theta") {
            None => self.number("rope_theta", 10_000.0),
            Some(value) => match value.as_f64() {
                Some(theta) => Ok(theta),
                None => self
                    .error("rope_parameters", "rope_theta is not a number")
                    .got(value)
                    .fix("check config.json")
                    .into(),
            },
        }
    }

    /// The error for a key that needs maths that is not supported.
    pub(super) fn refuse<T>(&self, key: &str, expected: &str) -> Result<T> {
        self.error(key, "this needs maths that this build does not support")
            .got(self.value(key))
            .expected(expected)
            .fix("use a model without it")
            .into()
    }

    /// Refuses weights that are not stored as numbers.
    pub(super) fn refuse_quantized(&self) -> Result<()> {
        match self.has("quantization_config") {
            false => Ok(()),
            true => self
                .error("quantization_config", "quantized model folders are not supported by this build")
                .expected("unquantized weights")
                .fix("use the model folder with bf16, f16 or f32 weights")
                .into(),
        }
    }

    /// Refuses scaled rotary frequencies, under the names of transformers 4 and 5, and rotation of a part of
    /// a head only.
    pub(super) fn refuse_other_rope(&self) -> Result<()> {
        for key in ["rope_scaling", "rope_parameters"] {
            let scaled = |inner: &Map<String, Value>| {
                inner.iter().any(|(name, value)| match name.as_str() {
                    "rope_theta" => key == "rope_scaling",
                    "rope_type" | "type" => value != "default",
                    "partial_rotary_factor" => value.as_f64() != Some(1.0),
                    _ => true,
                })
            };
            match self.value(key) {
                Value::Null => {}
                Value::Object(inner) if !scaled(inner) => {}
                _ => return self.refuse(key, "null or {\"rope_type\": \"default\"}"),
            }
        }
        let key = "partial_rotary_factor";
        match self.has(key) && self.value(key).as_f64() != Some(1.0) {
            true => self.refuse(key, "1.0"),
            false => Ok(()),
        }
    }
}
