//! Selects rows by `--train-mode`: those whose answer has the wanted form.
//!
//! A file may hold the same question twice, once with a bare answer (`meta.mode` = `direct`) and once with a derivation
//! (`cot`). Training on a mixture is a choice, so it has a name of its own (`auto`).

use serde::Serialize;
use serde_json::Value;

use super::record::Record;
pub use crate::config::TrainMode;
use crate::error::{Error, Result};

/// Number of rows of each mode, and number of rows kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Routing {
    /// Rows with mode `direct`.
    pub direct: usize,
    /// Rows with mode `cot`.
    pub cot: usize,
    /// Rows without a mode.
    pub without_mode: usize,
    /// Rows with a mode of another name (only [`TrainMode::Auto`] accepts them).
    pub other: usize,
    /// Rows kept.
    pub kept: usize,
    /// Rows left out because they have another mode.
    pub dropped: usize,
}

/// Keeps the rows selected by `mode`, in order.
///
/// # Errors
/// [`Error::Input`] if no row is left, or with `Direct` or `Cot` for a row whose mode is neither of the two.
pub fn select(records: Vec<Record>, mode: TrainMode) -> Result<(Vec<Record>, Routing)> {
    let mut routing = Routing::default();
    let mut kept = Vec::with_capacity(records.len());
    for record in records {
        let keep = match record.meta.get("mode").unwrap_or(&Value::Null) {
            Value::Null => {
                routing.without_mode += 1;
                true
            }
            Value::String(name) if name == "direct" => {
                routing.direct += 1;
                mode != TrainMode::Cot
            }
            Value::String(name) if name == "cot" => {
                routing.cot += 1;
                mode != TrainMode::Direct
            }
            _ if mode == TrainMode::Auto => {
                routing.other += 1;
                true
            }
            other => {
                return record
                    .error("unknown mode")
                    .field("meta.mode")
                    .got(other)
                    .expected("\"direct\" or \"cot\"")
                    .fix("correct the row, or keep every row with --train-mode auto")
                    .into();
            }
        };
        if keep {
            kept.push(record);
        } else {
            routing.dropped += 1;
        }
    }
    routing.kept = kept.len();
    if kept.is_empty() {
        return Error::input("DATA", "no row is left for this --train-mode")
            .got(format!("{} direct rows, {} cot rows", routing.direct, routing.cot))
            .fix("use --train-mode auto, or a file with rows of this mode")
            .into();
    }
    Ok((kept, routing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn rows(modes: &[&str]) -> Vec<Record> {
        let line = |mode: &&str| match *mode {
            "" => "{\"input\":\"q\",\"output\":\"a\"}\n".to_owned(),
            mode => format!("{{\"input\":\"q\",\"output\":\"a\",\"meta\":{{\"mode\":\"{mode}\"}}}}\n"),
        };
        let text: String = modes.iter().map(line).collect();
        super::super::files::read_rows(Path::new("rows.jsonl"), text.as_bytes()).unwrap()
    }

    fn lines(records: &[Record]) -> Vec<usize> {
        records.iter().map(|r| r.line).collect()
    }

    #[test]
    fn a_mode_drops_the_other_mode_and_keeps_rows_without_one() {
        let (kept, routing) = select(rows(&["direct", "cot", "", "cot"]), TrainMode::Direct).unwrap();
        assert_eq!(lines(&kept), [1, 3]);
        assert_eq!(routing, Routing { direct: 1, cot: 2, without_mode: 1, other: 0, kept: 2, dropped: 2 });
        let (kept, _) = select(rows(&["direct", "cot", "", "cot"]), TrainMode::Cot).unwrap();
        assert_eq!(lines(&kept), [2, 3, 4]);
    }

    #[test]
    fn auto_keeps_everything() {
        let (kept, routing) = select(rows(&["direct", "cot", "", "essay"]), TrainMode::Auto).unwrap();
        assert_eq!((kept.len(), routing.other, routing.dropped), (4, 1, 0));
    }

    #[test]
    fn an_unknown_mode_and_an_empty_result_are_errors() {
        let error = select(rows(&["direct", "ctt"]), TrainMode::Cot).unwrap_err().to_string();
        assert!(
            error.starts_with("error[DATA] rows.jsonl:2: field \"meta.mode\": unknown mode: got \"ctt\""),
            "{error}"
        );
        let error = select(rows(&["direct"]), TrainMode::Cot).unwrap_err().to_string();
        assert!(error.contains("no row is left") && error.contains("--train-mode auto"), "{error}");
    }
}
