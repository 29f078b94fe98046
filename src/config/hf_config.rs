//! Reading and writing the `config.json` of a Hugging Face model folder.
//!
//! Checked against the configuration and modelling code of transformers 4.57 (`models/{qwen2,qwen3,llama}`) and the
//! `rope_parameters` spelling of transformers 5.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::model::{Family, ModelConfig};
use super::values::Dtype;
use crate::error::{Error, InputError, Result};

impl ModelConfig {
    /// Reads the text of a `config.json`; `path` is for messages only.
    ///
    /// # Errors
    /// An input error of class `MODEL` for broken JSON, an unknown family, a missing or wrong key, a size out of range, or
    /// a key that asks for maths this engine does not do.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let file = ConfigFile::parse(path, text)?;
        file.reject_other_maths()?;
        let family = file.family()?;
        let hidden_size = file.size("hidden_size", None)?;
        let num_attention_heads = file.size("num_attention_heads", None)?;
        // Llama shares no heads by default; the Qwen classes default to 32, which no small model means.
        let kv_default = (family == Family::Llama).then_some(num_attention_heads);
        let num_key_value_heads = match file.keys.get("num_key_value_heads") {
            Some(Value::Null) => num_attention_heads,
            _ => file.size("num_key_value_heads", kv_default)?,
        };
        // Qwen3Config fills in 128 where the key is absent; the other families divide.
        let quotient = hidden_size.checked_div(num_attention_heads).unwrap_or(0);
        let head_default = match (family, file.keys.get("head_dim")) {
            (Family::Qwen3, None) => 128,
            _ => quotient,
        };
        if !file.has("head_dim") && head_default == quotient && quotient * num_attention_heads != hidden_size
        {
            return file
                .error("num_attention_heads", "without head_dim, the heads must divide hidden_size")
                .got(num_attention_heads)
                .expected(format!("a divisor of {hidden_size}"))
                .fix("check that config.json belongs to this model")
                .into();
        }
        let config = Self {
            family,
            hidden_size,
            intermediate_size: file.size("intermediate_size", None)?,
            num_hidden_layers: file.size("num_hidden_layers", None)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim: file.size("head_dim", Some(head_default))?,
            vocab_size: file.size("vocab_size", None)?,
            max_position_embeddings: file
                .size("max_position_embeddings", Some(if family == Family::Llama { 2048 } else { 32_768 }))?,
            rms_norm_eps: file.number("rms_norm_eps", 1e-6)?,
            rope_theta: file.rope_theta()?,
            tie_word_embeddings: file.flag("tie_word_embeddings")?,
            attention_bias: family == Family::Qwen2,
            qk_norm: family == Family::Qwen3,
            initializer_range: file.number("initializer_range", 0.02)?,
            bos_token_id: file.tokens("bos_token_id")?.first().copied(),
            eos_token_ids: file.tokens("eos_token_id")?,
            pad_token_id: file.tokens("pad_token_id")?.first().copied(),
        };
        config.validate().map_err(|error| file.place(error))?;
        Ok(config)
    }

    /// What the text of a `config.json` says that is not used, a sentence each: keys that its family does not know, and a second
    /// `rope_theta`.
    pub fn unused(text: &str) -> Vec<String> {
        let keys: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
        let says = |value: &Value| !value.is_null() && *value != false;
        let unknown = keys.iter().filter(|(key, value)| says(value) && !KNOWN.contains(&key.as_str()));
        let unknown: Vec<&str> = unknown.map(|(key, _)| key.as_str()).collect();
        let inner = keys.get("rope_parameters").and_then(|inner| inner.get("rope_theta"));
        let other =
            |theta: &&Value| says(theta) && inner.is_some_and(|inner| inner.as_f64() != theta.as_f64());
        let mut unused = Vec::new();
        if !unknown.is_empty() {
            unused.push(format!(
                "keys of config.json that this family does not know, and that are not used: {}",
                unknown.join(", ")
            ));
        }
        if keys.get("rope_theta").filter(other).is_some() {
            unused.push("rope_theta of config.json is not used: that of rope_parameters counts".to_owned());
        }
        unused
    }

    /// A `config.json` for f32 weights that transformers loads and [`ModelConfig::from_json`] reads back unchanged.
    pub fn to_json(&self) -> String {
        self.to_json_as(Dtype::F32)
    }

    /// The same for weights of another type.
    pub fn to_json_as(&self, dtype: Dtype) -> String {
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        let name = match dtype {
            Dtype::F32 => "float32",
            Dtype::Bf16 => "bfloat16",
        };
        let mut keys = json!({
            "architectures": [self.family.architecture()],
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            // transformers before 4.56 reads the second spelling.
            "dtype": name,
            "torch_dtype": name,
            "eos_token_id": eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.family.model_type(),
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": self.pad_token_id,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": null,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        if let Value::Object(map) = &mut keys {
            match self.family {
                // Qwen2 has its biases without a key for them.
                Family::Qwen2 => drop(map.shift_remove("attention_bias")),
                Family::Llama => drop(map.insert("mlp_bias".to_owned(), json!(false))),
                Family::Qwen3 => {}
            }
            if self.family != Family::Llama {
                map.insert("sliding_window".to_owned(), Value::Null);
                map.insert("use_sliding_window".to_owned(), json!(false));
                map.insert("max_window_layers".to_owned(), json!(self.num_hidden_layers));
            }
        }
        // Formatting a tree of our own cannot fail; `Value` prints compactly where pretty printing would.
        let mut text = serde_json::to_string_pretty(&keys).unwrap_or_else(|_| keys.to_string());
        text.push('\n');
        text
    }
}

/// Keys that are read, or refused where they ask for other maths, or that change no result of training and scoring.
const KNOWN: [&str; 48] = [
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "id2label",
    "initializer_range",
    "intermediate_size",
    "label2id",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "partial_rotary_factor",
    "pretraining_tp",
    "quantization_config",
    "return_dict",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_mrope",
    "use_sliding_window",
    "vocab_size",
];

/// The keys of a `config.json` and where they came from.
struct ConfigFile<'a> {
    path: &'a Path,
    text: &'a str,
    keys: Map<String, Value>,
}

impl<'a> ConfigFile<'a> {
    fn parse(path: &'a Path, text: &'a str) -> Result<Self> {
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
    fn error(&self, key: &str, what: impl Into<String>) -> InputError {
        let error = Error::input("MODEL", what).path(self.path).field(key);
        let quoted = format!("\"{key}\"");
        match self.text.lines().position(|line| line.trim_start().starts_with(&quoted)) {
            Some(index) => error.line(index + 1),
            None => error,
        }
    }

    /// Puts the path into an error of [`ModelConfig::validate`].
    fn place(&self, error: Error) -> Error {
        match error {
            Error::Input(inner) => inner.path(self.path).into(),
            other => other,
        }
    }

    /// Whether a key is there and not null.
    fn has(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(|value| !value.is_null())
    }

    fn family(&self) -> Result<Family> {
        let known = || {
            let names: Vec<&str> = Family::ALL.iter().map(|family| family.model_type()).collect();
            names.join(", ")
        };
        let value = self.keys.get("model_type").cloned().unwrap_or(Value::Null);
        match value.as_str().and_then(Family::from_model_type) {
            Some(family) => Ok(family),
            None => self
                .error("model_type", "this build has no such model family")
                .got(value)
                .expected(known())
                .fix("use a model of one of these families")
                .into(),
        }
    }

    /// A whole number of at least 0.
    fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let value = match (self.keys.get(key), default) {
            (Some(Value::Null) | None, Some(default)) => return Ok(default),
            (value, _) => value.cloned().unwrap_or(Value::Null),
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

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => match value.as_f64() {
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

    fn flag(&self, key: &str) -> Result<bool> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => self
                .error(key, "not a truth value")
                .got(value)
                .expected("true or false")
                .fix("check config.json")
                .into(),
        }
    }

    /// A token id or a list of them. Old files write "none" as -1.
    fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match self.keys.get(key) {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(value) if value.as_i64() == Some(-1) => Some(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(one).collect(),
            Some(value) => one(value).map(|id| vec![id]),
        };
        match ids {
            Some(ids) => Ok(ids),
            None => self
                .error(key, "not a token id")
                .got(&self.keys[key])
                .expected("a whole number or a list of them")
                .fix("check config.json")
                .into(),
        }
    }

    /// `rope_theta`, at the top level or, as transformers 5 writes it, inside `rope_parameters`.
    fn rope_theta(&self) -> Result<f64> {
        match self.keys.get("rope_parameters").and_then(|inner| inner.get("rope_theta")) {
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

    /// Refuses every key that would change the maths.
    fn reject_other_maths(&self) -> Result<()> {
        let refuse = |key: &str, expected: &str| -> Result<()> {
            self.error(key, "this asks for maths that this build does not do")
                .got(&self.keys[key])
                .expected(expected)
                .fix("use a model without it")
                .into()
        };
        if self.has("quantization_config") {
            return self
                .error("quantization_config", "quantized model folders are not supported by this build")
                .expected("unquantized weights")
                .fix("use the model folder with bf16, f16 or f32 weights")
                .into();
        }
        for key in ["rope_scaling", "rope_parameters"] {
            let scaled = |inner: &Map<String, Value>| {
                inner.iter().any(|(name, value)| match name.as_str() {
                    "rope_theta" => key == "rope_scaling",
                    "rope_type" | "type" => value != "default",
                    "partial_rotary_factor" => value.as_f64() != Some(1.0),
                    _ => true,
                })
            };
            match self.keys.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Object(inner)) if !scaled(inner) => {}
                Some(_) => return refuse(key, "null or {\"rope_type\": \"default\"}"),
            }
        }
        for key in ["use_sliding_window", "attention_bias", "mlp_bias"] {
            // Qwen2 has its biases whatever this key says, in transformers as here.
            let ignored = key == "attention_bias" && self.keys.get("model_type") == Some(&json!("qwen2"));
            if self.flag(key)? && !ignored {
                return refuse(key, "false");
            }
        }
        // Both names are of one function in transformers.
        let is_silu = |act: &Value| act == "silu" || act == "swish";
        if self.has("hidden_act") && !is_silu(&self.keys["hidden_act"]) {
            return refuse("hidden_act", "\"silu\"");
        }
        if self.has("partial_rotary_factor") && self.keys["partial_rotary_factor"].as_f64() != Some(1.0) {
            return refuse("partial_rotary_factor", "1.0");
        }
        let full = |kinds: &Vec<Value>| kinds.iter().all(|kind| kind == "full_attention");
        if self.has("layer_types") && !self.keys["layer_types"].as_array().is_some_and(full) {
            return refuse("layer_types", "full_attention in every layer");
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "hf_config_tests.rs"]
mod tests;
