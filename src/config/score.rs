//! The configuration of a scoring run: the options of `tanren score`, resolved. The only place with their
//! defaults.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::aliases::{self, Alias};
use super::options::{Options, Value};
use super::setting_layers::{Keyed, Layers};
use super::supported::{check, dtypes, supported};
use super::values::{
    Batching, DeviceChoice, Dtype, Format, Quant, ScoreMode, TrainMode, Truncation, list, paths,
};
use crate::error::Result;

/// The options of `tanren score`. Field names are the keys of the TOML file and, with `-` for `_`, the flags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreConfig {
    /// Scoring mode: what is computed for every row.
    pub mode: ScoreMode,
    /// Model folder or Hugging Face id.
    pub model: String,
    /// Adapter folder; the bare model if absent.
    pub adapter: Option<PathBuf>,
    /// Files with the rows to score, in order.
    #[serde(deserialize_with = "paths")]
    pub data_file: Vec<PathBuf>,
    /// File for one line per row.
    pub output: PathBuf,
    /// Whether an existing output file is replaced.
    pub overwrite: bool,
    /// The answers to choose from; the distinct outputs of the data if absent.
    #[serde(default, deserialize_with = "choices")]
    pub choices: Option<Vec<String>>,
    /// How a row becomes one text.
    pub format: Format,
    /// Selects rows by `meta.mode`.
    pub train_mode: TrainMode,
    /// Fields of `meta` for which accuracy is also given per value.
    #[serde(deserialize_with = "list")]
    pub by: Vec<String>,
    /// Maximum number of rows to score, from the start.
    pub limit: Option<usize>,
    /// Rows per batch.
    pub batch_size: Option<usize>,
    /// Tokens per batch, instead of a number of rows.
    pub tokens_per_batch: Option<usize>,
    /// Maximum length of a row, in tokens.
    pub max_seq_length: usize,
    /// Treatment of longer rows.
    pub truncation: Truncation,
    /// Whether special tokens written in rows are encoded as ordinary text.
    pub escape_special: bool,
    /// Whether rows with nothing to learn, and rows with an empty answer, are left out.
    pub skip_empty: bool,
    /// Whether the last answer of a conversation is learned alone.
    pub mask_history: bool,
    /// Compute device.
    pub device: DeviceChoice,
    /// Type of weights and activations.
    pub dtype: Dtype,
    /// Storage format of the base weights.
    pub quant: Quant,
    /// CPU threads; all cores if absent.
    pub threads: Option<usize>,
    /// Maximum tokens per pass; bounds memory, never changes results.
    pub max_tokens_per_pass: usize,
    /// Notes about options of other tools; a run prints them first.
    #[serde(skip)]
    pub notes: Vec<String>,
}

impl Default for ScoreConfig {
    fn default() -> Self {
        Self {
            mode: ScoreMode::Auto,
            model: String::new(),
            adapter: None,
            data_file: Vec::new(),
            output: PathBuf::new(),
            overwrite: false,
            choices: None,
            format: Format::Auto,
            train_mode: TrainMode::Auto,
            by: Vec::new(),
            limit: None,
            batch_size: Some(8),
            tokens_per_batch: None,
            max_seq_length: 2048,
            truncation: Truncation::Error,
            escape_special: false,
            skip_empty: false,
            mask_history: false,
            device: DeviceChoice::Auto,
            dtype: Dtype::F32,
            quant: Quant::None,
            threads: None,
            max_tokens_per_pass: 4096,
            notes: Vec::new(),
        }
    }
}

impl Keyed for ScoreConfig {
    const ALIASES: &'static [Alias] = aliases::SCORE;
    const REPLACES: &'static [(&'static str, &'static str)] =
        &[("batch_size", "tokens_per_batch"), ("tokens_per_batch", "batch_size")];
}

impl ScoreConfig {
    /// The configuration from these options over the defaults; names and values as on the command line.
    ///
    /// ```
    /// use tanren::config::ScoreConfig;
    /// let options = [("model", "./qwen"), ("data_file", "test.jsonl"), ("output", "scores.jsonl"), ("limit", "10")];
    /// assert_eq!(ScoreConfig::from_pairs(options)?.limit, Some(10));
    /// # Ok::<(), tanren::error::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`ScoreConfig::resolve`].
    pub fn from_pairs<K: Into<String>, V: Into<Value>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self> {
        Self::resolve(pairs.into_iter().collect(), None)
    }

    /// The configuration from a TOML file.
    ///
    /// # Errors
    /// As [`ScoreConfig::resolve`].
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::resolve(Options::new(), Some(path))
    }

    /// Merges defaults, `file` and `flags` (later ones win), and checks the result. Names in `flags` are
    /// option names or aliases. Relative paths start at the current folder, in the file too.
    ///
    /// # Errors
    /// An input error of class `CONFIG` with file, line and option, or an I/O error if the file cannot be read.
    pub fn resolve(flags: Options, file: Option<&Path>) -> Result<Self> {
        Self::of_layers(Layers::given::<Self>(flags, file)?)
    }

    /// The configuration from the text of a TOML file; `path` is its name in messages.
    ///
    /// # Errors
    /// As [`ScoreConfig::resolve`].
    pub fn from_toml(path: &Path, text: &str) -> Result<Self> {
        Self::of_layers(Layers::from_text::<Self>(path, text)?)
    }

    /// Merges the given options over the defaults, and checks the result.
    fn of_layers(given: Layers) -> Result<Self> {
        let layers = given.over::<Self>(Layers::defaults::<Self>()?);
        let mut config: Self = layers.read()?;
        config.notes = layers.notes().to_vec();
        // A GPU computes in bf16, independent of the default for the CPU.
        if config.device.is_gpu() && config.dtype == Self::default().dtype {
            config.dtype = Dtype::Bf16;
        }
        config.check(&layers)?;
        Ok(config)
    }

    /// Checks every number and every pair of options that exclude each other.
    ///
    /// # Errors
    /// An input error of class `CONFIG` that names the option.
    pub fn validate(&self) -> Result<()> {
        self.check(&Layers::default())
    }

    /// How rows are grouped.
    pub fn batching(&self) -> Batching {
        match (self.tokens_per_batch, self.batch_size) {
            (Some(tokens), _) => Batching::Tokens(tokens),
            (None, rows) => Batching::Samples(rows.unwrap_or(1)),
        }
    }

    /// Refuses values that are valid but not supported by this build.
    ///
    /// # Errors
    /// An input error of class `CONFIG` that names the option, its value, and the supported values.
    pub fn check_supported(&self) -> Result<()> {
        check(&[
            ("mode", self.mode.to_string(), supported("mode")),
            ("quant", self.quant.to_string(), supported("quant")),
            ("dtype", self.dtype.to_string(), dtypes(self.device)),
            ("format", self.format.to_string(), supported("format")),
        ])
    }
}

/// For serde: `"a,b"`, `["a", "b"]`, or nothing.
fn choices<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    list(from).map(Some)
}

#[cfg(test)]
#[path = "score_tests.rs"]
mod tests;
