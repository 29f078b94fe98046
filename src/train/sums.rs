//! Loss, tokens, work and seconds over several steps.

use super::step::StepResult;
use crate::session::Peak;

/// Sums over steps.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    loss: f64,
    steps: u64,
    tokens: usize,
    model_flops: u64,
    seconds: f64,
}

impl Sums {
    pub(super) fn add(&mut self, result: &StepResult, seconds: f64) {
        self.loss += result.loss.unwrap_or(0.0);
        self.steps += u64::from(result.loss.is_some());
        self.tokens += result.num_tokens;
        self.model_flops += result.model_flops;
        self.seconds += seconds;
    }

    pub(super) fn mean_loss(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.loss / self.steps as f64)
    }

    pub(super) fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }

    /// The share of the peak; none without steps, or without a peak.
    pub(super) fn sol(&self, peak: Option<Peak>) -> Option<f64> {
        peak?.share(self.model_flops, self.seconds)
    }
}
