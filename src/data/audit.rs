//! What became of a data file: counts, lengths, and the things a user should look at before hours of training.

use std::sync::Arc;

use serde::Serialize;

use super::encode::{Cut, Example, repeated};
use super::record::Record;
use super::tokenizer::Tokenizer;
use crate::batch::IGNORE_INDEX;
use crate::error::Result;

/// How many places are named; the rest is counted.
const NAMED: usize = 5;

/// Summary of an encoded data set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Audit {
    /// Rows that became examples.
    pub rows: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Their tokens that carry loss; where sequences are labelled, the rows with a label.
    pub supervised_tokens: usize,
    /// Rows whose beginning was cut.
    pub truncated: usize,
    /// Those of them that lost a part of the question before their last answer; the others lost older turns
    /// only.
    pub questions_cut: usize,
    /// Those of them that lost all of that question.
    pub questions_gone: usize,
    /// Older turns that were cut out as a whole.
    pub turns_cut_out: usize,
    /// Those of them that would have been learned.
    pub answers_cut_out: usize,
    /// Rows left out because they have nothing to learn.
    pub skipped_empty: usize,
    /// Rows left out because they are too long.
    pub skipped_long: usize,
    /// Rows with a special token in their text.
    pub special_in_text: usize,
    /// The first of them.
    pub special_first: Vec<SpecialPlace>,
    /// Rows whose answer has no text: their end token alone is learned.
    pub empty_answers: Places,
    /// Rows whose answer the template does not end.
    pub without_end: Places,
    /// Rows with turns behind the last answer that is learned, which are left out.
    pub turns_left_out: Places,
    /// Rows of token ids with a label that is not the token at its place.
    pub other_labels: Places,
    /// Whether these labels are the tokens after their places.
    pub labels_shifted: bool,
    /// Rows that are equal to an earlier one.
    pub repeated: Places,
    /// Keys of turns and options that the chat template does not read.
    pub unread: Vec<String>,
    /// Columns that nothing is made of but meta data.
    pub columns: Vec<String>,
    /// Keys whose lists or objects were written as JSON text.
    pub json_texts: Vec<String>,
    /// What the labels of sequences are like, a sentence each; empty where tokens are learned.
    pub labels: Vec<String>,
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

/// How many rows something is true of, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Places {
    /// How many.
    pub rows: usize,
    /// The first.
    pub first: Option<Place>,
}

impl Places {
    fn add(&mut self, record: &Record) {
        self.rows += 1;
        self.first.get_or_insert_with(|| place(record));
    }
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
#[non_exhaustive]
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
#[derive(Debug, Default, Clone)]
pub(super) struct RowNotes {
    /// The first special token in its text.
    pub(super) special: Option<String>,
    /// Answers that are learned.
    pub(super) answers: usize,
    /// Those of them that have no text.
    pub(super) empty_answers: usize,
    /// The template writes nothing behind an answer, so the model does not learn to stop.
    pub(super) without_end: bool,
    /// Turns behind the last answer that is learned.
    pub(super) turns_left_out: usize,
    /// Keys of turns and options that the template does not read.
    pub(super) unread: Vec<String>,
    /// The first label that is not the token at its place, and whether labels are the tokens after their places.
    pub(super) other_label: Option<(usize, bool)>,
    /// What was cut to make it fit.
    pub(super) cut: Cut,
}

impl RowNotes {
    /// Whether no answer of the row has any text.
    pub(super) fn says_nothing(&self) -> bool {
        self.answers > 0 && self.answers == self.empty_answers
    }
}

impl Audit {
    /// The summary as lines for people.
    pub fn lines(&self) -> Vec<String> {
        let share = 100.0 * self.supervised_tokens as f64 / self.tokens.max(1) as f64;
        let Quantiles { min, p50, p90, p99, max } = self.lengths;
        let mut lines = vec![
            match self.labels.is_empty() {
                true => format!(
                    "{} rows, {} tokens, {} supervised ({share:.1}%)",
                    self.rows, self.tokens, self.supervised_tokens
                ),
                false => format!("{} rows, {} tokens; {}", self.rows, self.tokens, self.labels.join("; ")),
            },
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
        let lost = match self.truncated - self.questions_cut {
            0 => "each lost a part of its last question".to_owned(),
            older => {
                format!("{} lost a part of their last question, {older} older turns only", self.questions_cut)
            }
        };
        count(self.truncated, &format!("rows were cut at the beginning (--truncation prompt-left): {lost}"));
        count(self.questions_gone, "of them lost all of their last question");
        let learned = match self.answers_cut_out {
            0 => String::new(),
            answers => format!(", among them {answers} answers that are not learned"),
        };
        count(self.turns_cut_out, &format!("older turns were cut out as a whole{learned}"));
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
        let named = |places: &Places, what: &str| {
            let first = places.first.as_ref()?;
            (places.rows > 0)
                .then(|| format!("{} rows {what} (first {}:{})", places.rows, first.file, first.line))
        };
        let shifted = match self.labels_shifted {
            true => {
                "have labels that are shifted: each is the token after its place; labels are not to be shifted"
            }
            false => "have labels that are other tokens than those at their places",
        };
        lines.extend(named(&self.other_labels, shifted));
        lines.extend(named(&self.empty_answers, "have an empty answer: their end token alone is learned"));
        lines.extend(named(
            &self.without_end,
            "have an answer that the chat template does not end, so the model does not learn to stop",
        ));
        lines.extend(named(
            &self.turns_left_out,
            "have turns behind the last answer that is learned, which are left out",
        ));
        lines.extend(named(&self.repeated, "are equal to an earlier one"));
        if !self.unread.is_empty() {
            lines.push(format!("the chat template does not read: {}", self.unread.join(", ")));
        }
        if !self.columns.is_empty() {
            lines.push(format!("columns that are not trained on: {}", self.columns.join(", ")));
        }
        if !self.json_texts.is_empty() {
            let names = self.json_texts.join(", ");
            lines.push(format!("JSON text, read as the list or object that it holds: {names}"));
        }
        lines
    }

    pub(super) fn add(&mut self, record: &Record, example: &Example, notes: RowNotes) {
        self.rows += 1;
        self.tokens += example.len();
        self.supervised_tokens += example.supervised();
        self.truncated += usize::from(example.truncated);
        self.questions_cut += usize::from(notes.cut.is_in_last);
        self.questions_gone += usize::from(notes.cut.is_in_last && notes.cut.last_is_gone);
        self.turns_cut_out += notes.cut.turns;
        self.answers_cut_out += notes.cut.answers;
        self.note(record, notes);
    }

    pub(super) fn add_skipped_empty(&mut self, record: &Record, notes: RowNotes) {
        self.skipped_empty += 1;
        self.note(record, RowNotes { empty_answers: 0, ..notes });
    }

    pub(super) fn add_skipped_long(&mut self, record: &Record, notes: RowNotes) {
        self.skipped_long += 1;
        self.note(record, notes);
    }

    pub(super) fn finish<'e>(
        &mut self,
        examples: impl DoubleEndedIterator<Item = &'e Example> + Clone,
        records: &[Record],
    ) {
        self.lengths = Quantiles::of(examples.clone().map(Example::len).collect());
        let (rows, first) = repeated(examples.clone());
        self.repeated = Places { rows, first: first.and_then(|first| records.get(first)).map(place) };
        self.columns = names(records, |record| &record.columns);
        self.json_texts = names(records, |record| &record.json_texts);
        // The first of the longest, so that the report is the same in every run.
        let longest = examples.rev().max_by_key(|example| example.len());
        self.longest = longest.and_then(|example| records.get(example.record)).map(place);
    }

    fn note(&mut self, record: &Record, notes: RowNotes) {
        if notes.empty_answers > 0 {
            self.empty_answers.add(record);
        }
        if notes.without_end {
            self.without_end.add(record);
        }
        if notes.turns_left_out > 0 {
            self.turns_left_out.add(record);
        }
        if let Some((_, shifted)) = notes.other_label {
            self.labels_shifted |= shifted && self.other_labels.rows == 0;
            self.other_labels.add(record);
        }
        for key in notes.unread {
            if !self.unread.contains(&key) {
                self.unread.push(key);
            }
        }
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

/// All names in the lists of rows, in their order, each once.
fn names(records: &[Record], of: impl Fn(&Record) -> &Arc<[String]>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut last: Option<&Arc<[String]>> = None;
    for list in records.iter().map(of).filter(|list| !list.is_empty()) {
        // Rows of one file share their list.
        if last.is_some_and(|last| Arc::ptr_eq(last, list)) {
            continue;
        }
        last = Some(list);
        for name in list.iter() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    names
}

fn place(record: &Record) -> Place {
    Place { file: record.file.display().to_string(), line: record.line }
}
