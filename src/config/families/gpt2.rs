//! GPT-2 and DialoGPT: LayerNorm before each half of a block, one layer for queries, keys and values, learned positions.
//!
//! The linear layers are Conv1D modules of transformers: `y = x W + b` with `W` as `[in_features, out_features]`.

use serde_json::{Map, Value, json};

use super::file::ConfigFile;
use super::{Definition, Family, ModulePaths, common_keys, dropout};
use crate::config::base_dropout::{BaseDropout, DropoutPlace};
use crate::config::block::{
    AttnMask, AttnSpec, BlockSpec, EmbedSpec, Gate, LearnedPositions, MlpSpec, NormKind, NormSpec, Wiring,
};
use crate::config::head::LabelHeadSpec;
use crate::config::model::ModelConfig;
use crate::config::sites::Slot;
use crate::error::Result;

const MODULES: ModulePaths = ModulePaths {
    base_prefix: "transformer.",
    embed_tokens: "transformer.wte",
    embed_positions: "transformer.wpe",
    embed_types: "",
    embed_norm: "",
    blocks: "transformer.h",
    norms: ["ln_1", "ln_2"],
    qk_norm: ["", ""],
    linear: |slot| match slot {
        Slot::Qkv => "attn.c_attn",
        Slot::O => "attn.c_proj",
        Slot::Up => "mlp.c_fc",
        Slot::Down => "mlp.c_proj",
        Slot::Q | Slot::K | Slot::V | Slot::Gate | Slot::GateUp | Slot::Pooler => "",
    },
    is_conv1d: true,
    default_targets: &["c_attn"],
    final_norm: "transformer.ln_f",
    head: "lm_head",
    pooler_norm: "",
    trained_head: "score",
    trained_layers: ["", "score"],
    without_weights: &[
        "transformer.drop",
        ".attn.attn_dropout",
        ".attn.resid_dropout",
        ".mlp.act",
        ".mlp.dropout",
    ],
    // The causal mask, and the number that stands for "hidden".
    buffers: &[".attn.bias", ".attn.masked_bias"],
};

pub(super) static GPT2: Definition = Definition {
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    label_architecture: "GPT2ForSequenceClassification",
    keys: &[KEYS],
    dropout: &[
        dropout("embd_pdrop", DropoutPlace::Embeddings, 0.1),
        dropout("resid_pdrop", DropoutPlace::Hidden, 0.1),
        dropout("attn_pdrop", DropoutPlace::Attention, 0.1),
    ],
    names: &[
        ("hidden_size", "n_embd"),
        ("intermediate_size", "n_inner"),
        ("layer_norm_eps", "layer_norm_epsilon"),
        ("max_position_embeddings", "n_positions"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ],
    modules: &MODULES,
    read,
    write,
};

/// See `Definition::keys`. Those of `summary` belong to another head.
const KEYS: &[&str] = &[
    "activation_function",
    "add_cross_attention",
    "attn_pdrop",
    "embd_pdrop",
    "gradient_checkpointing",
    "initializer_range",
    "layer_norm_epsilon",
    "n_ctx",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "vocab_size",
];

fn read(file: &ConfigFile<'_>) -> Result<ModelConfig> {
    let act = file.activation("activation_function", "gelu_new")?;
    if !file.flag_or("scale_attn_weights", true)? {
        return file.refuse("scale_attn_weights", "true");
    }
    for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        if file.flag(key)? {
            return file.refuse(key, "false");
        }
    }
    let (hidden_size, heads) = (file.size("n_embd", None)?, file.size("n_head", None)?);
    let head_dim = file.head_dim(("n_embd", hidden_size), ("n_head", heads))?;
    let norm = NormSpec { kind: NormKind::Layer, bias: true, eps: file.number("layer_norm_epsilon", 1e-5)? };
    let block = BlockSpec {
        wiring: Wiring::PreNorm,
        norm,
        attn: AttnSpec {
            heads,
            kv_heads: heads,
            head_dim,
            fused_qkv: true,
            qkv_bias: true,
            o_bias: true,
            qk_norm: false,
            rope: None,
            mask: AttnMask::Causal,
        },
        mlp: MlpSpec {
            size: file.size("n_inner", hidden_size.checked_mul(4))?,
            act,
            gate: Gate::None,
            bias: true,
        },
    };
    let positions = file.size("n_positions", None)?;
    let label_head = LabelHeadSpec::last_token(file.num_labels()?);
    Ok(ModelConfig {
        family: Family::Gpt2,
        hidden_size,
        vocab_size: file.size("vocab_size", None)?,
        max_position_embeddings: positions,
        embed: EmbedSpec {
            positions: Some(LearnedPositions { rows: positions, offset: 0 }),
            ..EmbedSpec::default()
        },
        blocks: vec![block; file.layers("n_layer")?],
        head: file.head(label_head)?,
        label_head,
        tie_word_embeddings: file.flag_or("tie_word_embeddings", true)?,
        base_dropout: BaseDropout::default(),
        initializer_range: file.number("initializer_range", 0.02)?,
        bos_token_id: file.tokens("bos_token_id")?.first().copied(),
        eos_token_ids: file.tokens("eos_token_id")?,
        pad_token_id: file.tokens("pad_token_id")?.first().copied(),
    })
}

fn write(config: &ModelConfig, dtype: &str) -> Map<String, Value> {
    let mut keys = common_keys(config, dtype);
    let Some(BlockSpec { norm, attn, mlp, .. }) = config.blocks.first() else { return keys };
    let own = json!({
        "activation_function": ConfigFile::activation_name(mlp.act),
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "layer_norm_epsilon": norm.eps,
        "n_embd": config.hidden_size,
        "n_head": attn.heads,
        "n_inner": mlp.size,
        "n_layer": config.num_hidden_layers(),
        "n_positions": config.max_position_embeddings,
        "resid_pdrop": 0.0,
    });
    keys.extend(own.as_object().cloned().unwrap_or_default());
    keys.sort_keys();
    keys
}
