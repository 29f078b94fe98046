//! What both modes share: rows as tokens, the model and its adapter, and the loop over passes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::event::Event;
use super::passes::{Packed, passes};
use crate::config::ScoreConfig;
use crate::data::encode::{EncodeOptions, Encoder, Example};
use crate::data::jsonl::{Record, read_files};
use crate::data::routing::{Routing, select};
use crate::data::template::sandbox::HelperCommand;
use crate::data::texts::{Texts, text_format};
use crate::device::Device;
use crate::error::{Error, InputError, Result};
use crate::formats::adapter::read_adapter;
use crate::model::open::{self, OpenModel};
use crate::model::{Adapter, Decoder, load};

/// What the surroundings offer to a run.
#[derive(Clone, Default)]
pub struct Context {
    /// How to start the process that renders chat templates; without it they are rendered in this one.
    pub template_helper: Option<HelperCommand>,
    /// Asked between passes: true if the run should end without results.
    pub stop: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("template_helper", &self.template_helper).finish_non_exhaustive()
    }
}

impl Context {
    fn check_stop(&self) -> Result<()> {
        match self.stop.as_ref().is_some_and(|stop| stop()) {
            true => Err(Error::Stopped { what: "stopped while scoring; no file was written".into() }),
            false => Ok(()),
        }
    }
}

/// A run: who computes, and how much was computed.
pub(super) struct Session<'a> {
    pub(super) config: &'a ScoreConfig,
    context: &'a Context,
    pub(super) device: Device,
    /// Tokens that went through the model.
    pub(super) num_tokens: u64,
    /// Seconds of the loop over passes.
    pub(super) scoring_secs: f64,
}

/// A model folder and what it says about text.
pub(super) struct Opened {
    model: OpenModel,
    texts: Texts,
}

impl<'a> Session<'a> {
    pub(super) fn new(config: &'a ScoreConfig, context: &'a Context) -> Result<Self> {
        let device = Device::cpu(config.threads.unwrap_or(0))?;
        Ok(Self { config, context, device, num_tokens: 0, scoring_secs: 0.0 })
    }

    /// The rows that take part, before `limit`.
    pub(super) fn rows(&self) -> Result<(Vec<Record>, Routing)> {
        select(read_files(&self.config.data_file)?, self.config.train_mode)
    }

    /// Opens the model folder; its weights are loaded later, since most mistakes are in the rows.
    pub(super) fn open(&self, watch: &mut dyn FnMut(Event<'_>)) -> Result<Opened> {
        let config = self.config;
        let notes = std::cell::RefCell::new(Vec::new());
        let model = open::open(&config.model, &|what| notes.borrow_mut().push(what.to_owned()));
        for note in notes.take() {
            watch(Event::Note(note));
        }
        let model = model?;
        let texts = Texts::open(model.folder.dir(), config.format, self.context.template_helper.as_ref())?;
        if config.max_seq_length > model.config.max_position_embeddings {
            watch(Event::Warning(format!(
                "--max-seq-length {} is beyond the {} positions of the model; longer rows are refused",
                config.max_seq_length, model.config.max_position_embeddings
            )));
        }
        Ok(Opened { model, texts })
    }

    /// The encoder of training with the options of this run.
    pub(super) fn encoder<'o>(&self, opened: &'o Opened, records: &[Record]) -> Result<Encoder<'o>> {
        let (config, model) = (self.config, &opened.model.config);
        let longest = config.max_seq_length.min(model.max_position_embeddings);
        let options = EncodeOptions {
            truncation: config.truncation,
            escape_special: config.escape_special,
            skip_empty: config.skip_empty,
            vocab_size: Some(model.vocab_size),
            ..EncodeOptions::new(text_format(config.format)?, longest)
        };
        opened.texts.encoder(options, records)
    }

    /// Turns rows into tokens.
    pub(super) fn encode(
        &self,
        encoder: &Encoder<'_>,
        (records, routing): (&[Record], Routing),
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Example>> {
        let (examples, audit) = with_progress(records.len(), &self.device, watch, |progress| {
            encoder.encode_all(records, progress)
        })?;
        watch(Event::Audit { audit: &audit, routing });
        Ok(examples)
    }

    /// Loads weights and adapter.
    pub(super) fn load(&self, opened: Opened, watch: &mut dyn FnMut(Event<'_>)) -> Result<Scorer> {
        self.context.check_stop()?;
        let (device, model) = (&self.device, opened.model);
        let loaded = load::load(device, &model.config, &model.folder, &|_, _| {})?;
        let bytes = model.folder.total_bytes();
        watch(Event::Loading { done: bytes, total: bytes });
        if !loaded.unused.is_empty() {
            let names = loaded.unused.join(", ");
            watch(Event::Note(format!("tensors of the model that are not used: {names}")));
        }
        let mut adapters = Vec::new();
        if let Some(dir) = &self.config.adapter {
            let peft = read_adapter(dir)?;
            adapters.push(Adapter::from_peft(device, &model.config, &peft.config, &peft.tensors, dir)?);
        }
        Ok(Scorer { decoder: Decoder { config: model.config, weights: loaded.weights }, adapters })
    }

    /// Scores rows of these lengths, pass by pass and in order. `pack` makes the batch of some rows; `take` gets the
    /// log-probabilities of every unit of it.
    ///
    /// # Errors
    /// Those of `pack` and `take`, [`Error::Stopped`], or what the model finds wrong with a batch.
    pub(super) fn score(
        &mut self,
        scorer: &Scorer,
        lengths: &[usize],
        pack: impl Fn(Range<usize>) -> Result<Packed>,
        mut take: impl FnMut(Range<usize>, Vec<Vec<f64>>) -> Result<()>,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let start = Instant::now();
        let total = lengths.len();
        for rows in passes(lengths, self.config.batching(), self.config.max_tokens_per_pass)? {
            self.context.check_stop()?;
            let Packed { batch, units } = pack(rows.clone())?;
            let device = &self.device;
            let scores = device.run(|| scorer.decoder.score(device, &batch, &scorer.adapters))?;
            let of_unit = |unit: Vec<usize>| unit.into_iter().map(|t| scores[t].logprob).collect();
            take(rows.clone(), units.into_iter().map(of_unit).collect())?;
            self.num_tokens += batch.total_tokens() as u64;
            watch(Event::Scoring { done: rows.end, total });
        }
        // The last pass may have been the whole run.
        self.context.check_stop()?;
        self.scoring_secs = start.elapsed().as_secs_f64();
        Ok(())
    }
}

/// A model with its adapter, ready to score.
pub(super) struct Scorer {
    decoder: Decoder<f32>,
    adapters: Vec<Adapter<f32>>,
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

/// Runs `work` on the device's threads and reports its progress from this one.
fn with_progress<R: Send>(
    total: usize,
    device: &Device,
    watch: &mut dyn FnMut(Event<'_>),
    work: impl FnOnce(&(dyn Fn(usize) + Sync)) -> R + Send,
) -> R {
    let done = AtomicUsize::new(0);
    let (finished, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let done = &done;
        let worker = scope.spawn(move || {
            let count = |n| {
                done.fetch_add(n, Ordering::Relaxed);
            };
            let result = device.run(|| work(&count));
            drop(finished);
            result
        });
        while let Err(mpsc::RecvTimeoutError::Timeout) = wait.recv_timeout(Duration::from_millis(100)) {
            watch(Event::Tokenising { done: done.load(Ordering::Relaxed), total });
        }
        watch(Event::Tokenising { done: done.load(Ordering::Relaxed), total });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
