//! What a training tells whoever watches it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::evaluate::EvalMetrics;
use super::plan::Plan;
use crate::data::audit::Audit;
use crate::data::routing::Routing;
use crate::session::Notice;

/// One thing that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Notes, warnings, and the progress of opening model and rows.
    Notice(Notice),
    /// What a set of rows is like.
    Audit {
        /// "training" or "evaluation".
        name: &'static str,
        /// The findings.
        audit: &'a Audit,
        /// Rows by mode.
        routing: Routing,
    },
    /// What the run will cost.
    Planned(&'a Plan),
    /// Steps begin.
    Started {
        /// Steps that are done already (after a resume).
        done: u64,
        /// Steps of the whole run.
        total: u64,
        /// Steps of one epoch.
        steps_per_epoch: u64,
        /// Numbers that are trained.
        trainable: usize,
    },
    /// An optimizer step is done.
    Step(&'a StepLog),
    /// A line of the log: its loss, tokens per second and `sol` are those of all steps since the line before.
    Logged(&'a StepLog),
    /// Rows that are evaluated.
    Evaluating {
        /// So far.
        done: usize,
        /// In all.
        total: usize,
    },
    /// An evaluation is done.
    Evaluated {
        /// After this step.
        step: u64,
        /// The results.
        metrics: &'a EvalMetrics,
        /// True if no evaluation before was better.
        best: bool,
    },
    /// A checkpoint is complete.
    Saved {
        /// Its folder.
        path: &'a Path,
    },
}

impl From<Notice> for Event<'_> {
    fn from(notice: Notice) -> Self {
        Self::Notice(notice)
    }
}

/// One optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepLog {
    /// Number of the step, from 1.
    pub step: u64,
    /// Position in epochs after the step.
    pub epoch: f64,
    /// Loss per supervised token, in nats.
    pub loss: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Tokens of the step's rows.
    pub num_tokens: usize,
    /// Tokens that carry loss.
    pub num_supervised_tokens: usize,
    /// Seconds of the step.
    pub step_seconds: f64,
    /// Tokens of the rows per second.
    pub tokens_per_second: f64,
    /// Share of the speed of light, from 0 to 1: the model FLOPs of the step ([`crate::model::ModelFlops`]) over its seconds
    /// and the peak of the device. The peak is the sheet value of a known card for dense bf16; on the processor the rate of f32
    /// products on the threads of the run, measured at its start. What is computed again, the norms and the optimizer take time
    /// and do not count as work. None, and no key in the log, on other cards and on the emulator. In a line of the log that
    /// stands for several steps it is that of all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sol: Option<f64>,
}

/// How a training ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Optimizer steps in all.
    pub global_step: u64,
    /// Mean loss per supervised token over the steps of this process; none if it did no step.
    pub train_loss: Option<f64>,
    /// Best value of the metric, if there were evaluations.
    pub best_metric: Option<f64>,
    /// The checkpoint that has it.
    pub best_model_checkpoint: Option<PathBuf>,
    /// The last evaluation.
    pub eval: Option<EvalMetrics>,
    /// Steps without any weight, which made no update.
    pub empty_steps: u64,
    /// True if early stopping ended it.
    pub stopped_early: bool,
    /// Seconds of training, evaluation and saving.
    pub train_runtime: f64,
    /// Tokens per second over the steps of this process.
    pub tokens_per_second: f64,
    /// Share of the speed of light over these steps, as [`StepLog::sol`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sol: Option<f64>,
    /// Largest amount of memory for weights, adapter, activations and optimizer state at once, in bytes. Rows, the program and
    /// files in the page cache do not count.
    pub peak_bytes: u64,
}
