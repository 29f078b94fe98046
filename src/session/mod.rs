//! What a training and a scoring have in common before their work begins: surroundings, device, model and texts, rows as
//! tokens, weights.

mod device;
pub mod label_metrics;
pub mod labels;
pub(crate) mod memory;
mod peak;
pub mod text_settings;

pub use device::open_device;
pub use memory::Limit;
pub use peak::Peak;
pub use text_settings::TextSettings;

use std::cell::RefCell;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::config::head::HeadSpec;
use crate::config::{BaseDropoutMode, Format, Task, Truncation};
use crate::data::encode::{EncodeOptions, Encoder};
use crate::data::labels::RowLimits;
use crate::data::record::Record;
use crate::data::template::sandbox::{HelperCommand, serve_template};
use crate::data::texts::Texts;
use crate::device::{Class, Device};
use crate::error::{Error, Result, shorten};
use crate::formats::adapter::{Adapter as PeftAdapter, read_adapter};
use crate::formats::hub::{self, Watch};
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
    /// Ends the run when `stop` says so. It is asked between passes, often and from several threads, so it should only look at a
    /// flag.
    #[must_use]
    pub fn stop_when(mut self, stop: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.stop = Some(Arc::new(stop));
        self
    }

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

impl HelperCommand {
    /// The other side: renders chat templates in this process, which it limits first, until its input ends. Call it from a hidden
    /// command of the program, and nothing else in that process.
    ///
    /// # Errors
    /// An input error if a limit cannot be set, an I/O error if the process that started this one is gone.
    pub fn serve(stdin: impl BufRead, stdout: impl Write) -> Result<()> {
        serve_template(stdin, stdout)
    }
}

/// What happens on the way; both runs make it an event of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// Something the user may want to know.
    Note(String),
    /// Something the user should look at.
    Warning(String),
    /// The compute device, and the reason where the user left it open.
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

impl From<hub::Progress<'_>> for Notice {
    fn from(progress: hub::Progress<'_>) -> Self {
        match progress {
            hub::Progress::Note(text) => Self::Note(text.to_owned()),
            hub::Progress::Warning(text) => Self::Warning(text.to_owned()),
            hub::Progress::File { name, done, total } => {
                Self::Downloading { file: name.to_owned(), done, total }
            }
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
    /// Whether rows without anything supervised, and rows with an empty answer, are left out.
    pub skip_empty: bool,
    /// Whether the last answer of a conversation is learned alone.
    pub mask_history: bool,
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
    /// Opens the model `name` ([`open::open`]) and its tokenizer for a task, and for rows of which some are written for a chat
    /// model or none is. How many labels a head has is said later ([`Opened::set_labels`]).
    ///
    /// # Errors
    /// An input error that says what was tried, or what is wrong with a file.
    pub fn open(
        (name, task): (&str, Task),
        options: TextOptions,
        chat_rows: bool,
        context: &Context,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Self> {
        let notify_now = RefCell::new(&mut *notify);
        let tell = |progress: hub::Progress<'_>| (notify_now.borrow_mut())(progress.into());
        let mut model = open::open(name, &Watch { tell: &tell, stop: &|| context.stopped() })?;
        if task == Task::Causal {
            // Whatever head the folder was saved with.
            model.config = model.config.with_token_head()?;
        }
        model.notes().into_iter().for_each(|note| notify(Notice::Warning(note)));
        let helper = context.template_helper.as_ref();
        let texts = Texts::open(model.folder.dir(), options.format, chat_rows, helper)?;
        let of_tokenizer = texts.tokenizer.iter().flat_map(|tokenizer| tokenizer.notes());
        of_tokenizer.for_each(|note| notify(Notice::Note(note.clone())));
        if options.format == Format::Auto && chat_rows {
            notify(Notice::Note(match texts.format {
                Format::Chat => {
                    "format chat: rows are conversations or instructions, and the model has a chat template"
                        .into()
                }
                _ => "format plain: the model has no chat template".into(),
            }));
        }
        if options.max_seq_length > model.config.max_sequence_length() {
            // Said as a fact: whether the length was asked for or is the default, no option makes longer rows fit.
            notify(Notice::Warning(format!(
                "the model has {} positions: rows may be that long, and not {} (max_seq_length)",
                model.config.max_sequence_length(),
                options.max_seq_length
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
        let longest = options.max_seq_length.min(model.max_sequence_length());
        let options = EncodeOptions {
            truncation: options.truncation,
            escape_special: options.escape_special,
            skip_empty: options.skip_empty,
            mask_history: options.mask_history,
            vocab_size: Some(model.vocab_size),
            max_position_embeddings: Some(model.max_sequence_length()),
            ..EncodeOptions::new(self.texts.format, longest)
        };
        self.texts.encoder(options, records)
    }

    /// Gives the model a head for so many labels.
    pub fn set_labels(&mut self, num_labels: usize) {
        self.model.config = self.model.config.clone().with_label_head(num_labels);
    }

    /// Applies the dropout of the model itself in training, as far as `mode` says.
    ///
    /// # Errors
    /// As [`crate::config::ModelConfig::with_base_dropout`].
    pub fn set_base_dropout(&mut self, mode: BaseDropoutMode) -> Result<()> {
        self.model.config = self.model.config.clone().with_base_dropout(mode)?;
        Ok(())
    }

    /// The padding token: that of the model, else that of its tokenizer.
    pub fn pad_token_id(&self) -> Option<u32> {
        let of_tokenizer = || self.texts.tokenizer.as_ref()?.pad_token().map(|(_, id)| id);
        self.model.config.pad_token_id.or_else(of_tokenizer)
    }

    /// Limits for rows with labels, of which each needs one or none does.
    pub fn row_limits(&self, needs_labels: bool) -> RowLimits {
        let (options, model) = (self.options, &self.model.config);
        let head = match &model.head {
            HeadSpec::Labels(head) => head,
            HeadSpec::Tokens => &model.label_head,
        };
        RowLimits {
            max_seq_length: options.max_seq_length.min(model.max_sequence_length()),
            max_position_embeddings: model.max_sequence_length(),
            truncation: options.truncation,
            skip_empty: options.skip_empty,
            needs_labels,
            vocab_size: model.vocab_size,
            token_types: model.embed.token_types,
            pool: head.pool,
            pad_token_id: self.pad_token_id(),
        }
    }

    /// How `records` become text, for the folder of an adapter.
    pub fn text_settings(&self, records: &[Record]) -> TextSettings {
        TextSettings::of(&self.texts, &self.options, records)
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
            notify(Notice::Note(format!(
                "tensors of the model that are not used: {}",
                some_of(&loaded.unused)
            )));
        }
        Ok(Decoder { config: config.clone(), weights: loaded.weights })
    }
}

/// Reads the adapter in the folder `dir`, and says which keys of its `adapter_config.json` are not known here.
///
/// # Errors
/// As [`read_adapter`].
pub fn open_adapter(dir: &Path, notify: &mut dyn FnMut(Notice)) -> Result<PeftAdapter> {
    let adapter = read_adapter(dir)?;
    let keys = &adapter.config.unknown_keys;
    if !keys.is_empty() {
        notify(Notice::Warning(format!(
            "keys of adapter_config.json that are not known and have no effect: {}",
            some_of(keys)
        )));
    }
    Ok(adapter)
}

/// Names in a message: the first ones, and how many more there are.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| shorten(name)).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What hears how many rows were finished since it was last called, and ends the work with an error.
pub type Progress<'a> = dyn Fn(usize) -> Result<()> + Sync + 'a;

/// Turns `total` rows into tokens on the device's threads, by `encode`, and reports the progress from this one.
///
/// # Errors
/// That of the first bad row, as [`Encoder::encode_all`]; [`Error::Stopped`] if the context asks to stop.
pub fn encode<R: Send>(
    (device, context): (&Device, &Context),
    total: usize,
    encode: impl FnOnce(&Progress<'_>) -> Result<R> + Send,
    notify: &mut dyn FnMut(Notice),
) -> Result<R> {
    let done = AtomicUsize::new(0);
    let (finished, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let done = &done;
        let worker = scope.spawn(move || {
            let count = |n| {
                done.fetch_add(n, Ordering::Relaxed);
                context.check_stop("stopped while rows were tokenised; nothing was written")
            };
            let result = device.run(|| encode(&count));
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
