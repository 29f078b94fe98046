//! One decoder block: forward, and backward in mirrored order.
//!
//! `x_mid = x_in + o_proj(attention(norm(x_in)))`, `x_out = x_mid + down(silu(gate) * up)` with gate and up of `norm(x_mid)`.
//!
//! Kept for the backward pass, where the policy of the block keeps all: `x_in`, `x_mid`, the projections q, k, v before norm and
//! rotation, `o` and `lse`, gate and up, `x~ A^T` of every adapted layer, and the statistics of the norms. Everything else
//! (normed inputs, rotated q and k, softmax, `silu(gate) * up`) is computed again where it is needed, at the cost of element-wise
//! work.

mod backward;
mod forward;
mod linears;

pub(super) use backward::NormBack;
pub(super) use forward::Saved;

use super::adapter::Adapter;
use super::adapter_tables::AdapterTables;
use super::policy::Policy;
use super::tables::{BatchTables, RowSet};
use super::weights::Weights;
use crate::config::ModelConfig;
use crate::device::{Class, Device, Tensor};
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::lora_matmul::{Dropout, RowKeys};
use crate::ops::qk_norm_rope::QkNormRope;
use crate::ops::rms_norm::Norm;
use crate::tensor::Real;

/// Seed and step of the dropout masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutStep {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
}

/// One pass over one batch: what is constant over the blocks.
pub(super) struct Pass<'a, T: Real> {
    pub(super) device: &'a Device,
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a Weights<T>,
    pub(super) adapters: &'a [Adapter<T>],
    pub(super) tables: &'a BatchTables<T>,
    of_adapters: &'a AdapterTables<T>,
    dropout: Option<DropoutStep>,
    kept: Kept<'a>,
}

/// Dropout of a layer, by its number in the model; none if the adapters have none.
pub(super) fn dropout_of<'k, T: Real>(
    adapters: &[Adapter<T>],
    DropoutStep { seed, step }: DropoutStep,
    number: usize,
    keys: &'k RowKeys,
) -> Option<Dropout<'k>> {
    let p = adapters.first().map_or(0.0, |a| a.config().dropout);
    Dropout::new(p, seed, step, number as u32, keys)
}

/// The lowest block that backward reaches, and the policies from there on; none without a backward pass.
pub(super) type Kept<'a> = Option<(usize, &'a [Policy])>;

impl<'a, T: Real> Pass<'a, T> {
    /// Prepares a pass over the batch in `tables`.
    pub(super) fn new(
        device: &'a Device,
        (config, weights): (&'a ModelConfig, &'a Weights<T>),
        (adapters, of_adapters): (&'a [Adapter<T>], &'a AdapterTables<T>),
        tables: &'a BatchTables<T>,
        (dropout, kept): (Option<DropoutStep>, Kept<'a>),
    ) -> Self {
        Self { device, config, weights, adapters, tables, of_adapters, dropout, kept }
    }

    /// The dropout of a layer, by its number in the model.
    fn dropout<'k>(&self, number: usize, keys: &'k RowKeys) -> Option<Dropout<'k>> {
        dropout_of(self.adapters, self.dropout?, number, keys)
    }

    /// What block `layer` keeps for the backward pass; none where that does not come.
    fn policy(&self, layer: usize) -> Option<Policy> {
        let (_, policies) = self.kept.filter(|(lowest, _)| layer >= *lowest)?;
        Some(policies.get(layer).copied().unwrap_or_default())
    }

    /// Where a buffer of `class` comes from in a block that keeps `keep`.
    fn place(&self, keep: Option<Policy>, class: Class) -> Device {
        self.device.class(if keep.is_some_and(|policy| policy.keeps(class)) {
            class
        } else {
            Class::Temporary
        })
    }

    /// Where the input of block `layer` comes from; after the last block it is the final stream.
    pub(super) fn place_of_input(&self, layer: usize) -> Device {
        let keep = (layer < self.weights.blocks.len()).then(|| self.policy(layer)).flatten();
        self.place(keep, Class::XIn)
    }

    fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.weights.blocks.len()
    }

    /// The rows whose queries and MLP the block computes.
    fn queries(&self, layer: usize) -> &'a RowSet<T> {
        if self.is_last(layer) { &self.tables.supervised } else { &self.tables.all }
    }

    fn heads(&self) -> Heads {
        Heads {
            num_attention_heads: self.config.num_attention_heads,
            num_key_value_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
            softmax_scale: 1.0 / (self.config.head_dim as f64).sqrt(),
        }
    }

    fn norm(&self, weight: &'a Tensor<T>) -> Norm<'a, T> {
        Norm { weight, eps: T::Stat::from_f64(self.config.rms_norm_eps) }
    }

    fn input_norm(&self, layer: usize) -> Norm<'a, T> {
        self.norm(&self.weights.blocks[layer].input_layernorm)
    }

    fn post_attention_norm(&self, layer: usize) -> Norm<'a, T> {
        self.norm(&self.weights.blocks[layer].post_attention_layernorm)
    }

    /// The final norm.
    pub(super) fn final_norm(&self) -> Norm<'a, T> {
        self.norm(&self.weights.norm)
    }

    fn qk_ops(&self, layer: usize) -> (QkNormRope<'_, T>, QkNormRope<'_, T>) {
        let eps = T::Stat::from_f64(self.config.rms_norm_eps);
        let norms = self.weights.blocks[layer].qk_norm.as_ref();
        let q = QkNormRope {
            norm: norms.map(|n| (&n.0, eps)),
            table: &self.queries(layer).rope,
            head_dim: self.config.head_dim,
        };
        (q, QkNormRope { norm: norms.map(|n| (&n.1, eps)), table: &self.tables.all.rope, ..q })
    }

    fn like(&self, tensor: &Tensor<T>) -> Result<Tensor<T>> {
        self.device.empty(tensor.rows(), tensor.cols())
    }
}
