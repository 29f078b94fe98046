//! What belongs to one adapter in training: its numbers, the rows and learning rates of its steps, where it is, and its log.
//!
//! A run holds a list of trainees over one frozen model; the device, the model and how steps are computed are the run's
//! ([`super::step::Stepper`]). A pass has the rows of one trainee, whose adapter is the first and only one that the pass knows.

use std::slice;

use serde_json::{Map, Value};

use super::evaluate::EvalMetrics;
use super::identity::Identity;
use super::log::Log;
use super::sampler::Sampler;
use super::state::TrainerState;
use super::sums::Sums;
use crate::config::TrainConfig;
use crate::device::{Class, Device, Machine, PendingCopy};
use crate::error::Result;
use crate::model::{Adapter, RecordedPass, Scorer};
use crate::optim::{Optimizer, Schedule, Update};
use crate::tensor::Real;

/// What a trainee has in the memory of the device: what a plan counts is what a run makes.
pub(super) struct Trainable<T: Real<Stat = f32>> {
    pub(super) adapter: Adapter<T>,
    /// The gradient of the step so far.
    pub(super) grads: Adapter<f32>,
    pub(super) optimizer: Optimizer<T>,
}

impl<T: Real<Stat = f32>> Trainable<T> {
    /// From the adapter in f32 that `master` makes on the device it is given, without any update yet.
    ///
    /// # Errors
    /// As `master`; [`crate::error::Error::Device`] if there is not so much memory.
    pub(super) fn new(device: &Device, master: impl FnOnce(&Device) -> Result<Adapter<f32>>) -> Result<Self> {
        let master = master(&device.class(Class::Master))?;
        let (optimizer, adapter) = Optimizer::with_master(device, master)?;
        let grads = adapter.zeros_like(&device.class(Class::Gradient))?;
        Ok(Self { adapter, grads, optimizer })
    }

    /// The adapters of a pass of this trainee.
    pub(super) fn adapters(&self) -> &[Adapter<T>] {
        slice::from_ref(&self.adapter)
    }

    /// The adapters of a pass of this trainee, and the gradients that it adds to.
    pub(super) fn adapters_and_grads(&mut self) -> (&[Adapter<T>], &mut [Adapter<f32>]) {
        (slice::from_ref(&self.adapter), slice::from_mut(&mut self.grads))
    }

    /// Makes the gradient zero before a step. On a GPU every update leaves zeros behind it.
    pub(super) fn clear_gradient(&mut self, device: &Device) {
        if device.machine() == Machine::Cpu {
            for tensor in self.grads.tensors_mut() {
                tensor.data_mut().fill(0.0);
            }
        }
    }

    /// As [`Optimizer::prepare`].
    pub(super) fn prepare_update(&mut self, device: &Device) -> Result<()> {
        self.optimizer.prepare(device, &mut self.adapter, &self.grads)
    }

    /// As [`Optimizer::update`].
    pub(super) fn update(&mut self, device: &Device, update: &Update) -> Result<f64> {
        self.optimizer.update(device, update, &mut self.adapter, &self.grads)
    }

    /// As [`Optimizer::start_update`].
    pub(super) fn start_update(
        &mut self,
        device: &Device,
        update: &Update,
        norm: &mut PendingCopy,
    ) -> Result<()> {
        self.optimizer.start_update(device, update, &mut self.adapter, &self.grads, norm)
    }
}

/// See the module text.
pub(super) struct Trainee<'a, T: Real<Stat = f32>> {
    pub(super) config: &'a TrainConfig,
    pub(super) trainable: Trainable<T>,
    /// Its pass as recorded launches, which know where the adapter and its gradient are; on a GPU only.
    pub(super) recorded: Option<RecordedPass<T>>,
    /// Scores the rows of an evaluation.
    pub(super) scorer: Scorer<T>,
    /// Which rows come in which step.
    pub(super) sampler: Sampler<'a>,
    pub(super) schedule: Schedule,
    pub(super) state: TrainerState,
    /// What must be the same for a later run to go on from its checkpoints.
    pub(super) identity: Identity,
    pub(super) log: Log,
    /// Step of the checkpoint that was saved last.
    pub(super) saved: Option<u64>,
    pub(super) last_eval: Option<EvalMetrics>,
    pub(super) stopped_early: bool,
    /// Sums of this process, and since the last log line.
    pub(super) all: Sums,
    pub(super) since_log: Sums,
}

impl<T: Real<Stat = f32>> Trainee<'_, T> {
    /// Whether a checkpoint is due after so many steps.
    pub(super) fn saves_after(&self, done: u64) -> bool {
        self.is_due(self.config.save_steps, done)
    }

    /// Whether an evaluation is due after so many steps, if there are rows for it.
    pub(super) fn evaluates_after(&self, done: u64) -> bool {
        self.is_due(self.config.eval_steps, done)
    }

    /// Whether `done` steps are a multiple of `every` or all there are; without `every`, whether they end an epoch.
    fn is_due(&self, every: Option<u64>, done: u64) -> bool {
        match every {
            Some(steps) => done.is_multiple_of(steps.max(1)) || done == self.sampler.total_steps(),
            None => self.sampler.ends_epoch(done),
        }
    }

    /// Whether the history has an evaluation after so many steps.
    pub(super) fn was_evaluated(&self, done: u64) -> bool {
        let of_step = |row: &&Map<String, Value>| row.get("step").and_then(Value::as_u64) == Some(done);
        self.state.log_history.iter().filter(of_step).any(|row| row.contains_key("eval_loss"))
    }

    /// Takes the metrics of an evaluation, and says whether this is the best so far.
    pub(super) fn judge(&mut self, metrics: &EvalMetrics) -> bool {
        let (config, state) = (self.config, &mut self.state);
        let value = metrics.get(&config.metric_for_best_model).unwrap_or(metrics.eval_loss);
        let step = state.global_step;
        let best = state.best_metric.is_none_or(|best| config.is_better(value, best));
        if best {
            state.best_metric = Some(value);
            state.best_global_step = Some(step);
            state.best_model_checkpoint = Some(format!("checkpoint-{step}"));
            state.evaluations_without_gain = 0;
        } else {
            state.evaluations_without_gain += 1;
        }
        self.stopped_early = patience_is_over(config, state);
        best
    }

    /// Keeps some keys of a log row in the history, as the form of Hugging Face has them.
    pub(super) fn remember(&mut self, row: &Map<String, Value>, keys: &[&str]) {
        let wanted = ["epoch", "step"].iter().chain(keys);
        let entry = wanted.filter_map(|&key| Some((key.to_owned(), row.get(key)?.clone()))).collect();
        self.state.log_history.push(entry);
    }
}

/// True if as many evaluations in a row were no gain as the user has patience for; also after a resume.
pub(super) fn patience_is_over(config: &TrainConfig, state: &TrainerState) -> bool {
    config.early_stopping_patience.is_some_and(|patience| state.evaluations_without_gain >= patience.max(1))
}
