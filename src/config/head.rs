//! What reads the final states of a model: plain values, as for the blocks.

use super::block::{Activation, NormSpec};

/// The head of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeadSpec {
    /// Next tokens: the products with the rows of a matrix.
    Tokens,
    /// Labels or numbers of whole sequences.
    Labels(LabelHeadSpec),
}

/// `out(tanh(dense(pooled)))` or `out(pooled)`, where the pooled states may have gone through a frozen layer. `out` and `dense` are
/// trained in full.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabelHeadSpec {
    /// Outputs.
    pub num_labels: usize,
    /// Which states are read.
    pub pool: Pool,
    /// The frozen layer, which can have an adapter.
    pub pooler: Option<PoolerSpec>,
    /// Whether there is a trained layer before the last one.
    pub dense: bool,
    /// Whether the last layer has a bias.
    pub bias: bool,
}

/// Which final states of a sequence are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// That of the last token.
    Last,
    /// That of the first token.
    First,
    /// The mean over all tokens.
    Mean,
}

impl Pool {
    /// The rows that are read of a sequence with these rows, of which there is at least one.
    pub fn rows(self, sequence: std::ops::Range<usize>) -> std::ops::Range<usize> {
        match self {
            Self::First => sequence.start..sequence.start + 1,
            Self::Last => sequence.end - 1..sequence.end,
            Self::Mean => sequence,
        }
    }
}

/// `norm(act(dense(x)))`, or `act(dense(x))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PoolerSpec {
    /// Whether the layer has a bias.
    pub bias: bool,
    /// `act`.
    pub act: Activation,
    /// The norm, if there is one.
    pub norm: Option<NormSpec>,
}

impl LabelHeadSpec {
    /// That of decoders: one layer on the last token.
    pub(super) fn last_token(num_labels: usize) -> Self {
        Self { num_labels, pool: Pool::Last, pooler: None, dense: false, bias: false }
    }
}
