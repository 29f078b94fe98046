//! BERT, RoBERTa and XLM-R: encoders with norms behind the residual addition, learned positions, token types and biases.
//!
//! RoBERTa and XLM-R differ in their paths, in the first row of the table of positions, and in the head: BERT has a pooler that is
//! frozen, the others have a first layer of the head that is trained.

use serde_json::{Map, Value, json};

use super::file::ConfigFile;
use super::{Definition, Family, ModulePaths, common_keys, dropout};
use crate::config::base_dropout::{BaseDropout, DropoutKey, DropoutPlace};
use crate::config::block::{
    Activation, AttnMask, AttnSpec, BlockSpec, EmbedSpec, Gate, LearnedPositions, MlpSpec, NormKind,
    NormSpec, Wiring,
};
use crate::config::head::{HeadSpec, LabelHeadSpec, Pool, PoolerSpec};
use crate::config::model::ModelConfig;
use crate::config::sites::Slot;
use crate::error::Result;

const BERT_MODULES: ModulePaths = ModulePaths {
    base_prefix: "bert.",
    embed_tokens: "bert.embeddings.word_embeddings",
    embed_positions: "bert.embeddings.position_embeddings",
    embed_types: "bert.embeddings.token_type_embeddings",
    embed_norm: "bert.embeddings.LayerNorm",
    blocks: "bert.encoder.layer",
    norms: ["attention.output.LayerNorm", "output.LayerNorm"],
    qk_norm: ["", ""],
    linear: |slot| match slot {
        Slot::Q => "attention.self.query",
        Slot::K => "attention.self.key",
        Slot::V => "attention.self.value",
        Slot::O => "attention.output.dense",
        Slot::Up => "intermediate.dense",
        Slot::Down => "output.dense",
        Slot::Pooler => "bert.pooler.dense",
        Slot::Qkv | Slot::Gate | Slot::GateUp => "",
    },
    is_conv1d: false,
    default_targets: &["query", "value"],
    final_norm: "",
    head: "",
    pooler_norm: "",
    trained_head: "classifier",
    trained_layers: ["", "classifier"],
    without_weights: &[
        "bert.embeddings.dropout",
        "bert.pooler.activation",
        "dropout",
        ".attention.self.dropout",
        ".attention.output.dropout",
        ".intermediate.intermediate_act_fn",
        ".output.dropout",
    ],
    buffers: &["embeddings.position_ids", "embeddings.token_type_ids"],
};

const ROBERTA_MODULES: ModulePaths = ModulePaths {
    base_prefix: "roberta.",
    embed_tokens: "roberta.embeddings.word_embeddings",
    embed_positions: "roberta.embeddings.position_embeddings",
    embed_types: "roberta.embeddings.token_type_embeddings",
    embed_norm: "roberta.embeddings.LayerNorm",
    blocks: "roberta.encoder.layer",
    trained_layers: ["classifier.dense", "classifier.out_proj"],
    without_weights: &[
        "roberta.embeddings.dropout",
        "classifier.dropout",
        ".attention.self.dropout",
        ".attention.output.dropout",
        ".intermediate.intermediate_act_fn",
        ".output.dropout",
    ],
    ..BERT_MODULES
};

pub(super) static BERT: Definition = Definition {
    model_type: "bert",
    architecture: "BertForSequenceClassification",
    label_architecture: "BertForSequenceClassification",
    keys: &[KEYS],
    dropout: &[
        dropout("hidden_dropout_prob", DropoutPlace::EmbeddingsAndHidden, 0.1),
        dropout("attention_probs_dropout_prob", DropoutPlace::Attention, 0.1),
        DropoutKey { name: "classifier_dropout", place: DropoutPlace::Head, default: None },
    ],
    names: &[],
    modules: &BERT_MODULES,
    read: |file| read(file, Family::Bert),
    write,
};

pub(super) static ROBERTA: Definition = Definition {
    model_type: "roberta",
    architecture: "RobertaForSequenceClassification",
    label_architecture: "RobertaForSequenceClassification",
    modules: &ROBERTA_MODULES,
    read: |file| read(file, Family::Roberta),
    ..BERT
};

pub(super) static XLM_ROBERTA: Definition = Definition {
    model_type: "xlm-roberta",
    architecture: "XLMRobertaForSequenceClassification",
    label_architecture: "XLMRobertaForSequenceClassification",
    read: |file| read(file, Family::XlmRoberta),
    ..ROBERTA
};

/// See `Definition::keys`.
const KEYS: &[&str] = &[
    "add_cross_attention",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "gradient_checkpointing",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "is_decoder",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "output_past",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "position_embedding_type",
    "type_vocab_size",
    "vocab_size",
];

fn read(file: &ConfigFile<'_>, family: Family) -> Result<ModelConfig> {
    let act = file.activation("hidden_act", "gelu")?;
    for key in ["is_decoder", "add_cross_attention"] {
        if file.flag(key)? {
            return file.refuse(key, "false");
        }
    }
    let kind = file.value("position_embedding_type");
    if !kind.is_null() && kind != "absolute" {
        return file.refuse("position_embedding_type", "\"absolute\"");
    }
    let is_bert = family == Family::Bert;
    let (hidden_size, heads) = (file.size("hidden_size", None)?, file.size("num_attention_heads", None)?);
    let head_dim = file.head_dim(("hidden_size", hidden_size), ("num_attention_heads", heads))?;
    let norm = NormSpec { kind: NormKind::Layer, bias: true, eps: file.number("layer_norm_eps", 1e-12)? };
    let block = BlockSpec {
        wiring: Wiring::PostNorm,
        norm,
        attn: AttnSpec {
            heads,
            kv_heads: heads,
            head_dim,
            fused_qkv: false,
            qkv_bias: true,
            o_bias: true,
            qk_norm: false,
            rope: None,
            mask: AttnMask::Full,
        },
        mlp: MlpSpec { size: file.size("intermediate_size", None)?, act, gate: Gate::None, bias: true },
    };
    let pad_token_id = file.tokens("pad_token_id")?.first().copied();
    // Positions count from behind the padding token, whose row is unused.
    let pad_token_id = pad_token_id.or((!file.is_written("pad_token_id")).then_some(u32::from(!is_bert)));
    let offset = if is_bert { 0 } else { pad_token_id.unwrap_or(1) as usize + 1 };
    let rows = file.size("max_position_embeddings", Some(512))?;
    let Some(positions) = rows.checked_sub(offset).filter(|&positions| positions > 0) else {
        return file
            .error("max_position_embeddings", "the table of positions is too short")
            .got(rows)
            .expected(format!("more than pad_token_id + 1 = {offset}"))
            .fix("check that config.json belongs to this model")
            .into();
    };
    let pooler = is_bert.then_some(PoolerSpec { bias: true, act: Activation::Tanh, norm: None });
    let label_head = LabelHeadSpec {
        num_labels: file.num_labels()?,
        pool: Pool::First,
        pooler,
        dense: !is_bert,
        bias: true,
    };
    Ok(ModelConfig {
        family,
        hidden_size,
        vocab_size: file.size("vocab_size", None)?,
        max_position_embeddings: positions,
        embed: EmbedSpec {
            positions: Some(LearnedPositions { rows, offset }),
            token_types: Some(file.size("type_vocab_size", Some(2))?),
            norm: Some(norm),
        },
        blocks: vec![block; file.layers("num_hidden_layers")?],
        head: HeadSpec::Labels(label_head),
        label_head,
        tie_word_embeddings: true,
        base_dropout: BaseDropout::default(),
        initializer_range: file.number("initializer_range", 0.02)?,
        bos_token_id: file.tokens("bos_token_id")?.first().copied(),
        eos_token_ids: file.tokens("eos_token_id")?,
        pad_token_id,
    })
}

fn write(config: &ModelConfig, dtype: &str) -> Map<String, Value> {
    let mut keys = common_keys(config, dtype);
    let Some(BlockSpec { norm, attn, mlp, .. }) = config.blocks.first() else { return keys };
    let own = json!({
        "hidden_act": ConfigFile::activation_name(mlp.act),
        "hidden_size": config.hidden_size,
        "intermediate_size": mlp.size,
        "layer_norm_eps": norm.eps,
        "max_position_embeddings": config.embed.positions.map(|positions| positions.rows),
        "num_attention_heads": attn.heads,
        "num_hidden_layers": config.num_hidden_layers(),
        "position_embedding_type": "absolute",
        "type_vocab_size": config.embed.token_types,
    });
    keys.extend(own.as_object().cloned().unwrap_or_default());
    keys.sort_keys();
    keys
}
