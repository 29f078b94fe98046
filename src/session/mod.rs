//! What a training and a scoring have in common before their work begins: surroundings, device, model and texts, rows as
//! tokens, weights.

mod device;
mod peak;

pub use device::open_device;
pub use peak::Peak;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::config::{Format, Truncation};
use crate::data::audit::Audit;
use crate::data::encode::{EncodeOptions, Encoder, Example};
use crate::data::jsonl::Record;
use crate::data::template::sandbox::HelperCommand;
use crate::data::texts::{Texts, text_format};
use crate::device::{Class, Device};
use crate::error::{Error, Result};
use crate::formats::hub::{Progress, Watch};
use crate::model::open::{self, OpenModel};
use crate::model::{Decoder, load};
use crate::tensor::Real;

/// What the surroundings offer to a run.
#[derive(Clone, Default)]
pub struct Context {
    /// How to start the process that renders chat templates; without it they are rendered in this one.
    pub template_helper: Option<HelperCommand>,
    /// Asked between passes: true if the run should end (a training saves first).
    pub stop: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("template_helper", &self.template_helper).finish_non_exhaustive()
    }
}

impl Context {
    /// True if the run should end.
    pub fn stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop())
    }

    /// Fails if the run should end; `what` says what was stopped.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn check_stop(&self, what: &str) -> Result<()> {
        match self.stopped() {
            true => Err(Error::Stopped { what: what.to_owned() }),
            false => Ok(()),
        }
    }
}

/// What happens on the way; both runs make it an event of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Something the user may want to know.
    Note(String),
    /// Something the user should look at.
    Warning(String),
    /// Who computes, and why, where the user left it open.
    Device(String),
    /// Rows that are tokenised.
    Tokenising {
        /// So far.
        done: usize,
        /// In all.
        total: usize,
    },
    /// Bytes of a file of the model that are here.
    Downloading {
        /// The file.
        file: String,
        /// So far, those of earlier downloads included.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Bytes of weights that are loaded.
    Loading {
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
}

impl From<Progress<'_>> for Notice {
    fn from(progress: Progress<'_>) -> Self {
        match progress {
            Progress::Note(text) => Self::Note(text.to_owned()),
            Progress::Warning(text) => Self::Warning(text.to_owned()),
            Progress::File { name, done, total } => Self::Downloading { file: name.to_owned(), done, total },
        }
    }
}

/// How rows become tokens, as both configurations say it.
#[derive(Debug, Clone, Copy)]
pub struct TextOptions {
    /// How a row becomes one text.
    pub format: Format,
    /// Longest row in tokens.
    pub max_seq_length: usize,
    /// What happens to longer rows.
    pub truncation: Truncation,
    /// Whether text in rows that looks like a special token stays text.
    pub escape_special: bool,
    /// Whether rows without anything supervised are left out.
    pub skip_empty: bool,
}

/// A model folder and what it says about text. Its weights are loaded later, since most mistakes are in the rows.
#[derive(Debug)]
pub struct Opened {
    /// The folder and the shape.
    pub model: OpenModel,
    texts: Texts,
    options: TextOptions,
}

impl Opened {
    /// Opens the model `name` ([`open::open`]) and its tokenizer.
    ///
    /// # Errors
    /// An input error that says what was tried, or what is wrong with a file.
    pub fn open(
        name: &str,
        options: TextOptions,
        context: &Context,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Self> {
        let notify_now = RefCell::new(&mut *notify);
        let tell = |progress: Progress<'_>| (notify_now.borrow_mut())(progress.into());
        let model = open::open(name, &Watch { tell: &tell, stop: &|| context.stopped() })?;
        let texts = Texts::open(model.folder.dir(), options.format, context.template_helper.as_ref())?;
        if options.max_seq_length > model.config.max_position_embeddings {
            notify(Notice::Warning(format!(
                "--max-seq-length {} is beyond the {} positions of the model; longer rows are refused",
                options.max_seq_length, model.config.max_position_embeddings
            )));
        }
        Ok(Self { model, texts, options })
    }

    /// The encoder for `records`: the same for training and scoring, so that what is scored is what was trained.
    ///
    /// # Errors
    /// An input error if rows are text and there is no tokenizer, or no chat template where one is needed.
    pub fn encoder(&self, records: &[Record]) -> Result<Encoder<'_>> {
        let (options, model) = (self.options, &self.model.config);
        let longest = options.max_seq_length.min(model.max_position_embeddings);
        let options = EncodeOptions {
            truncation: options.truncation,
            escape_special: options.escape_special,
            skip_empty: options.skip_empty,
            vocab_size: Some(model.vocab_size),
            ..EncodeOptions::new(text_format(options.format)?, longest)
        };
        self.texts.encoder(options, records)
    }

    /// Loads the weights.
    ///
    /// # Errors
    /// An input error that names the tensor that is missing or has another shape.
    pub fn load<T: Real>(&self, device: &Device, notify: &mut dyn FnMut(Notice)) -> Result<Decoder<T>> {
        let OpenModel { folder, config } = &self.model;
        let loaded = load::load(&device.class(Class::Weights), config, folder, &|_, _| {})?;
        let bytes = folder.total_bytes();
        notify(Notice::Loading { done: bytes, total: bytes });
        if !loaded.unused.is_empty() {
            let names = loaded.unused.join(", ");
            notify(Notice::Note(format!("tensors of the model that are not used: {names}")));
        }
        Ok(Decoder { config: config.clone(), weights: loaded.weights })
    }
}

/// Turns rows into tokens on the device's threads, and reports the progress from this one.
///
/// # Errors
/// That of the first bad row, as [`Encoder::encode_all`].
pub fn encode(
    device: &Device,
    encoder: &Encoder<'_>,
    records: &[Record],
    notify: &mut dyn FnMut(Notice),
) -> Result<(Vec<Example>, Audit)> {
    let total = records.len();
    let done = AtomicUsize::new(0);
    let (finished, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let done = &done;
        let worker = scope.spawn(move || {
            let count = |n| {
                done.fetch_add(n, Ordering::Relaxed);
            };
            let result = device.run(|| encoder.encode_all(records, &count));
            drop(finished);
            result
        });
        while let Err(mpsc::RecvTimeoutError::Timeout) = wait.recv_timeout(Duration::from_millis(100)) {
            notify(Notice::Tokenising { done: done.load(Ordering::Relaxed), total });
        }
        notify(Notice::Tokenising { done: done.load(Ordering::Relaxed), total });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
