//! `training_log.jsonl`: one object per logged step, evaluation and run end, appended as it happens.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::formats::atomic::write_file;

/// Name of the file in the output folder.
pub(super) const NAME: &str = "training_log.jsonl";

/// The open log.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Opens the log of `output_dir` after `step` steps: later lines of an earlier process are dropped, since these steps come
    /// again.
    pub(super) fn open(output_dir: &Path, step: u64) -> Result<Self> {
        let path = output_dir.join(NAME);
        if let Ok(text) = std::fs::read_to_string(&path) {
            let of_step = |line: &&str| {
                let row: Option<Value> = serde_json::from_str(line).ok();
                row.and_then(|r| r["step"].as_u64()).is_some_and(|s| s <= step) && step > 0
            };
            let kept: String = text.lines().filter(of_step).flat_map(|line| [line, "\n"]).collect();
            if kept != text {
                write_file(&path, kept.as_bytes())?;
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Ok(Self { file: file.map_err(|e| Error::io(&path, "open the log", e))?, path })
    }

    /// Appends a row and returns it as an object.
    ///
    /// # Errors
    /// An I/O error.
    pub(super) fn write(&mut self, row: &impl Serialize) -> Result<Map<String, Value>> {
        let value = serde_json::to_value(row).unwrap_or_default();
        let mut line = value.to_string();
        line.push('\n');
        // One write per line, so that a killed run leaves no half line.
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io(&self.path, "write", e))?;
        Ok(match value {
            Value::Object(map) => map,
            _ => Map::new(),
        })
    }
}
