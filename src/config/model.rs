//! The shape of a decoder model, as its `config.json` gives it.
//!
//! A `config.json` may ask for maths that this engine does not do. Silently ignoring such a key would train another model
//! than the user's, so everything that changes the maths is either supported or an error that names the key. The defaults
//! of absent keys are those of the configuration classes of transformers.

use std::fmt;

use super::block::{AttnSpec, BlockSpec, MlpSpec, NormSpec, Wiring};
use super::sites::Slot;
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

    /// Path of a block.
    pub fn block_path(self, layer: usize) -> String {
        format!("model.layers.{layer}")
    }

    /// Path of a linear layer within its block.
    pub fn linear_path(self, slot: Slot) -> &'static str {
        match slot {
            Slot::Q => "self_attn.q_proj",
            Slot::K => "self_attn.k_proj",
            Slot::V => "self_attn.v_proj",
            Slot::O => "self_attn.o_proj",
            Slot::Gate => "mlp.gate_proj",
            Slot::Up => "mlp.up_proj",
            Slot::Down => "mlp.down_proj",
        }
    }

    /// Paths of the modules of a model that are no linear layer of a block.
    pub(super) fn other_modules(self, model: &ModelConfig) -> Vec<String> {
        let whole =
            ["model", "model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"];
        let mut all: Vec<String> = whole.map(str::to_owned).into();
        for layer in 0..model.num_hidden_layers {
            let block = self.block_path(layer);
            let mut parts =
                vec!["input_layernorm", "post_attention_layernorm", "self_attn", "mlp", "mlp.act_fn"];
            if model.block(layer).attn.qk_norm {
                parts.extend(["self_attn.q_norm", "self_attn.k_norm"]);
            }
            all.extend(parts.iter().map(|part| format!("{block}.{part}")));
            all.push(block);
        }
        all
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

impl ModelConfig {
    /// Query heads times their width: the input width of `o_proj`.
    pub fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Key/value heads times their width.
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// What block `layer` is made of.
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

    /// Number of weights, tied ones counted once.
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
