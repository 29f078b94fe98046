//! The whole model on one packed batch: scores of the targets, gradients of the adapters, logits.

use std::rc::Rc;

use super::adapter::Adapter;
use super::adapter_tables::AdapterTables;
pub use super::block::DropoutStep;
use super::block::{Kept, Pass, Saved, SavedNorm, Stream};
use super::policy::Policy;
use super::tables::{BatchTables, PassCapacity};
use super::weights::Weights;
use crate::batch::{Batch, Targets};
use crate::config::ModelConfig;
use crate::device::{Device, Machine, Tensor};
use crate::error::{Error, Result};
use crate::ops::embedding;
use crate::ops::linear_cross_entropy::{Scores, TargetScore};
use crate::tensor::{DType, Real};

/// A decoder: its shape and its frozen weights. Adapters are passed to every call, so one base serves many.
#[derive(Debug)]
pub struct Decoder<T: Real> {
    /// Shape and constants.
    pub config: ModelConfig,
    /// Frozen weights.
    pub weights: Weights<T>,
}

/// How a pass with gradients runs.
#[derive(Debug, Clone, Copy)]
pub struct PassOptions<'a> {
    /// Factor of the loss: one over the weight of the whole optimizer step.
    pub scale: f64,
    /// Seed and step of the dropout masks; none without dropout.
    pub dropout: Option<DropoutStep>,
    /// What blocks keep for the backward pass, by block; those beyond the end keep all. It changes no result.
    pub policies: &'a [Policy],
}

/// The final hidden states of the target rows, and what backward needs to go on from there.
struct Forward<T: Real> {
    saved: Vec<Saved<T>>,
    saved_norm: SavedNorm<T>,
    normed: Rc<Tensor<T>>,
}

impl<T: Real> Decoder<T> {
    /// Log-probabilities of the batch's targets, in their order. `adapters` are indexed by [`crate::batch::Segment::adapter`];
    /// none at all runs the base model.
    ///
    /// # Errors
    /// An input error if the batch does not fit the model.
    pub fn score(&self, device: &Device, batch: &Batch, adapters: &[Adapter<T>]) -> Result<Vec<TargetScore>> {
        self.validate(device, batch, adapters)?;
        if batch.targets.is_empty() {
            return Ok(Vec::new());
        }
        let tables = self.tables(device, batch, &batch.target_rows(), (0.0, None))?;
        let of_adapters = self.adapter_tables(device, adapters, &[], None)?;
        let pass = self.pass(device, (adapters, &of_adapters), &tables, (None, None));
        let mut scores = Scores::with_capacity(device, batch.targets.len())?;
        self.only_forward(&pass, &mut scores)?;
        scores.read(device)
    }

    /// Log-probabilities of the targets, and the gradient of `-scale * sum(weight * logprob)` added to `grads` (one per adapter,
    /// see [`Adapter::zeros_like`]), with the scale and the rest of `options`.
    ///
    /// # Errors
    /// An input error if the batch does not fit the model.
    pub fn score_and_backward(
        &self,
        device: &Device,
        batch: &Batch,
        adapters: &[Adapter<T>],
        grads: &mut [Adapter<T::Stat>],
        options: PassOptions<'_>,
    ) -> Result<Vec<TargetScore>> {
        self.validate(device, batch, adapters)?;
        let (Some(lowest), false) = (self.lowest(adapters), batch.targets.is_empty()) else {
            return self.score(device, batch, adapters);
        };
        let PassOptions { scale, dropout, policies } = options;
        let tables = self.tables(device, batch, &batch.target_rows(), (scale, dropout))?;
        let of_adapters = self.adapter_tables(device, adapters, grads, dropout)?;
        let kept = Some((lowest, policies));
        let pass = self.pass(device, (adapters, &of_adapters), &tables, (dropout, kept));
        let mut scores = Scores::with_capacity(device, batch.targets.len())?;
        self.both_ways(&pass, lowest, grads, &mut scores)?;
        scores.read(device)
    }

    /// The lowest block that backward reaches; none without adapters.
    pub(super) fn lowest(&self, adapters: &[Adapter<T>]) -> Option<usize> {
        (0..self.weights.blocks.len()).find(|&l| adapters.iter().any(|a| a.adapts_block(l)))
    }

    /// Logits of some rows (ascending), `[rows.len(), vocab_size]`.
    ///
    /// # Errors
    /// An input error if the batch does not fit the model.
    pub fn logits(
        &self,
        device: &Device,
        batch: &Batch,
        adapters: &[Adapter<T>],
        rows: &[usize],
    ) -> Result<Tensor<T>> {
        self.validate(device, batch, adapters)?;
        let without = Batch { targets: Targets::default(), ..batch.clone() };
        let tables = self.tables(device, &without, rows, (0.0, None))?;
        let of_adapters = self.adapter_tables(device, adapters, &[], None)?;
        let pass = self.pass(device, (adapters, &of_adapters), &tables, (None, None));
        let forward = self.forward(&pass)?;
        self.weights.logits(device, &forward.normed)
    }

    /// Forward over the batch in the tables of `pass`.
    pub(super) fn only_forward(&self, pass: &Pass<'_, T>, scores: &mut Scores) -> Result<()> {
        let normed = self.forward(pass)?.normed;
        self.weights.score(pass, &normed, scores)
    }

    /// Forward and backward over the batch in the tables of `pass`: adds to `grads`.
    pub(super) fn both_ways(
        &self,
        pass: &Pass<'_, T>,
        lowest: usize,
        grads: &mut [Adapter<T::Stat>],
        scores: &mut Scores,
    ) -> Result<()> {
        let Forward { mut saved, saved_norm, normed } = self.forward(pass)?;
        let d_normed = self.weights.score_and_gradient(pass, &normed, scores)?;
        drop(normed);
        let mut layer = self.weights.blocks.len();
        let mut gradient = pass.final_norm_backward(saved_norm, d_normed)?;
        while let Some(block) = saved.pop() {
            layer -= 1;
            match pass.backward(layer, block, gradient, layer == lowest, grads)? {
                Some(below) => gradient = below,
                None => break,
            }
        }
        Ok(())
    }

    pub(super) fn validate(&self, device: &Device, batch: &Batch, adapters: &[Adapter<T>]) -> Result<()> {
        if T::DTYPE == DType::Bf16 && device.machine() == Machine::Cpu && !device.is_dry() {
            return Err(Error::Device {
                what: "the cpu computes in f32, and this model is in bf16".into(),
                fix: "load it as f32, or use another device".into(),
            });
        }
        let config = &self.config;
        let dropout = |a: &Adapter<T>| a.config().dropout;
        if let Some(other) = adapters.iter().find(|a| dropout(a) != dropout(&adapters[0])) {
            return Error::input("CONFIG", "adapters of one batch share their dropout")
                .field("lora_dropout")
                .got(dropout(other))
                .expected(dropout(&adapters[0]))
                .fix("train them apart, or with one dropout")
                .into();
        }
        batch.validate(config.vocab_size, config.max_position_embeddings, adapters.len())
    }

    /// The tables of one batch; `rows` are those whose final state is wanted.
    fn tables(
        &self,
        device: &Device,
        batch: &Batch,
        rows: &[usize],
        (scale, dropout): (f64, Option<DropoutStep>),
    ) -> Result<BatchTables<T>> {
        let capacity = PassCapacity { target_rows: rows.len(), ..PassCapacity::of(batch) };
        let mut tables =
            BatchTables::with_capacity(device, &self.weights.blocks, capacity, dropout.is_some())?;
        tables.write(device, batch, rows, scale)?;
        Ok(tables)
    }

    fn adapter_tables(
        &self,
        device: &Device,
        adapters: &[Adapter<T>],
        grads: &[Adapter<T::Stat>],
        dropout: Option<DropoutStep>,
    ) -> Result<AdapterTables<T>> {
        let mut tables = AdapterTables::new(device, &self.weights.sites, adapters, grads, dropout)?;
        tables.measure(device, &self.weights, adapters)?;
        Ok(tables)
    }

    pub(super) fn pass<'a>(
        &'a self,
        device: &'a Device,
        adapters: (&'a [Adapter<T>], &'a AdapterTables<T>),
        tables: &'a BatchTables<T>,
        dropout_and_kept: (Option<DropoutStep>, Kept<'a>),
    ) -> Pass<'a, T> {
        Pass::new(device, (&self.config, &self.weights), adapters, tables, dropout_and_kept)
    }

    /// Runs all blocks, and keeps what the backward pass needs of them.
    fn forward(&self, pass: &Pass<'_, T>) -> Result<Forward<T>> {
        let tables = pass.tables;
        let mut x = pass.place_of_input(0).empty(tables.ids.rows(), self.config.hidden_size)?;
        let (table, live_rows) = (&self.weights.embed_tokens, tables.all.live_rows);
        embedding::forward(
            pass.device,
            embedding::Forward { table, ids: &tables.ids, y: &mut x, live_rows },
        )?;
        let (mut stream, mut all) = (Stream::start(x), Vec::new());
        for layer in 0..self.weights.blocks.len() {
            let (saved, next) = pass.forward(layer, stream)?;
            stream = next;
            all.extend(saved);
        }
        let (saved_norm, normed) = pass.final_norm(stream)?;
        Ok(Forward { saved: all, saved_norm, normed })
    }
}
