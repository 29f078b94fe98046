//! What a head for labels found, compared with the labels: losses, accuracies, and errors of numbers in the units of the rows.

use serde::Serialize;

use crate::batch::Label;
use crate::data::labels::LabelScheme;

/// Sequences with their labels and logits, for [`LabelMetrics`].
#[derive(Debug, Clone, Default)]
pub struct LabelSums {
    loss: f64,
    divisor: f64,
    rows: Vec<(Label, Vec<f32>)>,
}

/// See the module text. Values that do not belong to the task are absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LabelMetrics {
    /// Rows with a label.
    pub num_rows: usize,
    /// The mean loss, as training minimises it.
    pub loss: f64,
    /// Share of rows whose most probable class is theirs; where a row has several labels, of rows in which all are right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean over the classes that occur, or are predicted, of `2 tp / (2 tp + fp + fn)` (scikit-learn's macro F1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f1: Option<f64>,
    /// Mean squared error of numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mse: Option<f64>,
    /// Its root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rmse: Option<f64>,
    /// Mean absolute error of numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mae: Option<f64>,
    /// `1 - sum((y - p)^2) / sum((y - mean(y))^2)`, the mean over the outputs; absent where the labels are all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r2: Option<f64>,
    /// Normalized discounted cumulative gain of the rows ordered by their predictions, with scikit-learn's definition: the gain is
    /// the label, the discount `1 / log2(rank + 1)`, and tied predictions share their mean. Absent for several outputs, and where
    /// a label is negative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ndcg: Option<f64>,
}

impl LabelSums {
    /// Adds a sequence: what it counts in the mean loss, its loss times that, its label and its logits. Nothing without a label.
    pub fn add(&mut self, (divisor, loss): (f64, f64), label: &Label, logits: Vec<f32>) {
        if *label != Label::None {
            self.divisor += divisor;
            self.loss += loss;
            self.rows.push((label.clone(), logits));
        }
    }

    /// The metrics; none without any label.
    pub fn metrics(&self, scheme: &LabelScheme) -> Option<LabelMetrics> {
        if self.rows.is_empty() {
            return None;
        }
        let loss = if self.divisor > 0.0 { self.loss / self.divisor } else { 0.0 };
        let all = LabelMetrics { num_rows: self.rows.len(), loss, ..LabelMetrics::default() };
        Some(match scheme.is_one_class() {
            true => self.of_classes(scheme, all),
            false if scheme.task == crate::config::Task::Classify => self.of_several(all),
            false => self.of_numbers(scheme, all),
        })
    }

    fn of_classes(&self, scheme: &LabelScheme, all: LabelMetrics) -> LabelMetrics {
        let mut counts = vec![[0usize; 3]; scheme.num_labels];
        let mut right = 0;
        for (label, logits) in &self.rows {
            let Label::Class(class) = label else { continue };
            let (class, predicted) = (*class as usize, best(logits));
            right += usize::from(class == predicted);
            // True positives, false positives, false negatives.
            match class == predicted {
                true => counts[class][0] += 1,
                false => {
                    counts[predicted][1] += 1;
                    counts[class][2] += 1;
                }
            }
        }
        LabelMetrics { accuracy: Some(right as f64 / self.rows.len() as f64), f1: f1(&counts), ..all }
    }

    /// Several labels at once: those with a probability of at least one half.
    fn of_several(&self, all: LabelMetrics) -> LabelMetrics {
        let outputs = self.rows.first().map_or(0, |(_, logits)| logits.len());
        let mut counts = vec![[0usize; 3]; outputs];
        let mut right = 0;
        for (label, logits) in &self.rows {
            let Label::Numbers(targets) = label else { continue };
            let mut is_right = true;
            for ((target, logit), counts) in targets.iter().zip(logits).zip(&mut counts) {
                match (*target >= 0.5, *logit >= 0.0) {
                    (true, true) => counts[0] += 1,
                    (false, true) => counts[1] += 1,
                    (true, false) => counts[2] += 1,
                    (false, false) => {}
                }
                is_right &= (*target >= 0.5) == (*logit >= 0.0);
            }
            right += usize::from(is_right);
        }
        LabelMetrics { accuracy: Some(right as f64 / self.rows.len() as f64), f1: f1(&counts), ..all }
    }

    fn of_numbers(&self, scheme: &LabelScheme, all: LabelMetrics) -> LabelMetrics {
        let outputs = scheme.num_labels;
        let of = |output: usize| -> Vec<(f64, f64)> {
            let pair = |(label, logits): &(Label, Vec<f32>)| {
                let Label::Numbers(targets) = label else { return None };
                let (target, logit) = (targets.get(output)?, logits.get(output)?);
                Some((
                    scheme.untrained(output, f64::from(*target)),
                    scheme.in_units(output, f64::from(*logit)),
                ))
            };
            self.rows.iter().filter_map(pair).collect()
        };
        let pairs: Vec<Vec<(f64, f64)>> = (0..outputs).map(of).collect();
        let average = |error: fn(f64) -> f64| {
            let of = |pairs: &Vec<(f64, f64)>| {
                pairs.iter().map(|(y, p)| error(y - p)).sum::<f64>() / pairs.len() as f64
            };
            pairs.iter().map(of).sum::<f64>() / outputs as f64
        };
        let mse = Some(average(|error| error * error));
        let r2: Option<Vec<f64>> = pairs.iter().map(|pairs| r2(pairs)).collect();
        LabelMetrics {
            mse,
            rmse: mse.map(f64::sqrt),
            mae: Some(average(f64::abs)),
            r2: r2.map(|values| values.iter().sum::<f64>() / outputs as f64),
            ndcg: if outputs == 1 { ndcg(&pairs[0]) } else { None },
            ..all
        }
    }
}

/// The class with the largest logit; of equal ones the first.
pub fn best(logits: &[f32]) -> usize {
    let mut best = 0;
    for (class, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = class;
        }
    }
    best
}

/// From true positives, false positives and false negatives by class.
fn f1(counts: &[[usize; 3]]) -> Option<f64> {
    let there: Vec<f64> = counts
        .iter()
        .filter(|counts| counts.iter().sum::<usize>() > 0)
        .map(|&[right, wrong, missed]| 2.0 * right as f64 / (2 * right + wrong + missed) as f64)
        .collect();
    (!there.is_empty()).then(|| there.iter().sum::<f64>() / there.len() as f64)
}

/// Of (label, prediction).
fn r2(pairs: &[(f64, f64)]) -> Option<f64> {
    let mean = pairs.iter().map(|(y, _)| y).sum::<f64>() / pairs.len() as f64;
    let total: f64 = pairs.iter().map(|(y, _)| (y - mean) * (y - mean)).sum();
    let left: f64 = pairs.iter().map(|(y, p)| (y - p) * (y - p)).sum();
    (total > 0.0).then(|| 1.0 - left / total)
}

/// Of (label, prediction).
fn ndcg(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.len() < 2 || pairs.iter().any(|(y, _)| *y < 0.0) {
        return None;
    }
    let discount = |rank: usize| 1.0 / ((rank + 2) as f64).log2();
    let mut by_prediction = pairs.to_vec();
    by_prediction.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut gain = 0.0;
    let mut start = 0;
    while start < by_prediction.len() {
        let tied = |pair: &&(f64, f64)| pair.1 == by_prediction[start].1;
        let count = by_prediction[start..].iter().take_while(tied).count();
        let mean = by_prediction[start..start + count].iter().map(|(y, _)| y).sum::<f64>() / count as f64;
        gain += mean * (start..start + count).map(discount).sum::<f64>();
        start += count;
    }
    let mut labels: Vec<f64> = pairs.iter().map(|(y, _)| *y).collect();
    labels.sort_by(|a, b| b.total_cmp(a));
    let ideal: f64 = labels.iter().enumerate().map(|(rank, y)| y * discount(rank)).sum();
    // All labels 0: scikit-learn says 0.
    Some(if ideal > 0.0 { gain / ideal } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Loss, Task};

    fn scheme(task: Task, loss: Loss, num_labels: usize) -> LabelScheme {
        LabelScheme {
            task,
            loss,
            num_labels,
            labels: None,
            target_offset: Vec::new(),
            target_scale: Vec::new(),
        }
    }

    fn sums(rows: &[(Label, &[f32])]) -> LabelSums {
        let mut sums = LabelSums::default();
        rows.iter().for_each(|(label, logits)| sums.add((1.0, 0.5), label, logits.to_vec()));
        sums
    }

    /// Expected values: scikit-learn 1.7, `accuracy_score`, `f1_score(average="macro")`.
    #[test]
    fn classes_as_scikit_learn_counts_them() {
        let of = |class: u32, logits: &'static [f32; 3]| (Label::Class(class), &logits[..]);
        let rows = [
            of(0, &[2.0, 1.0, 0.0]),
            of(0, &[0.0, 1.0, 0.0]),
            of(1, &[0.0, 1.0, 0.5]),
            of(2, &[0.0, 1.0, 0.5]),
        ];
        let metrics = sums(&rows).metrics(&scheme(Task::Classify, Loss::CrossEntropy, 3)).unwrap();
        assert_eq!((metrics.num_rows, metrics.loss, metrics.accuracy), (4, 0.5, Some(0.5)));
        // F1 of the classes: 2/3, 1/2, 0.
        assert!((metrics.f1.unwrap() - (2.0 / 3.0 + 0.5) / 3.0).abs() < 1e-12);
        assert_eq!(sums(&[(Label::None, &[0.0][..])]).metrics(&scheme(Task::Regress, Loss::Mse, 1)), None);
    }

    /// Expected values: scikit-learn 1.7, `r2_score`, `ndcg_score`.
    #[test]
    fn numbers_as_scikit_learn_measures_them() {
        let labels = [3.0f32, 1.0, 0.0, 2.0, 2.0];
        let predictions = [[2.5f32], [0.5], [0.5], [2.0], [2.5]];
        let rows: Vec<(Label, &[f32])> =
            labels.iter().zip(&predictions).map(|(&y, p)| (Label::Numbers(vec![y]), &p[..])).collect();
        let metrics = sums(&rows).metrics(&scheme(Task::Regress, Loss::Mse, 1)).unwrap();
        assert!((metrics.mse.unwrap() - 0.2).abs() < 1e-12 && (metrics.mae.unwrap() - 0.4).abs() < 1e-12);
        assert!((metrics.r2.unwrap() - (1.0 - 1.0 / 5.2)).abs() < 1e-12);
        let d = |rank: usize| 1.0 / ((rank + 1) as f64).log2();
        let gain = 2.5 * (d(1) + d(2)) + 2.0 * d(3) + 0.5 * (d(4) + d(5));
        let ideal = 3.0 * d(1) + 2.0 * d(2) + 2.0 * d(3) + d(4);
        assert!((metrics.ndcg.unwrap() - gain / ideal).abs() < 1e-12);
        // Moved targets come back to the units of the rows.
        let moved = LabelScheme {
            target_offset: vec![-1.0],
            target_scale: vec![2.0],
            ..scheme(Task::Regress, Loss::Mse, 1)
        };
        let metrics = sums(&rows).metrics(&moved).unwrap();
        assert!(
            (metrics.mse.unwrap() - 0.8).abs() < 1e-12
                && (metrics.r2.unwrap() - (1.0 - 1.0 / 5.2)).abs() < 1e-12
        );
        let same = [(Label::Numbers(vec![-1.0]), &[0.0][..]), (Label::Numbers(vec![-1.0]), &[1.0][..])];
        let metrics = sums(&same).metrics(&scheme(Task::Regress, Loss::Mse, 1)).unwrap();
        assert_eq!((metrics.r2, metrics.ndcg), (None, None));
    }

    #[test]
    fn several_labels_are_right_together() {
        let rows = [
            (Label::Numbers(vec![1.0, 0.0]), &[0.1f32, -0.1][..]),
            (Label::Numbers(vec![1.0, 1.0]), &[0.1, -0.1]),
        ];
        let metrics = sums(&rows).metrics(&scheme(Task::Classify, Loss::Bce, 2)).unwrap();
        assert_eq!((metrics.accuracy, metrics.f1), (Some(0.5), Some(0.5)));
    }
}
