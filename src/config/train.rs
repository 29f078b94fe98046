//! Everything a training run needs to know: the options of `tanren train`, resolved. The only place with their defaults.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::aliases::{self, Alias};
use super::init_adapter;
use super::label_options::{ClassWeights, Numbers};
use super::lora::{LoraConfig, TargetModules};
use super::lora_options::{BlockNumbers, ByName};
use super::options::{Options, Value};
use super::presets;
use super::setting_layers::{Keyed, Layers};
use super::size::MemorySize;
use super::supported::{check, dtypes, supported};
use super::values::{
    ActivationPolicy, BaseDropoutMode, Batching, DeviceChoice, Dtype, Format, Loss, LrScheduler, Quant,
    Resume, TargetShift, Task, TrainMode, Truncation, list, paths,
};
use crate::error::Result;

/// The options of `tanren train`. Field names are the keys of the TOML file and, with `-` for `_`, the flags.
///
/// Get one from [`TrainConfig::from_pairs`], [`TrainConfig::from_file`] or [`TrainConfig::resolve`]; a value built by hand ends
/// in `..TrainConfig::default()`, since options are added, and should pass [`TrainConfig::validate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Model folder or Hugging Face id.
    pub model: String,
    /// What the model learns.
    pub task: Task,
    /// Files with training rows; rows of several files are mixed.
    #[serde(deserialize_with = "paths")]
    pub train_file: Vec<PathBuf>,
    /// Files with rows to evaluate on.
    #[serde(default, deserialize_with = "paths")]
    pub eval_file: Vec<PathBuf>,
    /// Training rows to evaluate on instead: a part of them if below 1, else so many.
    pub eval_fraction: Option<f64>,
    /// Folder for the adapter, the logs and the checkpoints.
    pub output_dir: PathBuf,
    /// Whether the output folder may hold another run, which is then replaced.
    pub overwrite: bool,
    /// Adapter folder to start from.
    pub init_adapter: Option<PathBuf>,
    /// Checkpoint to go on from.
    pub resume: Option<Resume>,
    /// Variant whose preset fills in what is not given: `auto` (by the model), `none`, or a name. Resolved: no `auto`.
    pub preset: String,
    /// The compute device.
    pub device: DeviceChoice,
    /// Type of weights and activations; adapters and their optimizer state are always f32.
    pub dtype: Dtype,
    /// CPU threads; all cores if absent.
    pub threads: Option<usize>,
    /// Most packed rows (tokens) computed at once; bounds memory, never changes results.
    pub max_tokens_per_pass: usize,
    /// What blocks keep for the backward pass; never changes results.
    pub activation_policy: ActivationPolicy,
    /// Most bytes for weights, adapter, activations and optimizer; a part of what is free if absent.
    pub memory_limit: Option<MemorySize>,
    /// Card that a plan is for; plans only.
    pub gpu: Option<String>,
    /// Times through the training rows; may be a fraction.
    pub num_epochs: f64,
    /// Optimizer steps; overrides `num_epochs`.
    pub max_steps: Option<u64>,
    /// Rows per micro-batch.
    pub batch_size: Option<usize>,
    /// Tokens per micro-batch, instead of a number of rows.
    pub tokens_per_batch: Option<usize>,
    /// Rows per batch of an evaluation; as in training if absent.
    pub eval_batch_size: Option<usize>,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Course of the learning rate after the warm-up.
    pub lr_scheduler: LrScheduler,
    /// Part of all steps in which the learning rate grows from 0.
    pub warmup_ratio: f64,
    /// Steps in which the learning rate grows from 0; overrides `warmup_ratio`.
    pub warmup_steps: Option<u64>,
    /// Decoupled weight decay of AdamW.
    pub weight_decay: f64,
    /// Decay of the mean of gradients.
    pub adam_beta1: f64,
    /// Decay of the mean of squared gradients.
    pub adam_beta2: f64,
    /// Added to the root of the mean of squared gradients.
    pub adam_epsilon: f64,
    /// Longest gradient norm; longer gradients are scaled down. 0 switches clipping off.
    pub max_grad_norm: f64,
    /// Seed of initial weights, order and dropout.
    pub seed: u64,
    /// Whether rows come in a new random order every epoch.
    pub shuffle: bool,
    /// Longest row in tokens.
    pub max_seq_length: usize,
    /// What happens to longer rows.
    pub truncation: Truncation,
    /// Rank of the adapter.
    pub lora_r: usize,
    /// Numerator of the adapter's scale.
    pub lora_alpha: f64,
    /// Probability that an input of the adapter is dropped.
    pub lora_dropout: f64,
    /// Linear layers with an adapter.
    pub target_modules: TargetModules,
    /// Linear layers that match and get none all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<TargetModules>,
    /// Blocks whose layers get an adapter; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<BlockNumbers>,
    /// Names of the lists of blocks that `layers_to_transform` counts in; any if absent.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub layers_pattern: Vec<String>,
    /// Ranks of single layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank_pattern: Option<ByName<usize>>,
    /// Alphas of single layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha_pattern: Option<ByName<f64>>,
    /// Whether the adapter's scale is `alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// How much of the dropout of the frozen model is applied.
    #[serde(default, skip_serializing_if = "BaseDropoutMode::is_off")]
    pub base_dropout: BaseDropoutMode,
    /// Whether weights are split into magnitude and direction.
    pub use_dora: bool,
    /// How base weights are stored.
    pub quant: Quant,
    /// Whether the scales of 4-bit blocks are quantized too.
    pub double_quant: bool,
    /// How a row becomes one text.
    pub format: Format,
    /// Which rows take part, by `meta.mode`.
    pub train_mode: TrainMode,
    /// Whether text in rows that looks like a special token stays text.
    pub escape_special: bool,
    /// Whether rows with nothing to learn, and rows with an empty answer, are left out.
    pub skip_empty: bool,
    /// Whether the last answer of a conversation is learned alone.
    pub mask_history: bool,
    /// Whether a start that rows of one pass have in common is computed once. The gradient is the same sum; with dropout the
    /// shared part has one mask for all of these rows.
    pub share_prefix: bool,
    /// The loss.
    pub loss: Loss,
    /// How regression targets are moved.
    #[serde(default, skip_serializing_if = "TargetShift::is_none")]
    pub target_shift: TargetShift,
    /// Outputs of a head for labels; if absent, as many as the labels of the rows need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_labels: Option<usize>,
    /// Weights of the classes in the cross-entropy; all 1 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<ClassWeights>,
    /// Weights of the positive targets of every output in the binary cross-entropy; all 1 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pos_weight: Option<Numbers>,
    /// Share of the cross-entropy that goes to all classes alike; 0 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_smoothing: Option<f64>,
    /// Column by which rows are divided into separate trainings.
    pub group_by: Option<String>,
    /// Steps between log lines.
    pub logging_steps: u64,
    /// Steps between evaluations; the end of every epoch if absent.
    pub eval_steps: Option<u64>,
    /// Steps between checkpoints; the end of every epoch if absent.
    pub save_steps: Option<u64>,
    /// Checkpoints to keep; all if absent.
    pub save_total_limit: Option<usize>,
    /// Measure that decides which checkpoint is best.
    pub metric_for_best_model: String,
    /// Whether larger is better; if absent, decided by the name of the measure.
    pub greater_is_better: Option<bool>,
    /// Whether the final adapter is the best one instead of the last one.
    pub load_best_model_at_end: bool,
    /// Evaluations without a better measure after which training ends.
    pub early_stopping_patience: Option<usize>,
    /// Whether everything is checked and planned, and nothing is trained.
    pub dry_run: bool,
    /// What the user should hear about options of other tools; a run tells it first.
    #[serde(skip)]
    pub notes: Vec<String>,
}

impl Default for TrainConfig {
    /// The defaults. Learning rate, rank and length are those usual for LoRA; the rest is the trainer of Hugging Face.
    fn default() -> Self {
        Self {
            model: String::new(),
            task: Task::Causal,
            train_file: Vec::new(),
            eval_file: Vec::new(),
            eval_fraction: None,
            output_dir: PathBuf::new(),
            overwrite: false,
            init_adapter: None,
            resume: None,
            preset: "auto".to_owned(),
            device: DeviceChoice::Auto,
            dtype: Dtype::F32,
            threads: None,
            max_tokens_per_pass: 4096,
            activation_policy: ActivationPolicy::Auto,
            memory_limit: None,
            gpu: None,
            num_epochs: 3.0,
            max_steps: None,
            batch_size: Some(8),
            tokens_per_batch: None,
            eval_batch_size: None,
            gradient_accumulation_steps: 1,
            learning_rate: 2e-4,
            lr_scheduler: LrScheduler::Linear,
            warmup_ratio: 0.0,
            warmup_steps: None,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            seed: 42,
            shuffle: true,
            max_seq_length: 2048,
            truncation: Truncation::Error,
            lora_r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            base_dropout: BaseDropoutMode::Off,
            target_modules: TargetModules::AllLinear,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: None,
            alpha_pattern: None,
            use_rslora: false,
            use_dora: false,
            quant: Quant::None,
            double_quant: true,
            format: Format::Auto,
            train_mode: TrainMode::Auto,
            escape_special: false,
            skip_empty: false,
            mask_history: false,
            share_prefix: false,
            loss: Loss::CrossEntropy,
            target_shift: TargetShift::None,
            num_labels: None,
            class_weights: None,
            pos_weight: None,
            label_smoothing: None,
            group_by: None,
            logging_steps: 10,
            eval_steps: None,
            save_steps: None,
            save_total_limit: None,
            metric_for_best_model: "eval_loss".to_owned(),
            greater_is_better: None,
            load_best_model_at_end: false,
            early_stopping_patience: None,
            dry_run: false,
            notes: Vec::new(),
        }
    }
}

impl Keyed for TrainConfig {
    const ALIASES: &'static [Alias] = aliases::TRAIN;
    const REPLACES: &'static [(&'static str, &'static str)] = &[
        ("batch_size", "tokens_per_batch"),
        ("tokens_per_batch", "batch_size"),
        ("num_epochs", "max_steps"),
        ("warmup_ratio", "warmup_steps"),
        ("eval_file", "eval_fraction"),
        ("eval_fraction", "eval_file"),
    ];
}

impl TrainConfig {
    /// The configuration that these options say: names and values as on the command line, over defaults and presets.
    ///
    /// ```
    /// use tanren::config::TrainConfig;
    /// let options = [
    ///     ("model", "Qwen/Qwen3-0.6B"),
    ///     ("train_file", "train.jsonl"),
    ///     ("output_dir", "runs/a"),
    ///     ("lora_rank", "32"),
    /// ];
    /// let config = TrainConfig::from_pairs(options)?;
    /// assert_eq!((config.lora_r, config.tokens_per_batch), (32, Some(4096)));
    /// # Ok::<(), tanren::error::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`TrainConfig::resolve`].
    pub fn from_pairs<K: Into<String>, V: Into<Value>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self> {
        Self::resolve(pairs.into_iter().collect(), None)
    }

    /// The configuration that a TOML file says.
    ///
    /// # Errors
    /// As [`TrainConfig::resolve`].
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::resolve(Options::new(), Some(path))
    }

    /// Lays defaults, the preset of the model, the settings of the adapter to start from, `file` and `flags` over each other, and
    /// checks the result.
    ///
    /// Names in `flags` are option names or aliases. Of a preset, `quant` and `double_quant` apply to CUDA devices only: it is
    /// the 10 GB of a card that asks for them. Where no `dtype` is given, a GPU (also one that is only planned for) gets bf16.
    /// Relative paths start at the current folder, in the file too.
    ///
    /// # Errors
    /// An input error of class `CONFIG` with file, line and option, or an I/O error if the file cannot be read.
    pub fn resolve(flags: Options, file: Option<&Path>) -> Result<Self> {
        let (config, layers) = Self::of_layers(Layers::given::<Self>(flags, file)?)?;
        config.check(&layers)?;
        Ok(config)
    }

    /// The same for a plan (`dry_run`), which needs neither rows nor an output folder.
    ///
    /// # Errors
    /// As [`TrainConfig::resolve`].
    pub fn resolve_plan(flags: Options, file: Option<&Path>) -> Result<Self> {
        // Said or not, in any spelling: it is a plan.
        let is_other = |(name, _): &(String, Value)| name.replace('-', "_") != "dry_run";
        let flags: Options = flags.into_iter().filter(is_other).collect();
        let (config, layers) = Self::of_layers(Layers::given::<Self>(flags.set("dry_run", true), file)?)?;
        config.check_plan(&layers)?;
        Ok(config)
    }

    /// The same from the text of a file alone; `path` is its name in messages.
    ///
    /// # Errors
    /// As [`TrainConfig::resolve`].
    pub fn from_toml(path: &Path, text: &str) -> Result<Self> {
        let (config, layers) = Self::of_layers(Layers::from_text::<Self>(path, text)?)?;
        config.check(&layers)?;
        Ok(config)
    }

    /// What was given, over defaults and presets.
    fn of_layers(given: Layers) -> Result<(Self, Layers)> {
        let mut layers = Layers::defaults::<Self>()?;
        let usual_loss = Self::default().loss.to_string();
        let preset = presets::of_model(&given)?;
        if let Some(variant) = preset {
            let mut options = variant.preset()?;
            let device = given.text("device").map(|name| DeviceChoice::try_from(name.to_owned()));
            if !matches!(device, Some(Ok(DeviceChoice::Cuda(_)))) {
                options.remove("quant");
                options.remove("double_quant");
            }
            layers = Layers::from_preset::<Self>(variant.name, options)?.over::<Self>(layers);
        }
        if let Some((path, settings)) = init_adapter::of(&given) {
            init_adapter::check(&given, &path, &settings)?;
            layers = Layers::from_adapter::<Self>(&path, settings)?.over::<Self>(layers);
        }
        let has_dtype = given.text("dtype").is_some();
        let has_loss =
            given.text("loss").is_some() || layers.text("loss").is_some_and(|loss| loss != usual_loss);
        let layers = given.over::<Self>(layers);
        layers.check_named()?;
        let mut config: Self = layers.read()?;
        if !has_dtype && (config.device.is_gpu() || config.gpu.is_some()) {
            config.dtype = Dtype::Bf16;
        }
        if !has_loss && config.task == Task::Regress {
            // As transformers does for numbers.
            config.loss = Loss::Mse;
        }
        config.notes = layers.notes().to_vec();
        config.preset = preset.map_or("none", |variant| variant.name).to_owned();
        if !config.metric_for_best_model.starts_with("eval_") {
            config.metric_for_best_model.insert_str(0, "eval_");
        }
        Ok((config, layers))
    }

    /// Checks every number and every pair of options that exclude each other.
    ///
    /// # Errors
    /// An input error of class `CONFIG` that names the option.
    pub fn validate(&self) -> Result<()> {
        // A plan needs neither rows nor an output folder.
        match self.dry_run {
            true => self.check_plan(&Layers::default()),
            false => self.check(&Layers::default()),
        }
    }

    /// The adapter.
    pub fn lora(&self) -> LoraConfig {
        LoraConfig {
            r: self.lora_r,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone().map(|blocks| blocks.0),
            layers_pattern: self.layers_pattern.clone(),
            rank_pattern: self.rank_pattern.clone().unwrap_or_default().0,
            alpha_pattern: self.alpha_pattern.clone().unwrap_or_default().0,
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
        }
    }

    /// How training rows are grouped.
    pub fn batching(&self) -> Batching {
        match (self.tokens_per_batch, self.batch_size) {
            (Some(tokens), _) => Batching::Tokens(tokens),
            (None, rows) => Batching::Samples(rows.unwrap_or(1)),
        }
    }

    /// How rows are grouped in an evaluation.
    pub fn eval_batching(&self) -> Batching {
        self.eval_batch_size.map_or_else(|| self.batching(), Batching::Samples)
    }

    /// Optimizer steps of the whole run, given those of one epoch.
    pub fn num_training_steps(&self, steps_per_epoch: u64) -> u64 {
        // The cast saturates, and no run has 2^53 steps.
        self.max_steps.unwrap_or_else(|| (self.num_epochs * steps_per_epoch as f64).ceil() as u64)
    }

    /// Steps of the warm-up, given those of the whole run; a ratio is rounded up, as in transformers.
    pub fn num_warmup_steps(&self, num_training_steps: u64) -> u64 {
        self.warmup_steps.unwrap_or_else(|| (self.warmup_ratio * num_training_steps as f64).ceil() as u64)
    }

    /// Whether `new` is a better value of `metric_for_best_model` than `best`.
    pub fn is_better(&self, new: f64, best: f64) -> bool {
        let falls = ["loss", "mse", "rmse", "mae", "perplexity"];
        let by_name = || !falls.iter().any(|name| self.metric_for_best_model.ends_with(name));
        if self.greater_is_better.unwrap_or_else(by_name) { new > best } else { new < best }
    }

    /// The configuration as TOML text that [`TrainConfig::resolve`] reads back to the same value.
    pub fn to_toml(&self) -> String {
        // Only a seed above 2^63 or a path that is not UTF-8 cannot be written, and `resolve` yields neither.
        toml::to_string(self).unwrap_or_else(|error| format!("# not representable: {error}\n"))
    }

    /// Refuses values that are valid but that this build cannot do yet.
    ///
    /// # Errors
    /// An input error of class `CONFIG` that names the option, its value, and what is supported.
    pub fn check_supported(&self) -> Result<()> {
        let group_by = if self.group_by.is_some() { "given" } else { "absent" };
        // A plan for a card may ask what f32 would take there.
        let dtypes = if self.gpu.is_some() { &["bf16", "f32"] } else { dtypes(self.device) };
        check(&[
            ("quant", self.quant.to_string(), supported("quant")),
            ("dtype", self.dtype.to_string(), dtypes),
            ("format", self.format.to_string(), supported("format")),
            ("group_by", group_by.to_owned(), supported("group_by")),
        ])
    }
}

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;
