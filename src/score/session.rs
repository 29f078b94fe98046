//! What both modes share: rows as tokens, the model and its adapter, and the loop over passes.

use std::ops::Range;
use std::time::Instant;

use half::bf16;

use super::event::Event;
use super::packed::Packed;
use crate::batch::Batch;
use crate::config::{ScoreConfig, Task};
use crate::data::audit::Audit;
use crate::data::encode::{Asked, Encoder, Example};
use crate::data::files::read_files;
use crate::data::packing::passes_in_order;
use crate::data::record::Record;
use crate::data::routing::{Routing, select};
use crate::data::texts::any_chat;
use crate::device::{Device, Machine};
use crate::error::{Error, InputError, Result};
use crate::formats::adapter::Adapter as PeftAdapter;
use crate::model::{Adapter, Decoder, Found, ModelFlops, PassCapacity, Scorer};
use crate::ops::label_head::Loss;
use crate::session::memory::{held_bytes, peak_bytes, size, weights_bytes};
use crate::session::{self, Context, Limit, Notice, Opened, Peak, Progress, TextOptions, TextSettings};
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
    /// Bytes of the weights of model and adapter.
    pub(super) weights_bytes: u64,
    /// The most bytes that tensors took.
    pub(super) peak_bytes: u64,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        config: &'a ScoreConfig,
        context: &'a Context,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let device = session::open_device(config.device, config.threads, &mut |notice| watch(notice.into()))?;
        Ok(Self {
            config,
            context,
            device,
            num_tokens: 0,
            scoring_secs: 0.0,
            sol: None,
            weights_bytes: 0,
            peak_bytes: 0,
        })
    }

    /// The rows that take part, before `limit`.
    pub(super) fn rows(&self) -> Result<(Vec<Record>, Routing)> {
        select(read_files(&self.config.data_file, &|| self.check_stop())?, self.config.train_mode)
    }

    fn check_stop(&self) -> Result<()> {
        self.context.check_stop("stopped while scoring; no file was written")
    }

    /// Opens the model folder; its weights are loaded later, since most mistakes are in the rows.
    pub(super) fn open(
        &self,
        task: Task,
        records: &[Record],
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Opened> {
        let config = self.config;
        let mut notify = |notice: Notice| watch(notice.into());
        let mut options = text_options(config);
        let trained = config.adapter.as_deref().map(TextSettings::read).transpose()?.flatten();
        if let Some(trained) = &trained {
            trained.apply(&mut options, &text_options(&ScoreConfig::default()), &mut notify);
        }
        let model = (config.model.as_str(), task);
        let opened = Opened::open(model, options, any_chat(records), self.context, &mut notify)?;
        if let Some(trained) = &trained {
            trained.check_template(&opened.text_settings(records), &mut notify);
        }
        Ok(opened)
    }

    /// Turns rows into tokens.
    pub(super) fn encode(
        &self,
        encoder: &Encoder<'_>,
        (records, routing): (&[Record], Routing),
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Example>> {
        let encode = |progress: &Progress<'_>| encoder.encode_all(records, progress);
        self.encoded((records.len(), routing), encode, watch)
    }

    /// Turns rows into tokens, each with every choice as its answer.
    pub(super) fn encode_choices(
        &self,
        encoder: &Encoder<'_>,
        (records, routing): (&[Record], Routing),
        choices: &[String],
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Asked>> {
        let encode = |progress: &Progress<'_>| encoder.encode_choices(records, choices, progress);
        self.encoded((records.len(), routing), encode, watch)
    }

    /// Reads the adapter, if there is one.
    pub(super) fn open_adapter(&self, watch: &mut dyn FnMut(Event<'_>)) -> Result<Option<PeftAdapter>> {
        let notify = &mut |notice: Notice| watch(notice.into());
        self.config.adapter.as_deref().map(|dir| session::open_adapter(dir, notify)).transpose()
    }

    /// Turns rows into what the model reads of them.
    pub(super) fn encoded<R: Send>(
        &self,
        (rows, routing): (usize, Routing),
        encode: impl FnOnce(&Progress<'_>) -> Result<(R, Audit)> + Send,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<R> {
        let (encoded, audit) =
            session::encode((&self.device, self.context), rows, encode, &mut |notice| watch(notice.into()))?;
        watch(Event::Audit { audit: &audit, routing });
        Ok(encoded)
    }

    /// Loads weights and adapter.
    pub(super) fn load(&self, opened: &Opened, watch: &mut dyn FnMut(Event<'_>)) -> Result<Model> {
        self.load_with(opened, None, watch)
    }

    /// The same with an adapter that was read already.
    pub(super) fn load_with(
        &self,
        opened: &Opened,
        adapter: Option<PeftAdapter>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Model> {
        match self.device.machine() {
            Machine::Cpu => self.load_as::<f32>(opened, adapter, watch).map(Model::F32),
            Machine::Gpu => self.load_as::<bf16>(opened, adapter, watch).map(Model::Bf16),
        }
    }

    fn load_as<T: Real>(
        &self,
        opened: &Opened,
        adapter: Option<PeftAdapter>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Loaded<T>> {
        self.check_stop()?;
        let device = &self.device;
        plan_weights::<T>(device, opened, watch)?;
        let decoder = opened.load(device, &mut |notice| watch(notice.into()))?;
        let mut adapters = Vec::new();
        let adapter = match adapter {
            Some(adapter) => Some(adapter),
            None => self.open_adapter(watch)?,
        };
        if let (Some(dir), Some(peft)) = (&self.config.adapter, adapter) {
            adapters.push(Adapter::from_peft(device, &decoder.config, &peft.config, &peft.tensors, dir)?);
        }
        Ok(Loaded { decoder, adapters })
    }

    /// Fails if the weights that were loaded are not those of the folder any more: to be asked before results are written.
    pub(super) fn check_weights(&self, opened: &Opened) -> Result<()> {
        opened.model.folder.check_unchanged()
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
        mut take: impl FnMut(Range<usize>, Vec<Vec<f64>>) -> Result<()>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let pack = |rows: Range<usize>| pack(rows).map(|Packed { batch, units }| (batch, units));
        let take = |rows, units: Vec<Vec<usize>>, found: Found| {
            let scores = found.tokens();
            let of_unit = |unit: Vec<usize>| unit.into_iter().map(|t| scores[t].logprob).collect();
            take(rows, units.into_iter().map(of_unit).collect())
        };
        self.find((model, None), lengths, pack, take, watch)
    }

    /// The same with what the head finds, by a loss of labels or for tokens; `pack` may add something to a batch.
    ///
    /// # Errors
    /// As [`Session::score`].
    pub(super) fn find<X>(
        &mut self,
        (model, loss): (&Model, Option<Loss>),
        lengths: &[usize],
        pack: impl Fn(Range<usize>) -> Result<(Batch, X)>,
        take: impl FnMut(Range<usize>, X, Found) -> Result<()>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let config = self.config;
        let passes = passes_in_order(lengths, config.batching(), config.max_tokens_per_pass)?;
        match model {
            Model::F32(model) => self.find_as((model, loss), &passes, pack, take, watch),
            Model::Bf16(model) => self.find_as((model, loss), &passes, pack, take, watch),
        }
    }

    fn find_as<T: Real, X>(
        &mut self,
        (model, loss): (&Loaded<T>, Option<Loss>),
        passes: &[Range<usize>],
        pack: impl Fn(Range<usize>) -> Result<(Batch, X)>,
        mut take: impl FnMut(Range<usize>, X, Found) -> Result<()>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let lora = model.adapters.first().map(Adapter::config);
        let model_flops = ModelFlops::of(&model.decoder.config, lora)?;
        let peak = Peak::of(&self.device, &mut |notice| watch(notice.into()));
        let start = Instant::now();
        let mut scorer = self.scorer((model, loss), passes, &pack)?;
        let total = passes.last().map_or(0, |rows| rows.end);
        let (mut num_tokens, mut work) = (0, 0);
        let batches = passes.iter().map(|rows| {
            self.check_stop()?;
            let (batch, more) = pack(rows.clone())?;
            num_tokens += batch.total_tokens() as u64;
            work += model_flops.forward(&batch);
            Ok((batch, (rows, more)))
        });
        let take = |(rows, more): (&Range<usize>, X), found: Found| {
            take(rows.clone(), more, found)?;
            watch(Event::Scoring { done: rows.end, total });
            Ok(())
        };
        scorer.score((&model.decoder, &self.device), &model.adapters, batches, take)?;
        // The last pass may have been the whole run.
        self.check_stop()?;
        self.num_tokens += num_tokens;
        self.scoring_secs = start.elapsed().as_secs_f64();
        self.sol = peak.and_then(|peak| peak.share(work, self.scoring_secs));
        let weights = &model.decoder.weights;
        let of_adapter = |adapter: &Adapter<T>| (adapter.num_params() * size_of::<T>()) as u64;
        self.weights_bytes = held_bytes(weights) + model.adapters.iter().map(of_adapter).sum::<u64>();
        self.peak_bytes = peak_bytes(&self.device, weights);
        Ok(())
    }

    /// Who scores these passes: on a GPU, one recorded pass that they all fit into, in memory that is taken once.
    fn scorer<T: Real, X>(
        &self,
        (model, loss): (&Loaded<T>, Option<Loss>),
        passes: &[Range<usize>],
        pack: impl Fn(Range<usize>) -> Result<(Batch, X)>,
    ) -> Result<Scorer<T>> {
        let (device, Loaded { decoder, adapters }) = (&self.device, model);
        if device.machine() == Machine::Cpu {
            return Ok(Scorer::new(None, loss));
        }
        let mut capacity = PassCapacity::default();
        for rows in passes {
            self.check_stop()?;
            let (batch, _) = pack(rows.clone())?;
            batch.validate(
                decoder.config.vocab_size,
                decoder.config.max_sequence_length(),
                adapters.len(),
            )?;
            capacity = capacity.max(PassCapacity::of(&batch));
        }
        let loss_of_labels = loss.as_ref();
        device.reserve(decoder.scoring_bytes(device.chip()?, capacity, adapters, loss_of_labels)?)?;
        let tables = decoder.pass_tables(device, capacity, (adapters, &[]), loss_of_labels, None)?;
        Ok(Scorer::new(Some(decoder.record_scoring(device, tables, adapters)?), loss))
    }
}

/// Says what the weights take, before they are read.
///
/// # Errors
/// An input error if they do not fit.
fn plan_weights<T: Real>(device: &Device, opened: &Opened, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
    let bytes = weights_bytes::<T>(&opened.model.config)?;
    let limit = Limit::of(device)?;
    check_fits(bytes, limit.as_ref())?;
    watch(Event::Planned { weights_bytes: bytes, limit: limit.as_ref() });
    Ok(())
}

fn check_fits(bytes: u64, limit: Option<&Limit>) -> Result<()> {
    let Some(limit) = limit.filter(|limit| bytes > limit.bytes) else { return Ok(()) };
    Error::input("CONFIG", "the weights do not fit into the memory")
        .field("model")
        .got(size(bytes))
        .expected(format!("at most {} ({})", size(limit.bytes), limit.source))
        .fix("take a smaller model, or a device with more memory")
        .into()
}

fn text_options(config: &ScoreConfig) -> TextOptions {
    TextOptions {
        format: config.format,
        max_seq_length: config.max_seq_length,
        truncation: config.truncation,
        escape_special: config.escape_special,
        skip_empty: config.skip_empty,
        mask_history: config.mask_history,
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

/// Most that rounding can make of a log-probability of 0.
const ROUNDING: f64 = 1e-3;

/// Fails for a sum of log-probabilities of `num_tokens` tokens that is no such thing: not finite, above 0, or so small that its
/// perplexity is beyond all numbers. JSON has no word for the first and the last.
pub(super) fn check(record: &Record, what: &str, logprob: f64, num_tokens: usize) -> Result<()> {
    let perplexity = (-logprob / num_tokens.max(1) as f64).exp();
    if !logprob.is_finite() || !perplexity.is_finite() {
        return Err(not_finite(record, what));
    }
    if logprob > ROUNDING {
        return Err(Error::Numeric {
            what: format!("{}:{}: {what} is {logprob}, above 0", record.file.display(), record.line),
            fix: "check the weights of model and adapter, for example an earlier checkpoint".into(),
        });
    }
    Ok(())
}

/// The error of a row whose score is not finite.
pub(super) fn not_finite(record: &Record, what: &str) -> Error {
    Error::Numeric {
        what: format!("{}:{}: {what} is not finite", record.file.display(), record.line),
        fix: "check the weights of model and adapter, for example an earlier checkpoint".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_beyond_the_memory_are_refused_before_they_are_read() {
        let limit = Limit { bytes: 3 << 30, source: "80% of the memory that is free".into() };
        assert!(check_fits(3 << 30, Some(&limit)).is_ok() && check_fits(u64::MAX, None).is_ok());
        let error = check_fits((3 << 30) + (1 << 28), Some(&limit)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("3.25 GiB") && error.to_string().contains("3.00 GiB (80%"));
    }
}
