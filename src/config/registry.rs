//! The model variants this build knows: shapes and presets, generated from `variants/*.toml` by the build script.

use super::model::{Family, ModelConfig};
use crate::error::{Error, Result};

/// A known model shape and its preset. Key names are those of Hugging Face.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variant {
    /// The name people use (`Qwen3-0.6B`).
    pub name: &'static str,
    /// Ids on the Hugging Face hub with this shape.
    pub hf_ids: &'static [&'static str],
    /// `model_type` of its `config.json`.
    pub family: &'static str,
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
    pub hidden_act: &'static str,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Token that ends a text.
    pub eos_token_id: Option<u32>,
    /// Token that fills rows.
    pub pad_token_id: Option<u32>,
    /// Training options for a 10 GB card, as TOML text.
    pub preset: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/variants.rs"));

/// All known variants.
pub fn variants() -> &'static [Variant] {
    VARIANTS
}

/// The variant with this name or Hugging Face id; case does not matter.
pub fn variant(name: &str) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| {
        variant.name.eq_ignore_ascii_case(name)
            || variant.hf_ids.iter().any(|id| id.eq_ignore_ascii_case(name))
    })
}

/// The variant whose weights have the shapes of `config`. Constants that shape nothing (`rope_theta`, the context length,
/// token ids) may differ: fine-tuned models change them.
pub fn matching_variant(config: &ModelConfig) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| {
        variant.family == config.family.model_type()
            && variant.hidden_size == config.hidden_size
            && variant.intermediate_size == config.intermediate_size
            && variant.num_hidden_layers == config.num_hidden_layers
            && variant.num_attention_heads == config.num_attention_heads
            && variant.num_key_value_heads == config.num_key_value_heads
            && variant.head_dim == config.head_dim
            && variant.vocab_size == config.vocab_size
            && variant.tie_word_embeddings == config.tie_word_embeddings
    })
}

impl Variant {
    /// The model of this variant, or `None` if this build has no ops for its family.
    pub fn model_config(&self) -> Option<ModelConfig> {
        let family = Family::from_model_type(self.family)?;
        Some(ModelConfig {
            family,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            vocab_size: self.vocab_size,
            max_position_embeddings: self.max_position_embeddings,
            rms_norm_eps: self.rms_norm_eps?,
            rope_theta: self.rope_theta?,
            tie_word_embeddings: self.tie_word_embeddings,
            attention_bias: family == Family::Qwen2,
            qk_norm: family == Family::Qwen3,
            initializer_range: self.initializer_range,
            bos_token_id: self.bos_token_id,
            eos_token_ids: self.eos_token_id.into_iter().collect(),
            pad_token_id: self.pad_token_id,
        })
    }

    /// The preset as options.
    ///
    /// # Errors
    /// None for the built-in variants, whose files the build script parses.
    pub fn preset(&self) -> Result<toml::Table> {
        self.preset.parse().map_err(|error: toml::de::Error| {
            Error::input("CONFIG", format!("broken preset: {}", error.message())).field(self.name).into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::variant::parse;

    #[test]
    fn every_file_is_in_the_registry_as_written() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/variants");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let file = parse(&std::fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap();
            let built = variant(&file.name).unwrap();
            assert_eq!(built.hf_ids, file.hf_ids);
            assert_eq!((built.family, built.head_dim), (file.family.as_str(), file.head_dim));
            assert_eq!((built.vocab_size, built.rope_theta), (file.vocab_size, file.rope_theta));
            assert_eq!(built.preset().unwrap(), file.preset);
            count += 1;
        }
        assert_eq!(count, variants().len());
        assert_eq!(QWEN3_TINY.name, "qwen3-tiny");
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        // Billions, from the model cards and the shape tables of torchtune.
        for (name, billions) in [
            ("Qwen3-0.6B", 0.596),
            ("Qwen3-1.7B", 1.720),
            ("Qwen3-4B", 4.022),
            ("Qwen3-8B", 8.190),
            ("Qwen2.5-0.5B", 0.494),
            ("Qwen2.5-1.5B", 1.543),
            ("Qwen2.5-3B", 3.086),
            ("Qwen2.5-7B", 7.615),
            ("Qwen1.5-7B-Chat", 7.721),
        ] {
            let config = variant(name).unwrap().model_config().unwrap();
            config.validate().unwrap();
            let count = config.parameter_count() as f64 / 1e9;
            assert!((count - billions).abs() < 0.0011, "{name}: {count}");
        }
    }

    #[test]
    fn models_find_their_variant_and_families_without_ops_have_no_model() {
        for known in variants() {
            match known.model_config() {
                Some(mut config) => {
                    config.max_position_embeddings = 77;
                    config.rope_theta = 5e6;
                    assert_eq!(matching_variant(&config), Some(known));
                    config.intermediate_size += 8;
                    assert_eq!(matching_variant(&config), None);
                }
                None => assert!(["gpt2", "bert", "xlm-roberta"].contains(&known.family)),
            }
        }
        assert_eq!(variant("qwen/qwen2.5-7b-instruct").map(|v| v.name), Some("Qwen2.5-7B"));
        assert_eq!(variant("MICROSOFT/DialoGPT-medium").map(|v| v.hidden_size), Some(1024));
        assert!(variant("Qwen/Qwen9").is_none());
    }
}
