//! What became of a data file: counts, lengths, and the things a user should look at before hours of training.

use serde::Serialize;

use super::encode::Example;
use super::jsonl::Record;
use super::tokenizer::Tokenizer;
use crate::batch::IGNORE_INDEX;
use crate::error::Result;

/// How many places are named; the rest is counted.
const NAMED: usize = 5;

/// Summary of an encoded data set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Rows that became examples.
    pub rows: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Their tokens that carry loss.
    pub supervised_tokens: usize,
    /// Rows whose prompt was cut.
    pub truncated: usize,
    /// Rows left out because they have nothing to learn.
    pub skipped_empty: usize,
    /// Rows left out because they are too long.
    pub skipped_long: usize,
    /// Rows with a special token in their text.
    pub special_in_text: usize,
    /// The first of them.
    pub special_first: Vec<SpecialPlace>,
    /// Lengths in tokens.
    pub lengths: Quantiles,
    /// The longest row.
    pub longest: Option<Place>,
}

/// A row of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
}

/// A special token in the text of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpecialPlace {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// Which.
    pub token: String,
}

/// Nearest-rank quantiles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Quantiles {
    /// Smallest.
    pub min: usize,
    /// Half are at most this.
    pub p50: usize,
    /// 90% are at most this.
    pub p90: usize,
    /// 99% are at most this.
    pub p99: usize,
    /// Largest.
    pub max: usize,
}

/// What encoding a row found besides its tokens.
#[derive(Debug, Default)]
pub(super) struct RowNotes {
    /// The first special token in its text.
    pub(super) special: Option<String>,
}

impl Audit {
    /// The summary as lines for people.
    pub fn lines(&self) -> Vec<String> {
        let share = 100.0 * self.supervised_tokens as f64 / self.tokens.max(1) as f64;
        let Quantiles { min, p50, p90, p99, max } = self.lengths;
        let mut lines = vec![
            format!(
                "{} rows, {} tokens, {} supervised ({share:.1}%)",
                self.rows, self.tokens, self.supervised_tokens
            ),
            format!("tokens per row: min {min}, median {p50}, 90% {p90}, 99% {p99}, max {max}"),
        ];
        if let Some(Place { file, line }) = &self.longest {
            lines.push(format!("longest row: {file}:{line}"));
        }
        let mut count = |n: usize, what: &str| {
            if n > 0 {
                lines.push(format!("{n} {what}"));
            }
        };
        count(self.truncated, "rows lost the beginning of their prompt (--truncation prompt-left)");
        count(self.skipped_long, "rows skipped: too long (--truncation skip)");
        count(self.skipped_empty, "rows skipped: nothing to learn (--skip-empty)");
        if self.special_in_text > 0 {
            let first = self.special_first.iter();
            let first: Vec<String> =
                first.map(|s| format!("{}:{} {}", s.place.file, s.place.line, s.token)).collect();
            lines.push(format!(
                "{} rows hold special tokens in their text, which can end turns early (--escape-special makes them plain text): {}",
                self.special_in_text,
                first.join(", ")
            ));
        }
        lines
    }

    pub(super) fn add(&mut self, record: &Record, example: &Example, notes: RowNotes) {
        self.rows += 1;
        self.tokens += example.len();
        self.supervised_tokens += example.supervised();
        self.truncated += usize::from(example.truncated);
        self.note(record, notes);
    }

    pub(super) fn add_skipped_empty(&mut self, record: &Record, notes: RowNotes) {
        self.skipped_empty += 1;
        self.note(record, notes);
    }

    pub(super) fn add_skipped_long(&mut self, record: &Record, notes: RowNotes) {
        self.skipped_long += 1;
        self.note(record, notes);
    }

    pub(super) fn finish(&mut self, examples: &[Example], records: &[Record]) {
        self.lengths = Quantiles::of(examples.iter().map(Example::len).collect());
        // The first of the longest, so that the report is the same in every run.
        let longest = examples.iter().rev().max_by_key(|example| example.len());
        self.longest = longest.and_then(|example| records.get(example.record)).map(place);
    }

    fn note(&mut self, record: &Record, notes: RowNotes) {
        if let Some(token) = notes.special {
            self.special_in_text += 1;
            if self.special_first.len() < NAMED {
                self.special_first.push(SpecialPlace { place: place(record), token });
            }
        }
    }
}

impl Quantiles {
    /// Of `values`; all 0 if there are none.
    pub fn of(mut values: Vec<usize>) -> Self {
        values.sort_unstable();
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        Self { min: at(0.0), p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

/// The text of an example in pieces, each with whether it is supervised: what a coloured dump shows.
///
/// # Errors
/// As [`Tokenizer::decode`].
pub fn masked_preview(example: &Example, tokenizer: &Tokenizer) -> Result<Vec<(String, bool)>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let supervised = |i: usize| example.labels.get(i).is_some_and(|&label| label != IGNORE_INDEX);
    for end in 1..=example.len() {
        if end == example.len() || supervised(end) != supervised(start) {
            pieces.push((tokenizer.decode(&example.input_ids[start..end], false)?, supervised(start)));
            start = end;
        }
    }
    Ok(pieces)
}

fn place(record: &Record) -> Place {
    Place { file: record.file.display().to_string(), line: record.line }
}
