//! `trainer_state.json`, in the form of the Hugging Face trainer (4.57).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::TrainConfig;
use crate::error::{Error, Result};

/// Where a training is, apart from the numbers it trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Step of the best evaluation.
    pub best_global_step: Option<u64>,
    /// Best value of the metric.
    pub best_metric: Option<f64>,
    /// Name of the checkpoint folder that has it.
    pub best_model_checkpoint: Option<String>,
    /// Position in epochs.
    pub epoch: f64,
    /// Steps between evaluations, 0 for once an epoch.
    pub eval_steps: u64,
    /// Optimizer steps done.
    pub global_step: u64,
    /// Always false; the form has it.
    pub is_hyper_param_search: bool,
    /// Always true: one process.
    pub is_local_process_zero: bool,
    /// Always true: one process.
    pub is_world_process_zero: bool,
    /// What was logged: training rows and evaluation rows.
    pub log_history: Vec<Map<String, Value>>,
    /// Steps between log rows.
    pub logging_steps: u64,
    /// Steps of the whole run.
    pub max_steps: u64,
    /// Tokens of all rows so far.
    pub num_input_tokens_seen: u64,
    /// Epochs of the whole run, rounded up.
    pub num_train_epochs: u64,
    /// Steps between checkpoints, 0 for once an epoch.
    pub save_steps: u64,
    /// Counters of the stopping rules.
    pub stateful_callbacks: Value,
    /// Floating-point operations so far.
    pub total_flos: f64,
    /// Rows of a micro-batch; null where batches are filled by tokens.
    pub train_batch_size: Option<usize>,
    /// Always null.
    pub trial_name: Option<String>,
    /// Always null.
    pub trial_params: Option<Value>,
    /// Evaluations in a row that were not better. Ours, beside the form.
    #[serde(default)]
    pub evaluations_without_gain: usize,
    /// Steps without any weight. Ours, beside the form.
    #[serde(default)]
    pub empty_steps: u64,
}

impl TrainerState {
    /// The state before the first step.
    pub(super) fn new(config: &TrainConfig, total_steps: u64, steps_per_epoch: u64) -> Self {
        Self {
            best_global_step: None,
            best_metric: None,
            best_model_checkpoint: None,
            epoch: 0.0,
            eval_steps: config.eval_steps.unwrap_or(0),
            global_step: 0,
            is_hyper_param_search: false,
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: Vec::new(),
            logging_steps: config.logging_steps,
            max_steps: total_steps,
            num_input_tokens_seen: 0,
            num_train_epochs: total_steps.div_ceil(steps_per_epoch.max(1)),
            save_steps: config.save_steps.unwrap_or(0),
            stateful_callbacks: json!({}),
            total_flos: 0.0,
            train_batch_size: config.batch_size.filter(|_| config.tokens_per_batch.is_none()),
            trial_name: None,
            trial_params: None,
            evaluations_without_gain: 0,
            empty_steps: 0,
        }
    }

    /// The text of the file: indented by 2, keys sorted, with a line end, as the trainer writes it.
    pub(super) fn to_json(&self) -> String {
        let text = serde_json::to_value(self).map(|mut value| {
            value.sort_all_objects();
            format!("{value:#}\n")
        });
        // No key is anything but a string, so this cannot fail.
        text.unwrap_or_default()
    }

    /// Reads the file of a checkpoint.
    ///
    /// # Errors
    /// An input error that names the file.
    pub fn from_json(path: &std::path::Path, text: &[u8]) -> Result<Self> {
        serde_json::from_slice(text).map_err(|e| {
            Error::input("CHECKPOINT", format!("not a trainer state of tanren: {e}"))
                .path(path)
                .line(e.line())
                .fix("resume from another checkpoint")
                .into()
        })
    }
}
