//! What depends on the task of a training: the weight of a row, and the loss and the metrics from what the head found.

use super::evaluate::EvalMetrics;
use super::prepare::Row;
use super::step::StepResult;
use crate::batch::Batch;
use crate::config::{ClassWeights, TrainConfig};
use crate::data::encode::Example;
use crate::data::labels::{LabelScheme, class_counts};
use crate::error::{Error, Result};
use crate::model::Found;
use crate::ops::label_head::Loss;
use crate::session::label_metrics::LabelSums;
use crate::session::labels::loss_of;

/// What is learned, as [`crate::config::Task`] and the rows ask for it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Task {
    /// Next tokens: the head gives the log-probability of every target.
    Causal,
    /// Labels of sequences: the head gives their losses and logits.
    Labels {
        /// What the outputs stand for.
        scheme: LabelScheme,
        /// What is minimised.
        loss: Loss,
    },
}

/// Sums over the rows of an evaluation so far.
#[derive(Debug, Clone, Default)]
pub(super) struct EvalSums {
    loss: f64,
    tokens: usize,
    right: usize,
    rows: usize,
    right_rows: usize,
    labels: LabelSums,
}

impl Task {
    /// That of labels, trained on `examples`.
    ///
    /// # Errors
    /// An input error if there are as many weights as there are no outputs.
    pub(super) fn of_labels(
        config: &TrainConfig,
        scheme: &LabelScheme,
        examples: &[&Example],
    ) -> Result<Self> {
        let numbers = |key: &str, numbers: &[f64]| match numbers.len() == scheme.num_labels {
            true => Ok(numbers.iter().map(|&weight| weight as f32).collect::<Vec<f32>>()),
            false => Error::input("CONFIG", "one weight per output of the head is needed")
                .field(key)
                .got(numbers.len())
                .expected(scheme.num_labels)
                .fix("give as many numbers as there are labels")
                .into(),
        };
        let class_weights = match &config.class_weights {
            None => None,
            Some(ClassWeights::Numbers(weights)) => Some(numbers("class_weights", &weights.0)?),
            Some(ClassWeights::Balanced) => {
                let counts = class_counts(examples, scheme.num_labels);
                let (rows, classes) = (counts.iter().sum::<usize>(), counts.len());
                let weight =
                    |&count: &usize| if count > 0 { rows as f32 / (classes * count) as f32 } else { 0.0 };
                Some(counts.iter().map(weight).collect())
            }
        };
        let pos_weight =
            config.pos_weight.as_ref().map(|weights| numbers("pos_weight", &weights.0)).transpose()?;
        let loss = loss_of(scheme, class_weights, pos_weight, config.label_smoothing.unwrap_or(0.0));
        Ok(Self::Labels { scheme: scheme.clone(), loss })
    }

    /// The loss of labels; none where tokens are learned.
    pub(super) fn label_loss(&self) -> Option<&Loss> {
        match self {
            Self::Causal => None,
            Self::Labels { loss, .. } => Some(loss),
        }
    }

    /// What a row counts in the loss of a step.
    pub(super) fn weight(&self, row: &Row) -> f64 {
        match self {
            Self::Causal => row.example.supervised() as f64,
            Self::Labels { loss, .. } => loss.divisor(&row.example.label),
        }
    }

    /// What every target of a batch counts in the loss of a step.
    pub(super) fn target_weights(&self, batch: &Batch) -> Vec<f64> {
        match self {
            Self::Causal => batch.targets.tokens().iter().map(|target| f64::from(target.weight)).collect(),
            Self::Labels { .. } => {
                batch.targets.labels().iter().map(|target| f64::from(target.weight)).collect()
            }
        }
    }

    /// Sum over the targets of weight times loss, if it is finite.
    pub(super) fn loss(&self, found: &Found, weights: &[f64]) -> Option<f64> {
        let loss: f64 = match found {
            Found::Tokens(scores) => scores.iter().zip(weights).map(|(s, w)| -w * s.logprob).sum(),
            Found::Labels(scores) => scores.iter().zip(weights).map(|(s, w)| w * s.loss).sum(),
        };
        loss.is_finite().then_some(loss)
    }

    /// Fails for a model that gives every token the same probability, and learns nothing from that: weights that overflowed to
    /// infinity or were never read look like this.
    ///
    /// # Errors
    /// [`Error::Numeric`] then.
    pub(super) fn check_learns(&self, result: &StepResult, vocab_size: usize, step: u64) -> Result<()> {
        let uniform = match self {
            Self::Causal => (vocab_size as f64).ln(),
            // A head of its own can be there, and small.
            Self::Labels { .. } => return Ok(()),
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
    pub(super) fn add(&self, sums: &mut EvalSums, rows: &[&Row], found: Found) {
        sums.rows += rows.len();
        match (self, found) {
            (_, Found::Tokens(scores)) => {
                sums.loss -= scores.iter().map(|s| s.logprob).sum::<f64>();
                sums.tokens += scores.len();
                let mut scores = scores.iter();
                for row in rows {
                    let of_row: Vec<_> = scores.by_ref().take(row.example.supervised()).collect();
                    let hits = of_row.iter().filter(|s| s.is_argmax).count();
                    sums.right += hits;
                    sums.right_rows += usize::from(hits == of_row.len());
                }
            }
            (_, Found::Labels(scores)) => {
                for (row, score) in rows.iter().zip(scores) {
                    let label = &row.example.label;
                    sums.labels.add((self.weight(row), score.loss), label, score.logits);
                }
            }
        }
    }

    /// The results of an evaluation that took so many seconds; none if its loss is not finite.
    pub(super) fn metrics(&self, sums: &EvalSums, seconds: f64) -> Option<EvalMetrics> {
        let shared = EvalMetrics {
            eval_runtime: seconds,
            eval_samples_per_second: sums.rows as f64 / seconds,
            ..EvalMetrics::default()
        };
        let metrics = match self {
            Self::Causal => {
                let eval_loss = sums.loss / sums.tokens as f64;
                EvalMetrics {
                    eval_loss,
                    eval_perplexity: Some(eval_loss.exp()),
                    eval_token_accuracy: Some(sums.right as f64 / sums.tokens as f64),
                    eval_accuracy: Some(sums.right_rows as f64 / sums.rows as f64),
                    ..shared
                }
            }
            Self::Labels { scheme, .. } => {
                let found = sums.labels.metrics(scheme)?;
                EvalMetrics {
                    eval_loss: found.loss,
                    eval_accuracy: found.accuracy,
                    eval_f1: found.f1,
                    eval_mse: found.mse,
                    eval_rmse: found.rmse,
                    eval_mae: found.mae,
                    eval_r2: found.r2,
                    eval_ndcg: found.ndcg,
                    ..shared
                }
            }
        };
        metrics.eval_loss.is_finite().then_some(metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{IGNORE_INDEX, Label};
    use crate::ops::linear_cross_entropy::TargetScore;

    fn row(labels: &[i64]) -> Row {
        let example = Example {
            input_ids: vec![1; labels.len()],
            labels: labels.to_vec(),
            prompt_len: 0,
            record: 0,
            truncated: false,
            ..Example::default()
        };
        Row { example, place: String::new() }
    }

    fn score(logprob: f64, is_argmax: bool) -> TargetScore {
        TargetScore { logprob, is_argmax }
    }

    #[test]
    fn metrics_of_two_passes_by_hand() {
        let task = Task::Causal;
        let rows =
            [row(&[IGNORE_INDEX, 3, 4]), row(&[IGNORE_INDEX, 5]), row(&[IGNORE_INDEX, IGNORE_INDEX, 6])];
        assert_eq!(rows.each_ref().map(|row| task.weight(row)), [2.0, 1.0, 1.0]);
        let mut sums = EvalSums::default();
        task.add(
            &mut sums,
            &[&rows[0], &rows[1]],
            Found::Tokens(vec![score(-1.0, true), score(-2.0, false), score(-0.5, true)]),
        );
        task.add(&mut sums, &[&rows[2]], Found::Tokens(vec![score(-0.5, true)]));
        let metrics = task.metrics(&sums, 2.0).unwrap();
        assert_eq!((metrics.eval_loss, metrics.eval_perplexity), (1.0, Some(1f64.exp())));
        assert_eq!((metrics.eval_token_accuracy, metrics.eval_accuracy), (Some(0.75), Some(2.0 / 3.0)));
        assert_eq!((metrics.eval_runtime, metrics.eval_samples_per_second), (2.0, 1.5));
        task.add(&mut sums, &[&rows[2]], Found::Tokens(vec![score(f64::NEG_INFINITY, false)]));
        assert!(task.metrics(&sums, 2.0).is_none());
    }

    #[test]
    fn a_loss_is_weighted_and_finite() {
        let scores = Found::Tokens(vec![score(-1.0, true), score(-3.0, false)]);
        assert_eq!(Task::Causal.loss(&scores, &[2.0, 0.5]), Some(3.5));
        assert_eq!(Task::Causal.loss(&Found::Tokens(vec![score(f64::NAN, false)]), &[1.0]), None);
    }

    #[test]
    fn weights_of_classes_are_counted_or_given() {
        let scheme = LabelScheme {
            task: crate::config::Task::Classify,
            loss: crate::config::Loss::CrossEntropy,
            num_labels: 3,
            labels: None,
            target_offset: Vec::new(),
            target_scale: Vec::new(),
        };
        let example = |class| Example { label: Label::Class(class), ..Example::default() };
        let examples = [example(0), example(0), example(0), example(2)];
        let of = |weights: &str| {
            let options = [
                ("model", "m"),
                ("train_file", "t"),
                ("output_dir", "o"),
                ("task", "classify"),
                ("class_weights", weights),
            ];
            let config = TrainConfig::from_pairs(options).unwrap();
            Task::of_labels(&config, &scheme, &examples.iter().collect::<Vec<_>>())
        };
        let loss =
            |weights: Vec<f32>| Loss::CrossEntropy { class_weights: Some(weights), label_smoothing: 0.0 };
        assert_eq!(of("balanced").unwrap().label_loss(), Some(&loss(vec![4.0 / 9.0, 0.0, 4.0 / 3.0])));
        assert_eq!(of("1,2,0.5").unwrap().label_loss(), Some(&loss(vec![1.0, 2.0, 0.5])));
        let error = of("1,2").unwrap_err().to_string();
        assert!(error.contains("class_weights") && error.contains("expected 3"), "{error}");
        let row = Row { example: example(2), place: String::new() };
        assert_eq!(of("1,2,0.5").unwrap().weight(&row), 0.5);
    }
}
