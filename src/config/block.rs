//! The structure of a block, and of what stands before and behind the blocks: plain values that are read from a
//! family's `config.json` and that the model executes.
//!
//! There is a field for every difference between the supported families; the types hold what they have in
//! common.

use super::sites::Slot;
pub use crate::kinds::{Activation, AttnMask, NormKind, RopeScaling, RopeSpec};

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
    /// Which one.
    pub kind: NormKind,
    /// Whether it adds a bias.
    pub bias: bool,
    /// Added to the mean of squares.
    pub eps: f64,
}

/// Attention, with rotary positions or without.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttnSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides the query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether one layer makes q, k and v: its outputs are the queries, then the keys, then the values.
    pub fused_qkv: bool,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the output has a bias.
    pub o_bias: bool,
    /// Whether the heads of q and k go through a norm before the rotation.
    pub qk_norm: bool,
    /// The rotation of queries and keys; none without one.
    pub rope: Option<RopeSpec>,
    /// Which keys a query sees.
    pub mask: AttnMask,
}

/// `down(act(gate) * up)`, or `down(act(up))` without a gate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlpSpec {
    /// Width of the hidden layer.
    pub size: usize,
    /// `act`.
    pub act: Activation,
    /// The factor of the hidden layer.
    pub gate: Gate,
    /// Whether its layers have a bias.
    pub bias: bool,
}

/// What multiplies the hidden layer of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    None,
    /// The output of a layer of its own.
    Split,
    /// The first half of the outputs of one layer; the second half is what it multiplies.
    Fused,
}

/// What is added to the embeddings of the tokens, and the norm of the sum.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EmbedSpec {
    /// Learned positions.
    pub positions: Option<LearnedPositions>,
    /// Number of token types, if the model has any.
    pub token_types: Option<usize>,
    /// The norm, if there is one: the stream of the blocks is what it makes, and the first block has no norm
    /// before attention.
    pub norm: Option<NormSpec>,
}

/// A table of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LearnedPositions {
    /// Its rows.
    pub rows: usize,
    /// The row of the first token.
    pub offset: usize,
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
        let Self { attn, mlp, .. } = self;
        let (q, kv, size) = (attn.q_size(), attn.kv_size(), mlp.size);
        let linear = |slot, out_features, in_features, bias| LinearSpec {
            slot,
            shape: [out_features, in_features],
            bias,
        };
        let mut all = match attn.fused_qkv {
            true => vec![linear(Slot::Qkv, q + 2 * kv, hidden_size, attn.qkv_bias)],
            false => vec![
                linear(Slot::Q, q, hidden_size, attn.qkv_bias),
                linear(Slot::K, kv, hidden_size, attn.qkv_bias),
                linear(Slot::V, kv, hidden_size, attn.qkv_bias),
            ],
        };
        all.push(linear(Slot::O, hidden_size, q, attn.o_bias));
        match mlp.gate {
            Gate::None => all.push(linear(Slot::Up, size, hidden_size, mlp.bias)),
            Gate::Split => all.extend([
                linear(Slot::Gate, size, hidden_size, mlp.bias),
                linear(Slot::Up, size, hidden_size, mlp.bias),
            ]),
            Gate::Fused => all.push(linear(Slot::GateUp, 2 * size, hidden_size, mlp.bias)),
        }
        all.push(linear(Slot::Down, hidden_size, size, mlp.bias));
        all.into_iter()
    }
}
