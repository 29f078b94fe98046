//! ModernBERT: an encoder with norms before each half of a block, rotated positions, fused projections, and windows in most blocks.
//!
//! Every `global_attn_every_n_layers`-th block sees the whole sequence, the others `local_attention / 2` tokens on either side; the
//! two kinds rotate with bases of their own. Transformers 5 names the kind of each block (`layer_types`) and has the bases in
//! `rope_parameters`. The embeddings have a norm, and the first block none before attention.

use serde_json::{Map, Value, json};

use super::file::ConfigFile;
use super::{Definition, Family, ModulePaths, common_keys, dropout};
use crate::config::base_dropout::{BaseDropout, DropoutPlace};
use crate::config::block::{
    AttnMask, AttnSpec, BlockSpec, EmbedSpec, Gate, MlpSpec, NormKind, NormSpec, RopeSpec, Wiring,
};
use crate::config::head::{HeadSpec, LabelHeadSpec, Pool, PoolerSpec};
use crate::config::model::ModelConfig;
use crate::config::sites::Slot;
use crate::error::Result;

const MODULES: ModulePaths = ModulePaths {
    base_prefix: "model.",
    embed_tokens: "model.embeddings.tok_embeddings",
    embed_positions: "",
    embed_types: "",
    embed_norm: "model.embeddings.norm",
    blocks: "model.layers",
    norms: ["attn_norm", "mlp_norm"],
    qk_norm: ["", ""],
    linear: |slot| match slot {
        Slot::Qkv => "attn.Wqkv",
        Slot::O => "attn.Wo",
        Slot::GateUp => "mlp.Wi",
        Slot::Down => "mlp.Wo",
        Slot::Pooler => "head.dense",
        Slot::Q | Slot::K | Slot::V | Slot::Gate | Slot::Up => "",
    },
    is_conv1d: false,
    default_targets: &["Wqkv"],
    final_norm: "model.final_norm",
    head: "",
    pooler_norm: "head.norm",
    trained_head: "classifier",
    trained_layers: ["", "classifier"],
    without_weights: &[
        "model.embeddings.drop",
        "head.act",
        "drop",
        ".attn.rotary_emb",
        ".attn.out_drop",
        ".mlp.act",
        ".mlp.drop",
    ],
    buffers: &[],
};

pub(super) static MODERNBERT: Definition = Definition {
    model_type: "modernbert",
    architecture: "ModernBertForSequenceClassification",
    label_architecture: "ModernBertForSequenceClassification",
    keys: &[KEYS],
    // The one of attention also drops the output of attention.
    dropout: &[
        dropout("embedding_dropout", DropoutPlace::Embeddings, 0.0),
        dropout("attention_dropout", DropoutPlace::Elsewhere, 0.0),
        dropout("mlp_dropout", DropoutPlace::Elsewhere, 0.0),
        dropout("classifier_dropout", DropoutPlace::Head, 0.0),
    ],
    names: &[("layer_norm_eps", "norm_eps"), ("rope_theta", "global_rope_theta")],
    modules: &MODULES,
    read,
    write,
};

/// See `Definition::keys`. Some are about how transformers computes, or about another head.
const KEYS: &[&str] = &[
    "attention_bias",
    "attention_dropout",
    "classifier_activation",
    "classifier_bias",
    "classifier_dropout",
    "classifier_pooling",
    "cls_token_id",
    "decoder_bias",
    "deterministic_flash_attn",
    "embedding_dropout",
    "global_attn_every_n_layers",
    "global_rope_theta",
    "gradient_checkpointing",
    "hidden_activation",
    "hidden_size",
    "initializer_cutoff_factor",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "layer_types",
    "local_attention",
    "local_rope_theta",
    "max_position_embeddings",
    "mlp_bias",
    "mlp_dropout",
    "norm_bias",
    "norm_eps",
    "num_attention_heads",
    "num_hidden_layers",
    "position_embedding_type",
    "reference_compile",
    "repad_logits_with_grad",
    "rope_parameters",
    "rope_scaling",
    "sep_token_id",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "vocab_size",
];

fn read(file: &ConfigFile<'_>) -> Result<ModelConfig> {
    let (hidden_size, heads) = (file.size("hidden_size", None)?, file.size("num_attention_heads", None)?);
    let head_dim = file.head_dim(("hidden_size", hidden_size), ("num_attention_heads", heads))?;
    let norm = NormSpec {
        kind: NormKind::Layer,
        bias: file.flag("norm_bias")?,
        eps: file.number("norm_eps", 1e-5)?,
    };
    let mlp = MlpSpec {
        size: file.size("intermediate_size", None)?,
        act: file.activation("hidden_activation", "gelu")?,
        gate: Gate::Fused,
        bias: file.flag("mlp_bias")?,
    };
    let bias = file.flag("attention_bias")?;
    let are_global = are_global(file)?;
    let reach = file.size("local_attention", Some(128))? / 2;
    let (global_theta, local_theta) = thetas(file)?;
    let block = |is_global: bool| {
        let attn = AttnSpec {
            heads,
            kv_heads: heads,
            head_dim,
            fused_qkv: true,
            qkv_bias: bias,
            o_bias: bias,
            qk_norm: false,
            rope: Some(RopeSpec::unscaled(if is_global { global_theta } else { local_theta })),
            mask: if is_global { AttnMask::Full } else { AttnMask::Window(reach) },
        };
        BlockSpec { wiring: Wiring::PreNorm, norm, attn, mlp }
    };
    let pool = match file.value("classifier_pooling").as_str() {
        None if !file.has("classifier_pooling") => Pool::First,
        Some("cls") => Pool::First,
        Some("mean") => Pool::Mean,
        _ => return file.refuse("classifier_pooling", "\"cls\" or \"mean\""),
    };
    let pooler = PoolerSpec {
        bias: file.flag("classifier_bias")?,
        act: file.activation("classifier_activation", "gelu")?,
        norm: Some(norm),
    };
    let num_labels = file.num_labels()?;
    let label_head = LabelHeadSpec { num_labels, pool, pooler: Some(pooler), dense: false, bias: true };
    let token = |key: &str, default: u32| {
        let written = file.tokens(key)?.first().copied();
        Ok::<_, crate::error::Error>(written.or((!file.is_written(key)).then_some(default)))
    };
    Ok(ModelConfig {
        family: Family::ModernBert,
        hidden_size,
        vocab_size: file.size("vocab_size", None)?,
        max_position_embeddings: file.size("max_position_embeddings", Some(8192))?,
        embed: EmbedSpec { norm: Some(norm), ..EmbedSpec::default() },
        blocks: are_global.into_iter().map(block).collect(),
        head: HeadSpec::Labels(label_head),
        label_head,
        tie_word_embeddings: true,
        base_dropout: BaseDropout::default(),
        initializer_range: file.number("initializer_range", 0.02)?,
        bos_token_id: token("bos_token_id", 50_281)?,
        eos_token_ids: token("eos_token_id", 50_282)?.into_iter().collect(),
        pad_token_id: token("pad_token_id", 50_283)?,
    })
}

const GLOBAL: &str = "full_attention";
const LOCAL: &str = "sliding_attention";

/// Whether each block sees the whole sequence.
fn are_global(file: &ConfigFile<'_>) -> Result<Vec<bool>> {
    let num_layers = file.layers("num_hidden_layers")?;
    if !file.has("layer_types") {
        let every = file.size("global_attn_every_n_layers", Some(3))?;
        if every == 0 {
            return file.refuse("global_attn_every_n_layers", "a whole number above 0");
        }
        return Ok((0..num_layers).map(|layer| layer.is_multiple_of(every)).collect());
    }
    let types = file.value("layer_types").as_array().map_or(&[][..], Vec::as_slice);
    let kinds: Vec<bool> = types.iter().filter_map(Value::as_str).map(|kind| kind == GLOBAL).collect();
    let are_known = types.iter().all(|kind| kind == GLOBAL || kind == LOCAL);
    match are_known && kinds.len() == num_layers {
        true => Ok(kinds),
        false => file
            .refuse("layer_types", &format!("\"{GLOBAL}\" or \"{LOCAL}\" for each of {num_layers} layers")),
    }
}

/// The bases of the rotation in global and local blocks.
fn thetas(file: &ConfigFile<'_>) -> Result<(f64, f64)> {
    if file.has("rope_scaling") {
        return file.refuse("rope_scaling", "null");
    }
    let global = file.number("global_rope_theta", 160_000.0)?;
    // Null means that local blocks rotate as global ones.
    let local = match file.is_written("local_rope_theta") && !file.has("local_rope_theta") {
        true => global,
        false => file.number("local_rope_theta", 10_000.0)?,
    };
    if !file.has("rope_parameters") {
        return Ok((global, local));
    }
    let key = "rope_parameters";
    let expected = format!("\"{GLOBAL}\" and \"{LOCAL}\", each with rope_type \"default\" and a rope_theta");
    let Some(of_kinds) = file.value(key).as_object() else { return file.refuse(key, &expected) };
    if of_kinds.keys().any(|kind| kind != GLOBAL && kind != LOCAL) {
        return file.refuse(key, &expected);
    }
    let theta = |kind: &str, usual: f64| -> Result<f64> {
        let keys = match of_kinds.get(kind) {
            None | Some(Value::Null) => return Ok(usual),
            Some(Value::Object(keys)) => keys,
            Some(_) => return file.refuse(key, &expected),
        };
        let is_known = |(name, value): (&String, &Value)| match name.as_str() {
            "rope_type" => value == "default",
            name => name == "rope_theta",
        };
        let theta = keys.get("rope_theta").map_or(Some(usual), Value::as_f64);
        match theta.filter(|theta| *theta > 0.0 && theta.is_finite() && keys.iter().all(is_known)) {
            Some(theta) => Ok(theta),
            None => file.refuse(key, &expected),
        }
    };
    Ok((theta(GLOBAL, global)?, theta(LOCAL, local)?))
}

fn write(config: &ModelConfig, dtype: &str) -> Map<String, Value> {
    let mut keys = common_keys(config, dtype);
    let Some(BlockSpec { norm, attn, mlp, .. }) = config.blocks.first() else { return keys };
    let is_global = |block: &&BlockSpec| block.attn.mask == AttnMask::Full;
    let every = config.blocks.iter().skip(1).position(|block| is_global(&block)).map(|at| at + 1);
    let local = config.blocks.iter().find(|block| !is_global(block)).map(|block| block.attn);
    let reach = local.and_then(|attn| match attn.mask {
        AttnMask::Window(reach) => Some(2 * reach),
        AttnMask::Causal | AttnMask::Full => None,
    });
    let pooler = config.label_head.pooler;
    let own = json!({
        "attention_bias": attn.qkv_bias,
        "classifier_activation": pooler.map(|pooler| ConfigFile::activation_name(pooler.act)),
        "classifier_bias": pooler.is_some_and(|pooler| pooler.bias),
        "classifier_pooling": if config.label_head.pool == Pool::Mean { "mean" } else { "cls" },
        "global_attn_every_n_layers": every.unwrap_or(config.num_hidden_layers()),
        "global_rope_theta": attn.rope.map(|rope| rope.theta),
        "hidden_activation": ConfigFile::activation_name(mlp.act),
        "hidden_size": config.hidden_size,
        "intermediate_size": mlp.size,
        "local_attention": reach.unwrap_or(128),
        "local_rope_theta": local.as_ref().unwrap_or(attn).rope.map(|rope| rope.theta),
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": mlp.bias,
        "norm_bias": norm.bias,
        "norm_eps": norm.eps,
        "num_attention_heads": attn.heads,
        "num_hidden_layers": config.num_hidden_layers(),
    });
    keys.extend(own.as_object().cloned().unwrap_or_default());
    let step = every.unwrap_or(config.num_hidden_layers());
    if config.blocks.iter().enumerate().any(|(layer, block)| is_global(&block) != layer.is_multiple_of(step))
    {
        let kinds = config.blocks.iter().map(|block| if is_global(&block) { GLOBAL } else { LOCAL });
        keys.insert("layer_types".to_owned(), kinds.collect());
    }
    keys.sort_keys();
    keys
}
