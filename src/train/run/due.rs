//! What is due between two steps: evaluations, checkpoints, and an early end.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::Training;
use crate::config::TrainConfig;
use crate::error::Result;
use crate::formats::checkpoint;
use crate::tensor::Real;
use crate::train::checkpoint as state_files;
use crate::train::evaluate::evaluate;
use crate::train::event::Event;
use crate::train::state::TrainerState;

impl<T: Real<Stat = f32>> Training<'_, T> {
    /// What is due after a step.
    pub(super) fn evaluate_and_save(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let done = self.state.global_step;
        let mut best = false;
        if self.evaluates_after(done) {
            best = self.evaluate(watch)?;
        }
        if self.saves_after(done) || best || self.stopped_early {
            self.save(watch)?;
        }
        Ok(())
    }

    fn saves_after(&self, done: u64) -> bool {
        match self.config.save_steps {
            Some(steps) => done.is_multiple_of(steps.max(1)) || done == self.sampler.total_steps(),
            None => self.sampler.ends_epoch(done),
        }
    }

    /// Whether something needs the adapter as it is after so many steps.
    pub(super) fn pauses_after(&self, done: u64) -> bool {
        self.evaluates_after(done) || self.saves_after(done) || self.context.stopped()
    }

    pub(super) fn evaluates_after(&self, done: u64) -> bool {
        let due = match self.config.eval_steps {
            Some(steps) => done.is_multiple_of(steps.max(1)) || done == self.sampler.total_steps(),
            None => self.sampler.ends_epoch(done),
        };
        due && !self.prepared.eval.is_empty()
    }

    pub(super) fn was_evaluated(&self, done: u64) -> bool {
        let of_step = |row: &&Map<String, Value>| row.get("step").and_then(Value::as_u64) == Some(done);
        self.state.log_history.iter().filter(of_step).any(|row| row.contains_key("eval_loss"))
    }

    /// Evaluates, and says whether this is the best so far.
    fn evaluate(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<bool> {
        let prepared = self.prepared;
        let model = (&prepared.decoder, &prepared.device);
        let with = (&mut self.scorer, self.stepper.adapters.as_slice());
        let metrics = evaluate(self.config, model, with, &prepared.eval, self.context, watch)?;
        prepared.device.take_ledger();
        let value = metrics.get(&self.config.metric_for_best_model).unwrap_or(metrics.eval_loss);
        let step = self.state.global_step;
        let best = self.state.best_metric.is_none_or(|best| self.config.is_better(value, best));
        if best {
            self.state.best_metric = Some(value);
            self.state.best_global_step = Some(step);
            self.state.best_model_checkpoint = Some(format!("checkpoint-{step}"));
            self.state.evaluations_without_gain = 0;
        } else {
            self.state.evaluations_without_gain += 1;
        }
        self.stopped_early = patience_is_over(self.config, &self.state);
        let mut row = serde_json::to_value(metrics).unwrap_or_default();
        row["step"] = json!(step);
        row["epoch"] = json!(self.state.epoch);
        let row = self.log.write(&row)?;
        let keys: Vec<&str> = row.keys().map(String::as_str).filter(|k| k.starts_with("eval_")).collect();
        self.remember(&row, &keys);
        self.last_eval = Some(metrics);
        watch(Event::Evaluated { step, metrics: &metrics, best });
        Ok(best)
    }

    /// Saves a checkpoint of the current step if there is none, and removes old ones.
    pub(super) fn save(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf> {
        let config = self.config;
        let step = self.state.global_step;
        let path = config.output_dir.join(format!("checkpoint-{step}"));
        if self.saved == Some(step) {
            return Ok(path);
        }
        self.check_surroundings()?;
        let text = &self.prepared.text;
        state_files::save(config, &self.stepper, &self.state, (&self.identity, text))?;
        self.saved = Some(step);
        watch(Event::Saved { path: &path });
        if let Some(keep) = config.save_total_limit {
            let best: Vec<PathBuf> =
                self.state.best_model_checkpoint.iter().map(|name| config.output_dir.join(name)).collect();
            checkpoint::rotate(&config.output_dir, keep, &best)?;
        }
        Ok(path)
    }
}

/// True if as many evaluations in a row were no gain as the user has patience for; also after a resume.
pub(super) fn patience_is_over(config: &TrainConfig, state: &TrainerState) -> bool {
    config.early_stopping_patience.is_some_and(|patience| state.evaluations_without_gain >= patience.max(1))
}
