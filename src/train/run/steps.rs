//! The loop over the steps of a run: a GPU gets its next step while it works on this one.

use std::collections::VecDeque;
use std::time::Instant;

use serde_json::{Map, Value};

use super::Training;
use crate::error::{Error, Result};
use crate::tensor::Real;
use crate::train::event::{Event, StepLog};
use crate::train::prepare::Row;
use crate::train::sampler::StepRows;
use crate::train::step::{Started, check_learns};

impl<T: Real<Stat = f32>> Training<'_, T> {
    /// All steps that are left.
    pub(super) fn steps(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let result = self.steps_until_end(watch);
        match result {
            Err(Error::Stopped { .. }) => {
                let checkpoint = self.save(watch)?;
                Err(Error::Interrupted { step: self.state.global_step, checkpoint })
            }
            other => other,
        }
    }

    fn steps_until_end(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        // A run that was stopped before the evaluation of its last step makes up for it.
        let (done, total) = (self.state.global_step, self.sampler.total_steps());
        if done > 0 && self.evaluates_after(done) && !self.was_evaluated(done) {
            self.evaluate_and_save(watch)?;
        }
        let mut rows = StepRows::default();
        // Steps that were started, in their order. A GPU gets its next step while it works on this one.
        let ahead = if self.stepper.recorded.is_some() { 2 } else { 1 };
        let mut started: VecDeque<Started> = VecDeque::new();
        let mut last_end = Instant::now();
        let mut stop = None;
        while (self.state.global_step < total && !self.stopped_early) || !started.is_empty() {
            let next = self.state.global_step + started.len() as u64;
            let may_start = started.is_empty() || !self.pauses_after(next);
            if stop.is_none() && next < total && started.len() < ahead && may_start {
                match self.start_step(&mut rows, next) {
                    Ok(step) => started.push_back(step),
                    Err(error @ Error::Stopped { .. }) => stop = Some(error),
                    Err(error) => return Err(error),
                }
                if started.len() < ahead && stop.is_none() {
                    continue;
                }
            }
            let Some(step) = started.pop_front() else { break };
            let begin = step.begin(&self.prepared.device, last_end);
            self.finish_step(step, begin, watch)?;
            last_end = Instant::now();
            if started.is_empty() {
                self.evaluate_and_save(watch)?;
            }
            if self.context.stopped() && self.state.global_step < total {
                stop.get_or_insert(Error::Stopped { what: "stopped between two steps".into() });
            }
            if stop.is_some() && started.is_empty() {
                break;
            }
        }
        stop.map_or(Ok(()), Err)
    }

    /// Starts step `step` (from 0).
    fn start_step(&mut self, rows: &mut StepRows, step: u64) -> Result<Started> {
        let micro_batches = rows.of(&self.sampler, step)?;
        let pick = |batch: &Vec<usize>| batch.iter().map(|&i| &self.prepared.train[i]).collect();
        let micro_batches: Vec<Vec<&Row>> = micro_batches.iter().map(pick).collect();
        let learning_rate = self.schedule.learning_rate(step);
        self.stepper.start(step, learning_rate, &micro_batches, self.context)
    }

    /// Waits for a step that was started; its time counts from `begin`.
    fn finish_step(
        &mut self,
        started: Started,
        begin: Instant,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let learning_rate = self.schedule.learning_rate(self.state.global_step);
        // What was recorded was counted for its capacity, and not for the batch.
        let flops = match self.stepper.recorded {
            Some(_) => started.packed_tokens as f64 * self.flops_per_token,
            None => started.flops as f64,
        };
        let result = self.stepper.finish(started)?;
        let vocab_size = self.prepared.decoder.config.vocab_size;
        check_learns(&result, vocab_size, self.state.global_step + 1)?;
        let seconds = begin.elapsed().as_secs_f64();
        let state = &mut self.state;
        state.global_step += 1;
        state.epoch = self.sampler.position(state.global_step);
        state.num_input_tokens_seen += result.num_tokens as u64;
        state.total_flos += flops;
        state.empty_steps += u64::from(result.loss.is_none());
        self.all.add(&result, seconds);
        self.since_log.add(&result, seconds);
        let mut step_log = StepLog {
            step: state.global_step,
            epoch: state.epoch,
            loss: result.loss.unwrap_or(0.0),
            grad_norm: result.grad_norm,
            learning_rate,
            num_tokens: result.num_tokens,
            num_supervised_tokens: result.num_supervised_tokens,
            step_seconds: seconds,
            tokens_per_second: result.num_tokens as f64 / seconds,
            sol: self.peak.and_then(|peak| peak.share(result.model_flops, seconds)),
        };
        watch(Event::Step(&step_log));
        let last = state.global_step == self.sampler.total_steps();
        if state.global_step.is_multiple_of(self.config.logging_steps.max(1)) || last {
            // A line covers the steps since the one before, as the Hugging Face trainer has it.
            let sums = std::mem::take(&mut self.since_log);
            step_log.loss = sums.mean_loss().unwrap_or(0.0);
            step_log.tokens_per_second = sums.tokens_per_second();
            step_log.sol = sums.sol(self.peak);
            self.lock.check()?;
            let row = self.log.write(&step_log)?;
            watch(Event::Logged(&step_log));
            self.remember(&row, &["loss", "grad_norm", "learning_rate"]);
        }
        Ok(())
    }

    /// Keeps some keys of a log row in the history, as the form of Hugging Face has them.
    pub(super) fn remember(&mut self, row: &Map<String, Value>, keys: &[&str]) {
        let wanted = ["epoch", "step"].iter().chain(keys);
        let entry = wanted.filter_map(|&key| Some((key.to_owned(), row.get(key)?.clone()))).collect();
        self.state.log_history.push(entry);
    }
}
