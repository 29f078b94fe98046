//! Qwen2 (with Qwen1.5 and Qwen2.5) and Qwen3: the shape of Llama; Qwen2 with biases on q, k and v, Qwen3
//! with norms of the heads.

use serde_json::{Map, Value, json};

use super::llama::{self, Differences};
use super::{Definition, Family};
use crate::config::model::ModelConfig;

pub(super) static QWEN2: Definition = Definition {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    label_architecture: "Qwen2ForSequenceClassification",
    names: &[],
    modules: &llama::MODULES,
    keys: &[llama::KEYS, WINDOW_KEYS],
    dropout: llama::DROPOUT,
    read: |file| {
        let qwen2 = Differences { family: Family::Qwen2, attention_bias: true, ..QWEN };
        llama::read(file, &qwen2)
    },
    write: |config, dtype| {
        let mut keys = write(config, dtype);
        // The biases exist although no key mentions them.
        keys.shift_remove("attention_bias");
        keys
    },
};

pub(super) static QWEN3: Definition = Definition {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    label_architecture: "Qwen3ForSequenceClassification",
    names: &[],
    modules: &llama::MODULES,
    keys: &[llama::KEYS, WINDOW_KEYS],
    dropout: llama::DROPOUT,
    read: |file| {
        // Where head_dim is absent, Qwen3Config fills in 128; the other classes divide.
        let qwen3 = Differences { family: Family::Qwen3, head_dim: Some(128), qk_norm: true, ..QWEN };
        llama::read(file, &qwen3)
    },
    write,
};

/// Common to both.
const QWEN: Differences = Differences {
    family: Family::Qwen2,
    num_key_value_heads_required: true,
    head_dim: None,
    max_position_embeddings: 32_768,
    attention_bias: false,
    qk_norm: false,
};

/// Keys about sliding-window attention, which released models do not use.
const WINDOW_KEYS: &[&str] =
    &["layer_types", "max_window_layers", "sliding_window", "use_mrope", "use_sliding_window"];

fn write(config: &ModelConfig, dtype: &str) -> Map<String, Value> {
    let mut keys = llama::write(config, dtype);
    keys.insert("sliding_window".to_owned(), Value::Null);
    keys.insert("use_sliding_window".to_owned(), json!(false));
    keys.insert("max_window_layers".to_owned(), json!(config.num_hidden_layers()));
    keys
}
