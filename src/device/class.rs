//! What a buffer is for: the rows of a memory plan.
//!
//! A [`Device`](super::Device) handle carries a class, and the buffers it allocates belong to that class
//! ([`Device::class`](super::Device::class)). The default class is [`Class::Temporary`], so ops need not know
//! classes for their own temporary buffers.

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Frozen weights.
    Weights,
    /// The adapter in the precision that the ops read.
    Adapter,
    /// The adapter in full precision, where the ops read a rounded copy.
    Master,
    /// Gradients of the adapter.
    Gradient,
    /// The two moments of the optimizer.
    Moments,
    /// Saved for backward: inputs of the blocks.
    XIn,
    /// Saved: the stream between attention and MLP.
    XMid,
    /// Saved: queries, keys and values, as output by the projections.
    Qkv,
    /// Saved: output of attention, and log of the sums of its softmax.
    OLse,
    /// Saved: gate and up of the MLP.
    GateUp,
    /// Saved: `x A^T` of the adapted layers.
    Xa,
    /// Saved: statistics of the norms.
    Rstd,
    /// Tables of the batch: angles of the positions.
    Tables,
    /// Logits of some rows.
    Logits,
    /// Temporary buffers within one block or op.
    Temporary,
}

impl Class {
    /// All of them, in the order of a table.
    pub const ALL: [Self; 15] = [
        Self::Weights,
        Self::Adapter,
        Self::Master,
        Self::Gradient,
        Self::Moments,
        Self::XIn,
        Self::XMid,
        Self::Qkv,
        Self::OLse,
        Self::GateUp,
        Self::Xa,
        Self::Rstd,
        Self::Tables,
        Self::Logits,
        Self::Temporary,
    ];

    /// Its row in a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Adapter => "adapter",
            Self::Master => "adapter master",
            Self::Gradient => "adapter gradient",
            Self::Moments => "adapter moments",
            Self::XIn => "saved x_in",
            Self::XMid => "saved x_mid",
            Self::Qkv => "saved q, k, v",
            Self::OLse => "saved o, lse",
            Self::GateUp => "saved gate, up",
            Self::Xa => "saved x A^T",
            Self::Rstd => "saved rstd",
            Self::Tables => "tables of the batch",
            Self::Logits => "logits",
            Self::Temporary => "temporary",
        }
    }

    /// True for the tensors that the forward pass saves for the backward pass.
    pub fn is_saved(self) -> bool {
        matches!(self, Self::XIn | Self::XMid | Self::Qkv | Self::OLse | Self::GateUp | Self::Xa | Self::Rstd)
    }
}

/// Bytes by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByClass([u64; Class::ALL.len()]);

impl ByClass {
    /// Bytes of a class.
    pub fn get(&self, class: Class) -> u64 {
        self.0[class as usize]
    }

    /// Classes with their bytes, in the order of a table; empty ones are left out.
    pub fn iter(&self) -> impl Iterator<Item = (Class, u64)> + '_ {
        Class::ALL.into_iter().map(|class| (class, self.get(class))).filter(|(_, bytes)| *bytes > 0)
    }

    /// Bytes of all classes.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(super) fn get_mut(&mut self, class: Class) -> &mut u64 {
        &mut self.0[class as usize]
    }
}
