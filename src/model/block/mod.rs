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

pub(super) use forward::Saved;

use super::adapter::Adapter;
use super::policy::Policy;
use super::weights::{Module, Weights};
use crate::batch::{AdapterRows, Segment};
use crate::config::ModelConfig;
use crate::device::{Class, Device, Machine, Tensor};
use crate::error::Result;
use crate::ops::attention::{AttentionPlan, Heads};
use crate::ops::lora_matmul::{self, RowKeys};
use crate::ops::qk_norm_rope::{QkNormRope, RopeTable};
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

/// What the ops need to know about some rows of the batch.
pub(super) struct RowSet<T: Real> {
    adapter_rows: Vec<AdapterRows>,
    keys: RowKeys,
    rope: RopeTable<T::Stat>,
    plan: AttentionPlan,
}

/// Norms of DoRA by adapter, block and module.
type DoraNorms<S> = Vec<Vec<[Option<Tensor<S>>; 7]>>;

/// One pass over one batch: what is constant over the blocks.
pub(super) struct Pass<'a, T: Real> {
    pub(super) device: &'a Device,
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a Weights<T>,
    pub(super) adapters: &'a [Adapter<T>],
    /// Norms of DoRA by adapter, block and module.
    dora_norms: DoraNorms<T::Stat>,
    all: RowSet<T>,
    /// The rows that the last block has to finish.
    supervised: RowSet<T>,
    pub(super) target_rows: Vec<usize>,
    dropout: Option<DropoutStep>,
    kept: Kept<'a>,
}

/// The lowest block that backward reaches, and the policies from there on; none without a backward pass.
pub(super) type Kept<'a> = Option<(usize, &'a [Policy])>;

impl<'a, T: Real> Pass<'a, T> {
    /// Prepares a pass over packed `segments`; `target_rows` (ascending) are the rows whose final state is wanted.
    pub(super) fn new(
        device: &'a Device,
        (config, weights): (&'a ModelConfig, &'a Weights<T>),
        adapters: &'a [Adapter<T>],
        segments: &[Segment],
        target_rows: Vec<usize>,
        (dropout, kept): (Option<DropoutStep>, Kept<'a>),
    ) -> Result<Self> {
        let device_of_tables = device.class(Class::Tables);
        let positions: Vec<usize> =
            segments.iter().flat_map(|s| s.position_offset..s.position_offset + s.len).collect();
        let uploaded = |mut plan: AttentionPlan| -> Result<AttentionPlan> {
            if device.machine() == Machine::Gpu {
                plan.upload(&device_of_tables)?;
            }
            Ok(plan)
        };
        let all = RowSet {
            adapter_rows: runs(segments.iter().flat_map(|s| s.rows().map(|_| s.adapter))),
            keys: RowKeys::new(segments),
            rope: RopeTable::new(&device_of_tables, &positions, config.head_dim, config.rope_theta)?,
            plan: uploaded(AttentionPlan::causal(segments))?,
        };
        let adapter_of = |row: &usize| {
            let segment = segments.partition_point(|s| s.start + s.len <= *row);
            segments[segment].adapter
        };
        let supervised = RowSet {
            adapter_rows: runs(target_rows.iter().map(adapter_of)),
            keys: all.keys.gather(&target_rows),
            rope: all.rope.gather(&device_of_tables, &target_rows)?,
            plan: uploaded(AttentionPlan::for_rows(segments, &target_rows))?,
        };
        let mut dora_norms = Vec::new();
        for adapter in adapters {
            let mut blocks = Vec::new();
            for (layer, block) in weights.blocks.iter().enumerate() {
                let mut norms = [const { None }; 7];
                for module in Module::ALL {
                    let Some(params) = adapter.params(layer, module) else { continue };
                    if params.magnitude.is_some() {
                        let weight = &block.linears[module as usize].weight;
                        let scaling = T::Stat::from_f64(adapter.config().scaling());
                        norms[module as usize] =
                            Some(lora_matmul::dora_norm(device, weight, &params.a, &params.b, scaling)?);
                    }
                }
                blocks.push(norms);
            }
            dora_norms.push(blocks);
        }
        Ok(Self {
            device,
            config,
            weights,
            adapters,
            dora_norms,
            all,
            supervised,
            target_rows,
            dropout,
            kept,
        })
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
    fn queries(&self, layer: usize) -> &RowSet<T> {
        if self.is_last(layer) { &self.supervised } else { &self.all }
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
        (q, QkNormRope { norm: norms.map(|n| (&n.1, eps)), table: &self.all.rope, ..q })
    }
}

/// Runs of equal adapters, row by row.
fn runs(adapters: impl Iterator<Item = usize>) -> Vec<AdapterRows> {
    let mut runs: Vec<AdapterRows> = Vec::new();
    for (row, adapter) in adapters.enumerate() {
        match runs.last_mut() {
            Some(run) if run.adapter == adapter => run.rows.end = row + 1,
            _ => runs.push(AdapterRows { adapter, rows: row..row + 1 }),
        }
    }
    runs
}
