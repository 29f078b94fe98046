//! The command line: what can be typed, as clap structs, and nothing else.
//!
//! Every option is optional here. Defaults, ranges and required options live in [`crate::config`], which also gets what was
//! typed as a TOML table, so that flags and files are the same kind of layer. Other names of options come from the one table
//! in [`crate::config::aliases`], and the defaults in the help from the `Default` of the configuration types.

mod plan;
mod score;
mod train;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args, Command as ClapCommand, CommandFactory, FromArgMatches, Parser, Subcommand};
use serde::Serialize;
use toml::Table;

pub use plan::PlanArgs;
pub use score::ScoreArgs;
pub use train::TrainArgs;

use crate::config::aliases::{self, Alias, SWITCHES};
use crate::config::{DeviceChoice, Dtype, Format, ScoreConfig, TrainConfig, TrainMode, Truncation};
use crate::error::{Error, Result};

/// LoRA / QLoRA fine-tuning and scoring of language models on one device, without Python.
#[derive(Debug, Parser)]
#[command(name = "tanren", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 ok, 2 input, 3 I/O, 4 numeric, 5 device, 6 interrupted after saving.")]
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
    #[arg(long, value_parser = typed::<Format>(Format::WORDS))]
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
    /// Leave out rows with nothing to learn or an empty answer.
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub skip_empty: Option<bool>,
    /// Learn the last answer of a conversation only.
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
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
    Cli::from_arg_matches(&command().try_get_matches_from(normalise_args(args))?)
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

/// Spells flags the way clap knows them: `--lora_r` becomes `--lora-r`, and a switch such as `--bf16` the value that it
/// stands for. Everything after a bare `--` stays as it is.
pub fn normalise_args(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter().peekable();
    let mut result = Vec::new();
    while let Some(arg) = args.next() {
        if arg == "--" {
            result.push(arg);
            result.extend(args);
            break;
        }
        let Some(flag) = arg.to_str().and_then(|text| text.strip_prefix("--")) else {
            result.push(arg);
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name.replace('_', "-"), Some(value.to_owned())),
            None => (flag.replace('_', "-"), None),
        };
        let switch = SWITCHES.iter().find(|switch| switch.name.replace('_', "-") == name);
        match (switch, value) {
            (Some(switch), value) => {
                let next = || args.next_if(|next| next == "true" || next == "false");
                let value = value.map(OsString::from).or_else(next);
                if let Some(word) = switch.value(value.is_none_or(|value| value != "false")) {
                    result.push(format!("--{}={word}", switch.option.replace('_', "-")).into());
                }
            }
            (None, Some(value)) => result.push(format!("--{name}={value}").into()),
            (None, None) => result.push(format!("--{name}").into()),
        }
    }
    result
}

/// What was typed, as a layer for the configuration: the options that were given, under their TOML keys.
fn table(options: &impl Serialize) -> Result<Table> {
    Table::try_from(options).map_err(|error| {
        Error::input("CONFIG", format!("an option cannot be written as TOML: {error}"))
            .fix("use UTF-8 texts and numbers below 2^63")
            .into()
    })
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

/// Fills in aliases and defaults, and lets `true` be left out.
fn complete(command: ClapCommand, aliases: &'static [Alias], defaults: &Table) -> ClapCommand {
    command.next_line_help(true).mut_args(|arg| {
        let key = arg.get_id().to_string();
        let names = aliases.iter().find(|(option, _)| *option == key).map_or(&[][..], |(_, names)| *names);
        let mut arg = with_default(arg, defaults.get(&key)).visible_aliases(names.iter().copied());
        if arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.as_str() == "true|false")) {
            arg = arg.num_args(0..=1).default_missing_value("true").hide_possible_values(true);
        }
        arg
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
