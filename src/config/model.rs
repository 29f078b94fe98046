//! The shape of a decoder model, as its `config.json` gives it.
//!
//! A `config.json` may ask for maths that this engine does not do. Silently ignoring such a key would train another model
//! than the user's, so everything that changes the maths is either supported or an error that names the key. The defaults
//! of absent keys are those of the configuration classes of transformers.

use std::fmt;

use crate::error::{Error, Result};

/// Model families with a built block, named by their `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Qwen1.5, Qwen2 and Qwen2.5: bias on q, k and v.
    Qwen2,
    /// Qwen3: RMSNorm on the heads of q and k.
    Qwen3,
    /// Llama and models of its shape: neither.
    Llama,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 3] = [Self::Qwen2, Self::Qwen3, Self::Llama];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
        }
    }

    /// The family of a `model_type`.
    pub fn from_model_type(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == name)
    }

    /// The class of transformers that loads it for language modelling.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

/// The shape and constants of a decoder model. Names are those of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which block.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head, even. `num_attention_heads * head_dim` may differ from `hidden_size`.
    pub head_dim: usize,
    /// Rows of the embedding table; may be more than the tokenizer has tokens.
    pub vocab_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v (not o) have a bias.
    pub attention_bias: bool,
    /// Whether the heads of q and k go through an RMSNorm before RoPE.
    pub qk_norm: bool,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
    /// Token that starts a text, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills rows; unused here, since nothing is padded.
    pub pad_token_id: Option<u32>,
}

/// Linear layers of every block, in the order of the forward pass.
pub const LINEAR_MODULES: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl ModelConfig {
    /// Query heads times their width: the input width of `o_proj`.
    pub fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Key/value heads times their width.
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Names of the linear layers of every block, in the order of the forward pass.
    pub fn linear_modules(&self) -> &'static [&'static str] {
        &LINEAR_MODULES
    }

    /// `(in_features, out_features)` of a linear layer of a block, or `None` for an unknown name.
    pub fn linear_shape(&self, module: &str) -> Option<(usize, usize)> {
        Some(match module {
            "q_proj" => (self.hidden_size, self.q_size()),
            "k_proj" | "v_proj" => (self.hidden_size, self.kv_size()),
            "o_proj" => (self.q_size(), self.hidden_size),
            "gate_proj" | "up_proj" => (self.hidden_size, self.intermediate_size),
            "down_proj" => (self.intermediate_size, self.hidden_size),
            _ => return None,
        })
    }

    /// Weights of the linear layers of one block, without biases.
    pub fn block_linear_weights(&self) -> u64 {
        let shapes = LINEAR_MODULES.iter().filter_map(|module| self.linear_shape(module));
        shapes.map(|(inputs, outputs)| inputs as u64 * outputs as u64).sum()
    }

    /// Number of weights, tied ones counted once.
    pub fn parameter_count(&self) -> u64 {
        let n = |size: usize| size as u64;
        let linear = self.block_linear_weights();
        let bias = if self.attention_bias { n(self.q_size()) + 2 * n(self.kv_size()) } else { 0 };
        let norms = 2 * n(self.hidden_size) + if self.qk_norm { 2 * n(self.head_dim) } else { 0 };
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        n(self.num_hidden_layers) * (linear + bias + norms)
            + n(self.hidden_size)
            + tables * n(self.vocab_size) * n(self.hidden_size)
    }

    /// Checks that every size is sane and that sizes fit each other, so that no later product can overflow.
    ///
    /// # Errors
    /// An input error of class `MODEL` that names the key.
    pub fn validate(&self) -> Result<()> {
        for (key, size, limit) in [
            ("hidden_size", self.hidden_size, 1 << 17),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers, 1024),
            ("num_attention_heads", self.num_attention_heads, 1024),
            ("num_key_value_heads", self.num_key_value_heads, 1024),
            ("head_dim", self.head_dim, 1024),
            ("vocab_size", self.vocab_size, 4_000_000),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 28),
        ] {
            if size == 0 || size > limit {
                let error = Error::input("MODEL", "the size is out of range").field(key).got(size);
                return error
                    .expected(format!("1 to {limit}"))
                    .fix("check that config.json belongs to this model")
                    .into();
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Error::input("MODEL", "query heads must share the key/value heads evenly")
                .field("num_key_value_heads")
                .got(self.num_key_value_heads)
                .expected(format!("a divisor of num_attention_heads = {}", self.num_attention_heads))
                .fix("check that config.json belongs to this model")
                .into();
        }
        if !self.head_dim.is_multiple_of(2) {
            return Error::input("MODEL", "RoPE rotates pairs")
                .field("head_dim")
                .got(self.head_dim)
                .expected("an even number")
                .fix("check hidden_size, num_attention_heads and head_dim in config.json")
                .into();
        }
        for (key, value, good, expected) in [
            (
                "rms_norm_eps",
                self.rms_norm_eps,
                self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0,
                "a number above 0 and below 1",
            ),
            (
                "rope_theta",
                self.rope_theta,
                self.rope_theta >= 1.0 && self.rope_theta.is_finite(),
                "a number of at least 1",
            ),
            (
                "initializer_range",
                self.initializer_range,
                self.initializer_range >= 0.0 && self.initializer_range.is_finite(),
                "a number of at least 0",
            ),
        ] {
            if !good {
                return Error::input("MODEL", "the number is out of range")
                    .field(key)
                    .got(value)
                    .expected(expected)
                    .fix("check that config.json belongs to this model")
                    .into();
            }
        }
        Ok(())
    }
}
