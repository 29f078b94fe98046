//! Scoring: log-probabilities of answers, forward only.
//!
//! [`run`] is the entry point: it takes a resolved [`ScoreConfig`], emits [`Event`]s, writes files and
//! returns a [`Summary`]. It prints nothing and never ends the process. Rows become tokens exactly as in
//! training, so a score refers to the same tokens as the training. Files appear whole or not at all, and
//! their bytes depend on model, adapter, rows and options alone, never on the number of threads.

mod choice;
mod event;
mod labels;
mod logprob;
mod output;
mod packed;
mod report;
mod session;

pub use event::{Event, Findings, Summary};
pub use labels::LabelReport;
pub use logprob::LogprobReport;
pub use report::{Accuracy, ByField, ChoiceReport, MISSING};

pub use crate::data::audit::Audit;
pub use crate::data::routing::Routing;
pub use crate::data::template::sandbox::HelperCommand;
pub use crate::session::{Context, Notice};

use std::time::Instant;

use crate::config::{ScoreConfig, ScoreMode, Task, unsupported};
use crate::error::Result;
use output::Outputs;
use session::Session;

/// Scores the rows of `config.data_file` and writes the results beside `config.output`.
///
/// `logprob` writes one JSON line per row into that very file; `choice` writes a table `OUTPUT.csv` and its summary
/// `OUTPUT.json`; `classify` and `regress` write one line per row, as JSON or, into a file that ends in `.csv`, as a table.
/// `auto` is what the adapter was trained for.
///
/// # Errors
/// Input and I/O errors that name file, line and fix; [`Numeric`](crate::error::Error::Numeric) for a row whose score is not
/// finite; [`Stopped`](crate::error::Error::Stopped) if the context asked to stop. No file is written in any of these cases.
pub fn run(config: &ScoreConfig, context: &Context, watch: &mut dyn FnMut(Event<'_>)) -> Result<Summary> {
    config.notes.iter().for_each(|note| watch(Notice::Note(note.clone()).into()));
    config.validate()?;
    let mut session = Session::new(config, context, watch)?;
    config.check_supported()?;
    let outputs = Outputs::plan(config)?;
    let start = Instant::now();
    let (num_rows, num_skipped, findings) = match config.mode {
        ScoreMode::Auto if labels::is_trained(config)? => labels::run(&mut session, &outputs, None, watch)?,
        ScoreMode::Logprob | ScoreMode::Auto => logprob::run(&mut session, &outputs, watch)?,
        ScoreMode::Choice => choice::run(&mut session, &outputs, watch)?,
        ScoreMode::Classify => labels::run(&mut session, &outputs, Some(Task::Classify), watch)?,
        ScoreMode::Regress => labels::run(&mut session, &outputs, Some(Task::Regress), watch)?,
        other => return unsupported("mode", other),
    };
    for path in outputs.paths() {
        watch(Event::Saved { path });
    }
    let runtime = start.elapsed().as_secs_f64();
    Ok(Summary {
        files: outputs.paths().into_iter().map(ToOwned::to_owned).collect(),
        num_rows,
        num_skipped,
        findings,
        num_tokens: session.num_tokens,
        runtime,
        tokens_per_second: session.num_tokens as f64 / session.scoring_secs.max(f64::MIN_POSITIVE),
        sol: session.sol,
        weights_bytes: session.weights_bytes,
        peak_bytes: session.peak_bytes,
    })
}
