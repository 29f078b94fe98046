//! Evaluation: loss and accuracies of the answers of held-out rows.

use std::time::Instant;

use serde::Serialize;

use super::event::Event;
use super::passes::packed;
use super::prepare::Row;
use super::task::{EvalSums, Task};
use crate::config::TrainConfig;
use crate::data::packing::passes_in_order;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Adapter, Decoder, Scorer};
use crate::ops::linear_cross_entropy::TargetScore;
use crate::session::Context;
use crate::tensor::Real;

/// Results of one evaluation, with the names of the Hugging Face trainer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EvalMetrics {
    /// Mean negative log-probability per supervised token, in nats.
    pub eval_loss: f64,
    /// `exp(eval_loss)`.
    pub eval_perplexity: f64,
    /// Share of supervised tokens that are the most probable ones.
    pub eval_token_accuracy: f64,
    /// Share of rows whose supervised tokens are all the most probable ones: what greedy generation would answer.
    pub eval_accuracy: f64,
    /// Seconds.
    pub eval_runtime: f64,
    /// Rows per second.
    pub eval_samples_per_second: f64,
}

impl EvalMetrics {
    /// The metric of this name, with or without `eval_`.
    pub fn get(&self, name: &str) -> Option<f64> {
        match name.strip_prefix("eval_").unwrap_or(name) {
            "loss" => Some(self.eval_loss),
            "perplexity" => Some(self.eval_perplexity),
            "token_accuracy" => Some(self.eval_token_accuracy),
            "accuracy" => Some(self.eval_accuracy),
            _ => None,
        }
    }

    /// Names that [`EvalMetrics::get`] knows.
    pub const NAMES: [&'static str; 4] =
        ["eval_loss", "eval_perplexity", "eval_token_accuracy", "eval_accuracy"];
}

/// The metric must be one that an evaluation gives, if there is one that needs it.
pub(super) fn check_metric(config: &TrainConfig) -> Result<()> {
    let name = &config.metric_for_best_model;
    let known = EvalMetrics::NAMES.iter().any(|n| n == name || n.trim_start_matches("eval_") == name);
    let evaluates = !config.eval_file.is_empty() || config.eval_fraction.is_some();
    if !known {
        return Error::input("CONFIG", "no such metric")
            .field("metric_for_best_model")
            .got(name)
            .expected(EvalMetrics::NAMES.join(", "))
            .fix("choose one of them")
            .into();
    }
    if !evaluates && (config.load_best_model_at_end || config.early_stopping_patience.is_some()) {
        return Error::input("CONFIG", "the best model is asked for and nothing is evaluated")
            .field("eval_file")
            .expected("a file, or eval_fraction")
            .fix("pass --eval-file or --eval-fraction")
            .into();
    }
    Ok(())
}

/// The rows of an evaluation, by pass.
///
/// # Errors
/// An input error if a batch may hold nothing.
pub(super) fn eval_passes<'a>(config: &TrainConfig, rows: &'a [Row]) -> Result<Vec<Vec<&'a Row>>> {
    let lengths: Vec<usize> = rows.iter().map(|row| row.example.len()).collect();
    let passes = passes_in_order(&lengths, config.eval_batching(), config.max_tokens_per_pass)?;
    Ok(passes.into_iter().map(|pass| rows[pass].iter().collect()).collect())
}

/// Evaluates `adapters` on `rows`, which must not be empty.
///
/// # Errors
/// [`Error::Stopped`] if the context asks to stop, or what the model finds wrong with a row.
pub(super) fn evaluate<T: Real>(
    (config, task): (&TrainConfig, Task),
    model: (&Decoder<T>, &Device),
    (scorer, adapters): (&mut Scorer<T>, &[Adapter<T>]),
    rows: &[Row],
    context: &Context,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<EvalMetrics> {
    let start = Instant::now();
    let (mut sums, mut done) = (EvalSums::default(), 0);
    let passes = eval_passes(config, rows)?;
    let batches = passes.iter().map(|pass| match context.stopped() {
        true => Err(Error::Stopped { what: "stopped within an evaluation".into() }),
        false => Ok((packed(pass, false, 0), pass)),
    });
    let take = |pass: &Vec<&Row>, scores: Vec<TargetScore>| {
        task.add(&mut sums, pass, &scores);
        done += pass.len();
        watch(Event::Evaluating { done, total: rows.len() });
        Ok(())
    };
    scorer.score(model, adapters, batches, take)?;
    task.metrics(&sums, start.elapsed().as_secs_f64()).ok_or_else(|| Error::Numeric {
        what: "the evaluation loss is not finite".into(),
        fix: "lower --learning-rate; the last checkpoint is good".into(),
    })
}
