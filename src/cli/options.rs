//! The command line: what can be typed, as clap structs, and nothing else.
//!
//! Every option is optional here. Defaults, ranges and required options live in [`crate::config`], which also gets what was
//! typed as a TOML table, so that flags and files are the same kind of layer. Other names of options come from the one table
//! in [`crate::config::aliases`], and the defaults in the help from the `Default` of the configuration types.

mod args;
mod plan;
mod rows;
mod score;
mod train;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{BoolishValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Args, Command as ClapCommand, CommandFactory, FromArgMatches, Parser, Subcommand};
use serde::Serialize;
use toml::Table;

pub use args::normalise_args;
pub use plan::PlanArgs;
use rows::{DATA, RowArgs};
pub use score::ScoreArgs;
pub use train::TrainArgs;

use crate::config::aliases::{self, Alias};
use crate::config::{
    DeviceChoice, Dtype, Format, Options, ScoreConfig, TrainConfig, TrainMode, Truncation, has_no_choice,
    supported,
};
use crate::error::{Error, Result};

/// LoRA / QLoRA fine-tuning and scoring of language models on one device, without Python.
#[derive(Debug, Parser)]
#[command(name = "tanren", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 ok, 2 input, 3 I/O, 4 numeric, 5 device, 6 interrupted after saving, 130 interrupted with nothing to save."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train an adapter for a model on rows of text.
    #[command(after_help = train::EXAMPLES)]
    Train(Box<TrainArgs>),
    /// Compute log-probabilities of answers, or choose between them.
    Score(Box<ScoreArgs>),
    /// Show a model, a tokenizer, rows as the model sees them, the plan of a training, devices, or the GPU kernels.
    Inspect(InspectArgs),
    /// Write a model folder with random weights.
    Init(InitArgs),
    /// Render chat templates from standard input in a process with limits. For internal use.
    #[command(hide = true)]
    RenderTemplate,
}

/// `tanren inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// What to show.
    #[command(subcommand)]
    pub what: InspectCommand,
}

/// What `tanren inspect` shows.
#[derive(Debug, Subcommand)]
pub enum InspectCommand {
    /// Show the shape of a model, its layers, files and number of parameters; without a model, all built-in variants.
    Model(InspectModelArgs),
    /// Show the special tokens and the chat template of a model, and how a text becomes tokens.
    Tokenizer(TokenizerArgs),
    /// Show rows of a data file as the model sees them: tokens, and which of them are learned.
    Data(DataArgs),
    /// Show the processor and the GPUs, and why a GPU cannot be used; test them with --self-test.
    Device(DeviceArgs),
    /// Show memory, work and predicted speed of a training, here or on a card; takes the options of `train`, none required but
    /// a model.
    Plan(Box<PlanArgs>),
    /// Show the GPU kernels of this build: who compiled them, and what each takes of a multiprocessor.
    Kernels,
}

/// A model, with or without its flag.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct ModelArg {
    /// Model folder or Hugging Face id.
    #[arg(value_name = "MODEL")]
    positional: Option<String>,
    /// The same as a flag.
    #[arg(long, value_name = "DIR|HF_ID")]
    model: Option<String>,
}

impl ModelArg {
    /// The model folder or id that was given.
    pub fn model(&self) -> &str {
        // clap requires exactly one of the two.
        self.positional.as_deref().or(self.model.as_deref()).unwrap_or_default()
    }
}

/// `inspect model`.
#[derive(Debug, Args)]
pub struct InspectModelArgs {
    #[command(flatten)]
    pub(super) model: OptionalModelArg,
    /// Hash every file and compare it with the hash by which the Hugging Face cache names it.
    #[arg(long, requires = "OptionalModelArg")]
    pub(super) verify: bool,
}

/// A model, with or without its flag, or none.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct OptionalModelArg {
    /// Model folder or Hugging Face id [default: list the built-in variants].
    #[arg(value_name = "MODEL")]
    positional: Option<String>,
    /// The same as a flag.
    #[arg(long, value_name = "DIR|HF_ID")]
    model: Option<String>,
}

impl OptionalModelArg {
    /// The model folder or id, if one was given.
    pub fn model(&self) -> Option<&str> {
        self.positional.as_deref().or(self.model.as_deref())
    }
}

/// `tanren inspect tokenizer`.
#[derive(Debug, Args)]
pub struct TokenizerArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArg,
    /// Texts to encode, each on its own.
    #[arg(value_name = "TEXT")]
    positional_texts: Vec<String>,
    /// The same as a flag; - reads standard input.
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,
}

impl TokenizerArgs {
    /// The texts that were given; `-` stands for standard input.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.positional_texts.iter().chain(&self.text).map(String::as_str)
    }
}

/// `tanren inspect data`.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// Model folder or Hugging Face id, for its tokenizer and chat template.
    #[arg(long, value_name = "DIR|HF_ID")]
    pub model: String,
    /// File with rows (.jsonl, .json, .csv, .tsv, also .gz); may be given several times.
    #[arg(long, value_name = "FILE", required = true, aliases = ["train-file", "eval-file"])]
    pub data_file: Vec<PathBuf>,
    /// How a row becomes one text.
    #[arg(long, value_parser = formats())]
    pub format: Option<Format>,
    /// Which rows take part, by `meta.mode`.
    #[arg(long, value_parser = typed::<TrainMode>(TrainMode::WORDS))]
    pub train_mode: Option<TrainMode>,
    /// Longest row in tokens.
    #[arg(long, value_name = "TOKENS")]
    pub max_seq_length: Option<usize>,
    /// What happens to longer rows.
    #[arg(long, value_parser = typed::<Truncation>(Truncation::WORDS))]
    pub truncation: Option<Truncation>,
    /// Keep text that looks like a special token as text.
    #[arg(long, value_name = "true|false")]
    pub escape_special: Option<bool>,
    /// Leave out rows with nothing to learn, and those whose answers are all empty.
    #[arg(long, value_name = "true|false")]
    pub skip_empty: Option<bool>,
    /// Learn the last answer of a conversation only.
    #[arg(long, value_name = "true|false")]
    pub mask_history: Option<bool>,
    /// Rows to show in full; the statistics are over all rows.
    #[arg(long, value_name = "N")]
    pub rows: Option<usize>,
}

/// `tanren inspect device`.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Which device to show: all, auto, cpu, cuda, cuda:N or emulated.
    #[arg(long, value_name = "DEVICE", default_value = "all", value_parser = which_device)]
    pub device: WhichDevice,
    /// Check copies, fills, memory and kernels on it; the exit code is 5 if something is wrong.
    #[arg(long)]
    pub self_test: bool,
}

/// The devices that are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhichDevice {
    /// Whatever there is.
    All,
    /// This one, which has to be there.
    One(DeviceChoice),
}

fn which_device(text: &str) -> std::result::Result<WhichDevice, String> {
    match text {
        "all" => Ok(WhichDevice::All),
        _ => DeviceChoice::try_from(text.to_owned())
            .map(WhichDevice::One)
            .map_err(|what| what.replacen("must be ", "must be all, ", 1)),
    }
}

/// `tanren init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Name of a built-in variant (qwen3-tiny, Qwen3-0.6B, ...).
    #[arg(long, value_name = "NAME")]
    pub variant: String,
    /// Folder to write; must not hold a model yet.
    #[arg(long, value_name = "DIR")]
    pub output_dir: PathBuf,
    /// Seed of the weights.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Type of the weights.
    #[arg(long, value_parser = typed::<Dtype>(Dtype::WORDS), default_value = "f32")]
    pub dtype: Dtype,
}

/// Parses a command line, the program name first.
///
/// # Errors
/// clap's error, which also stands for `--help` and `--version`; it knows how to print itself and its exit code.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> std::result::Result<Cli, clap::Error> {
    command()
        .try_get_matches_from(normalise_args(args))
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(with_honest_tips)
}

/// Takes the tips out of a usage error that would not help: flags that only begin alike, and the advice to pass a flag as a
/// value, where nothing takes one.
fn with_honest_tips(mut error: clap::Error) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    error.remove(ContextKind::Suggested);
    let given = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    let near = |flag: &str| aliases::nearest(given.trim_start_matches("--"), [flag]).is_some();
    let kept = match error.remove(ContextKind::SuggestedArg) {
        Some(ContextValue::String(flag)) if near(flag.trim_start_matches("--")) => {
            Some(ContextValue::String(flag))
        }
        Some(ContextValue::Strings(flags)) => {
            let flags: Vec<_> =
                flags.into_iter().filter(|flag| near(flag.trim_start_matches("--"))).collect();
            (!flags.is_empty()).then_some(ContextValue::Strings(flags))
        }
        _ => None,
    };
    if let Some(flags) = kept {
        error.insert(ContextKind::SuggestedArg, flags);
    }
    error
}

/// The complete parser: the derived one, with aliases and defaults filled in from the configuration.
pub fn command() -> ClapCommand {
    let train = || Table::try_from(TrainConfig::default()).unwrap_or_default();
    let score = || Table::try_from(ScoreConfig::default()).unwrap_or_default();
    Cli::command()
        .mut_subcommand("train", |command| complete(command, aliases::TRAIN, &train()))
        .mut_subcommand("score", |command| complete(command, aliases::SCORE, &score()))
        .mut_subcommand("inspect", |inspect| {
            inspect
                .mut_subcommand("plan", |command| {
                    complete(command, aliases::TRAIN, &train()).mut_arg("dry_run", |arg| arg.hide(true))
                })
                .mut_subcommand("data", |command| complete(command, &[], &Table::new()))
        })
}

/// What was typed, as a layer for the configuration: the options that were given, under their TOML keys, and those of other
/// tools.
fn typed_options(options: &impl Serialize, others: &[String]) -> Result<Options> {
    let table = Table::try_from(options).map_err(|error| match unwritable(options) {
        Some((name, Some(number))) => Error::input("CONFIG", "the number is too large")
            .field(name)
            .got(number)
            .expected(format!("at most {}", i64::MAX))
            .fix("write a smaller number"),
        Some((name, None)) => {
            Error::input("CONFIG", "not UTF-8").field(name).fix("rename the file or folder")
        }
        None => Error::input("CONFIG", format!("an option cannot be written as TOML: {error}")),
    })?;
    let others = others.iter().filter_map(|other| other.split_once('='));
    Ok(others.fold(Options::from_table(table), |options, (name, value)| options.set(name, value)))
}

/// The first option that TOML cannot hold, and its value if that is a number.
fn unwritable(options: &impl Serialize) -> Option<(String, Option<u64>)> {
    let mut written = Vec::new();
    match serde_json::to_writer(&mut written, options) {
        Ok(()) => {
            let values: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&written).ok()?;
            let large =
                |value: &serde_json::Value| value.as_u64().filter(|number| i64::try_from(*number).is_err());
            values.iter().find_map(|(name, value)| Some((name.clone(), Some(large(value)?))))
        }
        // Written up to the value that is no text. A quote inside a text would have a backslash before it.
        Err(_) => {
            let written = String::from_utf8(written).ok()?;
            let (before, _) = written.rsplit_once("\":")?;
            Some((before.rsplit('"').next()?.to_owned(), None))
        }
    }
}

/// A parser of the words of a configuration type; other spellings are understood but not shown.
fn words(words: &'static [&'static [&'static str]]) -> PossibleValuesParser {
    let value = |spellings: &&'static [&'static str]| {
        PossibleValue::new(spellings[0]).aliases(spellings[1..].iter().copied())
    };
    PossibleValuesParser::new(words.iter().map(value).collect::<Vec<_>>())
}

/// The same for an option that is no layer of the configuration and is used as it is.
fn typed<T>(spellings: &'static [&'static [&'static str]]) -> impl TypedValueParser<Value = T>
where
    T: TryFrom<String, Error = String> + Clone + Send + Sync + 'static,
{
    words(spellings).try_map(T::try_from)
}

/// The formats that this build can do; the others are understood and refused with more words.
fn formats() -> impl TypedValueParser<Value = Format> {
    let value = |spellings: &&'static [&'static str]| {
        let hide = !supported("format").contains(&spellings[0]);
        PossibleValue::new(spellings[0]).aliases(spellings[1..].iter().copied()).hide(hide)
    };
    PossibleValuesParser::new(Format::WORDS.iter().map(value).collect::<Vec<_>>())
        .try_map(|word: String| Format::try_from(word))
}

/// Fills in aliases and defaults, lets `true` be left out, and hides what this build cannot do.
fn complete(command: ClapCommand, aliases: &'static [Alias], defaults: &Table) -> ClapCommand {
    command.next_line_help(true).mut_args(|arg| {
        let key = arg.get_id().to_string();
        let names = aliases.iter().find(|(option, _)| *option == key).map_or(&[][..], |(_, names)| *names);
        let mut arg = with_default(arg, defaults.get(&key)).visible_aliases(names.iter().copied());
        if arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.as_str() == "true|false")) {
            arg = arg.num_args(0..=1).default_missing_value("true").hide_possible_values(true);
            arg = arg.value_parser(BoolishValueParser::new());
        }
        let values = arg.get_possible_values();
        // Commands without a configuration parse into types of their own.
        let is_layer = defaults.contains_key(&key);
        if is_layer
            && values.iter().any(|value| !supported(&key).contains(&value.get_name()))
            && !supported(&key).is_empty()
        {
            let hidden = |value: PossibleValue| {
                let hide = !supported(&key).contains(&value.get_name());
                value.hide(hide)
            };
            arg = arg
                .value_parser(PossibleValuesParser::new(values.into_iter().map(hidden).collect::<Vec<_>>()));
        }
        if key == "device" && !cfg!(feature = "emulated") {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg = arg.help(help.replace(", cuda:N or emulated", " or cuda:N"));
        }
        let hide = has_no_choice(&key) || arg.is_hide_set();
        arg.hide(hide)
    })
}

/// Adds the default to the help of an option.
fn with_default(arg: Arg, default: Option<&toml::Value>) -> Arg {
    let shown = match default {
        Some(toml::Value::String(text)) if !text.is_empty() => text.clone(),
        // As people write them: 2e-4, not 0.0002.
        Some(toml::Value::Float(number)) if *number != 0.0 && *number < 1e-3 => format!("{number:e}"),
        Some(value @ (toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_))) => {
            value.to_string()
        }
        _ => return arg,
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    arg.help(format!("{help} [default: {shown}]"))
}

#[cfg(test)]
mod tests;
