//! Typed access to the keys of a `config.json`. Every reader names the key and its line if the value is
//! wrong.

use std::path::Path;

use serde_json::{Map, Value};

use super::Family;
use crate::config::block::Activation;
use crate::config::head::{HeadSpec, LabelHeadSpec};
use crate::config::model::{MAX_LABELS, MAX_LAYERS};
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

    /// The number of blocks, small enough for a list of them.
    pub(super) fn layers(&self, key: &str) -> Result<usize> {
        match self.size(key, None)? {
            count if (1..=MAX_LAYERS).contains(&count) => Ok(count),
            count => self
                .error(key, "the size is out of range")
                .got(count)
                .expected(format!("1 to {MAX_LAYERS}"))
                .fix("check that config.json belongs to this model")
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

    /// Number of labels, as transformers counts them: those of `id2label`, else `num_labels`, else 2.
    pub(super) fn num_labels(&self) -> Result<usize> {
        let (key, count) = match self.value("id2label") {
            Value::Object(names) => ("id2label", names.len()),
            Value::Null => ("num_labels", self.size("num_labels", Some(2))?),
            other => {
                return self
                    .error("id2label", "not a table of labels")
                    .got(other)
                    .expected("an object of names by number")
                    .fix("check config.json")
                    .into();
            }
        };
        match count {
            1..=MAX_LABELS => Ok(count),
            _ => self
                .error(key, "the number of labels is out of range")
                .got(count)
                .expected(format!("1 to {MAX_LABELS}"))
                .fix("check config.json")
                .into(),
        }
    }

    /// The head of a language model, or that for labels where the file was written from a classifier.
    pub(super) fn head(&self, labels: LabelHeadSpec) -> Result<HeadSpec> {
        let architectures = self.value("architectures").as_array().map_or(&[][..], Vec::as_slice);
        let is_classifier =
            |name: &Value| name.as_str().is_some_and(|n| n.ends_with("ForSequenceClassification"));
        Ok(match architectures.iter().any(is_classifier) {
            true => HeadSpec::Labels(labels),
            false => HeadSpec::Tokens,
        })
    }

    /// Width of a head of a model whose heads share the hidden features, with the names of both keys.
    pub(super) fn head_dim(
        &self,
        (hidden_key, hidden_size): (&str, usize),
        (heads_key, heads): (&str, usize),
    ) -> Result<usize> {
        match hidden_size.checked_div(heads) {
            Some(width) if width * heads == hidden_size => Ok(width),
            _ => self
                .error(heads_key, format!("the heads must divide {hidden_key}"))
                .got(heads)
                .expected(format!("a divisor of {hidden_size}"))
                .fix("check that config.json belongs to this model")
                .into(),
        }
    }

    /// An activation by its name in transformers, where some functions have several.
    pub(super) fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        let value = self.value(key);
        match value.as_str().or(value.is_null().then_some(default)) {
            Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh") => {
                Ok(Activation::GeluTanh)
            }
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("tanh") => Ok(Activation::Tanh),
            _ => self.refuse(key, "\"gelu\", \"gelu_new\", \"silu\" or \"tanh\""),
        }
    }

    /// The name of an activation in transformers.
    pub(super) fn activation_name(act: Activation) -> &'static str {
        match act {
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_new",
            Activation::Silu => "silu",
            Activation::Tanh => "tanh",
        }
    }

    /// A truth value; absent or null is false.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        self.flag_or(key, false)
    }

    /// A truth value, with what absent or null means.
    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            Value::Null => Ok(default),
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
}
