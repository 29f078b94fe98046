//! Evaluation: loss and metrics of held-out rows.

use std::time::Instant;

use serde::Serialize;

use super::event::Event;
use super::passes::{PackAs, packed};
use super::prepare::Row;
use super::task::{EvalSums, Task};
use crate::config::{self, TrainConfig};
use crate::data::packing::passes_in_order;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Adapter, Decoder, Found, Scorer};
use crate::session::Context;
#[cfg(doc)]
use crate::session::label_metrics::LabelMetrics;
use crate::tensor::Real;

/// Results of one evaluation, with the names of the Hugging Face trainer. What does not belong to the task is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EvalMetrics {
    /// Mean negative log-probability per supervised token, in nats; or the mean loss of the labels.
    pub eval_loss: f64,
    /// `exp(eval_loss)`, of tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_perplexity: Option<f64>,
    /// Share of supervised tokens that are the most probable ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_token_accuracy: Option<f64>,
    /// Share of rows whose supervised tokens are all the most probable ones: what greedy generation would answer. Of classes, the
    /// share of rows whose most probable class is theirs; where a row has several labels, of rows in which all are right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_accuracy: Option<f64>,
    /// Macro F1 of classes: see [`LabelMetrics::f1`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_f1: Option<f64>,
    /// Mean squared error of numbers, in the units of the rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_mse: Option<f64>,
    /// Its root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_rmse: Option<f64>,
    /// Mean absolute error of numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_mae: Option<f64>,
    /// Coefficient of determination of numbers: see [`LabelMetrics::r2`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_r2: Option<f64>,
    /// Ranking of the rows by their numbers: see [`LabelMetrics::ndcg`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_ndcg: Option<f64>,
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
            "perplexity" => self.eval_perplexity,
            "token_accuracy" => self.eval_token_accuracy,
            "accuracy" => self.eval_accuracy,
            "f1" => self.eval_f1,
            "mse" => self.eval_mse,
            "rmse" => self.eval_rmse,
            "mae" => self.eval_mae,
            "r2" => self.eval_r2,
            "ndcg" => self.eval_ndcg,
            _ => None,
        }
    }

    /// Names that [`EvalMetrics::get`] knows in a task.
    pub fn names(task: config::Task) -> &'static [&'static str] {
        match task {
            config::Task::Classify => &["eval_loss", "eval_accuracy", "eval_f1"],
            config::Task::Regress => {
                &["eval_loss", "eval_mse", "eval_rmse", "eval_mae", "eval_r2", "eval_ndcg"]
            }
            _ => &["eval_loss", "eval_perplexity", "eval_token_accuracy", "eval_accuracy"],
        }
    }
}

/// The metric must be one that an evaluation gives, if there is one that needs it.
pub(super) fn check_metric(config: &TrainConfig) -> Result<()> {
    let name = &config.metric_for_best_model;
    let names = EvalMetrics::names(config.task);
    let known = names.iter().any(|n| n == name || n.trim_start_matches("eval_") == name);
    let evaluates = !config.eval_file.is_empty() || config.eval_fraction.is_some();
    if !known {
        return Error::input("CONFIG", format!("the task {} has no such metric", config.task))
            .field("metric_for_best_model")
            .got(name)
            .expected(names.join(", "))
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
    (config, task): (&TrainConfig, &Task),
    model: (&Decoder<T>, &Device),
    (scorer, adapters): (&mut Scorer<T>, &[Adapter<T>]),
    rows: &[Row],
    context: &Context,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<EvalMetrics> {
    let start = Instant::now();
    let pack_as = PackAs::of(config, &model.0.config.head).unshared();
    let (mut sums, mut done) = (EvalSums::default(), 0);
    let passes = eval_passes(config, rows)?;
    let batches = passes.iter().map(|pass| match context.stopped() {
        true => Err(Error::Stopped { what: "stopped within an evaluation".into() }),
        false => Ok((packed(pass, pack_as, 0), pass)),
    });
    let take = |pass: &Vec<&Row>, found: Found| {
        task.add(&mut sums, pass, found);
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
