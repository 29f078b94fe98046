//! What both modes share: rows as tokens, the model and its adapter, and the loop over passes.

use std::ops::Range;
use std::time::Instant;

use half::bf16;

use super::event::Event;
use super::passes::{Packed, passes};
use crate::config::ScoreConfig;
use crate::data::encode::{Encoder, Example};
use crate::data::jsonl::{Record, read_files};
use crate::data::routing::{Routing, select};
use crate::device::{Device, Machine};
use crate::error::{Error, InputError, Result};
use crate::formats::adapter::read_adapter;
use crate::model::{Adapter, Decoder, ModelFlops, Room, Scorer};
use crate::ops::linear_cross_entropy::TargetScore;
use crate::session::{self, Context, Opened, Peak, TextOptions};
use crate::tensor::Real;

/// A run: who computes, and how much was computed.
pub(super) struct Session<'a> {
    pub(super) config: &'a ScoreConfig,
    context: &'a Context,
    pub(super) device: Device,
    /// Tokens that went through the model.
    pub(super) num_tokens: u64,
    /// Seconds of the loop over passes.
    pub(super) scoring_secs: f64,
    /// Share of the speed of light in these seconds.
    pub(super) sol: Option<f64>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        config: &'a ScoreConfig,
        context: &'a Context,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let device = session::open_device(config.device, config.threads, &mut |notice| watch(notice.into()))?;
        Ok(Self { config, context, device, num_tokens: 0, scoring_secs: 0.0, sol: None })
    }

    /// The rows that take part, before `limit`.
    pub(super) fn rows(&self) -> Result<(Vec<Record>, Routing)> {
        select(read_files(&self.config.data_file)?, self.config.train_mode)
    }

    fn check_stop(&self) -> Result<()> {
        self.context.check_stop("stopped while scoring; no file was written")
    }

    /// Opens the model folder; its weights are loaded later, since most mistakes are in the rows.
    pub(super) fn open(&self, watch: &mut dyn FnMut(Event<'_>)) -> Result<Opened> {
        let config = self.config;
        let options = TextOptions {
            format: config.format,
            max_seq_length: config.max_seq_length,
            truncation: config.truncation,
            escape_special: config.escape_special,
            skip_empty: config.skip_empty,
        };
        Opened::open(&config.model, options, self.context, &mut |notice| watch(notice.into()))
    }

    /// Turns rows into tokens.
    pub(super) fn encode(
        &self,
        encoder: &Encoder<'_>,
        (records, routing): (&[Record], Routing),
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Example>> {
        let (examples, audit) =
            session::encode(&self.device, encoder, records, &mut |notice| watch(notice.into()))?;
        watch(Event::Audit { audit: &audit, routing });
        Ok(examples)
    }

    /// Loads weights and adapter.
    pub(super) fn load(&self, opened: &Opened, watch: &mut dyn FnMut(Event<'_>)) -> Result<Model> {
        match self.device.machine() {
            Machine::Cpu => self.load_as::<f32>(opened, watch).map(Model::F32),
            Machine::Gpu => self.load_as::<bf16>(opened, watch).map(Model::Bf16),
        }
    }

    fn load_as<T: Real>(&self, opened: &Opened, watch: &mut dyn FnMut(Event<'_>)) -> Result<Loaded<T>> {
        self.check_stop()?;
        let device = &self.device;
        let decoder = opened.load(device, &mut |notice| watch(notice.into()))?;
        let mut adapters = Vec::new();
        if let Some(dir) = &self.config.adapter {
            let peft = read_adapter(dir)?;
            adapters.push(Adapter::from_peft(device, &decoder.config, &peft.config, &peft.tensors, dir)?);
        }
        Ok(Loaded { decoder, adapters })
    }

    /// Scores rows of these lengths, pass by pass and in order. `pack` makes the batch of some rows; `take` gets the
    /// log-probabilities of every unit of it.
    ///
    /// # Errors
    /// Those of `pack` and `take`, [`Error::Stopped`], or what the model finds wrong with a batch.
    pub(super) fn score(
        &mut self,
        model: &Model,
        lengths: &[usize],
        pack: impl Fn(Range<usize>) -> Result<Packed>,
        take: impl FnMut(Range<usize>, Vec<Vec<f64>>) -> Result<()>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let passes = passes(lengths, self.config.batching(), self.config.max_tokens_per_pass)?;
        match model {
            Model::F32(model) => self.score_as(model, &passes, pack, take, watch),
            Model::Bf16(model) => self.score_as(model, &passes, pack, take, watch),
        }
    }

    fn score_as<T: Real>(
        &mut self,
        model: &Loaded<T>,
        passes: &[Range<usize>],
        pack: impl Fn(Range<usize>) -> Result<Packed>,
        mut take: impl FnMut(Range<usize>, Vec<Vec<f64>>) -> Result<()>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let lora = model.adapters.first().map(Adapter::config);
        let model_flops = ModelFlops::of(&model.decoder.config, lora)?;
        let peak = Peak::of(&self.device, &mut |notice| watch(notice.into()));
        let start = Instant::now();
        let mut scorer = self.scorer(model, passes, &pack)?;
        let total = passes.last().map_or(0, |rows| rows.end);
        let (mut num_tokens, mut work) = (0, 0);
        let batches = passes.iter().map(|rows| {
            self.check_stop()?;
            let Packed { batch, units } = pack(rows.clone())?;
            num_tokens += batch.total_tokens() as u64;
            work += model_flops.forward(&batch);
            Ok((batch, (rows, units)))
        });
        let take = |(rows, units): (&Range<usize>, Vec<Vec<usize>>), scores: Vec<TargetScore>| {
            let of_unit = |unit: Vec<usize>| unit.into_iter().map(|t| scores[t].logprob).collect();
            take(rows.clone(), units.into_iter().map(of_unit).collect())?;
            watch(Event::Scoring { done: rows.end, total });
            Ok(())
        };
        scorer.score((&model.decoder, &self.device), &model.adapters, batches, take)?;
        // The last pass may have been the whole run.
        self.check_stop()?;
        self.num_tokens += num_tokens;
        self.scoring_secs = start.elapsed().as_secs_f64();
        self.sol = peak.and_then(|peak| peak.share(work, self.scoring_secs));
        Ok(())
    }

    /// Who scores these passes: on a GPU, one recorded pass that they all fit into, in memory that is taken once.
    fn scorer<T: Real>(
        &self,
        model: &Loaded<T>,
        passes: &[Range<usize>],
        pack: impl Fn(Range<usize>) -> Result<Packed>,
    ) -> Result<Scorer<T>> {
        let (device, Loaded { decoder, adapters }) = (&self.device, model);
        if device.machine() == Machine::Cpu {
            return Ok(Scorer::new(None));
        }
        let mut room = Room::default();
        for rows in passes {
            self.check_stop()?;
            let batch = pack(rows.clone())?.batch;
            batch.validate(
                decoder.config.vocab_size,
                decoder.config.max_position_embeddings,
                adapters.len(),
            )?;
            room = room.max(Room::of(&batch));
        }
        device.reserve(decoder.scoring_bytes(device.chip()?, room, adapters)?)?;
        let tables = decoder.pass_tables(device, room, (adapters, &[]), None)?;
        Ok(Scorer::new(Some(decoder.record_scoring(device, tables, adapters)?)))
    }
}

/// A model with its adapter, in the numbers that its device computes with.
pub(super) enum Model {
    /// On the CPU.
    F32(Loaded<f32>),
    /// On a GPU.
    Bf16(Loaded<bf16>),
}

/// A model with its adapter.
pub(super) struct Loaded<T: Real> {
    decoder: Decoder<T>,
    adapters: Vec<Adapter<T>>,
}

/// An input error at a row.
pub(super) fn row_error(record: &Record, what: impl Into<String>) -> InputError {
    Error::input("DATA", what).path(&record.file).line(record.line)
}

/// The error of a row whose score is not finite.
pub(super) fn not_finite(record: &Record, what: &str) -> Error {
    Error::Numeric {
        what: format!("{}:{}: {what} is not finite", record.file.display(), record.line),
        fix: "check the weights of model and adapter, for example an earlier checkpoint".into(),
    }
}
