//! Model families: how the `config.json` of a model folder becomes a [`ModelConfig`], and back.
//!
//! A family is a file here and a row of `Family::definition`; the file holds everything specific to it.
//! Readers shared by families are in `file`. Checked against the configuration and modelling code of
//! transformers 4.57 (`models/{qwen2,qwen3,llama}`) and the `rope_parameters` spelling of transformers 5.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use super::model::ModelConfig;
use super::sites::{Sites, Slot};
use super::values::Dtype;
use crate::error::{Error, Result};
use file::ConfigFile;

mod file;
mod llama;
mod qwen;

/// Supported model families, named by their `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Qwen1.5, Qwen2 and Qwen2.5: bias on q, k and v.
    Qwen2,
    /// Qwen3: RMSNorm on the heads of q and k.
    Qwen3,
    /// Llama and models of its shape: neither bias nor norm of heads.
    Llama,
}

/// The definition of a family, one per file of this folder.
struct Definition {
    /// `model_type` in `config.json`.
    model_type: &'static str,
    /// The class of transformers that loads it for language modelling.
    architecture: &'static str,
    /// Known keys, in groups: they are read, or refused if they need unsupported maths, or change no result.
    /// Keys of all families are in [`COMMON_KEYS`].
    keys: &'static [&'static [&'static str]],
    /// Paths of its modules.
    modules: &'static ModulePaths,
    /// Reads the shape, and refuses keys that need unsupported maths.
    read: fn(&ConfigFile<'_>) -> Result<ModelConfig>,
    /// All keys of a `config.json` for weights of the named type.
    write: fn(&ModelConfig, &str) -> Map<String, Value>,
}

/// Paths of the modules of a family, as in Hugging Face checkpoints.
#[derive(Debug)]
pub struct ModulePaths {
    /// The embedding table.
    pub embed_tokens: &'static str,
    /// The list of the blocks.
    pub blocks: &'static str,
    /// Norm before attention, within its block.
    pub norm_before_attention: &'static str,
    /// Norm before the MLP, within its block.
    pub norm_before_mlp: &'static str,
    /// Norms of the heads of q and k, within their block.
    pub qk_norm: [&'static str; 2],
    /// Linear layers within their block.
    pub linear: fn(Slot) -> &'static str,
    /// Norm after the last block.
    pub final_norm: &'static str,
    /// The head.
    pub head: &'static str,
    /// Modules without weights; within a block where they begin with a dot.
    without_weights: &'static [&'static str],
}

impl ModulePaths {
    /// Path of a block.
    pub fn block(&self, layer: usize) -> String {
        format!("{}.{layer}", self.blocks)
    }
}

impl Family {
    /// All families.
    pub const ALL: [Self; 3] = [Self::Qwen2, Self::Qwen3, Self::Llama];

    fn definition(self) -> &'static Definition {
        match self {
            Self::Qwen2 => &qwen::QWEN2,
            Self::Qwen3 => &qwen::QWEN3,
            Self::Llama => &llama::LLAMA,
        }
    }

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        self.definition().model_type
    }

    /// The family of a `model_type`.
    pub fn from_model_type(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == name)
    }

    /// The class of transformers that loads it for language modelling.
    pub fn architecture(self) -> &'static str {
        self.definition().architecture
    }

    /// Paths of its modules.
    pub fn modules(self) -> &'static ModulePaths {
        self.definition().modules
    }

    /// Paths of the modules of a model that are no linear layer of a block.
    pub(super) fn other_modules(self, model: &ModelConfig) -> Vec<String> {
        let paths = self.modules();
        let mut all: Vec<String> =
            [paths.embed_tokens, paths.final_norm, paths.head].map(str::to_owned).into();
        for layer in 0..model.num_hidden_layers {
            let mut parts = vec![paths.norm_before_attention, paths.norm_before_mlp];
            if model.block(layer).attn.qk_norm {
                parts.extend(paths.qk_norm);
            }
            all.extend(parts.iter().map(|part| format!("{}.{part}", paths.block(layer))));
            let within = paths.without_weights.iter().filter(|path| path.starts_with('.'));
            all.extend(within.map(|part| format!("{}{part}", paths.block(layer))));
        }
        all.extend(
            paths.without_weights.iter().filter(|path| !path.starts_with('.')).map(|p| (*p).to_owned()),
        );
        // And every parent of a module.
        let linears = Sites::of(model);
        let known = all.iter().map(String::as_str).chain(linears.iter().map(|site| site.path.as_str()));
        let mut holders: Vec<String> = Vec::new();
        for path in known {
            for (dot, _) in path.match_indices('.') {
                let holder = &path[..dot];
                if !holders.iter().any(|known| known == holder) {
                    holders.push(holder.to_owned());
                }
            }
        }
        all.extend(holders);
        all
    }

    /// The `model_type` of every family, for messages.
    pub(super) fn names() -> String {
        Self::ALL.map(Self::model_type).join(", ")
    }

    /// True if `key` is known in a `config.json` of this family, so that no note is printed.
    pub(super) fn knows(self, key: &str) -> bool {
        COMMON_KEYS.contains(&key) || self.definition().keys.iter().any(|keys| keys.contains(&key))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

/// Keys of every configuration class of transformers, and of other tools, that are read or change no result here.
const COMMON_KEYS: [&str; 24] = [
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "quantization_config",
    "return_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

impl ModelConfig {
    /// Reads the text of a `config.json`; `path` is for messages only.
    ///
    /// # Errors
    /// An input error of class `MODEL` for broken JSON, an unknown family, a missing or wrong key, a size out
    /// of range, or a key that needs unsupported maths.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let file = ConfigFile::parse(path, text)?;
        file.refuse_quantized()?;
        let config = (file.family()?.definition().read)(&file)?;
        config.validate().map_err(|error| match error {
            Error::Input(inner) => inner.path(path).into(),
            other => other,
        })?;
        Ok(config)
    }

    /// Notes about unused content of a `config.json`, one sentence each: keys that the family does not know,
    /// and a second `rope_theta`.
    pub fn unused(text: &str) -> Vec<String> {
        let keys: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
        let family = keys.get("model_type").and_then(Value::as_str).and_then(Family::from_model_type);
        let Some(family) = family else { return Vec::new() };
        let says = |value: &Value| !value.is_null() && *value != false;
        let unknown: Vec<&str> = keys
            .iter()
            .filter(|(key, value)| says(value) && !family.knows(key))
            .map(|(key, _)| key.as_str())
            .collect();
        let inner = keys.get("rope_parameters").and_then(|inner| inner.get("rope_theta"));
        let other =
            |theta: &&Value| says(theta) && inner.is_some_and(|inner| inner.as_f64() != theta.as_f64());
        let mut unused = Vec::new();
        if !unknown.is_empty() {
            unused.push(format!(
                "keys of config.json that are unknown for this family and ignored: {}",
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

    /// As [`ModelConfig::to_json`], for weights of another type.
    pub fn to_json_as(&self, dtype: Dtype) -> String {
        let name = match dtype {
            Dtype::F32 => "float32",
            Dtype::Bf16 => "bfloat16",
        };
        let keys = Value::Object((self.family.definition().write)(self, name));
        // Formatting a tree of our own cannot fail; `Value` prints compactly where pretty printing would.
        let mut text = serde_json::to_string_pretty(&keys).unwrap_or_else(|_| keys.to_string());
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests;
