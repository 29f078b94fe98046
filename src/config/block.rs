//! The structure of a block: plain values that are read from a family's `config.json` and that the model
//! executes.
//!
//! There is a field for every difference between the supported families; the types hold what they have in
//! common.

use super::sites::Slot;

/// One block: attention and MLP, with norms and residual around them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockSpec {
    /// Position of the norms (pre or post).
    pub wiring: Wiring,
    /// Its norms.
    pub norm: NormSpec,
    /// Its first sublayer.
    pub attn: AttnSpec,
    /// Its second sublayer.
    pub mlp: MlpSpec,
}

/// Order of norm and residual around a sublayer `f`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// `x + f(norm(x))`, and a norm after the last block (Xiong et al., 2020).
    PreNorm,
    /// `norm(x + f(x))` (Vaswani et al., 2017).
    PostNorm,
}

/// A norm over the features.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Added to the mean of squares.
    pub eps: f64,
}

/// Attention with rotary positions and a causal mask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttnSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides the query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the heads of q and k go through a norm before the rotation.
    pub qk_norm: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

/// `down(silu(gate) * up)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlpSpec {
    /// Width of the hidden layer.
    pub size: usize,
}

/// A linear layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearSpec {
    /// Its role in the block.
    pub slot: Slot,
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// Whether it has a bias.
    pub bias: bool,
}

impl AttnSpec {
    /// Width of all queries.
    pub fn q_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all keys, and of all values.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

impl BlockSpec {
    /// Its linear layers in the order of the forward pass, in a stream of width `hidden_size`.
    pub fn linears(self, hidden_size: usize) -> impl Iterator<Item = LinearSpec> {
        let (q, kv, size) = (self.attn.q_size(), self.attn.kv_size(), self.mlp.size);
        let linear = |slot, out_features, in_features, bias| LinearSpec {
            slot,
            shape: [out_features, in_features],
            bias,
        };
        [
            linear(Slot::Q, q, hidden_size, self.attn.qkv_bias),
            linear(Slot::K, kv, hidden_size, self.attn.qkv_bias),
            linear(Slot::V, kv, hidden_size, self.attn.qkv_bias),
            linear(Slot::O, hidden_size, q, false),
            linear(Slot::Gate, size, hidden_size, false),
            linear(Slot::Up, size, hidden_size, false),
            linear(Slot::Down, hidden_size, size, false),
        ]
        .into_iter()
    }
}
