//! `tanren score` for people: settings, findings, progress, accuracies.

use std::sync::Arc;

use super::console::{Console, Progress};
use super::options::ScoreArgs;
use super::signals::Stop;
use super::train::{files, routed};
use super::units::{batch, bytes, count, harmless, seconds, sol};
use super::{table, template};
use crate::config::{DeviceChoice, ScoreConfig};
use crate::error::Result;
use crate::score::{
    self, Accuracy, ChoiceReport, Context, Event, Findings, LabelReport, LogprobReport, Summary,
};

/// Maximum number of answers for which the confusion table is shown; a wider one does not fit a screen.
const MAX_CONFUSION: usize = 10;

/// Maximum length of an answer in the tables, in characters.
const MAX_CHOICE: usize = 24;

/// Runs a scoring.
///
/// # Errors
/// Errors of options, files, numbers or the device; or that the run was stopped.
pub(super) fn run(args: &ScoreArgs, console: &Arc<Console>) -> Result<()> {
    let config = ScoreConfig::resolve(args.flags()?, args.config())?;
    console.lines(table::pairs(&settings(&config)));
    let stop = Stop::install(console)?;
    let context = Context { template_helper: Some(template::helper()?), stop: Some(stop.question()) };
    let summary = score::run(&config, &context, &mut |event| {
        // The run may not poll for the signal often, but the user gets feedback at once.
        stop.asked();
        show(console, event);
    });
    console.clear();
    let summary = summary?;
    console.heading("result");
    console.lines(table::pairs(&result(&summary)));
    match &summary.findings {
        Findings::Logprob(_) | Findings::Labels(_) => {}
        Findings::Choice(report) => choices(report, console),
    }
    Ok(())
}

fn settings(config: &ScoreConfig) -> Vec<(&'static str, String)> {
    let batch = batch(config.batching());
    let adapter = config.adapter.as_ref();
    vec![
        ("model", config.model.clone()),
        (
            "adapter",
            adapter.map_or_else(|| "none: the bare model".to_owned(), |dir| dir.display().to_string()),
        ),
        ("rows", files(&config.data_file)),
        ("mode", format!("{} ({})", config.mode, config.format)),
        ("batch", batch),
        (
            "device",
            match config.device {
                // The dtype is printed once the device is chosen.
                DeviceChoice::Auto => config.device.to_string(),
                _ => format!("{}, {}", config.device, config.dtype),
            },
        ),
        ("output", config.output.display().to_string()),
    ]
}

fn show(console: &Console, event: Event<'_>) {
    let progress = |what, done, total| console.progress(Progress { what, done, total, detail: "" });
    match event {
        Event::Notice(notice) => console.notice(notice),
        Event::Planned { weights_bytes, limit } => {
            let most = limit
                .map_or_else(String::new, |limit| format!(", of {} ({})", bytes(limit.bytes), limit.source));
            console.heading("plan");
            console.lines(table::pairs(&[("weights", format!("{}{most}", bytes(weights_bytes)))]));
        }
        Event::Scoring { done, total } => progress("scoring", done as u64, total as u64),
        Event::Audit { audit, routing } => {
            console.heading("rows");
            console.lines(audit.lines().into_iter().chain(routed(routing)).map(|line| format!("  {line}")));
        }
        Event::Saved { path } => console.line(format_args!("  saved {}", path.display())),
    }
}

fn result(summary: &Summary) -> Vec<(&'static str, String)> {
    let mut rows = vec![("rows", count(summary.num_rows as u64))];
    if summary.num_skipped > 0 {
        rows.push(("left out", format!("{} rows", count(summary.num_skipped as u64))));
    }
    match &summary.findings {
        Findings::Logprob(LogprobReport { num_tokens, loss, perplexity }) => rows.extend([
            ("supervised", format!("{} tokens", count(*num_tokens as u64))),
            ("loss", format!("{loss:.4} per supervised token")),
            ("perplexity", format!("{perplexity:.3}")),
        ]),
        Findings::Labels(report) => rows.extend(labels(report)),
        Findings::Choice(ChoiceReport { overall, .. }) => rows.extend([
            ("accuracy", share(overall.num_correct, overall)),
            (
                "acc_norm",
                format!("{} by log-probability per character", share(overall.num_correct_norm, overall)),
            ),
        ]),
    }
    rows.extend([
        (
            "time",
            format!(
                "{} ({} tokens/s{})",
                seconds(summary.runtime),
                count(summary.tokens_per_second.round() as u64),
                sol(", ", summary.sol)
            ),
        ),
        ("weights", bytes(summary.weights_bytes)),
        ("peak memory", format!("{} of weights and activations", bytes(summary.peak_bytes))),
    ]);
    rows
}

/// What a head for labels found.
fn labels(report: &LabelReport) -> Vec<(&'static str, String)> {
    let outputs = ("outputs", format!("{} ({})", count(report.num_labels as u64), report.task));
    let Some(metrics) = &report.metrics else {
        return vec![outputs, ("labels", "none in the rows, so there is nothing to compare".to_owned())];
    };
    let mut rows = vec![
        outputs,
        ("labels", format!("{} rows", count(metrics.num_rows as u64))),
        ("loss", format!("{:.4}", metrics.loss)),
    ];
    rows.extend(metrics.accuracy.map(|share| ("accuracy", format!("{:.2}%", 100.0 * share))));
    let numbers = [
        ("macro F1", metrics.f1),
        ("MSE", metrics.mse),
        ("RMSE", metrics.rmse),
        ("MAE", metrics.mae),
        ("R2", metrics.r2),
        ("NDCG", metrics.ndcg),
    ];
    rows.extend(numbers.into_iter().filter_map(|(name, value)| Some((name, format!("{:.4}", value?)))));
    rows
}

/// A number of rows, and its share of the rows with a known answer.
fn share(correct: usize, of: &Accuracy) -> String {
    match of.num_with_gold {
        0 => "- (no row has one of the choices as its output)".to_owned(),
        all => format!("{:.2}% ({correct}/{all})", 100.0 * correct as f64 / all as f64),
    }
}

/// How often each choice is the output and how often it was predicted, the confusion table, and accuracy by
/// field.
fn choices(report: &ChoiceReport, console: &Console) {
    let names: Vec<String> = report.choices.iter().map(|choice| short(choice)).collect();
    let counts = report.gold.iter().zip(&report.predicted).zip(&names);
    let rows: Vec<_> = counts
        .map(|((gold, predicted), name)| vec![name.clone(), gold.to_string(), predicted.to_string()])
        .collect();
    console.heading("choices");
    console.lines(table::columns(&["choice", ">in the data", ">predicted"], &rows));
    if names.len() <= MAX_CONFUSION && report.overall.num_with_gold > 0 {
        let right: Vec<String> = names.iter().map(|name| format!(">{name}")).collect();
        let heads: Vec<&str> =
            std::iter::once("output \\ predicted").chain(right.iter().map(String::as_str)).collect();
        let row = |(name, counts): (&String, &Vec<usize>)| {
            std::iter::once(name.clone()).chain(counts.iter().map(usize::to_string)).collect()
        };
        let rows: Vec<Vec<String>> = names.iter().zip(&report.confusion).map(row).collect();
        console.heading("outputs and predictions");
        console.lines(table::columns(&heads, &rows));
    }
    for by in &report.by {
        let row = |(value, accuracy): (&String, &Accuracy)| {
            vec![short(value), accuracy.num_rows.to_string(), share(accuracy.num_correct, accuracy)]
        };
        let rows: Vec<_> = by.values.iter().map(row).collect();
        console.heading(format_args!("accuracy by {}", harmless(&by.field, false)));
        console.lines(table::columns(&["value", ">rows", ">accuracy"], &rows));
    }
}

/// A text from the data, shortened to one line.
fn short(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_CHOICE).collect();
    if short.len() < text.len() {
        short += "...";
    }
    harmless(&short, false)
}
