//! Learning rate by step, as transformers defines it.

use crate::config::LrScheduler;

/// Warm-up from 0, then constant, linear to 0, or half a cosine to 0.
///
/// With `s` the steps already done: `peak * s / warmup_steps` for `s < warmup_steps`; then, with
/// `u = (s - warmup_steps) / (total_steps - warmup_steps)`, `peak`, `peak * (1 - u)` or `peak * (1 + cos(pi u)) / 2`, never below 0.
/// Source: `transformers/optimization.py` (4.57).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub kind: LrScheduler,
    /// Learning rate after the warm-up.
    pub peak: f64,
    /// Steps of the warm-up.
    pub warmup_steps: u64,
    /// Steps of the whole training.
    pub total_steps: u64,
}

impl Schedule {
    /// Learning rate of the step that comes after `done` steps.
    ///
    /// ```
    /// use tanren::{config::LrScheduler, optim::Schedule};
    /// let schedule = Schedule { kind: LrScheduler::Linear, peak: 1.0, warmup_steps: 2, total_steps: 6 };
    /// let rates: Vec<f64> = (0..7).map(|done| schedule.learning_rate(done)).collect();
    /// assert_eq!(rates, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
    /// ```
    pub fn learning_rate(&self, done: u64) -> f64 {
        if done < self.warmup_steps {
            return self.peak * done as f64 / self.warmup_steps as f64;
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = (done - self.warmup_steps) as f64 / span;
        let factor = match self.kind {
            LrScheduler::Constant => 1.0,
            LrScheduler::Linear => 1.0 - progress,
            LrScheduler::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.peak * factor.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_with_warmup_gives_the_rates_of_the_goldens() {
        let schedule = Schedule { kind: LrScheduler::Cosine, peak: 0.005, warmup_steps: 2, total_steps: 6 };
        let expected = [0.0, 0.0025, 0.005, 0.004_267_766_952_966_369, 0.0025, 0.000_732_233_047_033_631_2];
        for (done, rate) in expected.iter().enumerate() {
            assert!((schedule.learning_rate(done as u64) - rate).abs() < 1e-15, "{done}");
        }
    }

    #[test]
    fn no_steps_after_the_warmup_and_beyond_the_end_are_harmless() {
        for kind in [LrScheduler::Constant, LrScheduler::Linear, LrScheduler::Cosine] {
            let schedule = Schedule { kind, peak: 1.0, warmup_steps: 3, total_steps: 3 };
            for done in 0..10 {
                let rate = schedule.learning_rate(done);
                assert!((0.0..=1.0).contains(&rate), "{kind:?} {done} {rate}");
            }
        }
    }
}
