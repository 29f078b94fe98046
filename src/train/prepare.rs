//! Everything a training needs before its first step: the model, rows as tokens, the adapter it starts from.

use std::collections::BTreeSet;

use super::event::Event;
use super::task::Task;
use crate::batch::Label;
use crate::config::{self, Batching, DeviceChoice, LoraConfig, Loss, TrainConfig, matching_variant};
use crate::data::encode::Example;
use crate::data::files::read_files;
use crate::data::labels::{LabelOptions, LabelScheme};
use crate::data::packing::split_eval;
use crate::data::record::Record;
use crate::data::routing::select;
use crate::data::texts::any_chat;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::head::Head;
use crate::model::label_head::LabelHead;
use crate::model::open::OpenModel;
use crate::model::{Adapter, Decoder};
use crate::session::{self, Context, Notice, Opened, TextOptions, TextSettings, labels};
use crate::tensor::Real;

/// A row as tokens, and where it came from.
#[derive(Debug, Clone)]
pub struct Row {
    /// Tokens and labels.
    pub example: Example,
    /// `file:line`, for messages.
    pub place: String,
}

/// See the module text.
#[derive(Debug)]
pub struct Prepared<T: Real> {
    /// The compute device.
    pub device: Device,
    /// Where the weights are: there, or nowhere in a dry run, which looks at their names and shapes only.
    pub weights_device: Device,
    /// The frozen model.
    pub decoder: Decoder<T>,
    /// Rows to learn.
    pub train: Vec<Row>,
    /// Rows to evaluate on.
    pub eval: Vec<Row>,
    /// The model folder.
    pub model: OpenModel,
    /// How rows became text.
    pub text: TextSettings,
    /// What is learned.
    pub(super) task: Task,
    /// Name and bytes of the files that say what the outputs of a head for labels stand for; none where tokens are learned.
    pub(super) label_files: Vec<(String, Vec<u8>)>,
}

/// The device of a run.
///
/// # Errors
/// As [`session::open_device`], and an input error if the configuration asks for something that is not there yet.
pub(super) fn open_device(config: &TrainConfig, watch: &mut dyn FnMut(Event<'_>)) -> Result<Device> {
    let choice = match (config.device, &config.gpu) {
        // A plan for a card that is not here: who computes means nothing.
        (DeviceChoice::Auto, Some(_)) => DeviceChoice::Cpu,
        (choice, _) => choice,
    };
    let device = session::open_device(choice, config.threads, &mut |notice| watch(notice.into()))?;
    config.check_supported()?;
    Ok(device)
}

/// Opens the model and the files of `config` and turns rows into tokens.
///
/// # Errors
/// An input or I/O error that names the file, line and fix.
pub fn prepare<T: Real<Stat = f32>>(
    config: &TrainConfig,
    device: Device,
    context: &Context,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Prepared<T>> {
    let go_on = &|| context.check_stop("stopped while rows were read; nothing was written");
    // Rows first: they are quick to read, and most mistakes are in them.
    let (train_records, routing) = select(read_files(&config.train_file, go_on)?, config.train_mode)?;
    let eval_records = match config.eval_file.is_empty() {
        true => None,
        false => Some(select(read_files(&config.eval_file, go_on)?, config.train_mode)?),
    };
    let options = TextOptions {
        format: config.format,
        max_seq_length: config.max_seq_length,
        truncation: config.truncation,
        escape_special: config.escape_special,
        skip_empty: config.skip_empty,
        mask_history: config.mask_history,
    };
    let eval_rows = eval_records.iter().flat_map(|(records, _)| records);
    let chat_rows = any_chat(train_records.iter().chain(eval_rows));
    let model = (config.model.as_str(), config.task);
    let mut opened = Opened::open(model, options, chat_rows, context, &mut |notice| watch(notice.into()))?;
    opened.set_base_dropout(config.base_dropout)?;
    let dropout = &opened.model.config.base_dropout;
    let nothing = (config.base_dropout != config::BaseDropoutMode::Off && !dropout.is_on())
        .then(|| format!("the model has no dropout for --base-dropout {}", config.base_dropout));
    for what in dropout.left_out().into_iter().chain(nothing) {
        watch(Event::Notice(Notice::Note(what)));
    }
    let of_eval = eval_records.as_ref().map_or(&[][..], |(records, _)| records);
    let scheme = label_scheme(config, &mut opened, (&train_records, of_eval), watch)?;
    let stops = opened.model.stop_token_ids();
    let batching = |name: &str| if name == "training" { config.batching() } else { config.eval_batching() };
    let mut encode = |name, records: &[Record], routing| -> Result<Vec<Row>> {
        if let Some(scheme) = &scheme {
            let encode = |progress: &session::Progress<'_>| {
                let encoded = scheme.encode(records, &opened.row_limits(true))?;
                progress(records.len())?;
                Ok(encoded)
            };
            let (examples, audit) =
                session::encode((&device, context), records.len(), encode, &mut |notice| {
                    watch(notice.into())
                })?;
            watch(Event::Audit { name, audit: &audit, routing });
            return rows_of(examples, records, batching(name));
        }
        let encoder = opened.encoder(records)?;
        match encoder.end_token() {
            // Trained to end with one token, generating until another one: the model would not stop.
            Some((token, id)) if name == "training" && !stops.is_empty() && !stops.contains(&id) => {
                watch(Event::Notice(Notice::Warning(format!(
                    "answers end with {token} ({id}), but the model's generation_config.json stops at {stops:?}"
                ))));
            }
            _ => {}
        }
        let encode = |progress: &session::Progress<'_>| encoder.encode_all(records, progress);
        let (examples, audit) =
            session::encode((&device, context), records.len(), encode, &mut |notice| watch(notice.into()))?;
        watch(Event::Audit { name, audit: &audit, routing });
        rows_of(examples, records, batching(name))
    };
    let mut train = encode("training", &train_records, routing)?;
    let eval = match (&eval_records, config.eval_fraction) {
        (Some((records, routing)), _) => encode("evaluation", records, *routing)?,
        (None, Some(fraction)) => {
            let (kept, held_out) = split_eval(train.len(), fraction, config.seed)?;
            let pick = |rows: &[usize]| rows.iter().map(|&i| train[i].clone()).collect::<Vec<_>>();
            let eval = pick(&held_out);
            train = pick(&kept);
            eval
        }
        (None, None) => Vec::new(),
    };
    let known = num_known(&train, &eval);
    if known > 0 {
        let what = format!("{known} of {} evaluation rows are training rows as well", eval.len());
        watch(Event::Notice(Notice::Warning(what)));
    }
    if context.stopped() {
        return Err(Error::Stopped { what: "stopped before the first step; nothing was written".into() });
    }

    let weights_device = if config.dry_run { Device::dry() } else { device.clone() };
    let decoder = opened.load(&weights_device, &mut |notice| watch(notice.into()))?;
    let text = opened.text_settings(&train_records);
    let (mut task, mut label_files) = (Task::Causal, Vec::new());
    if let Some(scheme) = &scheme {
        let examples: Vec<&Example> = train.iter().map(|row| &row.example).collect();
        task = Task::of_labels(config, scheme, &examples)?;
        label_files.push((labels::NAME.to_owned(), labels::to_json(scheme)));
        label_files.push((labels::CONFIG_NAME.to_owned(), labels::config_json(&opened, scheme)));
        head_notes(config, (scheme, &decoder), &examples, &mut |notice| watch(notice.into()));
    }
    let model = opened.model;
    if let Some(variant) = matching_variant(&model.config) {
        watch(Event::Notice(Notice::Note(format!("the model has the shape of {}", variant.name))));
    }
    Ok(Prepared { device, weights_device, decoder, train, eval, model, text, task, label_files })
}

/// The examples as rows with their places; each must fit a batch.
fn rows_of(examples: Vec<Example>, records: &[Record], batching: Batching) -> Result<Vec<Row>> {
    let row = |example: Example| Row {
        place: format!("{}:{}", records[example.record].file.display(), records[example.record].line),
        example,
    };
    let rows: Vec<Row> = examples.into_iter().map(row).collect();
    check_budget(&rows, batching)?;
    Ok(rows)
}

/// What the outputs of a head for labels stand for, which the model is given; none where tokens are learned.
fn label_scheme(
    config: &TrainConfig,
    opened: &mut Opened,
    (train, eval): (&[Record], &[Record]),
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Option<LabelScheme>> {
    if config.task == config::Task::Causal {
        return Ok(None);
    }
    let notify = &mut |notice: Notice| watch(notice.into());
    let start = config.init_adapter.as_deref().map(|dir| session::open_adapter(dir, notify)).transpose()?;
    let known = labels::known(opened, start.as_ref(), config.init_adapter.as_deref())?;
    let options = LabelOptions {
        task: config.task,
        loss: config.loss,
        num_labels: config.num_labels,
        target_shift: config.target_shift,
    };
    let scheme = LabelScheme::of(options, &known, train, eval)?;
    opened.set_labels(scheme.num_labels);
    Ok(Some(scheme))
}

/// What the user should know about the head before it is trained.
fn head_notes<T: Real>(
    config: &TrainConfig,
    (scheme, decoder): (&LabelScheme, &Decoder<T>),
    examples: &[&Example],
    notify: &mut dyn FnMut(Notice),
) {
    let has_own = matches!(&decoder.weights.head, Head::Labels(LabelHead { own: Some(_), .. }));
    let outputs = match scheme.num_labels {
        1 => "1 output".to_owned(),
        count => format!("{count} outputs"),
    };
    let start = match (config.init_adapter.is_some(), has_own) {
        (true, _) => "that of the adapter to start from",
        (false, true) => "that of the model",
        (false, false) => "random numbers",
    };
    notify(Notice::Note(format!("the head has {outputs}, and starts from {start}")));
    let outside = |example: &&&Example| match &example.label {
        Label::Numbers(numbers) => numbers.iter().any(|number| !(0.0..=1.0).contains(number)),
        _ => false,
    };
    let beyond = examples.iter().filter(outside).count();
    if scheme.loss == Loss::SigmoidMse && beyond > 0 {
        notify(Notice::Warning(format!(
            "{beyond} of {} labels are below 0 or above 1, which a sigmoid never reaches: use --target-shift minmax, or --loss mse",
            examples.len()
        )));
    }
}

/// How many rows of `eval` are rows of `train`, token for token, with the same label.
fn num_known(train: &[Row], eval: &[Row]) -> usize {
    if eval.is_empty() {
        return 0;
    }
    let known: BTreeSet<_> = train.iter().map(|row| row.example.identity()).collect();
    eval.iter().filter(|row| known.contains(&row.example.identity())).count()
}

/// Every row must fit into a batch: found here, and not at an evaluation hours later.
fn check_budget(rows: &[Row], batching: Batching) -> Result<()> {
    let Batching::Tokens(budget) = batching else { return Ok(()) };
    match rows.iter().find(|row| row.example.len() > budget) {
        None => Ok(()),
        Some(row) => Error::input("DATA", "the row is longer than a whole micro-batch")
            .path(&row.place)
            .got(format!("{} tokens", row.example.len()))
            .expected(format!("at most --tokens-per-batch {budget}"))
            .fix("raise --tokens-per-batch, or cut rows with --max-seq-length and --truncation prompt-left")
            .into(),
    }
}

/// A new adapter, or the one that the run starts from, in f32.
///
/// # Errors
/// An input error if the adapter to start from is of another kind than the one asked for.
pub(super) fn first_adapter<T: Real<Stat = f32>>(
    config: &TrainConfig,
    device: &Device,
    decoder: &Decoder<T>,
    notify: &mut dyn FnMut(Notice),
) -> Result<Adapter<f32>> {
    let Some(dir) = &config.init_adapter else {
        return Adapter::new(device, &config.lora(), &decoder.config, &decoder.weights, config.seed);
    };
    let peft = session::open_adapter(dir, notify)?;
    let mut adapter = Adapter::from_peft(device, &decoder.config, &peft.config, &peft.tensors, dir)?;
    let model = &decoder.config;
    let (has, wanted) = (adapter.config().clone(), config.lora().without_unused(model)?);
    // Names may differ and mean the same.
    let same_layers = has.at_sites(model)? == wanted.at_sites(model)?;
    let layers = |lora: &LoraConfig| if same_layers { String::new() } else { lora.describe_layers() };
    let differs = [
        ("lora_r", has.r.to_string(), wanted.r.to_string()),
        ("lora_alpha", has.alpha.to_string(), wanted.alpha.to_string()),
        ("use_rslora", has.use_rslora.to_string(), wanted.use_rslora.to_string()),
        ("use_dora", has.use_dora.to_string(), wanted.use_dora.to_string()),
        ("target_modules", layers(&has), layers(&wanted)),
    ];
    if let Some((field, has, wanted)) = differs.into_iter().find(|(_, has, wanted)| has != wanted) {
        return Error::input("CONFIG", "the adapter to start from is of another kind")
            .path(dir)
            .field(field)
            .got(wanted)
            .expected(has)
            .fix(format!("leave {field} out: the adapter brings its own"))
            .into();
    }
    // Dropout belongs to the run, not to the adapter.
    adapter.set_dropout(config.lora_dropout);
    Ok(adapter)
}
