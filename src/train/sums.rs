//! Loss, tokens and seconds over several steps.

use super::step::StepResult;

/// Sums over steps.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    loss: f64,
    steps: u64,
    tokens: usize,
    seconds: f64,
}

impl Sums {
    pub(super) fn add(&mut self, result: &StepResult, seconds: f64) {
        self.loss += result.loss.unwrap_or(0.0);
        self.steps += u64::from(result.loss.is_some());
        self.tokens += result.num_tokens;
        self.seconds += seconds;
    }

    pub(super) fn mean_loss(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.loss / self.steps as f64)
    }

    pub(super) fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }
}
