//! Modes `classify` and `regress`: for every row the outputs of a head for labels and what they say.

use std::ops::Range;
use std::path::Path;

use csv::{Terminator, WriterBuilder};
use serde::Serialize;
use serde_json::{Value, json};

use super::choice::cell;
use super::event::{Event, Findings};
use super::output::Outputs;
use super::session::{Session, not_finite};
use crate::batch::Label;
use crate::config::{ScoreConfig, Task};
use crate::data::collate::collate_labels;
use crate::data::encode::Example;
use crate::data::labels::LabelScheme;
use crate::data::record::{Body, Record, RowLabel};
use crate::error::{Error, Result};
use crate::formats::adapter::{AdapterConfig, CONFIG_NAME, read_text};
use crate::model::Found;
use crate::session::Progress;
use crate::session::label_metrics::{LabelMetrics, LabelSums, best};
use crate::session::labels::{self, loss_of};

/// Summary of the labels of a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LabelReport {
    /// `classify` or `regress`.
    pub task: Task,
    /// Outputs of the head.
    pub num_labels: usize,
    /// Compared with the labels of the rows; none if no row has one.
    pub metrics: Option<LabelMetrics>,
}

/// Whether the adapter was trained to give labels.
///
/// # Errors
/// As reading its files.
pub(super) fn is_trained(config: &ScoreConfig) -> Result<bool> {
    let Some(dir) = &config.adapter else { return Ok(false) };
    if labels::read(dir)?.is_some() {
        return Ok(true);
    }
    let Some(text) = read_text(dir, CONFIG_NAME, MAX_BYTES)? else { return Ok(false) };
    let peft = AdapterConfig::from_json(&dir.join(CONFIG_NAME), &text)?;
    Ok(peft.task_type.as_deref() == Some("SEQ_CLS"))
}

/// Largest `adapter_config.json`.
const MAX_BYTES: u64 = 4 << 20;

/// What the head found for a row.
struct Outcome {
    example: usize,
    logits: Vec<f32>,
}

/// Scores all rows and writes their lines; `asked` is the task, if the user named one. Returns rows scored, rows left out, and the
/// findings.
pub(super) fn run(
    session: &mut Session<'_>,
    outputs: &Outputs,
    asked: Option<Task>,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<(usize, usize, Findings)> {
    let (mut records, routing) = session.rows()?;
    records.truncate(session.config.limit.unwrap_or(usize::MAX));
    let mut opened = session.open(asked.unwrap_or(Task::Classify), &records, watch)?;
    let adapter = session.open_adapter(watch)?;
    let scheme = match (&adapter, &session.config.adapter) {
        (Some(adapter), Some(dir)) => labels::of_adapter(adapter, dir, &opened.model.config, asked)?,
        _ => labels::of_model(&opened, asked)?,
    };
    check_asked(asked, &scheme, session.config.adapter.as_deref())?;
    opened.set_labels(scheme.num_labels);
    let limits = opened.row_limits(false);
    let encode = |progress: &Progress<'_>| {
        let encoded = scheme.encode(&records, &limits)?;
        progress(records.len())?;
        Ok(encoded)
    };
    let examples: Vec<Example> = session.encoded((records.len(), routing), encode, watch)?;
    let model = session.load_with(&opened, adapter, watch)?;
    let lengths: Vec<usize> = examples.iter().map(Example::len).collect();
    let loss = loss_of(&scheme, None, None, 0.0);
    let pack = |rows: Range<usize>| {
        let rows: Vec<&Example> = examples[rows].iter().collect();
        Ok((collate_labels(&rows, 0, limits.pool), ()))
    };
    let (mut sums, mut outcomes) = (LabelSums::default(), Vec::with_capacity(examples.len()));
    let take = |rows: Range<usize>, (), found: Found| {
        for (example, score) in rows.zip(found.labels()) {
            let label = &examples[example].label;
            if score.logits.iter().any(|logit| !logit.is_finite()) {
                return Err(not_finite(&records[examples[example].record], "an output"));
            }
            sums.add((loss.divisor(label), score.loss), label, score.logits.clone());
            outcomes.push(Outcome { example, logits: score.logits });
        }
        Ok(())
    };
    session.find((&model, Some(loss.clone())), &lengths, pack, take, watch)?;
    session.check_weights(&opened)?;
    let as_table = outputs.paths().first().is_some_and(|path| path.extension().is_some_and(|e| e == "csv"));
    let text = match as_table {
        true => table(&scheme, &records, &examples, &outcomes)
            .map_err(|e| Error::io(&session.config.output, "write", e))?,
        false => lines(&scheme, &records, &examples, &outcomes),
    };
    outputs.write_lines(&text)?;
    let report =
        LabelReport { task: scheme.task, num_labels: scheme.num_labels, metrics: sums.metrics(&scheme) };
    Ok((examples.len(), records.len() - examples.len(), Findings::Labels(report)))
}

/// Fails if the adapter was trained for another task than the mode.
fn check_asked(asked: Option<Task>, scheme: &LabelScheme, dir: Option<&Path>) -> Result<()> {
    match asked {
        Some(asked) if asked != scheme.task => {
            Error::input("CONFIG", "the adapter or model was trained for another task")
                .path(dir.unwrap_or(Path::new("")))
                .field("mode")
                .got(asked)
                .expected(scheme.task)
                .fix(format!("use --mode {}", scheme.task))
                .into()
        }
        _ => Ok(()),
    }
}

/// Shares of the outputs: of classes they add up to 1, of several labels each is a probability of its own.
fn probabilities(scheme: &LabelScheme, logits: &[f32]) -> Vec<f64> {
    let logits = logits.iter().map(|&logit| f64::from(logit));
    if !scheme.is_one_class() {
        return logits.map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
    }
    let largest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    let shares: Vec<f64> = logits.map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = shares.iter().sum();
    shares.into_iter().map(|share| share / sum).collect()
}

/// A class by its name, or its number.
fn class(scheme: &LabelScheme, class: usize) -> Value {
    scheme.name(class).map_or_else(|| json!(class), |name| json!(name))
}

/// What the outputs say: a class, the labels that are more probable than not, or numbers in the units of the rows.
fn prediction(scheme: &LabelScheme, logits: &[f32]) -> Value {
    if scheme.is_one_class() {
        return class(scheme, best(logits));
    }
    if scheme.task == Task::Classify {
        let there = logits.iter().enumerate().filter(|(_, logit)| **logit >= 0.0);
        return there.map(|(label, _)| class(scheme, label)).collect();
    }
    let number = |(output, &logit): (usize, &f32)| scheme.in_units(output, f64::from(logit));
    match logits {
        [one] => json!(number((0, one))),
        many => many.iter().enumerate().map(number).collect(),
    }
}

/// The label of a row as it stands there.
fn label(record: &Record) -> Option<Value> {
    let Body::Labelled { label, .. } = &record.body else { return None };
    Some(match label.as_ref()? {
        RowLabel::Name(name) => json!(name),
        RowLabel::Number(number) if number.fract() == 0.0 && number.abs() < 1e15 => json!(*number as i64),
        RowLabel::Number(number) => json!(number),
        RowLabel::Numbers(numbers) => json!(numbers),
    })
}

/// Whether the prediction of a class is right; none without a label, and for numbers.
fn is_right(scheme: &LabelScheme, label: &Label, logits: &[f32]) -> Option<bool> {
    match label {
        Label::Class(class) => Some(best(logits) == *class as usize),
        Label::Numbers(targets) if scheme.task == Task::Classify => {
            Some(targets.iter().zip(logits).all(|(target, logit)| (*target >= 0.5) == (*logit >= 0.0)))
        }
        _ => None,
    }
}

/// One line of the result.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    line: usize,
    file: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<Value>,
    prediction: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    correct: Option<bool>,
    /// One per output.
    logits: &'a [f32],
    #[serde(skip_serializing_if = "Option::is_none")]
    probabilities: Option<Vec<f64>>,
}

fn lines(scheme: &LabelScheme, records: &[Record], examples: &[Example], outcomes: &[Outcome]) -> Vec<u8> {
    let mut text = Vec::new();
    for Outcome { example, logits } in outcomes {
        let example = &examples[*example];
        let record = &records[example.record];
        let line = Line {
            id: record.meta.get("id"),
            line: record.line,
            file: &record.file.display().to_string(),
            label: label(record),
            prediction: prediction(scheme, logits),
            correct: is_right(scheme, &example.label, logits),
            logits,
            probabilities: (scheme.task == Task::Classify).then(|| probabilities(scheme, logits)),
        };
        // Every number is finite, and every key a text.
        text.extend(serde_json::to_vec(&line).unwrap_or_default());
        text.push(b'\n');
    }
    text
}

fn table(
    scheme: &LabelScheme,
    records: &[Record],
    examples: &[Example],
    outcomes: &[Outcome],
) -> std::io::Result<Vec<u8>> {
    let is_classes = scheme.task == Task::Classify;
    let mut header: Vec<String> = ["id", "line", "file", "label", "prediction"].map(str::to_owned).to_vec();
    let name = |output: usize| scheme.name(output).map_or_else(|| output.to_string(), str::to_owned);
    let outputs = 0..scheme.num_labels;
    header.extend(is_classes.then(|| "correct".to_owned()));
    header.extend(outputs.clone().map(|output| format!("logit_{}", name(output))));
    if is_classes {
        header.extend(outputs.map(|output| format!("probability_{}", name(output))));
    }
    let mut writer = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(&header)?;
    for Outcome { example, logits } in outcomes {
        let example = &examples[*example];
        let record = &records[example.record];
        let mut row = vec![
            cell(record.meta.get("id")).unwrap_or_default(),
            record.line.to_string(),
            record.file.display().to_string(),
            cell(label(record).as_ref()).unwrap_or_default(),
            cell(Some(&prediction(scheme, logits))).unwrap_or_default(),
        ];
        if is_classes {
            row.push(
                is_right(scheme, &example.label, logits).map_or(String::new(), |right| right.to_string()),
            );
        }
        // `{:?}` is the shortest decimal that comes back as the same number.
        row.extend(logits.iter().map(|logit| format!("{logit:?}")));
        if is_classes {
            row.extend(probabilities(scheme, logits).iter().map(|share| format!("{share:?}")));
        }
        writer.write_record(&row)?;
    }
    writer.into_inner().map_err(|e| e.into_error())
}

#[cfg(test)]
#[path = "labels_tests.rs"]
mod tests;
