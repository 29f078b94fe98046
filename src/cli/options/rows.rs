//! The options about rows that `train` and `score` share.

use clap::Args;
use serde::Serialize;

use super::words;
use crate::config::Truncation;

/// The heading of options about rows.
pub(super) const DATA: &str = "Data";

#[derive(Debug, Default, Args, Serialize)]
pub(super) struct RowArgs {
    /// Maximum length of a row in tokens.
    #[arg(long, value_name = "TOKENS", help_heading = DATA)]
    max_seq_length: Option<usize>,
    /// What happens to longer rows: an error, the oldest text is cut (prompt-left), or the row is left out.
    #[arg(long, value_parser = words(Truncation::WORDS), help_heading = DATA)]
    truncation: Option<String>,
    /// Encode special tokens written in rows as ordinary text.
    #[arg(long, value_name = "true|false", help_heading = DATA)]
    escape_special: Option<bool>,
    /// Leave out rows with nothing to learn, and those whose answers are all empty.
    #[arg(long, value_name = "true|false", help_heading = DATA)]
    skip_empty: Option<bool>,
    /// Learn the last answer of a conversation only.
    #[arg(long, value_name = "true|false", help_heading = DATA)]
    mask_history: Option<bool>,
}
