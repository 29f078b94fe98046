//! The options of `tanren score`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::{DATA, RowArgs, typed_options, words};
use crate::config::{Dtype, Format, Options, Quant, ScoreMode, TrainMode};
use crate::error::Result;

const MODEL: &str = "Model and adapter";
const MACHINE: &str = "Machine";

const EXAMPLES: &str = "\
Examples:
  Log-probabilities of the outputs of a file, under an adapter:
    tanren score --model ./qwen --adapter runs/first --data-file test.jsonl --output scores.jsonl

  Four-choice questions, with the accuracy per law:
    tanren score --model ./qwen --adapter runs/first --data-file test.jsonl --output answers.jsonl \\
        --mode choice --choices a,b,c,d --by law

A TOML file has the same options with _ for - (data_file = \"test.jsonl\"). Flags override it.
Relative paths start at the current folder.";

/// `tanren score`: what was typed.
#[derive(Debug, Default, Args, Serialize)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct ScoreArgs {
    /// TOML file with options.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// What is computed for every row.
    #[arg(long, value_parser = words(ScoreMode::WORDS))]
    mode: Option<String>,

    /// Model folder or Hugging Face id.
    #[arg(long, value_name = "DIR|HF_ID", help_heading = MODEL)]
    model: Option<String>,
    /// Adapter folder [default: the bare model].
    #[arg(long, value_name = "DIR", help_heading = MODEL)]
    adapter: Option<PathBuf>,
    /// How base weights are stored.
    #[arg(long, value_parser = words(Quant::WORDS), help_heading = MODEL)]
    quant: Option<String>,

    /// File with the rows to score; may be given several times.
    #[arg(long, value_name = "FILE", help_heading = DATA)]
    data_file: Option<Vec<PathBuf>>,
    /// File for one line per row.
    #[arg(long, value_name = "FILE", help_heading = DATA)]
    output: Option<PathBuf>,
    /// Replace an existing output file.
    #[arg(long, value_name = "true|false", help_heading = DATA)]
    overwrite: Option<bool>,
    /// Answers to choose from, with commas between [default: the distinct outputs of the data].
    #[arg(long, value_name = "A,B,...", help_heading = DATA)]
    choices: Option<String>,
    /// Fields of meta, with commas between, for which accuracy is also given per value.
    #[arg(long, value_name = "FIELDS", help_heading = DATA)]
    by: Option<String>,
    /// How a row becomes one text.
    #[arg(long, value_parser = words(Format::WORDS), help_heading = DATA)]
    format: Option<String>,
    /// Which rows take part, by meta.mode: direct answers, reasoning, or all.
    #[arg(long, value_parser = words(TrainMode::WORDS), help_heading = DATA)]
    train_mode: Option<String>,
    /// Most rows to score, from the start [default: all].
    #[arg(long, value_name = "N", help_heading = DATA)]
    limit: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    rows: RowArgs,

    /// Rows per batch.
    #[arg(long, value_name = "N", help_heading = MACHINE)]
    batch_size: Option<usize>,
    /// Tokens per batch, instead of --batch-size; a longer row is a batch of its own.
    #[arg(long, value_name = "N", help_heading = MACHINE)]
    tokens_per_batch: Option<usize>,
    /// Compute device: auto, cpu, cuda, cuda:N or emulated.
    #[arg(long, value_name = "DEVICE", help_heading = MACHINE)]
    device: Option<String>,
    /// Type of weights and activations.
    #[arg(long, value_parser = words(Dtype::WORDS), help_heading = MACHINE)]
    dtype: Option<String>,
    /// CPU threads [default: all cores].
    #[arg(long, value_name = "N", help_heading = MACHINE)]
    threads: Option<usize>,
    /// Maximum tokens per pass; bounds memory, never changes results.
    #[arg(long, value_name = "N", help_heading = MACHINE)]
    max_tokens_per_pass: Option<usize>,

    /// An option of another tool, `name=value`; the configuration answers it.
    #[arg(long, hide = true)]
    #[serde(skip)]
    option_of_another_tool: Vec<String>,
}

impl ScoreArgs {
    /// The TOML file to read, if any.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The options that were typed, as a layer for [`crate::config::ScoreConfig::resolve`].
    ///
    /// # Errors
    /// An input error for texts that are not UTF-8 and numbers of 2^63 and more.
    pub fn flags(&self) -> Result<Options> {
        typed_options(self, &self.option_of_another_tool)
    }
}
