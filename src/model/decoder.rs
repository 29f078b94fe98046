//! The whole model on one packed batch: scores of the targets, gradients of the adapters, logits.

use super::adapter::Adapter;
use super::adapter_tables::AdapterTables;
pub use super::block::DropoutStep;
use super::block::{Kept, Pass, Saved, SavedNorm, Stream};
use super::head::{Found, Sink};
use super::policy::Policy;
use super::tables::{BatchTables, PassCapacity};
use super::weights::Weights;
use crate::batch::{Batch, Targets};
use crate::config::head::HeadSpec;
use crate::config::{ModelConfig, Sites};
use crate::device::{Class, Device, Machine, Tensor};
use crate::error::{Error, Result};
use crate::ops::embedding::{self, Lookup};
use crate::ops::label_head::{LabelScore, LabelScores, Loss, PreparedLoss};
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
    normed: Tensor<T>,
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
        self.only_forward(&pass, Sink::Tokens(&mut scores))?;
        scores.read(device)
    }

    /// Losses and logits of the batch's sequences, in their order.
    ///
    /// # Errors
    /// As [`Decoder::score`], and if the model or its adapter has no head for labels.
    pub fn score_labels(
        &self,
        device: &Device,
        batch: &Batch,
        adapters: &[Adapter<T>],
        loss: &Loss,
    ) -> Result<Vec<LabelScore>> {
        self.validate(device, batch, adapters)?;
        if batch.targets.is_empty() {
            return Ok(Vec::new());
        }
        let targets = batch.targets.labels();
        let tables = self.tables(device, batch, &batch.target_rows(), (0.0, None))?;
        let of_adapters = self.adapter_tables(device, adapters, &[], None)?;
        let pass = self.pass(device, (adapters, &of_adapters), &tables, (None, None));
        let (loss, mut scores) = self.label_sink(device, targets.len(), loss)?;
        self.only_forward(&pass, Sink::Labels(&loss, &mut scores))?;
        scores.read(device, &loss.loss, targets)
    }

    /// Losses and logits of the sequences, and the gradient of `scale * sum(weight * loss)` added to `grads`, with the scale and the
    /// rest of `options`.
    ///
    /// # Errors
    /// As [`Decoder::score_labels`].
    pub fn score_labels_and_backward(
        &self,
        device: &Device,
        batch: &Batch,
        (adapters, grads): (&[Adapter<T>], &mut [Adapter<T::Stat>]),
        loss: &Loss,
        options: PassOptions<'_>,
    ) -> Result<Vec<LabelScore>> {
        self.validate(device, batch, adapters)?;
        let (Some(lowest), false) = (self.lowest(adapters), batch.targets.is_empty()) else {
            return self.score_labels(device, batch, adapters, loss);
        };
        let PassOptions { scale, dropout, policies } = options;
        let targets = batch.targets.labels();
        let tables = self.tables(device, batch, &batch.target_rows(), (scale, dropout))?;
        let of_adapters = self.adapter_tables(device, adapters, grads, dropout)?;
        let pass = self.pass(device, (adapters, &of_adapters), &tables, (dropout, Some((lowest, policies))));
        let (loss, mut scores) = self.label_sink(device, targets.len(), loss)?;
        self.both_ways(&pass, lowest, grads, Sink::Labels(&loss, &mut scores))?;
        scores.read(device, &loss.loss, targets)
    }

    /// A loss for this device, and a place for what the head finds for this many sequences.
    pub(super) fn label_sink(
        &self,
        device: &Device,
        sequences: usize,
        loss: &Loss,
    ) -> Result<(PreparedLoss, LabelScores)> {
        let scores = LabelScores::with_capacity(device, sequences, self.num_labels())?;
        Ok((PreparedLoss::new(&device.class(Class::Tables), loss)?, scores))
    }

    /// Outputs of a head for labels; 0 with another head.
    pub(super) fn num_labels(&self) -> usize {
        match &self.config.head {
            HeadSpec::Labels(head) => head.num_labels,
            HeadSpec::Tokens => 0,
        }
    }

    /// What the head finds for the targets of the batch: with a loss for labels, else log-probabilities of tokens.
    ///
    /// # Errors
    /// As [`Decoder::score`] and [`Decoder::score_labels`].
    pub fn find(
        &self,
        device: &Device,
        batch: &Batch,
        adapters: &[Adapter<T>],
        loss: Option<&Loss>,
    ) -> Result<Found> {
        match loss {
            None => self.score(device, batch, adapters).map(Found::Tokens),
            Some(loss) => self.score_labels(device, batch, adapters, loss).map(Found::Labels),
        }
    }

    /// The same, and the gradient added to `grads`.
    ///
    /// # Errors
    /// As [`Decoder::find`].
    pub fn find_and_backward(
        &self,
        device: &Device,
        batch: &Batch,
        (adapters, grads): (&[Adapter<T>], &mut [Adapter<T::Stat>]),
        loss: Option<&Loss>,
        options: PassOptions<'_>,
    ) -> Result<Found> {
        match loss {
            None => self.score_and_backward(device, batch, adapters, grads, options).map(Found::Tokens),
            Some(loss) => {
                let to = (adapters, grads);
                self.score_labels_and_backward(device, batch, to, loss, options).map(Found::Labels)
            }
        }
    }

    /// Final hidden states of some rows (ascending), `[rows.len(), hidden_size]`.
    ///
    /// # Errors
    /// An input error if the batch does not fit the model.
    pub fn hidden_states(
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
        Ok(self.forward(&pass)?.normed)
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
        self.both_ways(&pass, lowest, grads, Sink::Tokens(&mut scores))?;
        scores.read(device)
    }

    /// The lowest block that backward reaches: the number of blocks, where only the head is trained; none without adapters.
    pub(super) fn lowest(&self, adapters: &[Adapter<T>]) -> Option<usize> {
        let blocks = self.weights.blocks.len();
        let is_trained = |layer: usize| {
            let trains = |adapter: &Adapter<T>| {
                adapter.adapts_block(layer) || (layer == blocks && adapter.head().is_some())
            };
            adapters.iter().any(trains)
        };
        (0..=blocks).find(|&layer| is_trained(layer))
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
        let normed = self.hidden_states(device, batch, adapters, rows)?;
        self.weights.logits(device, &normed)
    }

    /// Forward over the batch in the tables of `pass`.
    pub(super) fn only_forward(&self, pass: &Pass<'_, T>, sink: Sink<'_>) -> Result<()> {
        let normed = self.forward(pass)?.normed;
        self.weights.score(pass, normed, sink)
    }

    /// Forward and backward over the batch in the tables of `pass`: adds to `grads`.
    pub(super) fn both_ways(
        &self,
        pass: &Pass<'_, T>,
        lowest: usize,
        grads: &mut [Adapter<T::Stat>],
        sink: Sink<'_>,
    ) -> Result<()> {
        let Forward { mut saved, saved_norm, normed } = self.forward(pass)?;
        let d_normed = self.weights.score_and_gradient(pass, normed, sink, grads)?;
        if lowest >= self.weights.blocks.len() {
            return Ok(());
        }
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
        batch.validate(config.vocab_size, config.max_sequence_length(), adapters.len())?;
        let types = config.embed.token_types.unwrap_or(1);
        if let Some(one) = batch.token_type_ids.iter().find(|&&id| id as usize >= types) {
            return Error::input("BATCH", "the model has no such token type")
                .field("token_type_ids")
                .got(one)
                .expected(format!("below {types}"))
                .fix("leave token_type_ids out, or check that the rows were made for this model")
                .into();
        }
        self.check_shared_starts(batch)
    }

    /// Fails for a shared start whose rotation depends on what continues it: the frequencies of a long sequence are its own.
    fn check_shared_starts(&self, batch: &Batch) -> Result<()> {
        let fixed = self.config.blocks.iter().filter_map(|block| block.attn.rope?.max_fixed_len()).min();
        let Some(fixed) = fixed else { return Ok(()) };
        match batch.segments.iter().find(|s| s.prefix.is_some() && s.position_offset + s.len + s.tail > fixed)
        {
            None => Ok(()),
            Some(segment) => Error::input(
                "BATCH",
                "rows with a shared start are too long for the model's dynamic rope scaling",
            )
            .got(format!("{} tokens", segment.position_offset + segment.len))
            .expected(format!("at most {fixed}, where frequencies do not depend on the length"))
            .fix("use --share-prefix false, or shorter rows")
            .into(),
        }
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
        let mut tables = BatchTables::with_capacity(device, &self.config, capacity, dropout.is_some())?;
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
        let mut tables = AdapterTables::new(device, self.sites(), adapters, grads, dropout)?;
        tables.measure(device, &self.weights, adapters)?;
        Ok(tables)
    }

    /// The model and its linear layers.
    pub(super) fn sites(&self) -> (&ModelConfig, &Sites) {
        (&self.config, &self.weights.sites)
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
        let args = embedding::Forward {
            table: &self.weights.embed_tokens,
            ids: &tables.ids,
            positions: lookup(&self.weights.embed_positions, &tables.position_ids),
            types: lookup(&self.weights.embed_types, &tables.token_type_ids),
            y: &mut x,
            live_rows: tables.all.live_rows,
        };
        embedding::forward(pass.device, args)?;
        if self.config.embed.norm.is_none() {
            pass.mask_in_place(0, &tables.all, &mut x)?;
        }
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

/// The lookup in a table that not every model has.
fn lookup<'a, T: Real>(table: &'a Option<Tensor<T>>, ids: &'a Option<Tensor<u32>>) -> Option<Lookup<'a, T>> {
    Some(Lookup { table: table.as_ref()?, ids: ids.as_ref()? })
}
