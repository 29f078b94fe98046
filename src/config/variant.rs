//! The parser of the variant files in `variants/`: shapes under Hugging Face key names and a preset for a 10 GB card.
//!
//! The build script includes this file by path and turns every variant into a constant, so it imports nothing of the crate
//! and reports errors as plain text.

use serde::Deserialize;

/// One variant file, as written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariantFile {
    /// The name people use (`Qwen3-0.6B`).
    pub name: String,
    /// Ids on the Hugging Face hub with this shape.
    pub hf_ids: Vec<String>,
    /// `model_type` of its `config.json`: one of [`FAMILIES`].
    pub family: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Number of token types (encoders).
    pub type_vocab_size: Option<usize>,
    /// Epsilon of RMSNorm (families with RoPE).
    pub rms_norm_eps: Option<f64>,
    /// Epsilon of LayerNorm (the other families).
    pub layer_norm_eps: Option<f64>,
    /// Base of the rotary frequencies (families with RoPE).
    pub rope_theta: Option<f64>,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Activation of the MLP.
    pub hidden_act: String,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Token that ends a text.
    pub eos_token_id: Option<u32>,
    /// Token that fills rows.
    pub pad_token_id: Option<u32>,
    /// Training options for a 10 GB card: keys of [`PRESET_KEYS`].
    pub preset: toml::Table,
}

/// Families a variant may have, and whether they use RMSNorm and RoPE.
pub const FAMILIES: [(&str, bool); 6] = [
    ("qwen2", true),
    ("qwen3", true),
    ("llama", true),
    ("gpt2", false),
    ("bert", false),
    ("xlm-roberta", false),
];

/// Options a preset may set. Each either has a default or excludes a sibling, so that the resolved configuration, written
/// out and read again, hides the preset completely.
pub const PRESET_KEYS: [&str; 10] = [
    "batch_size",
    "tokens_per_batch",
    "gradient_accumulation_steps",
    "max_seq_length",
    "lora_r",
    "lora_alpha",
    "target_modules",
    "learning_rate",
    "quant",
    "double_quant",
];

/// Reads and checks one variant file.
///
/// # Errors
/// Text that says which key broke which rule.
pub fn parse(text: &str) -> Result<VariantFile, String> {
    let file: VariantFile = toml::from_str(text).map_err(|error| error.to_string())?;
    check(&file)?;
    Ok(file)
}

/// The name of the constant of a variant: `Qwen3-0.6B` becomes `QWEN3_0_6B`.
pub fn const_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// The rules that a type cannot express.
fn check(file: &VariantFile) -> Result<(), String> {
    let sizes = [
        ("hidden_size", file.hidden_size),
        ("intermediate_size", file.intermediate_size),
        ("num_hidden_layers", file.num_hidden_layers),
        ("num_attention_heads", file.num_attention_heads),
        ("num_key_value_heads", file.num_key_value_heads),
        ("head_dim", file.head_dim),
        ("vocab_size", file.vocab_size),
        ("max_position_embeddings", file.max_position_embeddings),
    ];
    for (key, size) in sizes {
        if size == 0 {
            return Err(format!("{key} must not be 0"));
        }
    }
    if !file.name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(format!("name \"{}\" must start with a letter", file.name));
    }
    if !file.num_attention_heads.is_multiple_of(file.num_key_value_heads) {
        return Err("num_attention_heads must be a multiple of num_key_value_heads".to_owned());
    }
    let Some((_, rotary)) = FAMILIES.iter().find(|(family, _)| *family == file.family) else {
        return Err(format!("unknown family \"{}\"", file.family));
    };
    if file.rms_norm_eps.is_some() != *rotary || file.rope_theta.is_some() != *rotary {
        return Err(format!("rms_norm_eps and rope_theta must {}be set", if *rotary { "" } else { "not " }));
    }
    if file.layer_norm_eps.is_some() == *rotary {
        return Err(format!("layer_norm_eps must {}be set", if *rotary { "not " } else { "" }));
    }
    for key in file.preset.keys() {
        if !PRESET_KEYS.contains(&key.as_str()) {
            return Err(format!("preset.{key} is none of {}", PRESET_KEYS.join(", ")));
        }
    }
    if file.preset.contains_key("batch_size") == file.preset.contains_key("tokens_per_batch") {
        return Err("preset needs exactly one of batch_size and tokens_per_batch".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("variants/qwen3-tiny.toml");

    #[test]
    fn a_good_file_passes() {
        let file = parse(GOOD).unwrap();
        assert_eq!((file.hidden_size, file.eos_token_id), (256, Some(2)));
        assert_eq!(const_name("Qwen3-0.6B"), "QWEN3_0_6B");
    }

    #[test]
    fn every_broken_rule_is_named() {
        for (from, to, message) in [
            ("hidden_size = 256", "hidden_size = 0", "hidden_size must not be 0"),
            ("hidden_size = 256", "hidden_sise = 256", "hidden_sise"),
            ("num_key_value_heads = 2", "num_key_value_heads = 3", "multiple of num_key_value_heads"),
            ("family = \"qwen3\"", "family = \"qwen9\"", "unknown family \"qwen9\""),
            ("family = \"qwen3\"", "family = \"bert\"", "must not be set"),
            ("rope_theta = 10000.0\n", "", "must be set"),
            ("lora_r = 8", "lora_rr = 8", "preset.lora_rr"),
            ("batch_size = 8", "batch_size = 8\ntokens_per_batch = 8", "exactly one"),
            ("name = \"qwen3-tiny\"", "name = \"3-tiny\"", "must start with a letter"),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from} is in the file");
            let error = parse(&text).unwrap_err();
            assert!(error.contains(message), "{message}: {error}");
        }
    }
}
