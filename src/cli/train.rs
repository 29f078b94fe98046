//! `tanren train` for people: settings, findings, plan, progress, result.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::console::{Console, Progress};
use super::options::TrainArgs;
use super::signals::Stop;
use super::units::{batch, bytes, count, seconds, shell_word, sol};
use super::{inspect, plan, table, template};
use crate::config::{
    BaseDropoutMode, ClassWeights, DeviceChoice, Format, Numbers, Resume, TargetShift, Task, TrainConfig,
};
use crate::data::routing::Routing;
use crate::error::{Error, Result};
use crate::train::{self, Context, EvalMetrics, Event, StepLog, Summary};

/// Trains, or plans with `--dry-run`.
///
/// # Errors
/// What is wrong with options, files, numbers or the device; or that the run was interrupted.
pub(super) fn run(args: &TrainArgs, console: &Arc<Console>) -> Result<()> {
    let config = TrainConfig::resolve(args.flags()?, args.config())?;
    console.lines(table::pairs(&settings(&config)));
    let summary = watched(&config, console)?;
    console.heading(if config.dry_run { "nothing was trained (--dry-run)" } else { "result" });
    if !config.dry_run {
        console.lines(table::pairs(&result(&config, &summary)));
    }
    Ok(())
}

/// The plan of a run with its rows, for `tanren inspect plan`; as JSON, nothing else goes to standard output.
///
/// # Errors
/// As [`run`], and that nothing fits.
pub(super) fn planned(config: &TrainConfig, json: bool, console: &Arc<Console>) -> Result<()> {
    match json {
        false => watched(config, console).map(drop),
        true => {
            let (stop, context) = surroundings(console)?;
            let summary = train::run(config, &context, &mut |event| {
                stop.asked();
                match event {
                    Event::Planned(plan) => inspect::plan::json(plan, console),
                    Event::Notice(notice) => console.notice(notice),
                    _ => {}
                }
            });
            console.clear();
            heard(config, &stop, summary).map(drop)
        }
    }
}

/// The end of a run. A plan that was asked to stop ends as one that was stopped, however far it came.
fn heard(config: &TrainConfig, stop: &Stop, summary: Result<Summary>) -> Result<Summary> {
    let summary = summary?;
    match config.dry_run && stop.asked() {
        true => Err(Error::Stopped { what: "stopped while the run was planned; nothing was written".into() }),
        false => Ok(summary),
    }
}

/// Runs it and shows what happens.
fn watched(config: &TrainConfig, console: &Arc<Console>) -> Result<Summary> {
    let (stop, context) = surroundings(console)?;
    let mut view = View { config, console, first: 0, total: 0, start: Instant::now(), logged: None };
    let summary = train::run(config, &context, &mut |event| {
        // Where the run does not ask often, the user still hears at once.
        stop.asked();
        view.show(event);
    });
    console.clear();
    heard(config, &stop, summary)
}

/// What the run gets from outside, and who answers when it asks whether to stop.
fn surroundings(console: &Arc<Console>) -> Result<(Stop, Context)> {
    let stop = Stop::install(console)?;
    let context = Context { template_helper: Some(template::helper()?), stop: Some(stop.question()) };
    Ok((stop, context))
}

/// The options that decide most, as a table.
pub(super) fn settings(config: &TrainConfig) -> Vec<(&'static str, String)> {
    let lora = config.lora();
    let modules = lora.describe_layers();
    let batch = batch(config.batching());
    let kind = [(lora.use_rslora, ", rsLoRA"), (lora.use_dora, ", DoRA")];
    let kind: String = kind.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    let length = match config.max_steps {
        Some(steps) => format!("{} optimizer steps", count(steps)),
        None if config.num_epochs == 1.0 => "1 epoch".to_owned(),
        None => format!("{} epochs", config.num_epochs),
    };
    let mut rows = vec![("model", config.model.clone())];
    if config.preset != "none" {
        rows.push(("preset", config.preset.clone()));
    }
    rows.extend([
        (
            "task",
            match config.task {
                Task::Causal => format!("{} ({}, {})", config.task, config.format, config.loss),
                _ => format!("{} ({})", config.task, loss(config)),
            },
        ),
        ("training rows", files(&config.train_file)),
        (
            "evaluation",
            match config.eval_fraction {
                Some(share) if share < 1.0 => format!("{share} of the training rows"),
                Some(rows) => format!("{rows} of the training rows, by number"),
                None if config.eval_file.is_empty() => "none".to_owned(),
                None => files(&config.eval_file),
            },
        ),
        ("LoRA", format!("r {}, alpha {}, dropout {}{kind}, on {modules}", lora.r, lora.alpha, lora.dropout)),
        ("batch", format!("{batch} x {} per optimizer step", config.gradient_accumulation_steps)),
        ("learning rate", format!("{:e}, {}", config.learning_rate, config.lr_scheduler)),
        ("length", format!("{length}, at most {} tokens per row", count(config.max_seq_length as u64))),
        (
            "device",
            format!(
                "{}{}, base weights {}",
                config
                    .gpu
                    .as_ref()
                    .map_or_else(|| config.device.to_string(), |gpu| format!("{gpu} (planned)")),
                // What a device that is not chosen yet computes in is said when it is.
                match (&config.gpu, config.device) {
                    (None, DeviceChoice::Auto) => String::new(),
                    _ => format!(", {}", config.dtype),
                },
                quant(config)
            ),
        ),
        ("seed", config.seed.to_string()),
        ("output", config.output_dir.display().to_string()),
    ]);
    if config.base_dropout != BaseDropoutMode::Off {
        rows.push(("base dropout", config.base_dropout.to_string()));
    }
    match &config.resume {
        None => {}
        Some(Resume::Auto) => rows.push(("resume", "the newest complete checkpoint".to_owned())),
        Some(Resume::Dir(path)) => rows.push(("resume", path.display().to_string())),
    }
    rows
}

/// The loss of labels, and what was said about it.
fn loss(config: &TrainConfig) -> String {
    let numbers = |numbers: &Numbers| numbers.0.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
    let weights = config.class_weights.as_ref().map(|weights| match weights {
        ClassWeights::Balanced => "balanced class weights".to_owned(),
        ClassWeights::Numbers(weights) => format!("class weights {}", numbers(weights)),
    });
    let positive = config.pos_weight.as_ref().map(|weights| format!("pos_weight {}", numbers(weights)));
    let smoothing = config.label_smoothing.map(|share| format!("label smoothing {share}"));
    let shift = (config.target_shift != TargetShift::None)
        .then(|| format!("targets moved by {}", config.target_shift));
    let more = [weights, positive, smoothing, shift].into_iter().flatten();
    std::iter::once(config.loss.to_string()).chain(more).collect::<Vec<_>>().join(", ")
}

fn quant(config: &TrainConfig) -> String {
    match config.quant {
        crate::config::Quant::None => "not quantized".to_owned(),
        other => other.to_string(),
    }
}

/// Paths with commas between.
pub(super) fn files(paths: &[impl AsRef<Path>]) -> String {
    paths.iter().map(|path| path.as_ref().display().to_string()).collect::<Vec<_>>().join(", ")
}

/// How it ended, and how to go on.
fn result(config: &TrainConfig, summary: &Summary) -> Vec<(&'static str, String)> {
    let mut rows = vec![(
        "steps",
        format!(
            "{} in {} ({} tokens/s{})",
            count(summary.global_step),
            seconds(summary.train_runtime),
            count(summary.tokens_per_second.round() as u64),
            sol(", ", summary.sol)
        ),
    )];
    if summary.stopped_early {
        rows.push(("stopped early", format!("no better {}", config.metric_for_best_model)));
    }
    if summary.empty_steps > 0 {
        rows.push(("empty steps", format!("{} made no update", count(summary.empty_steps))));
    }
    rows.extend(summary.train_loss.map(|loss| ("train loss", format!("{loss:.4}"))));
    if let Some(best) = summary.best_metric {
        let at = summary.best_model_checkpoint.as_ref();
        let at = at.map_or_else(String::new, |path| format!(" in {}", path.display()));
        rows.push(("best", format!("{} {best:.4}{at}", config.metric_for_best_model)));
    }
    rows.extend([
        (
            "peak memory",
            format!("{} of weights, adapter, activations and optimizer state", bytes(summary.peak_bytes)),
        ),
        ("adapter", config.output_dir.display().to_string()),
        ("go on with", score_command(config)),
    ]);
    rows
}

/// The command that scores the new adapter.
fn score_command(config: &TrainConfig) -> String {
    let path = |path: &Path| shell_word(&path.display().to_string());
    let mut command = format!(
        "tanren score --model {} --adapter {} --data-file {} --output {}",
        shell_word(&config.model),
        path(&config.output_dir),
        config.eval_file.first().map_or_else(|| "FILE".to_owned(), |file| path(file)),
        path(&config.output_dir.join("scores.jsonl")),
    );
    if config.task == Task::Causal && config.format != Format::Plain {
        command += &format!(" --format {}", config.format);
    }
    command
}

/// Shows events.
struct View<'a> {
    config: &'a TrainConfig,
    console: &'a Console,
    /// Steps that were done before this process began.
    first: u64,
    total: u64,
    start: Instant,
    /// The last line of the log.
    logged: Option<StepLog>,
}

impl View<'_> {
    fn show(&mut self, event: Event<'_>) {
        let console = self.console;
        let progress = |what, done, total| console.progress(Progress { what, done, total, detail: "" });
        match event {
            Event::Notice(notice) => console.notice(notice),
            Event::Evaluating { done, total } => progress("evaluating", done as u64, total as u64),
            Event::Audit { name, audit, routing } => {
                console.heading(format_args!("{name} rows"));
                console
                    .lines(audit.lines().into_iter().chain(routed(routing)).map(|line| format!("  {line}")));
            }
            Event::Planned(planned) => match self.config.dry_run {
                true => inspect::plan::tables(planned, console),
                false => {
                    console.heading("plan");
                    console.lines(plan::summary(planned));
                }
            },
            Event::Started { done, total, steps_per_epoch, .. } => {
                (self.first, self.total, self.start) = (done, total, Instant::now());
                let from = if done > 0 { format!(", {} done already", count(done)) } else { String::new() };
                console.heading(format_args!(
                    "training: {} steps, {} per epoch{from}",
                    count(total),
                    count(steps_per_epoch)
                ));
            }
            Event::Step(log) => self.step(log),
            Event::Logged(log) => self.logged(log),
            Event::Evaluated { step, metrics, best } => console.line(evaluated(step, metrics, best)),
            Event::Saved { path } => console.line(format_args!("  saved {}", path.display())),
        }
    }

    /// Moves the bar. Its numbers are those of the last line of the log, so that both say the same.
    fn step(&self, step: &StepLog) {
        if self.console.has_bar() {
            let detail = detail(self.logged.as_ref().unwrap_or(step), self.left(step));
            let (done, total) = (step.step, self.total);
            self.console.progress(Progress { what: "training", done, total, detail: &detail });
        }
    }

    /// Says what was written to the log.
    fn logged(&mut self, log: &StepLog) {
        self.logged = Some(*log);
        if !self.console.has_bar() {
            let detail = detail(log, self.left(log));
            self.console.note(format_args!("step {}/{}  {detail}", log.step, self.total));
        }
    }

    /// Seconds that the steps after this one will take.
    fn left(&self, log: &StepLog) -> f64 {
        let done = log.step.saturating_sub(self.first).max(1);
        self.start.elapsed().as_secs_f64() / done as f64 * self.total.saturating_sub(log.step) as f64
    }
}

/// What a line of the log says, and the seconds that are left.
fn detail(log: &StepLog, left: f64) -> String {
    format!(
        "loss {:.4}  lr {:.2e}  {} tokens/s{}  {} left",
        log.loss,
        log.learning_rate,
        count(log.tokens_per_second.round() as u64),
        sol("  ", log.sol),
        seconds(left)
    )
}

fn evaluated(step: u64, metrics: &EvalMetrics, best: bool) -> String {
    let shares = [("token accuracy", metrics.eval_token_accuracy), ("accuracy", metrics.eval_accuracy)];
    let numbers = [
        ("F1", metrics.eval_f1),
        ("RMSE", metrics.eval_rmse),
        ("MAE", metrics.eval_mae),
        ("R2", metrics.eval_r2),
        ("NDCG", metrics.eval_ndcg),
    ];
    let mut line = format!("  step {step}: eval_loss {:.4}", metrics.eval_loss);
    line.extend(metrics.eval_perplexity.map(|value| format!("  perplexity {value:.3}")));
    let share = |(name, value): (&str, Option<f64>)| Some(format!("  {name} {:.1}%", 100.0 * value?));
    line.extend(shares.into_iter().filter_map(share));
    line.extend(numbers.into_iter().filter_map(|(name, value)| Some(format!("  {name} {:.4}", value?))));
    line + if best { "  (best so far)" } else { "" }
}

/// Rows by mode, if they have modes.
pub(super) fn routed(routing: Routing) -> Option<String> {
    let Routing { direct, cot, without_mode, other, dropped, .. } = routing;
    (direct + cot + other > 0).then(|| {
        format!(
            "by meta.mode: {direct} direct, {cot} cot, {other} other, {without_mode} without; {dropped} left out by --train-mode"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_step_fits_a_screen() {
        let mut log = StepLog {
            step: 99_999,
            epoch: 1.0,
            loss: 12.3456,
            grad_norm: 1.0,
            learning_rate: 2.5e-5,
            num_tokens: 1,
            num_supervised_tokens: 1,
            step_seconds: 1.0,
            tokens_per_second: 1_234_567.0,
            sol: Some(0.414),
        };
        let line = format!("step {}/{}  {}", log.step, log.step, detail(&log, 86_400.0));
        assert_eq!(
            line,
            "step 99999/99999  loss 12.3456  lr 2.50e-5  1,234,567 tokens/s  sol 41%  24h 00m left"
        );
        assert!(line.len() <= 100);
        log.sol = None;
        assert!(detail(&log, 1.0).ends_with("  1,234,567 tokens/s  1.0 s left"));
    }
}
