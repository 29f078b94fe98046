//! Llama, and the reader and writer of all decoders of its shape: RMSNorm before each half of a block, rotated queries and keys,
//! grouped heads, SwiGLU.

use serde_json::{Map, Value, json};

use super::file::ConfigFile;
use super::rope;
use super::{Definition, Family, ModulePaths, common_keys, dropout};
use crate::config::base_dropout::{BaseDropout, DropoutKey, DropoutPlace};
use crate::config::block::{
    Activation, AttnMask, AttnSpec, BlockSpec, EmbedSpec, Gate, MlpSpec, NormKind, NormSpec, Wiring,
};
use crate::config::head::LabelHeadSpec;
use crate::config::model::ModelConfig;
use crate::config::sites::Slot;
use crate::error::Result;

/// Paths of the modules of all families of this shape.
pub(super) const MODULES: ModulePaths = ModulePaths {
    base_prefix: "",
    embed_tokens: "model.embed_tokens",
    embed_positions: "",
    embed_types: "",
    embed_norm: "",
    blocks: "model.layers",
    norms: ["input_layernorm", "post_attention_layernorm"],
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    linear: |slot| match slot {
        Slot::Q => "self_attn.q_proj",
        Slot::K => "self_attn.k_proj",
        Slot::V => "self_attn.v_proj",
        Slot::O => "self_attn.o_proj",
        Slot::Gate => "mlp.gate_proj",
        Slot::Up => "mlp.up_proj",
        Slot::Down => "mlp.down_proj",
        Slot::Qkv | Slot::GateUp | Slot::Pooler => "",
    },
    is_conv1d: false,
    default_targets: &["q_proj", "v_proj"],
    final_norm: "model.norm",
    head: "lm_head",
    pooler_norm: "",
    trained_head: "score",
    trained_layers: ["", "score"],
    without_weights: &["model.rotary_emb", ".mlp.act_fn"],
    buffers: &[],
};

/// See `Definition::dropout`.
pub(super) const DROPOUT: &[DropoutKey] = &[dropout("attention_dropout", DropoutPlace::Attention, 0.0)];

pub(super) static LLAMA: Definition = Definition {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    label_architecture: "LlamaForSequenceClassification",
    names: &[],
    modules: &MODULES,
    keys: &[KEYS],
    dropout: DROPOUT,
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
    let max_positions = file.size("max_position_embeddings", Some(differences.max_position_embeddings))?;
    let block = BlockSpec {
        wiring: Wiring::PreNorm,
        norm: NormSpec { kind: NormKind::Rms, bias: false, eps: file.number("rms_norm_eps", 1e-6)? },
        attn: AttnSpec {
            heads: num_attention_heads,
            kv_heads: file.size("num_key_value_heads", shares_no_heads.then_some(num_attention_heads))?,
            head_dim: file.size("head_dim", Some(head_default))?,
            fused_qkv: false,
            qkv_bias: differences.attention_bias,
            o_bias: false,
            qk_norm: differences.qk_norm,
            rope: Some(rope::read(file, max_positions)?),
            mask: AttnMask::Causal,
        },
        mlp: MlpSpec {
            size: file.size("intermediate_size", None)?,
            act: Activation::Silu,
            gate: Gate::Split,
            bias: false,
        },
    };
    let label_head = LabelHeadSpec::last_token(file.num_labels()?);
    Ok(ModelConfig {
        family: differences.family,
        hidden_size,
        vocab_size: file.size("vocab_size", None)?,
        max_position_embeddings: max_positions,
        embed: EmbedSpec::default(),
        blocks: vec![block; file.layers("num_hidden_layers")?],
        head: file.head(label_head)?,
        label_head,
        tie_word_embeddings: file.flag("tie_word_embeddings")?,
        base_dropout: BaseDropout::default(),
        initializer_range: file.number("initializer_range", 0.02)?,
        bos_token_id: file.tokens("bos_token_id")?.first().copied(),
        eos_token_ids: file.tokens("eos_token_id")?,
        pad_token_id: file.tokens("pad_token_id")?.first().copied(),
    })
}

/// Refuses every key that would change the maths.
fn refuse_other_maths(file: &ConfigFile<'_>, differences: &Differences) -> Result<()> {
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
    let mut common = common_keys(config, dtype);
    let mut common = |key: &str| common.remove(key).unwrap_or_default();
    let Some(BlockSpec { norm, attn, mlp, .. }) = config.blocks.first() else { return Map::new() };
    let keys = json!({
        "architectures": common("architectures"),
        "attention_bias": attn.qkv_bias,
        "bos_token_id": common("bos_token_id"),
        "dtype": common("dtype"),
        "torch_dtype": common("torch_dtype"),
        "eos_token_id": common("eos_token_id"),
        "head_dim": attn.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": common("initializer_range"),
        "intermediate_size": mlp.size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": common("model_type"),
        "num_attention_heads": attn.heads,
        "num_hidden_layers": config.num_hidden_layers(),
        "num_key_value_heads": attn.kv_heads,
        "pad_token_id": common("pad_token_id"),
        "rms_norm_eps": norm.eps,
        "rope_scaling": attn.rope.as_ref().map(rope::write),
        "rope_theta": attn.rope.map(|rope| rope.theta),
        "tie_word_embeddings": common("tie_word_embeddings"),
        "use_cache": common("use_cache"),
        "vocab_size": common("vocab_size"),
    });
    match keys {
        Value::Object(keys) => keys,
        _ => Map::new(),
    }
}
