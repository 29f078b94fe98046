//! The options of `tanren train`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::{DATA, RowArgs, typed_options, words};
use crate::config::{
    BaseDropoutMode, Format, Loss, LrScheduler, Options, Quant, TargetShift, Task, TrainMode,
};
use crate::error::Result;

const MODEL: &str = "Model and adapter";
const STEPS: &str = "Steps and batches";
const OPTIMIZER: &str = "Optimizer";
const OUTPUT: &str = "Output and evaluation";
const MACHINE: &str = "Machine";

pub(super) const EXAMPLES: &str = "\
Examples:
  The smallest training:
    tanren train --model Qwen/Qwen3-0.6B --train-file train.jsonl --output-dir runs/first

  Everything in a file, one value changed:
    tanren train --config run.toml --learning-rate 1e-4

  The names of other tools work too, and what means nothing here is said and left out:
    tanren train --model_name_or_path ./qwen --train_file train.jsonl --output_dir runs/hf \\
        --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --num_train_epochs 3 \\
        --lora_r 32 --lora_alpha 64 --lora_dropout 0.05

  Go on after an interruption; check everything without training:
    tanren train --config run.toml --resume auto
    tanren train --config run.toml --dry-run

A TOML file has the same options with _ for - (lora_r = 16). Flags override the file, the file
overrides the preset of the model, and the preset overrides the defaults. Relative paths start at
the current folder.";

/// `tanren train`: what was typed.
#[derive(Debug, Default, Args, Serialize)]
#[command(allow_negative_numbers = true)]
pub struct TrainArgs {
    /// TOML file with options.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,

    /// Model folder or Hugging Face id.
    #[arg(long, value_name = "DIR|HF_ID", help_heading = MODEL)]
    model: Option<String>,
    /// What the model learns.
    #[arg(long, value_parser = words(Task::WORDS), help_heading = MODEL)]
    task: Option<String>,
    /// Adapter folder to start from.
    #[arg(long, value_name = "DIR", help_heading = MODEL)]
    init_adapter: Option<PathBuf>,
    /// Rank of the adapter.
    #[arg(long, value_name = "N", help_heading = MODEL)]
    lora_r: Option<usize>,
    /// Numerator of the adapter's scale, alpha / r.
    #[arg(long, value_name = "X", help_heading = MODEL)]
    lora_alpha: Option<f64>,
    /// Probability that an input of the adapter is dropped, from 0 to below 1.
    #[arg(long, value_name = "X", help_heading = MODEL)]
    lora_dropout: Option<f64>,
    /// Dropout of the frozen model, as config.json has it: none, all but that of attention weights, or all [default: off].
    #[arg(long, value_parser = words(BaseDropoutMode::WORDS), help_heading = MODEL)]
    base_dropout: Option<String>,
    /// Linear layers with an adapter: names with commas or spaces between (q_proj, or a path or its end), a regular expression
    /// for whole paths, or all-linear.
    #[arg(long, value_name = "NAMES", num_args = 1.., help_heading = MODEL)]
    target_modules: Option<Vec<String>>,
    /// Linear layers that match and get no adapter: names, or a regular expression.
    #[arg(long, value_name = "NAMES", num_args = 1.., help_heading = MODEL)]
    exclude_modules: Option<Vec<String>>,
    /// Blocks whose layers get an adapter, counted from 0 [default: all].
    #[arg(long, value_name = "N,N", num_args = 1.., help_heading = MODEL)]
    layers_to_transform: Option<Vec<String>>,
    /// Name of the list of blocks that --layers-to-transform counts in [default: any].
    #[arg(long, value_name = "NAME", num_args = 1.., help_heading = MODEL)]
    layers_pattern: Option<Vec<String>>,
    /// Ranks of single layers, by name or regular expression; the first match counts.
    #[arg(long, value_name = "NAME=N", num_args = 1.., help_heading = MODEL)]
    rank_pattern: Option<Vec<String>>,
    /// Alphas of single layers, by name or regular expression; the first match counts.
    #[arg(long, value_name = "NAME=X", num_args = 1.., help_heading = MODEL)]
    alpha_pattern: Option<Vec<String>>,
    /// Scale the adapter by alpha / sqrt(r).
    #[arg(long, value_name = "true|false", help_heading = MODEL)]
    use_rslora: Option<bool>,
    /// Split weights into magnitude and direction (DoRA).
    #[arg(long, value_name = "true|false", help_heading = MODEL)]
    use_dora: Option<bool>,
    /// How base weights are stored.
    #[arg(long, value_parser = words(Quant::WORDS), help_heading = MODEL)]
    quant: Option<String>,
    /// Quantize the scales of 4-bit blocks too.
    #[arg(long, value_name = "true|false", help_heading = MODEL)]
    double_quant: Option<bool>,
    /// Variant whose preset fills in what is not given: auto (by the model), none, or a name.
    #[arg(long, value_name = "NAME", help_heading = MODEL)]
    preset: Option<String>,

    /// File with training rows (.jsonl, .csv); may be given several times, rows are mixed.
    #[arg(long, value_name = "FILE", help_heading = DATA)]
    train_file: Option<Vec<PathBuf>>,
    /// File with rows to evaluate on; may be given several times.
    #[arg(long, value_name = "FILE", help_heading = DATA)]
    eval_file: Option<Vec<PathBuf>>,
    /// Training rows to evaluate on instead: a part of them if below 1 (0.1), else so many (100).
    #[arg(long, value_name = "X", help_heading = DATA)]
    eval_fraction: Option<f64>,
    /// How a row becomes one text.
    #[arg(long, value_parser = words(Format::WORDS), help_heading = DATA)]
    format: Option<String>,
    /// Which rows take part, by meta.mode: direct answers, reasoning, or all.
    #[arg(long, value_parser = words(TrainMode::WORDS), help_heading = DATA)]
    train_mode: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    rows: RowArgs,
    /// Bring rows into a new random order every epoch.
    #[arg(long, value_name = "true|false", help_heading = DATA)]
    shuffle: Option<bool>,
    /// Compute a start that rows of one pass have in common once: the same gradient, less work; with dropout, one mask for it.
    #[arg(long, value_name = "true|false", help_heading = DATA)]
    share_prefix: Option<bool>,
    /// Column by which rows are divided into separate trainings.
    #[arg(long, value_name = "COLUMN", help_heading = DATA)]
    group_by: Option<String>,
    /// The loss.
    #[arg(long, value_parser = words(Loss::WORDS), help_heading = DATA)]
    loss: Option<String>,
    /// How regression targets are moved, by numbers of the training file.
    #[arg(long, value_parser = words(TargetShift::WORDS), help_heading = DATA)]
    target_shift: Option<String>,
    /// Outputs of the head in the tasks classify and regress [default: as many as the labels of the rows need].
    #[arg(long, value_name = "N", help_heading = DATA)]
    num_labels: Option<usize>,
    /// Weights of the classes in the cross-entropy: numbers with commas between, or balanced [default: 1 for each].
    #[arg(long, value_name = "X,X|balanced", num_args = 1.., help_heading = DATA)]
    class_weights: Option<Vec<String>>,
    /// Weights of the positive targets of every output with the loss bce [default: 1 for each].
    #[arg(long, value_name = "X,X", num_args = 1.., help_heading = DATA)]
    pos_weight: Option<Vec<String>>,
    /// Share of the cross-entropy of classes that goes to all of them alike [default: 0].
    #[arg(long, value_name = "X", help_heading = DATA)]
    label_smoothing: Option<f64>,

    /// Times through the training rows; may be a fraction.
    #[arg(long, value_name = "N", help_heading = STEPS)]
    num_epochs: Option<f64>,
    /// Optimizer steps; overrides --num-epochs.
    #[arg(long, value_name = "N", help_heading = STEPS)]
    max_steps: Option<u64>,
    /// Rows per micro-batch.
    #[arg(long, value_name = "N", help_heading = STEPS)]
    batch_size: Option<usize>,
    /// Tokens per micro-batch, instead of --batch-size; a longer row is an error.
    #[arg(long, value_name = "N", help_heading = STEPS)]
    tokens_per_batch: Option<usize>,
    /// Micro-batches per optimizer step.
    #[arg(long, value_name = "N", help_heading = STEPS)]
    gradient_accumulation_steps: Option<usize>,

    /// Learning rate after the warm-up.
    #[arg(long, value_name = "X", help_heading = OPTIMIZER)]
    learning_rate: Option<f64>,
    /// Course of the learning rate after the warm-up.
    #[arg(long, value_parser = words(LrScheduler::WORDS), help_heading = OPTIMIZER)]
    lr_scheduler: Option<String>,
    /// Part of all steps in which the learning rate grows from 0.
    #[arg(long, value_name = "X", help_heading = OPTIMIZER)]
    warmup_ratio: Option<f64>,
    /// Steps in which the learning rate grows from 0; overrides --warmup-ratio.
    #[arg(long, value_name = "N", help_heading = OPTIMIZER)]
    warmup_steps: Option<u64>,
    /// Decoupled weight decay of AdamW.
    #[arg(long, value_name = "X", help_heading = OPTIMIZER)]
    weight_decay: Option<f64>,
    /// Decay of the mean of gradients.
    #[arg(long, value_name = "X", help_heading = OPTIMIZER)]
    adam_beta1: Option<f64>,
    /// Decay of the mean of squared gradients.
    #[arg(long, value_name = "X", help_heading = OPTIMIZER)]
    adam_beta2: Option<f64>,
    /// Added to the root of the mean of squared gradients.
    #[arg(long, value_name = "X", help_heading = OPTIMIZER)]
    adam_epsilon: Option<f64>,
    /// Longest gradient norm; longer gradients are scaled down, 0 switches clipping off.
    #[arg(long, value_name = "X", help_heading = OPTIMIZER)]
    max_grad_norm: Option<f64>,
    /// Seed of initial weights, order and dropout.
    #[arg(long, value_name = "N", help_heading = OPTIMIZER)]
    seed: Option<u64>,

    /// Folder for the adapter, the logs and the checkpoints.
    #[arg(long, value_name = "DIR", help_heading = OUTPUT)]
    output_dir: Option<PathBuf>,
    /// Replace another run in the output folder.
    #[arg(long, value_name = "true|false", help_heading = OUTPUT)]
    overwrite: Option<bool>,
    /// Go on from the newest complete checkpoint (auto) or from this checkpoint folder.
    #[arg(long, value_name = "auto|DIR", num_args = 0..=1, default_missing_value = "auto", help_heading = OUTPUT)]
    resume: Option<PathBuf>,
    /// Check everything and print the plan, train nothing.
    #[arg(long, value_name = "true|false", help_heading = OUTPUT)]
    dry_run: Option<bool>,
    /// Steps between log lines.
    #[arg(long, value_name = "N", help_heading = OUTPUT)]
    logging_steps: Option<u64>,
    /// Steps between checkpoints [default: the end of every epoch].
    #[arg(long, value_name = "N", help_heading = OUTPUT)]
    save_steps: Option<u64>,
    /// Checkpoints to keep [default: all].
    #[arg(long, value_name = "N", help_heading = OUTPUT)]
    save_total_limit: Option<usize>,
    /// Steps between evaluations [default: the end of every epoch].
    #[arg(long, value_name = "N", help_heading = OUTPUT)]
    eval_steps: Option<u64>,
    /// Rows per batch of an evaluation [default: as in training].
    #[arg(long, value_name = "N", help_heading = OUTPUT)]
    eval_batch_size: Option<usize>,
    /// Measure that decides which checkpoint is best.
    #[arg(long, value_name = "NAME", help_heading = OUTPUT)]
    metric_for_best_model: Option<String>,
    /// Whether larger is better [default: by the name of the measure].
    #[arg(long, value_name = "true|false", help_heading = OUTPUT)]
    greater_is_better: Option<bool>,
    /// Make the best checkpoint the final adapter instead of the last one.
    #[arg(long, value_name = "true|false", help_heading = OUTPUT)]
    load_best_model_at_end: Option<bool>,
    /// Evaluations without a better measure after which training ends [default: never].
    #[arg(long, value_name = "N", help_heading = OUTPUT)]
    early_stopping_patience: Option<usize>,

    /// Compute device: auto, cpu, cuda, cuda:N or emulated.
    #[arg(long, value_name = "DEVICE", help_heading = MACHINE)]
    device: Option<String>,
    /// Type of weights and activations: f32 on the CPU, bf16 on a GPU; adapters and their optimizer state are always f32.
    #[arg(long, value_parser = words(crate::config::Dtype::WORDS), help_heading = MACHINE)]
    dtype: Option<String>,
    /// CPU threads [default: all cores].
    #[arg(long, value_name = "N", help_heading = MACHINE)]
    threads: Option<usize>,
    /// Maximum tokens per pass; bounds memory, never changes results.
    #[arg(long, value_name = "N", help_heading = MACHINE)]
    max_tokens_per_pass: Option<usize>,
    /// What blocks keep for the backward pass: memory against work, never other results.
    #[arg(long, value_parser = words(crate::config::ActivationPolicy::WORDS), help_heading = MACHINE)]
    activation_policy: Option<String>,
    /// Most memory for weights, adapter, activations and optimizer, such as 9.3GiB or 10GB [default: 80% of what is free].
    #[arg(long, value_name = "SIZE", help_heading = MACHINE)]
    memory_limit: Option<String>,
    /// Plan for this card instead of this machine: rtx3080, rtx3090, rtx4090, rtx5080, rtx5090, a100, h100, h200; with --dry-run.
    #[arg(long, value_name = "CARD", help_heading = MACHINE)]
    gpu: Option<String>,

    /// An option of another tool, `name=value`; the configuration answers it.
    #[arg(long, hide = true)]
    #[serde(skip)]
    option_of_another_tool: Vec<String>,
}

impl TrainArgs {
    /// The TOML file to read, if any.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The options that were typed, as a layer for [`crate::config::TrainConfig::resolve`].
    ///
    /// # Errors
    /// An input error for texts that are not UTF-8 and numbers of 2^63 and more.
    pub fn flags(&self) -> Result<Options> {
        typed_options(self, &self.option_of_another_tool)
    }
}
