//! The result files: their names, the checks before any work, and writing them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use csv::{Terminator, WriterBuilder};
use serde_json::{Map, Value, json};

use super::choice::{cell, gold_text};
use super::report::{Accuracy, ChoiceReport, MISSING, Outcome};
use crate::config::{ScoreConfig, ScoreMode};
use crate::data::record::Record;
use crate::error::{Error, Result};
use crate::formats::atomic::{parent_of, write_file};
use crate::formats::model_folder::is_model_folder;

/// Paths of the result files.
#[derive(Debug)]
pub(super) struct Outputs {
    /// One line per row.
    rows: PathBuf,
    /// The summary of choices.
    summary: Option<PathBuf>,
}

impl Outputs {
    /// Chooses the file names, and checks that they can be written, before hours of work.
    ///
    /// # Errors
    /// An input error for a name that cannot be a file, for a file that exists (without `overwrite`), and for
    /// an input file; an I/O error if the folder cannot be made.
    pub(super) fn plan(config: &ScoreConfig) -> Result<Self> {
        let refuse = |what: &str, path: &Path| Error::input("OUTPUT", what).path(path).field("output");
        let Some(name) = config.output.file_name() else {
            return refuse("not the name of a file", &config.output)
                .fix("name a file, such as scores.jsonl")
                .into();
        };
        let outputs = match config.mode {
            ScoreMode::Choice => {
                let known = ["csv", "json", "jsonl"];
                let extension =
                    config.output.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
                let stem = config
                    .output
                    .file_stem()
                    .filter(|_| extension.is_some_and(|e| known.contains(&e.as_str())));
                let with = |extension: &str| {
                    let mut file = OsString::from(stem.unwrap_or(name));
                    file.push(extension);
                    config.output.with_file_name(file)
                };
                Self { rows: with(".csv"), summary: Some(with(".json")) }
            }
            _ => Self { rows: config.output.clone(), summary: None },
        };
        let parent = parent_of(&config.output);
        if is_model_folder(parent) {
            return refuse("the results would be in a model folder", parent)
                .fix("choose another --output: a model folder holds the files of the model alone")
                .into();
        }
        for path in outputs.paths() {
            if path.is_dir() {
                return refuse("a folder has this name", path)
                    .fix("name a file, such as scores.jsonl")
                    .into();
            }
            let same = |data: &PathBuf| {
                path.canonicalize().is_ok_and(|path| data.canonicalize().is_ok_and(|data| data == path))
            };
            if config.data_file.iter().any(same) {
                return refuse("the results would replace the data", path)
                    .fix("choose another --output")
                    .into();
            }
            if path.symlink_metadata().is_ok() && !config.overwrite {
                return refuse("the file exists already", path)
                    .fix("choose another --output, or pass --overwrite true")
                    .into();
            }
        }
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create the folder", e))?;
        Ok(outputs)
    }

    /// The files, in the order in which they are written.
    pub(super) fn paths(&self) -> Vec<&Path> {
        std::iter::once(self.rows.as_path()).chain(self.summary.as_deref()).collect()
    }

    pub(super) fn write_lines(&self, text: &[u8]) -> Result<()> {
        write_file(&self.rows, text)
    }

    /// Writes table and summary. Returns the number of rows with a text that a spreadsheet may run as a formula.
    pub(super) fn write_choices(
        &self,
        config: &ScoreConfig,
        report: &ChoiceReport,
        records: &[Record],
        outcomes: &[Outcome],
    ) -> Result<usize> {
        let (table, formulas) =
            table(report, records, outcomes).map_err(|e| Error::io(&self.rows, "write", e))?;
        let Some(summary) = &self.summary else { return Ok(formulas) };
        // Two files cannot be replaced in one step: the old summary is removed first, so that it never
        // appears beside a new table.
        if summary.symlink_metadata().is_ok() {
            std::fs::remove_file(summary).map_err(|e| Error::io(summary, "replace", e))?;
        }
        write_file(&self.rows, &table)?;
        write_file(summary, summary_json(config, report).as_bytes())?;
        Ok(formulas)
    }
}

/// The table as RFC 4180 text, and the number of rows with a text that a spreadsheet may run as a formula.
fn table(
    report: &ChoiceReport,
    records: &[Record],
    outcomes: &[Outcome],
) -> std::io::Result<(Vec<u8>, usize)> {
    let mut header: Vec<String> =
        ["id", "line", "file", "gold", "predicted", "correct"].map(str::to_owned).to_vec();
    header.extend(report.choices.iter().map(|choice| format!("logprob_{choice}")));
    header.push("predicted_norm".into());
    for by in &report.by {
        let name = if header.contains(&by.field) { format!("meta.{}", by.field) } else { by.field.clone() };
        header.push(name);
    }
    let mut writer = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(&header)?;
    let mut formulas = 0;
    for outcome in outcomes {
        let record = &records[outcome.record];
        let predicted = &report.choices[outcome.pick.sum];
        let gold = gold_text(record).ok().flatten().map_or("", str::trim).to_owned();
        let correct = outcome
            .gold
            .map_or(String::new(), |gold| (gold == outcome.pick.sum && !outcome.pick.sum_tied).to_string());
        let by =
            report.by.iter().map(|by| cell(record.meta.get(&by.field)).unwrap_or_else(|| MISSING.to_owned()));
        let mut row = vec![
            cell(record.meta.get("id")).unwrap_or_default(),
            record.line.to_string(),
            record.file.display().to_string(),
            gold,
            predicted.clone(),
            correct,
        ];
        // Log-probabilities are negative numbers, which spreadsheets do not run as formulas.
        let texts = row.len();
        // `{:?}` is the shortest decimal that comes back as the same number.
        row.extend(outcome.logprobs.iter().map(|logprob| format!("{logprob:?}")));
        let after = row.len();
        row.push(report.choices[outcome.pick.norm].clone());
        row.extend(by);
        let mut cells = row[..texts].iter().chain(&row[after..]);
        formulas += usize::from(cells.any(|text| text.starts_with(['=', '+', '-', '@', '\t', '\r'])));
        writer.write_record(&row)?;
    }
    Ok((writer.into_inner().map_err(|e| e.into_error())?, formulas))
}

/// The summary. It has no dates and no timings, so the same run writes the same bytes.
fn summary_json(config: &ScoreConfig, report: &ChoiceReport) -> String {
    let counts = |counts: &[usize]| -> Map<String, Value> {
        report.choices.iter().cloned().zip(counts.iter().map(|&count| json!(count))).collect()
    };
    let confusion: Map<String, Value> =
        report.choices.iter().cloned().zip(report.confusion.iter().map(|row| counts(row).into())).collect();
    let by = report.by.iter().map(|by| {
        let values =
            by.values.iter().map(|(value, accuracy)| (value.clone(), accuracy_json(accuracy).into()));
        (by.field.clone(), values.collect::<Map<String, Value>>().into())
    });
    let mut summary = json!({ "mode": config.mode });
    let mut add =
        |key: &str, value: Value| drop(summary.as_object_mut().map(|s| s.insert(key.into(), value)));
    for (key, value) in accuracy_json(&report.overall) {
        add(&key, value);
    }
    add("choices", json!(report.choices));
    add("gold_counts", counts(&report.gold).into());
    add("predicted_counts", counts(&report.predicted).into());
    add("confusion", confusion.into());
    add("by", by.collect::<Map<String, Value>>().into());
    add(
        "config",
        json!({
            "model": config.model,
            "adapter": config.adapter,
            "data_file": config.data_file,
            "limit": config.limit,
            "format": config.format,
            "train_mode": config.train_mode,
            "max_seq_length": config.max_seq_length,
            "truncation": config.truncation,
            "escape_special": config.escape_special,
            "skip_empty": config.skip_empty,
            "mask_history": config.mask_history,
            "dtype": config.dtype,
            "quant": config.quant,
        }),
    );
    format!("{summary:#}\n")
}

fn accuracy_json(accuracy: &Accuracy) -> Map<String, Value> {
    match json!(accuracy) {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
