//! Model families: how the `config.json` of a model folder becomes a [`ModelConfig`], and back.
//!
//! A family is a file here and a row of `Family::definition`; the file holds everything specific to it.
//! Readers shared by families are in `file`. Checked against the configuration and modelling code of
//! transformers 4.57 (`models/{qwen2,qwen3,llama}`) and the `rope_parameters` spelling of transformers 5.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::base_dropout::{BaseDropout, DropoutKey, DropoutPlace};
use super::block::Wiring;
use super::head::HeadSpec;
use super::model::ModelConfig;
use super::sites::{Sites, Slot};
use super::values::Dtype;
use crate::error::{Error, Result};
use file::ConfigFile;

mod bert;
mod file;
mod gpt2;
mod llama;
mod modernbert;
mod qwen;
mod rope;

/// Supported model families, named by their `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Qwen1.5, Qwen2 and Qwen2.5: bias on q, k and v.
    Qwen2,
    /// Qwen3: RMSNorm on the heads of q and k.
    Qwen3,
    /// Llama and models of its shape: neither bias nor norm of heads.
    Llama,
    /// GPT-2 and DialoGPT: learned positions, LayerNorm and biases, linear layers stored transposed.
    Gpt2,
    /// BERT: norms behind the residual addition, token types, a pooler.
    Bert,
    /// RoBERTa: as BERT, with a trained layer in the head instead of the pooler.
    Roberta,
    /// XLM-R: RoBERTa under another name.
    XlmRoberta,
    /// ModernBERT: fused projections, GeGLU, windows, and two bases of rotation.
    ModernBert,
}

/// The definition of a family, one per file of this folder.
struct Definition {
    /// `model_type` in `config.json`.
    model_type: &'static str,
    /// The class of transformers that loads it for what it is first of all: language modelling, or labels.
    architecture: &'static str,
    /// The class that loads it with a head for labels.
    label_architecture: &'static str,
    /// Known keys, in groups: they are read, or refused if they need unsupported maths, or change no result.
    /// Keys of all families are in [`COMMON_KEYS`].
    keys: &'static [&'static [&'static str]],
    /// Names of keys where they are not those of [`ModelConfig`] or of Llama.
    names: &'static [(&'static str, &'static str)],
    /// Paths of its modules.
    modules: &'static ModulePaths,
    /// Keys of the dropout of the model itself.
    dropout: &'static [DropoutKey],
    /// Reads the shape, and refuses keys that need unsupported maths.
    read: fn(&ConfigFile<'_>) -> Result<ModelConfig>,
    /// All keys of a `config.json` for weights of the named type.
    write: fn(&ModelConfig, &str) -> Map<String, Value>,
}

/// Paths of the modules of a family, as in Hugging Face checkpoints. Those of parts that no model of the family has
/// are empty.
#[derive(Debug)]
pub struct ModulePaths {
    /// The part in front of most paths that a file written from the bare model, without a head, leaves out; with its dot.
    pub base_prefix: &'static str,
    /// The embedding table.
    pub embed_tokens: &'static str,
    /// The table of positions.
    pub embed_positions: &'static str,
    /// The table of token types.
    pub embed_types: &'static str,
    /// The norm of the embeddings.
    pub embed_norm: &'static str,
    /// The list of the blocks.
    pub blocks: &'static str,
    /// The two norms within a block, in their order.
    pub norms: [&'static str; 2],
    /// Norms of the heads of q and k, within their block.
    pub qk_norm: [&'static str; 2],
    /// Linear layers within their block; that of the pooler in the model.
    pub linear: fn(Slot) -> &'static str,
    /// Whether linear layers are stored as `[in_features, out_features]`, as Conv1D of transformers does.
    pub is_conv1d: bool,
    /// Names of the layers that PEFT adapts if a configuration names none.
    pub default_targets: &'static [&'static str],
    /// Norm after the last block.
    pub final_norm: &'static str,
    /// The head of a language model.
    pub head: &'static str,
    /// The norm of the pooler.
    pub pooler_norm: &'static str,
    /// The module that holds the trained layers of a head for labels, as PEFT's `modules_to_save` names it.
    pub trained_head: &'static str,
    /// The trained layers of that head: the one before the last, and the last.
    pub trained_layers: [&'static str; 2],
    /// Modules without weights; within a block where they begin with a dot.
    without_weights: &'static [&'static str],
    /// Ends of the names of buffers that are stored beside the weights and hold no weight.
    pub buffers: &'static [&'static str],
}

impl ModulePaths {
    /// Path of a block.
    pub fn block(&self, layer: usize) -> String {
        format!("{}.{layer}", self.blocks)
    }

    /// Path of the norm that the stream meets as number `index` of [`ModelConfig::norms`].
    pub fn norm(&self, model: &ModelConfig, index: usize) -> String {
        let blocks = model.num_hidden_layers();
        let is_post = model.blocks.first().is_some_and(|block| block.wiring == Wiring::PostNorm);
        let within = |index: usize| format!("{}.{}", self.block(index / 2), self.norms[index % 2]);
        match index {
            0 if model.embed.norm.is_some() || is_post => self.embed_norm.to_owned(),
            index if is_post => within(index - 1),
            index if index == 2 * blocks => self.final_norm.to_owned(),
            index => within(index),
        }
    }
}

impl Family {
    /// All families.
    pub const ALL: [Self; 8] = [
        Self::Qwen2,
        Self::Qwen3,
        Self::Llama,
        Self::Gpt2,
        Self::Bert,
        Self::Roberta,
        Self::XlmRoberta,
        Self::ModernBert,
    ];

    fn definition(self) -> &'static Definition {
        match self {
            Self::Qwen2 => &qwen::QWEN2,
            Self::Qwen3 => &qwen::QWEN3,
            Self::Llama => &llama::LLAMA,
            Self::Gpt2 => &gpt2::GPT2,
            Self::Bert => &bert::BERT,
            Self::Roberta => &bert::ROBERTA,
            Self::XlmRoberta => &bert::XLM_ROBERTA,
            Self::ModernBert => &modernbert::MODERNBERT,
        }
    }

    /// What this family calls the key that [`ModelConfig`], or Llama, calls `key`.
    pub(super) fn key(self, key: &'static str) -> &'static str {
        self.definition().names.iter().find(|(usual, _)| *usual == key).map_or(key, |(_, own)| own)
    }

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        self.definition().model_type
    }

    /// The family of a `model_type`.
    pub fn from_model_type(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == name)
    }

    /// The class of transformers that loads it with this head.
    pub fn architecture(self, head: &HeadSpec) -> &'static str {
        match head {
            HeadSpec::Tokens => self.definition().architecture,
            HeadSpec::Labels(_) => self.definition().label_architecture,
        }
    }

    /// Whether it predicts next tokens.
    pub fn is_language_model(self) -> bool {
        !self.modules().head.is_empty()
    }

    /// Paths of its modules.
    pub fn modules(self) -> &'static ModulePaths {
        self.definition().modules
    }

    /// Paths of the modules of a model that are no linear layer of a block.
    pub(super) fn other_modules(self, model: &ModelConfig) -> Vec<String> {
        let paths = self.modules();
        let mut all = vec![paths.embed_tokens.to_owned()];
        if model.embed.positions.is_some() {
            all.push(paths.embed_positions.to_owned());
        }
        if model.embed.token_types.is_some() {
            all.push(paths.embed_types.to_owned());
        }
        match &model.head {
            HeadSpec::Tokens => all.push(paths.head.to_owned()),
            HeadSpec::Labels(head) => {
                let norm = head.pooler.and_then(|pooler| pooler.norm);
                all.extend(norm.map(|_| paths.pooler_norm.to_owned()));
            }
        }
        all.extend((0..model.norms().count()).map(|index| paths.norm(model, index)));
        for (layer, block) in model.blocks.iter().enumerate() {
            let norms = paths.qk_norm.iter().filter(|_| block.attn.qk_norm);
            all.extend(norms.map(|part| format!("{}.{part}", paths.block(layer))));
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
const COMMON_KEYS: [&str; 26] = [
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
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
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

/// A key of the dropout of a family, with the default of transformers.
const fn dropout(name: &'static str, place: DropoutPlace, default: f64) -> DropoutKey {
    DropoutKey { name, place, default: Some(default) }
}

impl ModelConfig {
    /// Reads the text of a `config.json`; `path` is for messages only.
    ///
    /// # Errors
    /// An input error of class `MODEL` for broken JSON, an unknown family, a missing or wrong key, a size out
    /// of range, or a key that needs unsupported maths.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let file = ConfigFile::parse(path, text)?;
        file.refuse_quantized()?;
        let definition = file.family()?.definition();
        let mut config = (definition.read)(&file)?;
        let p = |key: &DropoutKey| match (file.has(key.name), key.default) {
            (false, None) => Ok(None),
            (_, default) => file.number(key.name, default.unwrap_or(0.0)).map(Some),
        };
        config.base_dropout = BaseDropout::read(definition.dropout, p, |key, what| file.error(key, what))?;
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
        let mut keys = (self.family.definition().write)(self, name);
        keys.extend(self.base_dropout.keys().map(|(key, p)| (key.to_owned(), json!(p))));
        let keys = Value::Object(keys);
        // Formatting a tree of our own cannot fail; `Value` prints compactly where pretty printing would.
        let mut text = serde_json::to_string_pretty(&keys).unwrap_or_else(|_| keys.to_string());
        text.push('\n');
        text
    }
}

/// The keys that every family writes, for weights of the type that transformers calls `dtype`.
fn common_keys(config: &ModelConfig, dtype: &str) -> Map<String, Value> {
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    };
    let keys = json!({
        "architectures": [config.family.architecture(&config.head)],
        "bos_token_id": config.bos_token_id,
        // transformers before 4.56 reads the second spelling.
        "dtype": dtype,
        "torch_dtype": dtype,
        "eos_token_id": eos,
        "initializer_range": config.initializer_range,
        "model_type": config.family.model_type(),
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": true,
        "vocab_size": config.vocab_size,
    });
    let Value::Object(mut keys) = keys else { return Map::new() };
    if let HeadSpec::Labels(head) = &config.head {
        let name = |id: usize| format!("LABEL_{id}");
        let ids = (0..head.num_labels).map(|id| (id.to_string(), json!(name(id))));
        let names = (0..head.num_labels).map(|id| (name(id), json!(id)));
        keys.insert("id2label".to_owned(), Value::Object(ids.collect()));
        keys.insert("label2id".to_owned(), Value::Object(names.collect()));
    }
    keys
}

#[cfg(test)]
mod tests;
