//! One optimizer step: micro-batches in passes that fit the memory, one loss over all of them, one update.

use crate::batch::Batch;
use crate::config::TrainConfig;
use crate::data::packing::{collate, collate_shared};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Adapter, Decoder, DropoutStep, PassOptions, Policies};
use crate::optim::{Optimizer, Update};
use crate::session::Context;
use crate::tensor::Real;

use super::prepare::Row;

/// What one step found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct StepResult {
    /// Loss per supervised token; none without any weight, and then there was no update.
    pub(super) loss: Option<f64>,
    pub(super) grad_norm: f64,
    pub(super) num_tokens: usize,
    pub(super) num_supervised_tokens: usize,
}

/// The parts that a step changes, and those it reads.
pub(super) struct Stepper<'a, T: Real<Stat = f32>> {
    pub(super) config: &'a TrainConfig,
    pub(super) device: &'a Device,
    pub(super) decoder: &'a Decoder<T>,
    pub(super) policies: Policies,
    pub(super) adapters: Vec<Adapter<T>>,
    pub(super) grads: Vec<Adapter<f32>>,
    pub(super) optimizer: Optimizer<T>,
}

impl<T: Real<Stat = f32>> Stepper<'_, T> {
    /// Runs optimizer step `step` (from 0) on its micro-batches of rows.
    ///
    /// # Errors
    /// [`Error::Numeric`] if loss or gradient is not finite, and [`Error::Stopped`] if the context asks to stop; the adapter is
    /// unchanged in both cases.
    pub(super) fn run(
        &mut self,
        step: u64,
        learning_rate: f64,
        micro_batches: &[Vec<&Row>],
        context: &Context,
    ) -> Result<StepResult> {
        // On a GPU every update leaves zeros behind it.
        for tensor in self.grads.iter_mut().flat_map(Adapter::tensors_mut) {
            tensor.data_mut().fill(0.0);
        }
        let rows = || micro_batches.iter().flatten();
        let num_supervised_tokens: usize = rows().map(|r| r.example.supervised()).sum();
        let num_tokens = rows().map(|r| r.example.len()).sum();
        let mut result = StepResult { loss: None, grad_norm: 0.0, num_tokens, num_supervised_tokens };
        if num_supervised_tokens == 0 {
            return Ok(result);
        }
        let scale = 1.0 / num_supervised_tokens as f64;
        let dropout = Some(DropoutStep { seed: self.config.seed, step });
        let mut total = 0.0;
        let mut first_sample = 0;
        for micro_batch in micro_batches {
            for pass in passes(micro_batch, self.config.max_tokens_per_pass) {
                if context.stopped() {
                    return Err(Error::Stopped { what: format!("stopped within step {}", step + 1) });
                }
                let batch = packed(pass, self.config.share_prefix, first_sample);
                first_sample += pass.len() as u32;
                let (device, adapters, grads) = (self.device, &self.adapters, &mut self.grads);
                let options = PassOptions { scale, dropout, policies: self.policies.as_slice() };
                let scores = device
                    .run(|| self.decoder.score_and_backward(device, &batch, adapters, grads, options))?;
                let weights = batch.targets.iter().map(|t| f64::from(t.weight));
                let loss: f64 = scores.iter().zip(weights).map(|(s, w)| -w * s.logprob).sum();
                if !loss.is_finite() {
                    return Err(not_finite("the loss", step, pass));
                }
                total += loss;
            }
        }
        result.loss = Some(total * scale);
        let device = self.device;
        let update = Update {
            learning_rate,
            beta1: self.config.adam_beta1,
            beta2: self.config.adam_beta2,
            epsilon: self.config.adam_epsilon,
            weight_decay: self.config.weight_decay,
            max_grad_norm: Some(self.config.max_grad_norm).filter(|&norm| norm > 0.0),
        };
        let (optimizer, adapter, grads) = (&mut self.optimizer, &mut self.adapters[0], &self.grads[0]);
        result.grad_norm = device.run(|| optimizer.update(device, &update, adapter, grads))?;
        if !result.grad_norm.is_finite() {
            return Err(not_finite("the gradient", step, &micro_batches.concat()));
        }
        Ok(result)
    }
}

/// Consecutive rows of at most `max_tokens` tokens together; a longer row alone.
pub(super) fn passes<'r, 'a>(
    rows: &'r [&'a Row],
    max_tokens: usize,
) -> impl Iterator<Item = &'r [&'a Row]> + 'r {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = |row: &&&Row| {
            tokens += row.example.len();
            tokens <= max_tokens
        };
        let len = rows[start..].iter().take_while(fits).count().max(1);
        let pass = rows.get(start..start + len)?;
        start += len;
        Some(pass)
    })
}

/// The rows of one pass as a batch. `first_sample` is the number of the first row within the step: with the position it names
/// a dropout mask, so that masks do not depend on how a step is cut into passes.
pub(super) fn packed(rows: &[&Row], share_prefix: bool, first_sample: u32) -> Batch {
    let examples: Vec<_> = rows.iter().map(|row| &row.example).collect();
    let mut batch = if share_prefix { collate_shared(&examples, 0) } else { collate(&examples, 0) };
    // A shared prefix is a segment of its own: there are fewer than twice as many segments as rows.
    let first = if share_prefix { 2 * first_sample } else { first_sample };
    for segment in &mut batch.segments {
        segment.sample += first;
    }
    batch
}

fn not_finite(what: &str, step: u64, rows: &[&Row]) -> Error {
    let mut places: Vec<&str> = rows.iter().take(5).map(|row| row.place.as_str()).collect();
    if rows.len() > places.len() {
        places.push("...");
    }
    Error::Numeric {
        what: format!("{what} of step {} is not finite (rows {})", step + 1, places.join(", ")),
        fix: "lower --learning-rate, set --max-grad-norm, or look at these rows; the last checkpoint is good"
            .into(),
    }
}
