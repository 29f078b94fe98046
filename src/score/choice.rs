//! Mode `choice`: the prompt once, every answer as its continuation, and the most probable one is the prediction.
//!
//! An answer's score is the sum of the log-probabilities of its own tokens, without the token that ends it, as in the LM
//! evaluation harness. The token would compare how well answers end, which is no part of the question.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use super::event::{Event, Findings};
use super::output::Outputs;
use super::packed::Packed;
use super::report::{ChoiceReport, Outcome, pick};
use super::session::{Session, check, row_error};
use crate::config::Task;
use crate::data::collate::collate_choices;
use crate::data::encode::Asked;
use crate::data::record::{Body, Record};
use crate::error::{Error, Result};
use crate::session::Notice;

/// Most answers that are taken from the data: more are no choices but free answers.
const MAX_CHOICES: usize = 26;

/// With fewer rows a constant answer says nothing.
const CONSTANT_ROWS: usize = 8;

/// Scores all rows and writes table and summary. Returns rows scored, rows left out, and the findings.
pub(super) fn run(
    session: &mut Session<'_>,
    outputs: &Outputs,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<(usize, usize, Findings)> {
    let config = session.config;
    let (mut records, routing) = session.rows()?;
    let found = distinct(&records)?;
    let choices = match &config.choices {
        Some(choices) => choices.clone(),
        None => from_data(found)?,
    };
    let by = fields(&config.by, &records)?;
    records.truncate(config.limit.unwrap_or(usize::MAX));
    let num_rows = records.len();
    if config.skip_empty {
        records.retain(|record| matches!(gold_text(record), Ok(Some(_))));
    }
    if records.is_empty() {
        return Error::input("DATA", "no row is left")
            .got(format!("{num_rows} rows without an answer"))
            .fix("leave out --skip-empty: choices need no answer, only the accuracy does")
            .into();
    }
    let opened = session.open(Task::Causal, &records, watch)?;
    let encoder = opened.encoder(&records)?;
    let asked = session.encode_choices(&encoder, (&records, routing), &choices, watch)?;
    drop(encoder);
    if let Some(first) = asked.first() {
        warn_of_beginnings(first, &choices, watch);
    }

    let model = session.load(&opened, watch)?;
    let lengths: Vec<usize> = asked.iter().map(Asked::num_rows).collect();
    let pack = |rows: Range<usize>| {
        let mut packed = Packed::default();
        asked[rows].iter().for_each(|asked| packed.push(collate_choices(asked, 0)));
        Ok(packed)
    };
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(asked.len());
    let take = |rows: Range<usize>, scores: Vec<Vec<f64>>| {
        for (asked, scores) in asked[rows].iter().zip(scores.chunks_exact(choices.len())) {
            let record = &records[asked.record];
            let logprobs: Vec<f64> = scores.iter().map(|tokens| tokens.iter().sum()).collect();
            for (logprob, answer) in logprobs.iter().zip(&asked.answers) {
                check(record, "the log-probability of a choice", *logprob, answer.scored.len())?;
            }
            let gold = gold_text(record)?.and_then(|text| place(&choices, text));
            outcomes.push(Outcome { record: asked.record, gold, pick: pick(&logprobs, &choices), logprobs });
        }
        Ok(())
    };
    session.score(&model, &lengths, pack, take, watch)?;

    let report = ChoiceReport::of(&outcomes, &records, &choices, &by);
    for warning in warnings(&report, &outcomes, &records) {
        watch(Event::Notice(Notice::Warning(warning)));
    }
    session.check_weights(&opened)?;
    let formulas = outputs.write_choices(config, &report, &records, &outcomes)?;
    if formulas > 0 {
        watch(Event::Notice(Notice::Warning(format!(
            "{formulas} rows of the table have a text that starts with = + - @ or a control character; they are kept \
             exactly, but a spreadsheet may run them as formulas"
        ))));
    }
    Ok((asked.len(), num_rows - asked.len(), Findings::Choice(report)))
}

/// The answer that a row gives; none if it is empty.
///
/// # Errors
/// [`Error::Input`] for a tokenised row, which has no text.
pub(super) fn gold_text(record: &Record) -> Result<Option<&str>> {
    let text = match &record.body {
        Body::InputOutput { output, .. } => output,
        Body::Messages(conversation) => match conversation.turns.last() {
            Some(turn) if turn.role == "assistant" => &turn.content,
            _ => return Ok(None),
        },
        Body::Text(_) | Body::Tokenised { .. } | Body::Labelled { .. } => {
            return row_error(record, "choices need a question with an answer")
                .expected("\"input\" and \"output\", or \"messages\"")
                .fix("use --mode logprob for rows of text or token ids")
                .into();
        }
    };
    Ok(Some(text.as_str()).filter(|text| !text.trim().is_empty()))
}

/// The distinct answers, sorted; those that differ by white space at the ends are one, spelled as where it first stands.
fn distinct(records: &[Record]) -> Result<BTreeMap<&str, &str>> {
    let mut found = BTreeMap::new();
    for record in records {
        if let Some(text) = gold_text(record)? {
            found.entry(text.trim()).or_insert(text);
        }
    }
    Ok(found)
}

fn from_data(found: BTreeMap<&str, &str>) -> Result<Vec<String>> {
    if !(2..=MAX_CHOICES).contains(&found.len()) {
        return Error::input("DATA", "the answers of the data are no choices")
            .field("choices")
            .got(format!("{} distinct answers", found.len()))
            .expected(format!("2 to {MAX_CHOICES}"))
            .fix("pass --choices with the answers, for example --choices a,b,c,d")
            .into();
    }
    Ok(found.into_values().map(str::to_owned).collect())
}

/// The fields to group by, each once.
fn fields(by: &[String], records: &[Record]) -> Result<Vec<String>> {
    let mut fields: Vec<String> = Vec::new();
    for field in by {
        if !records.iter().any(|record| record.meta.contains_key(field)) {
            let mut known: Vec<&str> =
                records.iter().flat_map(|record| record.meta.keys().map(String::as_str)).collect();
            known.sort_unstable();
            known.dedup();
            known.truncate(12);
            return Error::input("CONFIG", "no row has this field in its meta data")
                .field("by")
                .got(field)
                .expected(if known.is_empty() { "rows with \"meta\"".into() } else { known.join(", ") })
                .fix("correct the name, or leave it out")
                .into();
        }
        if !fields.contains(field) {
            fields.push(field.clone());
        }
    }
    Ok(fields)
}

/// Says so if an answer begins with another one, which is then never less probable.
fn warn_of_beginnings(asked: &Asked, choices: &[String], watch: &mut dyn FnMut(Event<'_>)) {
    let answers = &asked.answers;
    let tokens = |i: usize| &answers[i].ids[answers[i].scored.clone()];
    let starts = |i: usize, j: usize| i != j && tokens(j).starts_with(tokens(i));
    let pairs = || (0..answers.len()).flat_map(|j| (0..answers.len()).map(move |i| (i, j)));
    if let Some((i, j)) = pairs().find(|&(i, j)| starts(i, j)) {
        watch(Event::Notice(Notice::Warning(format!(
            "the choice {:?} begins with {:?}, so it can never be the more probable one; prefer choices of which none begins \
             another",
            choices[j], choices[i]
        ))));
    }
}

/// The choice that `text` is: exactly, or but for white space at the ends.
fn place(choices: &[String], text: &str) -> Option<usize> {
    let exact = choices.iter().position(|choice| choice == text);
    exact.or_else(|| choices.iter().position(|choice| choice.trim() == text.trim()))
}

/// What the user should look at.
fn warnings(report: &ChoiceReport, outcomes: &[Outcome], records: &[Record]) -> Vec<String> {
    let mut warnings = Vec::new();
    // A row that only asks, as a conversation that ends with the user, has no wrong answer.
    let (silent, other): (Vec<&Outcome>, Vec<&Outcome>) = outcomes
        .iter()
        .filter(|outcome| outcome.gold.is_none())
        .partition(|outcome| matches!(gold_text(&records[outcome.record]), Ok(None)));
    for (found, what) in [(silent, "have no answer"), (other, "have an answer that is not among the choices")]
    {
        let Some(first) = found.first() else { continue };
        let Record { file, line, .. } = &records[first.record];
        warnings.push(format!(
            "{} of {} rows {what} ({}:{line} is the first); they have scores but no part in the accuracy",
            found.len(),
            report.overall.num_rows,
            file.display()
        ));
    }
    let used = |counts: &[usize]| counts.iter().filter(|&&count| count > 0).count();
    if report.overall.num_rows >= CONSTANT_ROWS && used(&report.predicted) == 1 && used(&report.gold) > 1 {
        let only = report.predicted.iter().position(|&count| count > 0).unwrap_or(0);
        warnings
            .push(format!("every row was answered {:?}; the model does not choose", report.choices[only]));
    }
    warnings
}

/// A value of `meta` as a cell of a table: texts as they are, all else as JSON.
pub(super) fn cell(value: Option<&Value>) -> Option<String> {
    match value {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
    }
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
