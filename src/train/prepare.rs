//! Everything a training needs before its first step: the model, rows as tokens, the adapter it starts from.

use std::collections::BTreeSet;

use super::event::Event;
use crate::config::{Batching, DeviceChoice, LoraConfig, TrainConfig, matching_variant};
use crate::data::encode::Example;
use crate::data::files::read_files;
use crate::data::packing::split_eval;
use crate::data::record::Record;
use crate::data::routing::select;
use crate::data::texts::any_chat;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::open::OpenModel;
use crate::model::{Adapter, Decoder};
use crate::session::{self, Context, Notice, Opened, TextOptions, TextSettings};
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
    let opened =
        Opened::open(&config.model, options, chat_rows, context, &mut |notice| watch(notice.into()))?;
    let stops = opened.model.stop_token_ids();
    let mut encode = |name, records: &[Record], routing| -> Result<Vec<Row>> {
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
        let row = |example: Example| Row {
            place: format!("{}:{}", records[example.record].file.display(), records[example.record].line),
            example,
        };
        let rows: Vec<Row> = examples.into_iter().map(row).collect();
        check_budget(&rows, if name == "training" { config.batching() } else { config.eval_batching() })?;
        Ok(rows)
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
    let model = opened.model;
    if let Some(variant) = matching_variant(&model.config) {
        watch(Event::Notice(Notice::Note(format!("the model has the shape of {}", variant.name))));
    }
    Ok(Prepared { device, weights_device, decoder, train, eval, model, text })
}

/// How many rows of `eval` are rows of `train`, token for token.
fn num_known(train: &[Row], eval: &[Row]) -> usize {
    if eval.is_empty() {
        return 0;
    }
    let known: BTreeSet<_> = train.iter().map(tokens).collect();
    eval.iter().filter(|row| known.contains(&tokens(row))).count()
}

/// What makes two rows the same.
fn tokens(row: &Row) -> (&[u32], &[i64]) {
    (&row.example.input_ids, &row.example.labels)
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
