//! What depends on the task of a training: the weight of a row, and the loss and the metrics from what the head found.

use super::evaluate::EvalMetrics;
use super::prepare::Row;
use super::step::StepResult;
use crate::batch::Batch;
use crate::config::{self, TrainConfig};
use crate::error::{Error, Result};
use crate::ops::linear_cross_entropy::TargetScore;

/// A task that can be trained, as [`config::Task`] asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Next tokens: the head gives the log-probability of every target.
    Causal,
}

/// Sums over the rows of an evaluation so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct EvalSums {
    loss: f64,
    tokens: usize,
    right: usize,
    rows: usize,
    right_rows: usize,
}

impl Task {
    /// The task of a run.
    ///
    /// # Errors
    /// An input error if it cannot be trained.
    pub(super) fn of(config: &TrainConfig) -> Result<Self> {
        match config.task {
            config::Task::Causal => Ok(Self::Causal),
            other => Error::input("CONFIG", "this task cannot be trained")
                .field("task")
                .got(other)
                .expected(config::Task::Causal)
                .fix("leave task out")
                .into(),
        }
    }

    /// What a row counts in the loss of a step.
    pub(super) fn weight(self, row: &Row) -> f64 {
        match self {
            Self::Causal => row.example.supervised() as f64,
        }
    }

    /// What every target of a batch counts in the loss of a step.
    pub(super) fn target_weights(self, batch: &Batch) -> Vec<f64> {
        match self {
            Self::Causal => batch.targets.tokens().iter().map(|target| f64::from(target.weight)).collect(),
        }
    }

    /// Sum over the targets of weight times loss, if it is finite.
    pub(super) fn loss(self, scores: &[TargetScore], weights: &[f64]) -> Option<f64> {
        let loss: f64 = match self {
            Self::Causal => scores.iter().zip(weights).map(|(s, w)| -w * s.logprob).sum(),
        };
        loss.is_finite().then_some(loss)
    }

    /// Fails for a model that gives every token the same probability, and learns nothing from that: weights that overflowed to
    /// infinity or were never read look like this.
    ///
    /// # Errors
    /// [`Error::Numeric`] then.
    pub(super) fn check_learns(self, result: &StepResult, vocab_size: usize, step: u64) -> Result<()> {
        let uniform = match self {
            Self::Causal => (vocab_size as f64).ln(),
        };
        match result.loss {
            Some(loss) if result.grad_norm == 0.0 && (loss - uniform).abs() < 1e-4 => Err(Error::Numeric {
                what: format!(
                    "the loss of step {step} is {loss:.6}, that of equal probabilities for all {vocab_size} tokens, and the gradient \
                     is 0: the model computes nothing"
                ),
                fix: "check the weights of the model (zeros, or numbers too large for its type), or use --dtype f32".into(),
            }),
            _ => Ok(()),
        }
    }

    /// Adds to `sums` what the head found for the rows of one pass of an evaluation.
    pub(super) fn add(self, sums: &mut EvalSums, rows: &[&Row], scores: &[TargetScore]) {
        match self {
            Self::Causal => {
                sums.loss -= scores.iter().map(|s| s.logprob).sum::<f64>();
                sums.tokens += scores.len();
                let mut scores = scores.iter();
                for row in rows {
                    let of_row: Vec<_> = scores.by_ref().take(row.example.supervised()).collect();
                    let hits = of_row.iter().filter(|s| s.is_argmax).count();
                    sums.right += hits;
                    sums.right_rows += usize::from(hits == of_row.len());
                }
                sums.rows += rows.len();
            }
        }
    }

    /// The results of an evaluation that took so many seconds; none if its loss is not finite.
    pub(super) fn metrics(self, sums: &EvalSums, seconds: f64) -> Option<EvalMetrics> {
        match self {
            Self::Causal => {
                let eval_loss = sums.loss / sums.tokens as f64;
                eval_loss.is_finite().then(|| EvalMetrics {
                    eval_loss,
                    eval_perplexity: eval_loss.exp(),
                    eval_token_accuracy: sums.right as f64 / sums.tokens as f64,
                    eval_accuracy: sums.right_rows as f64 / sums.rows as f64,
                    eval_runtime: seconds,
                    eval_samples_per_second: sums.rows as f64 / seconds,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::IGNORE_INDEX;
    use crate::data::encode::Example;

    fn row(labels: &[i64]) -> Row {
        let example = Example {
            input_ids: vec![1; labels.len()],
            labels: labels.to_vec(),
            prompt_len: 0,
            record: 0,
            truncated: false,
        };
        Row { example, place: String::new() }
    }

    fn score(logprob: f64, is_argmax: bool) -> TargetScore {
        TargetScore { logprob, is_argmax }
    }

    #[test]
    fn metrics_of_two_passes_by_hand() {
        let task = Task::of(&TrainConfig::default()).unwrap();
        let rows =
            [row(&[IGNORE_INDEX, 3, 4]), row(&[IGNORE_INDEX, 5]), row(&[IGNORE_INDEX, IGNORE_INDEX, 6])];
        assert_eq!(rows.each_ref().map(|row| task.weight(row)), [2.0, 1.0, 1.0]);
        let mut sums = EvalSums::default();
        task.add(
            &mut sums,
            &[&rows[0], &rows[1]],
            &[score(-1.0, true), score(-2.0, false), score(-0.5, true)],
        );
        task.add(&mut sums, &[&rows[2]], &[score(-0.5, true)]);
        let metrics = task.metrics(&sums, 2.0).unwrap();
        assert_eq!((metrics.eval_loss, metrics.eval_perplexity), (1.0, 1f64.exp()));
        assert_eq!((metrics.eval_token_accuracy, metrics.eval_accuracy), (0.75, 2.0 / 3.0));
        assert_eq!((metrics.eval_runtime, metrics.eval_samples_per_second), (2.0, 1.5));
        task.add(&mut sums, &[&rows[2]], &[score(f64::NEG_INFINITY, false)]);
        assert!(task.metrics(&sums, 2.0).is_none());
    }

    #[test]
    fn a_loss_is_weighted_and_finite() {
        let scores = [score(-1.0, true), score(-3.0, false)];
        assert_eq!(Task::Causal.loss(&scores, &[2.0, 0.5]), Some(3.5));
        assert_eq!(Task::Causal.loss(&[score(f64::NAN, false)], &[1.0]), None);
    }

    #[test]
    fn a_task_without_a_head_is_refused() {
        let config = TrainConfig { task: config::Task::Regress, ..TrainConfig::default() };
        assert!(Task::of(&config).unwrap_err().to_string().contains("regress"));
    }
}
