//! Llama, and the reader and writer of all decoders of its shape: RMSNorm before each half of a block, rotated queries and keys,
//! grouped heads, SwiGLU.

use serde_json::{Map, Value, json};

use super::file::ConfigFile;
use super::{Definition, Family, ModulePaths};
use crate::config::model::ModelConfig;
use crate::config::sites::Slot;
use crate::error::Result;

/// Paths of the modules of all families of this shape.
pub(super) const MODULES: ModulePaths = ModulePaths {
    embed_tokens: "model.embed_tokens",
    blocks: "model.layers",
    norm_before_attention: "input_layernorm",
    norm_before_mlp: "post_attention_layernorm",
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    linear: |slot| match slot {
        Slot::Q => "self_attn.q_proj",
        Slot::K => "self_attn.k_proj",
        Slot::V => "self_attn.v_proj",
        Slot::O => "self_attn.o_proj",
        Slot::Gate => "mlp.gate_proj",
        Slot::Up => "mlp.up_proj",
        Slot::Down => "mlp.down_proj",
    },
    final_norm: "model.norm",
    head: "lm_head",
    without_weights: &["model.rotary_emb", ".mlp.act_fn"],
};

pub(super) static LLAMA: Definition = Definition {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    modules: &MODULES,
    keys: &[KEYS],
    read: |file| read(file, &DIFFERENCES),
    write: |config, dtype| {
        let mut keys = write(config, dtype);
        keys.insert("mlp_bias".to_owned(), json!(false));
        keys
    },
};

const DIFFERENCES: Differences = Differences {
    family: Family::Llama,
    num_key_value_heads_required: false,
    head_dim: None,
    max_position_embeddings: 2048,
    attention_bias: false,
    qk_norm: false,
};

/// The differences between families of this shape: defaults of their configuration classes, and parts that no
/// key decides.
pub(super) struct Differences {
    pub(super) family: Family,
    /// True if the number of key/value heads is a required key. Llama's default is one per query head. The
    /// default of the Qwen classes is 32, which is wrong for small models.
    pub(super) num_key_value_heads_required: bool,
    /// Width of a head if the key is absent. If this is `None`, or the key is null, `hidden_size` is divided
    /// by the number of heads.
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    /// True if q, k and v have a bias regardless of the key `attention_bias`.
    pub(super) attention_bias: bool,
    /// Whether the heads of q and k are normed.
    pub(super) qk_norm: bool,
}

/// See `Definition::keys`.
pub(super) const KEYS: &[&str] = &[
    "attention_bias",
    "attention_dropout",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "pretraining_tp",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "vocab_size",
];

/// Reads a model of this shape.
///
/// # Errors
/// An input error for a missing or wrong key, or one that needs unsupported maths.
pub(super) fn read(file: &ConfigFile<'_>, differences: &Differences) -> Result<ModelConfig> {
    refuse_other_maths(file, differences)?;
    let hidden_size = file.size("hidden_size", None)?;
    let num_attention_heads = file.size("num_attention_heads", None)?;
    let written_null = |key: &str| file.is_written(key) && !file.has(key);
    let shares_no_heads = !differences.num_key_value_heads_required || written_null("num_key_value_heads");
    let quotient = hidden_size.checked_div(num_attention_heads).unwrap_or(0);
    let head_default = match differences.head_dim {
        Some(head_dim) if !file.is_written("head_dim") => head_dim,
        _ => quotient,
    };
    if !file.has("head_dim") && head_default == quotient && quotient * num_attention_heads != hidden_size {
        return file
            .error("num_attention_heads", "without head_dim, the heads must divide hidden_size")
            .got(num_attention_heads)
            .expected(format!("a divisor of {hidden_size}"))
            .fix("check that config.json belongs to this model")
            .into();
    }
    Ok(ModelConfig {
        family: differences.family,
        hidden_size,
        intermediate_size: file.size("intermediate_size", None)?,
        num_hidden_layers: file.size("num_hidden_layers", None)?,
        num_attention_heads,
        num_key_value_heads: file
            .size("num_key_value_heads", shares_no_heads.then_some(num_attention_heads))?,
        head_dim: file.size("head_dim", Some(head_default))?,
        vocab_size: file.size("vocab_size", None)?,
        max_position_embeddings: file
            .size("max_position_embeddings", Some(differences.max_position_embeddings))?,
        rms_norm_eps: file.number("rms_norm_eps", 1e-6)?,
        rope_theta: file.rope_theta()?,
        tie_word_embeddings: file.flag("tie_word_embeddings")?,
        attention_bias: differences.attention_bias,
        qk_norm: differences.qk_norm,
        initializer_range: file.number("initializer_range", 0.02)?,
        bos_token_id: file.tokens("bos_token_id")?.first().copied(),
        eos_token_ids: file.tokens("eos_token_id")?,
        pad_token_id: file.tokens("pad_token_id")?.first().copied(),
    })
}

/// Refuses every key that would change the maths.
fn refuse_other_maths(file: &ConfigFile<'_>, differences: &Differences) -> Result<()> {
    file.refuse_other_rope()?;
    for key in ["use_sliding_window", "attention_bias", "mlp_bias"] {
        let is_ignored = key == "attention_bias" && differences.attention_bias;
        if file.flag(key)? && !is_ignored {
            return file.refuse(key, "false");
        }
    }
    // Both names are of one function in transformers.
    let act = file.value("hidden_act");
    if !act.is_null() && act != "silu" && act != "swish" {
        return file.refuse("hidden_act", "\"silu\"");
    }
    let full = |kinds: &Vec<Value>| kinds.iter().all(|kind| kind == "full_attention");
    if file.has("layer_types") && !file.value("layer_types").as_array().is_some_and(full) {
        return file.refuse("layer_types", "full_attention in every layer");
    }
    Ok(())
}

/// The keys that all families of this shape write, for weights of the type that transformers calls `dtype`.
pub(super) fn write(config: &ModelConfig, dtype: &str) -> Map<String, Value> {
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    };
    let keys = json!({
        "architectures": [config.family.architecture()],
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        // transformers before 4.56 reads the second spelling.
        "dtype": dtype,
        "torch_dtype": dtype,
        "eos_token_id": eos,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": config.family.model_type(),
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pad_token_id": config.pad_token_id,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": null,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": true,
        "vocab_size": config.vocab_size,
    });
    match keys {
        Value::Object(keys) => keys,
        _ => Map::new(),
    }
}
