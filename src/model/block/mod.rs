//! One block: two sublayers, attention and MLP, with norms and residual around them, forward and backward in mirrored order.
//!
//! `wiring` has the norms and the residual, `attention` and `mlp` the sublayers, `linears` their linear layers with adapters;
//! each has both directions side by side. Here stands what of all that a block keeps for the backward pass, by its
//! policy: normed inputs, rotated q and k, softmax and `silu(gate) * up` never, since computing them again is element-wise work.

mod attention;
mod linears;
mod mlp;
mod wiring;

pub(super) use wiring::{Gradient, SavedNorm, Stream};

use std::rc::Rc;

use self::attention::{Attention, Back, Reader};
use self::mlp::Mlp;
use self::wiring::{NormBackward, Normed};
use super::adapter::Adapter;
use super::adapter_tables::AdapterTables;
use super::base_masks;
use super::policy::Policy;
use super::tables::{BatchTables, RowSet};
use super::weights::Weights;
use crate::config::ModelConfig;
use crate::config::block::BlockSpec;
use crate::device::{Class, Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::lora_matmul::{self, Dropout};
use crate::ops::rows;
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

/// What a block keeps for the backward pass: its input, and the rest unless that is computed again.
pub(super) struct Saved<T: Real> {
    /// The stream that its first norm saw.
    input: Rc<Tensor<T>>,
    rest: Option<Rest<T>>,
}

/// Everything that the backward pass of a block reads beside its input.
struct Rest<T: Real> {
    rstd: Tensor<T::Stat>,
    attention: Attention<T>,
    /// Of the norm before the MLP.
    saved_norm: SavedNorm<T>,
    mlp: Mlp<T>,
}

/// A block before its last linear layer.
struct Started<T: Real> {
    input: Rc<Tensor<T>>,
    rest: Rest<T>,
    /// What the output of the MLP is added to.
    residual: Rc<Tensor<T>>,
}

/// Dropout of a layer, by its number in the model; none if the adapters have none.
pub(super) fn dropout_of<T: Real>(
    adapters: &[Adapter<T>],
    DropoutStep { seed, step }: DropoutStep,
    number: usize,
) -> Option<Dropout> {
    let p = adapters.first().map_or(0.0, |a| a.config().dropout);
    Dropout::new(p, seed, step, number as u32)
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

    /// Runs block `layer`. Where there is a way back, it leaves what that reads.
    pub(super) fn forward(&self, layer: usize, stream: Stream<T>) -> Result<(Option<Saved<T>>, Stream<T>)> {
        let keep = self.policy(layer);
        let Started { input, rest, residual } = self.until_gate_up(layer, stream, keep)?;
        // What is not kept is not held while the rest is computed.
        let keeps_rest = keep.is_some_and(|policy| policy != Policy::Checkpoint);
        let Rest { rstd, attention, saved_norm, mut mlp } = rest;
        let kept = keeps_rest.then_some((rstd, attention, saved_norm));
        let input = keep.map(|_| input);
        let out = self.down(layer, &mut mlp, keep)?;
        let rest = kept.map(|(rstd, attention, saved_norm)| Rest { rstd, attention, saved_norm, mlp });
        let saved = input.map(|input| Saved { input, rest });
        Ok((saved, Stream { out, residual: Some(residual) }))
    }

    /// Both sublayers up to gate and up.
    fn until_gate_up(&self, layer: usize, stream: Stream<T>, keep: Option<Policy>) -> Result<Started<T>> {
        let readers = self.attention_readers(layer)?;
        let normed_stream = self.add_and_norm(norm_before_attention(layer), stream, Some(&readers), keep)?;
        let Normed { saved_norm: SavedNorm { sum: input, rstd }, normed, xa, residual } = normed_stream;
        let (attention, out) = self.attention(layer, &readers, (normed, xa), keep)?;
        let stream = Stream { out, residual: Some(residual) };
        let readers = self.mlp_readers(layer)?;
        let normed_stream = self.add_and_norm(norm_before_mlp(layer), stream, Some(&readers), keep)?;
        let Normed { saved_norm, normed, xa, residual } = normed_stream;
        let mlp = self.gate_up(&readers, (normed, xa), keep)?;
        Ok(Started { input, rest: Rest { rstd, attention, saved_norm, mlp }, residual })
    }

    /// Goes back through block `layer`: adds to `grads`, takes the gradient of its output and gives that of the output of what
    /// came before, or none where nothing below is trained (`lowest`).
    ///
    /// The gradients of all adapters of the block are added at its end, in one call: on a GPU that is one launch.
    pub(super) fn backward(
        &self,
        layer: usize,
        Saved { input, rest }: Saved<T>,
        gradient: Gradient<T>,
        lowest: bool,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Option<Gradient<T>>> {
        let (input, rest) = match rest {
            Some(rest) => (input, rest),
            None => {
                // Nothing else holds the stream of a block that was passed.
                let input = Rc::try_unwrap(input)
                    .map_err(|_| Error::shape("block", "input", "one that nobody else holds", "another"))?;
                let Started { input, rest, .. } = self.until_gate_up(layer, Stream::start(input), None)?;
                (input, rest)
            }
        };
        let Rest { rstd, attention, saved_norm, mlp } = rest;
        let mut jobs = Vec::new();
        let carried = gradient.d_sum.clone();
        let (d_normed, partial) = self.mlp_backward(layer, mlp, &saved_norm, gradient, &mut jobs)?;
        let index = norm_before_mlp(layer);
        let NormBackward { gradient, normed } =
            self.add_and_norm_backward(index, saved_norm, d_normed, Some(&carried), true)?;
        let normed = normed.ok_or_else(|| missing("what the norm made"))?;
        jobs.extend(partial.into_iter().map(|partial| partial.with_input(normed.clone())));

        let carried = gradient.d_sum.clone();
        let saved_norm = SavedNorm { sum: input, rstd };
        let Back { d_normed, partial } =
            self.attention_backward(layer, attention, gradient, lowest, &mut jobs)?;
        let Some(readers) = partial else {
            self.gradients(layer, &jobs, grads)?;
            return Ok(None);
        };
        let index = norm_before_attention(layer);
        let (below, normed) = match d_normed {
            None => (None, Rc::new(self.normed_again(index, &saved_norm)?)),
            Some(d_normed) => {
                let NormBackward { gradient, normed } =
                    self.add_and_norm_backward(index, saved_norm, d_normed, Some(&carried), true)?;
                (Some(gradient), normed.ok_or_else(|| missing("what the norm made"))?)
            }
        };
        let picked = match readers.iter().any(|reader| reader.is_picked) {
            true => Rc::new(rows::gather(self.device, &*normed, &self.tables.target_rows)?),
            false => normed.clone(),
        };
        jobs.extend(readers.into_iter().map(|Reader { job, is_picked }| {
            job.with_input(if is_picked { picked.clone() } else { normed.clone() })
        }));
        self.gradients(layer, &jobs, grads)?;
        Ok(below)
    }

    /// The dropout of a layer, by its number in the model.
    fn dropout(&self, number: usize) -> Option<Dropout> {
        let dropout = dropout_of(self.adapters, self.dropout?, number)?;
        Some(dropout.with_key_at(self.of_adapters.dropout_key(number)))
    }

    /// The mask of the frozen model's dropout at a place ([`base_masks`]); none without.
    fn base_mask(&self, number: usize) -> Option<Dropout> {
        let mask = base_masks::mask(self.config, self.dropout?, number)?;
        Some(mask.with_key_at(self.of_adapters.base.key(number)))
    }

    /// Applies that mask to `x`, which has the rows of `set`; does nothing without one.
    pub(in crate::model) fn mask_in_place(
        &self,
        number: usize,
        set: &RowSet<T>,
        x: &mut Tensor<T>,
    ) -> Result<()> {
        match self.base_mask(number) {
            Some(mask) => lora_matmul::mask_in_place(self.device, (mask, &set.rows), x),
            None => Ok(()),
        }
    }

    /// A masked copy; none without a mask.
    pub(in crate::model) fn masked(
        &self,
        number: usize,
        set: &RowSet<T>,
        x: &Tensor<T>,
    ) -> Result<Option<Tensor<T>>> {
        let Some(mask) = self.base_mask(number) else { return Ok(None) };
        let mut masked = self.like(x)?;
        lora_matmul::mask(self.device, (mask, &set.rows), x, &mut masked)?;
        Ok(Some(masked))
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
        let keep = (layer < self.num_blocks()).then(|| self.policy(layer)).flatten();
        self.place(keep, Class::XIn)
    }

    fn num_blocks(&self) -> usize {
        self.weights.blocks.len()
    }

    fn spec(&self, layer: usize) -> &BlockSpec {
        &self.weights.blocks[layer].spec
    }

    fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.num_blocks()
    }

    /// The rows whose queries and MLP the block computes.
    fn queries(&self, layer: usize) -> &'a RowSet<T> {
        if self.is_last(layer) { &self.tables.supervised } else { &self.tables.all }
    }

    fn like(&self, tensor: &Tensor<T>) -> Result<Tensor<T>> {
        self.device.empty(tensor.rows(), tensor.cols())
    }
}

/// Index of the norm before attention of a block, among all that the stream meets.
fn norm_before_attention(layer: usize) -> usize {
    2 * layer
}

/// Index of the norm before the MLP of a block.
fn norm_before_mlp(layer: usize) -> usize {
    2 * layer + 1
}

/// The error for something that a block should hold at this point.
fn missing(what: &'static str) -> Error {
    Error::shape("block", what, "a tensor", "none")
}
