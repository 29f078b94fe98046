//! The loop over the steps of a run: a GPU gets its next step while it works on this one.

use std::collections::VecDeque;
use std::time::Instant;

use super::Training;
use crate::error::{Error, Result};
use crate::tensor::Real;
use crate::train::event::{Event, StepLog};
use crate::train::prepare::Row;
use crate::train::sampler::StepRows;
use crate::train::step::Started;

impl<T: Real<Stat = f32>> Training<'_, T> {
    /// All steps that are left of trainee `index`.
    pub(super) fn steps(&mut self, index: usize, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let result = self.steps_until_end(index, watch);
        match result {
            Err(Error::Stopped { .. }) => {
                let checkpoint = self.save(index, watch)?;
                Err(Error::Interrupted { step: self.trainees[index].state.global_step, checkpoint })
            }
            other => other,
        }
    }

    fn steps_until_end(&mut self, index: usize, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let trainee = &self.trainees[index];
        let (done, total) = (trainee.state.global_step, trainee.sampler.total_steps());
        // Steps that were started, in their order. A GPU gets its next step while it works on this one.
        let ahead = if trainee.recorded.is_some() { 2 } else { 1 };
        // A run that was stopped before the evaluation of its last step makes up for it.
        if done > 0 && self.evaluates_after(index, done) && !trainee.was_evaluated(done) {
            self.evaluate_and_save(index, watch)?;
        }
        let mut rows = StepRows::default();
        let mut started: VecDeque<Started> = VecDeque::new();
        let mut last_end = Instant::now();
        let mut stop = None;
        loop {
            let trainee = &self.trainees[index];
            let done = trainee.state.global_step;
            if (done >= total || trainee.stopped_early) && started.is_empty() {
                break;
            }
            let next = done + started.len() as u64;
            let may_start = started.is_empty() || !self.pauses_after(index, next);
            if stop.is_none() && next < total && started.len() < ahead && may_start {
                match self.start_step(index, &mut rows, next) {
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
            self.finish_step(index, (step, begin), watch)?;
            last_end = Instant::now();
            if started.is_empty() {
                self.evaluate_and_save(index, watch)?;
            }
            if self.context.stopped() && self.trainees[index].state.global_step < total {
                stop.get_or_insert(Error::Stopped { what: "stopped between two steps".into() });
            }
            if stop.is_some() && started.is_empty() {
                break;
            }
        }
        stop.map_or(Ok(()), Err)
    }

    /// Starts step `step` (from 0) of trainee `index`.
    fn start_step(&mut self, index: usize, rows: &mut StepRows, step: u64) -> Result<Started> {
        let trainee = &mut self.trainees[index];
        let micro_batches = rows.of(&trainee.sampler, step)?;
        let pick = |batch: &Vec<usize>| batch.iter().map(|&i| &self.prepared.train[i]).collect();
        let micro_batches: Vec<Vec<&Row>> = micro_batches.iter().map(pick).collect();
        self.stepper.start(trainee, step, &micro_batches, self.context)
    }

    /// Waits for a step that was started; its time counts from `begin`.
    fn finish_step(
        &mut self,
        index: usize,
        (started, begin): (Started, Instant),
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let trainee = &mut self.trainees[index];
        let done = trainee.state.global_step;
        let learning_rate = trainee.schedule.learning_rate(done);
        // What was recorded was counted for its capacity, and not for the batch.
        let flops = match trainee.recorded {
            Some(_) => started.packed_tokens as f64 * self.flops_per_token,
            None => started.flops as f64,
        };
        let result = self.stepper.finish(trainee, started)?;
        let vocab_size = self.prepared.decoder.config.vocab_size;
        self.stepper.task.check_learns(&result, vocab_size, done + 1)?;
        let seconds = begin.elapsed().as_secs_f64();
        let state = &mut trainee.state;
        state.global_step += 1;
        state.epoch = trainee.sampler.position(state.global_step);
        state.num_input_tokens_seen += result.num_tokens as u64;
        state.total_flos += flops;
        state.empty_steps += u64::from(result.loss.is_none());
        trainee.all.add(&result, seconds);
        trainee.since_log.add(&result, seconds);
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
        let last = state.global_step == trainee.sampler.total_steps();
        if state.global_step.is_multiple_of(self.config.logging_steps.max(1)) || last {
            // A line covers the steps since the one before, as the Hugging Face trainer has it.
            let sums = std::mem::take(&mut trainee.since_log);
            step_log.loss = sums.mean_loss().unwrap_or(0.0);
            step_log.tokens_per_second = sums.tokens_per_second();
            step_log.sol = sums.sol(self.peak);
            self.lock.check()?;
            let row = trainee.log.write(&step_log)?;
            watch(Event::Logged(&step_log));
            trainee.remember(&row, &["loss", "grad_norm", "learning_rate"]);
        }
        Ok(())
    }
}
