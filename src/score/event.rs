//! What a scoring tells whoever watches it, and how it ended.

use std::path::{Path, PathBuf};

use super::logprob::LogprobReport;
use super::report::ChoiceReport;
use crate::data::audit::Audit;
use crate::data::routing::Routing;
use crate::session::{Limit, Notice};

/// One thing that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Notes, warnings, and the progress of opening model and rows.
    Notice(Notice),
    /// What the rows are like. In choice mode every row is counted with its longest choice as the answer.
    Audit {
        /// The findings.
        audit: &'a Audit,
        /// Rows by mode, before `limit`.
        routing: Routing,
    },
    /// The weights that are about to be loaded; they fit.
    Planned {
        /// Their bytes on the device, without those of an adapter.
        weights_bytes: u64,
        /// What they may take; none if the device does not say.
        limit: Option<&'a Limit>,
    },
    /// Rows that are scored.
    Scoring {
        /// So far.
        done: usize,
        /// In all.
        total: usize,
    },
    /// A result file is complete.
    Saved {
        /// The file.
        path: &'a Path,
    },
}

impl From<Notice> for Event<'_> {
    fn from(notice: Notice) -> Self {
        Self::Notice(notice)
    }
}

/// How a scoring ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// The files that were written.
    pub files: Vec<PathBuf>,
    /// Rows that were scored.
    pub num_rows: usize,
    /// Rows that were left out: too long, or without output.
    pub num_skipped: usize,
    /// What the scores say.
    pub findings: Findings,
    /// Tokens that went through the model; a prompt that choices share counts once.
    pub num_tokens: u64,
    /// Seconds in all.
    pub runtime: f64,
    /// Tokens per second while scoring.
    pub tokens_per_second: f64,
    /// Share of the speed of light while scoring, from 0 to 1: see [`crate::session::Peak`], with the model FLOPs of the forward
    /// pass. None on cards without a known peak and on the emulator.
    pub sol: Option<f64>,
    /// Bytes of the weights of model and adapter.
    pub weights_bytes: u64,
    /// Largest amount of memory for weights, adapter and activations at once, in bytes. Rows, the program and files in the page
    /// cache do not count.
    pub peak_bytes: u64,
}

/// What the scores say, by mode.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Findings {
    /// Of log-probabilities.
    Logprob(LogprobReport),
    /// Of choices.
    Choice(ChoiceReport),
}
