//! What is due between two steps: evaluations, checkpoints, and an early end.

use std::path::PathBuf;

use serde_json::json;

use super::Training;
use crate::error::Result;
use crate::formats::checkpoint;
use crate::tensor::Real;
use crate::train::checkpoint as state_files;
use crate::train::evaluate::evaluate;
use crate::train::event::Event;

impl<T: Real<Stat = f32>> Training<'_, T> {
    /// What is due after a step of trainee `index`.
    pub(super) fn evaluate_and_save(&mut self, index: usize, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let done = self.trainees[index].state.global_step;
        let mut best = false;
        if self.evaluates_after(index, done) {
            best = self.evaluate(index, watch)?;
        }
        let trainee = &self.trainees[index];
        if trainee.saves_after(done) || best || trainee.stopped_early {
            self.save(index, watch)?;
        }
        Ok(())
    }

    /// Whether something needs the adapter as it is after so many steps.
    pub(super) fn pauses_after(&self, index: usize, done: u64) -> bool {
        self.evaluates_after(index, done) || self.trainees[index].saves_after(done) || self.context.stopped()
    }

    pub(super) fn evaluates_after(&self, index: usize, done: u64) -> bool {
        !self.prepared.eval.is_empty() && self.trainees[index].evaluates_after(done)
    }

    /// Evaluates, and says whether this is the best so far.
    fn evaluate(&mut self, index: usize, watch: &mut dyn FnMut(Event<'_>)) -> Result<bool> {
        let (prepared, trainee) = (self.prepared, &mut self.trainees[index]);
        let model = (&prepared.decoder, &prepared.device);
        let with = (&mut trainee.scorer, trainee.trainable.adapters());
        let metrics =
            evaluate((self.config, &prepared.task), model, with, &prepared.eval, self.context, watch)?;
        prepared.device.take_ledger();
        let best = trainee.judge(&metrics);
        let step = trainee.state.global_step;
        let mut row = serde_json::to_value(metrics).unwrap_or_default();
        row["step"] = json!(step);
        row["epoch"] = json!(trainee.state.epoch);
        let row = trainee.log.write(&row)?;
        let keys: Vec<&str> = row.keys().map(String::as_str).filter(|k| k.starts_with("eval_")).collect();
        trainee.remember(&row, &keys);
        trainee.last_eval = Some(metrics);
        watch(Event::Evaluated { step, metrics: &metrics, best });
        Ok(best)
    }

    /// Saves a checkpoint of the current step if there is none, and removes old ones.
    pub(super) fn save(&mut self, index: usize, watch: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf> {
        let config = self.config;
        let trainee = &self.trainees[index];
        let step = trainee.state.global_step;
        let path = config.output_dir.join(format!("checkpoint-{step}"));
        if trainee.saved == Some(step) {
            return Ok(path);
        }
        self.check_surroundings()?;
        state_files::save(&self.prepared.device, trainee, (&self.prepared.text, &self.prepared.label_files))?;
        let trainee = &mut self.trainees[index];
        trainee.saved = Some(step);
        watch(Event::Saved { path: &path });
        if let Some(keep) = config.save_total_limit {
            let best: Vec<PathBuf> =
                trainee.state.best_model_checkpoint.iter().map(|name| config.output_dir.join(name)).collect();
            checkpoint::rotate(&config.output_dir, keep, &best)?;
        }
        Ok(path)
    }
}
