//! The shape of a decoder model, as its `config.json` gives it.
//!
//! A `config.json` may need maths that this engine does not support. Ignoring such a key would silently train
//! another model than the user's, so every key that changes the maths is either supported or an error that
//! names the key. The defaults of absent keys are those of the configuration classes of transformers. The
//! parsers are in `families`.

use super::block::{AttnSpec, BlockSpec, MlpSpec, NormSpec, Wiring};
use super::families::Family;
use crate::error::{Error, Result};

/// The shape and constants of a decoder model. Names are those of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The structure of a block.
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
    /// Rows of the embedding table; may exceed the number of tokens of the tokenizer.
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
    /// Padding token; unused here, since nothing is padded.
    pub pad_token_id: Option<u32>,
}

impl ModelConfig {
    /// True if the weights of `other` have the same shapes as this model's. Constants without effect on
    /// shapes (`rope_theta`, the context length, token ids) may differ, since fine-tuned models change them.
    pub fn has_shape_of(&self, other: &Self) -> bool {
        // Every field is named, so that a new field must be classified here.
        let Self {
            family,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            tie_word_embeddings,
            attention_bias,
            qk_norm,
            max_position_embeddings: _,
            rms_norm_eps: _,
            rope_theta: _,
            initializer_range: _,
            bos_token_id: _,
            eos_token_ids: _,
            pad_token_id: _,
        } = self;
        *family == other.family
            && *hidden_size == other.hidden_size
            && *intermediate_size == other.intermediate_size
            && *num_hidden_layers == other.num_hidden_layers
            && *num_attention_heads == other.num_attention_heads
            && *num_key_value_heads == other.num_key_value_heads
            && *head_dim == other.head_dim
            && *vocab_size == other.vocab_size
            && *tie_word_embeddings == other.tie_word_embeddings
            && *attention_bias == other.attention_bias
            && *qk_norm == other.qk_norm
    }

    /// Query heads times their width: the input width of `o_proj`.
    pub fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Key/value heads times their width.
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The structure of block `layer`.
    pub fn block(&self, _layer: usize) -> BlockSpec {
        BlockSpec {
            wiring: Wiring::PreNorm,
            norm: NormSpec { eps: self.rms_norm_eps },
            attn: AttnSpec {
                heads: self.num_attention_heads,
                kv_heads: self.num_key_value_heads,
                head_dim: self.head_dim,
                qkv_bias: self.attention_bias,
                qk_norm: self.qk_norm,
                rope_theta: self.rope_theta,
            },
            mlp: MlpSpec { size: self.intermediate_size },
        }
    }

    /// Weights of the linear layers of one block, without biases.
    fn block_linear_weights(&self, layer: usize) -> u64 {
        let shapes = self.block(layer).linears(self.hidden_size).map(|linear| linear.shape);
        shapes.map(|[rows, cols]| rows as u64 * cols as u64).sum()
    }

    /// Weights of the linear layers of all blocks, without biases.
    pub fn linear_weights(&self) -> u64 {
        (0..self.num_hidden_layers).map(|layer| self.block_linear_weights(layer)).sum()
    }

    /// Number of parameters; tied ones count once.
    pub fn parameter_count(&self) -> u64 {
        let n = |size: usize| size as u64;
        let of_block = |layer| {
            let spec = self.block(layer);
            let biases = spec.linears(self.hidden_size).filter(|linear| linear.bias);
            let biases: u64 = biases.map(|linear| n(linear.shape[0])).sum();
            let norms =
                2 * n(self.hidden_size) + if spec.attn.qk_norm { 2 * n(spec.attn.head_dim) } else { 0 };
            self.block_linear_weights(layer) + biases + norms
        };
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        (0..self.num_hidden_layers).map(of_block).sum::<u64>()
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
