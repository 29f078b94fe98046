//! One optimizer step: micro-batches in passes that fit the memory, one loss over all of them, one update.

use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::config::TrainConfig;
use crate::device::{Device, PendingCopy};
use crate::error::{Error, Result};
use crate::model::{Decoder, DropoutStep, ModelFlops, PassCapacity, PassOptions, PendingScores, Policies};
use crate::optim::Update;
use crate::session::Context;
use crate::tensor::Real;

use super::graphs::{PassCapacities, Recorded, record};
use super::passes::{PackAs, fitting, passes_of};
use super::prepare::Row;
use super::task::Task;
use super::trainee::{Trainable, Trainee};

/// What one step found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct StepResult {
    /// Mean loss of the tokens or labels; none without any weight, and then there was no update.
    pub(super) loss: Option<f64>,
    pub(super) grad_norm: f64,
    pub(super) num_tokens: usize,
    pub(super) num_supervised_tokens: usize,
    /// Model FLOPs of its passes.
    pub(super) model_flops: u64,
}

/// Computes the steps of trainees, with what these share.
pub(super) struct Stepper<'a, T: Real<Stat = f32>> {
    pub(super) config: &'a TrainConfig,
    pub(super) task: &'a Task,
    pub(super) pack_as: PackAs,
    pub(super) device: &'a Device,
    pub(super) decoder: &'a Decoder<T>,
    pub(super) policies: Policies,
    pub(super) model_flops: ModelFlops,
    /// Pending copies of steps that are finished, for those to come.
    pub(super) spare: Spare,
    /// What passes are cut to, where not all of them were looked at before.
    pub(super) capacity: Option<PassCapacity>,
}

/// Pending copies of scores and of norms.
#[derive(Default)]
pub(super) struct Spare {
    scores: Vec<PendingScores>,
    norms: Vec<PendingCopy>,
}

/// A step that was started. On a CPU it is done, on a GPU its results are on their way.
pub(super) struct Started {
    step: u64,
    result: StepResult,
    scale: f64,
    /// Floating-point operations.
    pub(super) flops: u64,
    /// Tokens that were computed: shared starts once.
    pub(super) packed_tokens: usize,
    passes: Vec<Pass>,
    norm: Option<PendingCopy>,
    /// Where its rows come from, for messages.
    places: Vec<String>,
    begin: Instant,
    /// Time that starting it took: on a device that finishes what it starts, most of the step's.
    start_time: Duration,
}

/// A pass whose scores are on their way.
struct Pass {
    scores: PendingScores,
    weights: Vec<f64>,
    places: Vec<String>,
}

impl Started {
    /// When the time of the step began, if the step before it ended at `last_end`: a card works on one after the other, other
    /// devices have done the work while it was started.
    pub(super) fn begin(&self, device: &Device, last_end: Instant) -> Instant {
        match device.is_card() {
            true => self.begin.max(last_end),
            false => Instant::now().checked_sub(self.start_time).unwrap_or(self.begin),
        }
    }
}

impl<T: Real<Stat = f32>> Stepper<'_, T> {
    /// Records the launches of passes of a trainee with at most `capacities`, where the device can.
    ///
    /// # Errors
    /// [`Error::Device`] if there is not so much memory.
    pub(super) fn record(
        &self,
        capacities: PassCapacities,
        trainable: &mut Trainable<T>,
    ) -> Result<Recorded<T>> {
        if self.device.arena().is_none() {
            return Ok(Recorded { training: None, evaluation: None });
        }
        let asked = (self.config, self.policies.as_slice());
        record(asked, self.task.label_loss(), (self.device, self.decoder), capacities, trainable)
    }

    /// Starts optimizer step `step` (from 0) of `trainee` on its micro-batches of rows.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the context asks to stop; the adapter is unchanged. As [`Stepper::finish`] on a CPU.
    pub(super) fn start(
        &mut self,
        trainee: &mut Trainee<'_, T>,
        step: u64,
        micro_batches: &[Vec<&Row>],
        context: &Context,
    ) -> Result<Started> {
        let begin = Instant::now();
        self.device.take_ledger();
        trainee.trainable.clear_gradient(self.device);
        let rows = || micro_batches.iter().flatten();
        let num_supervised_tokens: usize = rows().map(|r| r.example.supervised()).sum();
        let num_tokens = rows().map(|r| r.example.len()).sum();
        let result =
            StepResult { loss: None, grad_norm: 0.0, num_tokens, num_supervised_tokens, model_flops: 0 };
        let weight: f64 = rows().map(|row| self.task.weight(row)).sum();
        let scale = if weight > 0.0 { 1.0 / weight } else { 1.0 };
        let places = places(&rows().copied().collect::<Vec<_>>());
        let mut started = Started {
            step,
            result,
            scale,
            flops: 0,
            packed_tokens: 0,
            passes: Vec::new(),
            norm: None,
            places,
            begin,
            start_time: Duration::ZERO,
        };
        if weight <= 0.0 {
            started.start_time = begin.elapsed();
            return Ok(started);
        }
        let mut total = 0.0;
        let mut first_sample = 0;
        for micro_batch in micro_batches {
            for pass in passes_of(micro_batch, self.config) {
                context.check_stop(&format!("stopped within step {}", step + 1))?;
                for (batch, rows) in fitting(pass, self.pack_as, first_sample, self.capacity) {
                    started.packed_tokens += batch.total_tokens();
                    started.result.model_flops += self.model_flops.forward_and_backward(&batch);
                    first_sample += rows.len() as u32;
                    total += self.pass(trainee, &mut started, &batch, rows)?;
                }
            }
        }
        let update = update(self.config, trainee.schedule.learning_rate(step));
        let (device, trainable) = (self.device, &mut trainee.trainable);
        if trainee.recorded.is_some() {
            let mut norm = self.spare.norms.pop().unwrap_or_else(|| PendingCopy::new(device));
            trainable.start_update(device, &update, &mut norm)?;
            started.norm = Some(norm);
        } else {
            started.result.loss = Some(total * scale);
            started.result.grad_norm = device.run(|| trainable.update(device, &update))?;
            if !started.result.grad_norm.is_finite() {
                return Err(not_finite("the gradient", step, &started.places));
            }
        }
        started.flops = device.take_ledger().total().flops;
        started.start_time = begin.elapsed();
        Ok(started)
    }

    /// One pass: its loss, or 0 where that comes later.
    fn pass(
        &mut self,
        trainee: &mut Trainee<'_, T>,
        started: &mut Started,
        batch: &Batch,
        rows: &[&Row],
    ) -> Result<f64> {
        let device = self.device;
        let (adapters, grads) = trainee.trainable.adapters_and_grads();
        let dropout = Some(DropoutStep { seed: self.config.seed, step: started.step });
        let options = PassOptions { scale: started.scale, dropout, policies: self.policies.as_slice() };
        let weights = self.task.target_weights(batch);
        if let Some(recorded) = &mut trainee.recorded {
            if !batch.targets.is_empty() {
                let mut scores = self.spare.scores.pop().unwrap_or_else(|| PendingScores::new(device));
                recorded.start(self.decoder, device, batch, (adapters, options), &mut scores)?;
                started.passes.push(Pass { scores, weights, places: places(rows) });
            }
            return Ok(0.0);
        }
        let loss = self.task.label_loss();
        let found =
            device.run(|| self.decoder.find_and_backward(device, batch, (adapters, grads), loss, options))?;
        self.task.loss(&found, &weights).ok_or_else(|| not_finite("the loss", started.step, &places(rows)))
    }

    /// Waits for a step of `trainee`.
    ///
    /// # Errors
    /// [`Error::Numeric`] if loss or gradient is not finite; the step has not changed the adapter then.
    pub(super) fn finish(
        &mut self,
        trainee: &mut Trainee<'_, T>,
        mut started: Started,
    ) -> Result<StepResult> {
        let Some(mut norm) = started.norm else { return Ok(started.result) };
        let mut total = 0.0;
        for Pass { mut scores, weights, places } in std::mem::take(&mut started.passes) {
            let found = scores.finish()?;
            self.spare.scores.push(scores);
            let loss = self.task.loss(&found, &weights);
            total += loss.ok_or_else(|| not_finite("the loss", started.step, &places))?;
        }
        started.result.loss = Some(total * started.scale);
        started.result.grad_norm = trainee.trainable.optimizer.finish_update(&mut norm)?;
        self.spare.norms.push(norm);
        if !started.result.grad_norm.is_finite() {
            return Err(not_finite("the gradient", started.step, &started.places));
        }
        Ok(started.result)
    }
}

/// The numbers of the optimizer for a step.
pub(super) fn update(config: &TrainConfig, learning_rate: f64) -> Update {
    Update {
        learning_rate,
        beta1: config.adam_beta1,
        beta2: config.adam_beta2,
        epsilon: config.adam_epsilon,
        weight_decay: config.weight_decay,
        max_grad_norm: Some(config.max_grad_norm).filter(|&norm| norm > 0.0),
    }
}

/// Where some rows come from: the first five.
fn places(rows: &[&Row]) -> Vec<String> {
    let mut places: Vec<String> = rows.iter().take(5).map(|row| row.place.clone()).collect();
    if rows.len() > places.len() {
        places.push("...".into());
    }
    places
}

fn not_finite(what: &str, step: u64, places: &[String]) -> Error {
    Error::Numeric {
        what: format!("{what} of step {} is not finite (rows {})", step + 1, places.join(", ")),
        fix: "lower --learning-rate, set --max-grad-norm, or look at these rows; the last checkpoint is good"
            .into(),
    }
}
