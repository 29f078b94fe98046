//! The events of a scoring run, and its summary.

use std::path::{Path, PathBuf};

use super::labels::LabelReport;
use super::logprob::LogprobReport;
use super::report::ChoiceReport;
use crate::data::audit::Audit;
use crate::data::routing::Routing;
use crate::session::{Limit, Notice};

/// An event.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Notes, warnings, and the progress of opening model and rows.
    Notice(Notice),
    /// Statistics of the rows. In choice mode every row is counted with its longest choice as the answer.
    Audit {
        /// The findings.
        audit: &'a Audit,
        /// Rows by mode, before `limit`.
        routing: Routing,
    },
    /// The weights are about to be loaded; they fit.
    Planned {
        /// Bytes of the weights on the device, without an adapter.
        weights_bytes: u64,
        /// The memory limit; `None` if the device does not report its memory.
        limit: Option<&'a Limit>,
    },
    /// Progress of scoring, in rows.
    Scoring {
        /// Rows scored so far.
        done: usize,
        /// Total number of rows.
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

/// Summary of a scoring run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// The files that were written.
    pub files: Vec<PathBuf>,
    /// Number of rows scored.
    pub num_rows: usize,
    /// Number of rows left out: too long, or without output.
    pub num_skipped: usize,
    /// The result.
    pub findings: Findings,
    /// Number of tokens computed; a prompt that choices share counts once.
    pub num_tokens: u64,
    /// Total seconds.
    pub runtime: f64,
    /// Tokens per second while scoring.
    pub tokens_per_second: f64,
    /// Share of the speed of light while scoring, from 0 to 1: see [`crate::session::Peak`], with the model
    /// FLOPs of the forward pass. `None` on cards without a known peak and on the emulator.
    pub sol: Option<f64>,
    /// Bytes of the weights of model and adapter.
    pub weights_bytes: u64,
    /// Peak memory of weights, adapter and activations, in bytes. Rows, the program and the page cache do not
    /// count.
    pub peak_bytes: u64,
}

/// The result, by mode.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Findings {
    /// Result of mode `logprob`.
    Logprob(LogprobReport),
    /// Result of mode `choice`.
    Choice(ChoiceReport),
    /// Result of modes `classify` and `regress`.
    Labels(LabelReport),
}
