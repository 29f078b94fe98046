//! Predictions and accuracy from log-probabilities: pure functions.

use std::collections::BTreeMap;

use serde::Serialize;

use super::choice::cell;
use crate::data::record::Record;

/// The text shown for a missing value of a field.
pub const MISSING: &str = "(none)";

/// Accuracy of a set of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Accuracy {
    /// Rows that were scored.
    pub num_rows: usize,
    /// Rows whose output is one of the choices; only these can be right or wrong.
    pub num_with_gold: usize,
    /// Rows whose output is the single most probable choice.
    pub num_correct: usize,
    /// Rows where several choices share the highest log-probability; these count as wrong.
    pub num_tied: usize,
    /// The share of rows with gold that are right; `None` if no row has gold.
    pub accuracy: Option<f64>,
    /// Rows whose choice of the highest log-probability per character is the output.
    pub num_correct_norm: usize,
    /// Share of `num_correct_norm` (`acc_norm` of the LM evaluation harness).
    pub accuracy_norm: Option<f64>,
}

impl Accuracy {
    fn add(&mut self, outcome: &Outcome) {
        self.num_rows += 1;
        self.num_tied += usize::from(outcome.pick.sum_tied);
        let Some(gold) = outcome.gold else { return };
        self.num_with_gold += 1;
        let pick = outcome.pick;
        self.num_correct += usize::from(pick.sum == gold && !pick.sum_tied);
        self.num_correct_norm += usize::from(pick.norm == gold && !pick.norm_tied);
        let share = |n: usize| Some(n as f64 / self.num_with_gold as f64);
        self.accuracy = share(self.num_correct);
        self.accuracy_norm = share(self.num_correct_norm);
    }
}

/// Accuracy by the values of a field of `meta`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ByField {
    /// The field.
    pub field: String,
    /// By value, sorted; [`MISSING`] where a row has none.
    pub values: BTreeMap<String, Accuracy>,
}

/// Summary of mode `choice`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChoiceReport {
    /// Over all rows.
    pub overall: Accuracy,
    /// By field, in the order asked for.
    pub by: Vec<ByField>,
    /// The answers to choose from.
    pub choices: Vec<String>,
    /// Per choice: rows that have it as output.
    pub gold: Vec<usize>,
    /// Per choice: rows for which it was predicted. If one choice has all rows, the model gives a constant
    /// answer.
    pub predicted: Vec<usize>,
    /// Per output and per prediction: rows with gold.
    pub confusion: Vec<Vec<usize>>,
}

/// The choice of the highest log-probability, and that of the highest log-probability per character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) sum: usize,
    pub(super) norm: usize,
    /// True if another choice has the same value.
    pub(super) sum_tied: bool,
    pub(super) norm_tied: bool,
}

/// One scored row.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Index of the row among the records.
    pub(super) record: usize,
    /// Per choice.
    pub(super) logprobs: Vec<f64>,
    /// The choice that is the row's output.
    pub(super) gold: Option<usize>,
    pub(super) pick: Pick,
}

impl ChoiceReport {
    pub(super) fn of(
        outcomes: &[Outcome],
        records: &[Record],
        choices: &[String],
        fields: &[String],
    ) -> Self {
        let n = choices.len();
        let by = fields.iter().map(|field| ByField { field: field.clone(), values: BTreeMap::new() });
        let mut report = Self {
            overall: Accuracy::default(),
            by: by.collect(),
            choices: choices.to_vec(),
            gold: vec![0; n],
            predicted: vec![0; n],
            confusion: vec![vec![0; n]; n],
        };
        for outcome in outcomes {
            report.overall.add(outcome);
            report.predicted[outcome.pick.sum] += 1;
            if let Some(gold) = outcome.gold {
                report.gold[gold] += 1;
                report.confusion[gold][outcome.pick.sum] += 1;
            }
            for ByField { field, values } in &mut report.by {
                let value = cell(records[outcome.record].meta.get(field));
                values.entry(value.unwrap_or_else(|| MISSING.to_owned())).or_default().add(outcome);
            }
        }
        report
    }
}

/// Predicts a choice; the first of equal ones. Characters are counted as by the LM evaluation harness
/// (`acc_norm`).
pub(super) fn pick(logprobs: &[f64], choices: &[String]) -> Pick {
    let per_character =
        logprobs.iter().zip(choices).map(|(x, choice)| x / choice.chars().count().max(1) as f64);
    let (sum, sum_tied) = first_highest(logprobs.iter().copied());
    let (norm, norm_tied) = first_highest(per_character);
    Pick { sum, norm, sum_tied, norm_tied }
}

/// Index of the (first) highest value, and whether it is tied.
fn first_highest(values: impl Iterator<Item = f64>) -> (usize, bool) {
    let (mut best, mut highest, mut tied) = (0, f64::NEG_INFINITY, false);
    for (i, value) in values.enumerate() {
        if value > highest {
            (best, highest, tied) = (i, value, false);
        } else if i > 0 && value == highest {
            tied = true;
        }
    }
    (best, tied)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::files::read_rows;

    fn choices(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn the_highest_sum_wins_and_the_first_of_equal_ones() {
        let letters = choices(&["a", "b", "c"]);
        let picked = |sum, norm, tied| Pick { sum, norm, sum_tied: tied, norm_tied: tied };
        assert_eq!(pick(&[-2.0, -1.0, -3.0], &letters), picked(1, 1, false));
        assert_eq!(pick(&[-2.0, -1.0, -1.0], &letters), picked(1, 1, true));
        assert_eq!(pick(&[-1.0, -1.0, -1.0], &letters), picked(0, 0, true));
        assert_eq!(pick(&[-2.0, -2.0, -1.0], &letters), picked(2, 2, false));
        // -3/4 per character beats -2/2.
        assert_eq!(pick(&[-2.0, -3.0], &choices(&["日本", "はいはい"])), picked(0, 1, false));
    }

    #[test]
    fn accuracy_counts_rows_with_gold_alone() {
        let text = concat!(
            r#"{"input":"1","output":"a","meta":{"law":"z"}}"#,
            "\n",
            r#"{"input":"2","output":"b","meta":{"law":"y"}}"#,
            "\n",
            r#"{"input":"3","output":"?","meta":{"law":"y"}}"#,
            "\n",
            r#"{"input":"4","output":"a","meta":{"law":null}}"#,
            "\n"
        );
        let records = read_rows(Path::new("rows.jsonl"), text.as_bytes()).unwrap();
        let outcome = |record, gold, sum| Outcome {
            record,
            logprobs: vec![],
            gold,
            pick: Pick { sum, norm: 1, sum_tied: false, norm_tied: false },
        };
        let outcomes =
            [outcome(0, Some(0), 0), outcome(1, Some(1), 0), outcome(2, None, 0), outcome(3, Some(0), 0)];
        let report = ChoiceReport::of(&outcomes, &records, &choices(&["a", "b"]), &choices(&["law"]));
        let Accuracy { num_rows, num_with_gold, num_correct, accuracy, .. } = report.overall;
        assert_eq!((num_rows, num_with_gold, num_correct, accuracy), (4, 3, 2, Some(2.0 / 3.0)));
        assert_eq!(report.overall.accuracy_norm, Some(1.0 / 3.0));
        assert_eq!((report.gold, report.predicted), (vec![2, 1], vec![4, 0]));
        assert_eq!(report.confusion, [[2, 0], [1, 0]]);
        let values: Vec<_> =
            report.by[0].values.iter().map(|(v, a)| (v.as_str(), a.num_rows, a.accuracy)).collect();
        assert_eq!(values, [(MISSING, 1, Some(1.0)), ("y", 2, Some(0.0)), ("z", 1, Some(1.0))]);
    }

    #[test]
    fn without_gold_there_is_no_accuracy() {
        assert_eq!(Accuracy::default().accuracy, None);
    }
}
