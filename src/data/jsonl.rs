//! JSON Lines files: one object per line becomes one [`Record`], and whatever is wrong is said with file, line and field.
//!
//! Three forms of rows exist: `{"input", "output"}`, `{"messages": [...]}` and `{"input_ids", "labels"}`; each may carry
//! `"meta"`. The reader is strict where a lenient one would change data silently (encoding, duplicate keys, big
//! integers) and lenient where nothing can be misread (one byte order mark, CRLF, blank lines, further keys).

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{char_boundary, row, strict_json};
use crate::error::{Error, Result};

/// Longest accepted line. A longer one is no row but a file without line ends.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// One row of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The file it came from.
    pub file: Arc<Path>,
    /// Physical line in that file, from 1.
    pub line: usize,
    /// What the row asks for and answers.
    pub body: Body,
    /// The row's `"meta"` object, and every key of the row that has no meaning of its own.
    pub meta: Map<String, Value>,
}

/// The three forms of rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// A question and its answer.
    InputOutput {
        /// The prompt, not supervised.
        input: String,
        /// The answer, supervised.
        output: String,
    },
    /// A conversation; every assistant turn is supervised.
    Messages(Vec<Message>),
    /// Token ids made elsewhere.
    Tokenised {
        /// The tokens.
        input_ids: Vec<u32>,
        /// One label per token, -100 where not supervised, not shifted.
        labels: Vec<i64>,
    },
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what the chat template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// All other keys (`tool_calls`, `name`, ...), handed to the chat template.
    pub extra: Map<String, Value>,
}

impl Message {
    /// A turn without further keys.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

impl Record {
    /// An input error of class DATA at this row.
    pub(super) fn error(&self, what: impl Into<String>) -> crate::error::InputError {
        Error::input("DATA", what).path(&self.file).line(self.line)
    }
}

/// Reads all rows of one file.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Input`] with line and field for the first bad row, and for a file
/// without rows.
pub fn read_jsonl(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    read_rows(path, BufReader::new(file))
}

/// Reads several files; their rows follow each other (the sampler mixes them).
///
/// # Errors
/// As [`read_jsonl`], for the first file that fails.
pub fn read_files(paths: &[PathBuf]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for path in paths {
        records.append(&mut read_jsonl(path)?);
    }
    Ok(records)
}

/// Reads rows from `source`; `path` only names it in errors.
///
/// # Errors
/// As [`read_jsonl`].
pub fn read_rows(path: &Path, mut source: impl BufRead) -> Result<Vec<Record>> {
    let file: Arc<Path> = path.into();
    let mut records = Vec::new();
    let mut buffer = Vec::new();
    for line in 1.. {
        buffer.clear();
        let read = source.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut buffer);
        if read.map_err(|e| Error::io(path, "read", e))? == 0 {
            break;
        }
        if buffer.len() as u64 > MAX_LINE_BYTES {
            return Error::input("DATA", "the line is too long")
                .path(path)
                .line(line)
                .got(format!("more than {MAX_LINE_BYTES} bytes"))
                .fix("write one JSON object per line")
                .into();
        }
        // A byte order mark is legal once, at the very start; anywhere else JSON refuses it.
        let bom: &[u8] = if line == 1 { b"\xEF\xBB\xBF" } else { b"" };
        let (skipped, bytes) = match buffer.strip_prefix(bom) {
            Some(rest) => (bom.len(), rest),
            None => (0, buffer.as_slice()),
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|e| not_utf8(path, line, &buffer, e.valid_up_to() + skipped))?;
        // JSON's own white space only: an ideographic space alone on a line is a mistake worth an error.
        if text.bytes().all(|b| b.is_ascii_whitespace()) {
            continue;
        }
        let value = strict_json::parse(text).map_err(|flaw| bad_json(path, line, text, flaw, skipped))?;
        let (body, meta) = row::parse(value).map_err(|e| super::at(e, |e| e.path(path).line(line)))?;
        records.push(Record { file: Arc::clone(&file), line, body, meta });
    }
    if records.is_empty() {
        return Error::input("DATA", "the file has no rows")
            .path(path)
            .fix("write one JSON object per line, for example {\"input\": \"2+2?\", \"output\": \"4\"}")
            .into();
    }
    Ok(records)
}

fn not_utf8(path: &Path, line: usize, bytes: &[u8], at: usize) -> Error {
    let utf16 = line == 1 && (bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF"));
    Error::input("DATA", if utf16 { "the file is UTF-16" } else { "the line is not UTF-8" })
        .path(path)
        .line(line)
        .got(format!("byte 0x{:02X} at byte column {}", bytes.get(at).copied().unwrap_or(0), at + 1))
        .expected("UTF-8")
        .fix("convert the file, for example with iconv -f CP932 -t UTF-8 (or -f UTF-16)")
        .into()
}

fn bad_json(path: &Path, line: usize, text: &str, flaw: strict_json::Flaw, skipped: usize) -> Error {
    let fix = if flaw.what.contains("integer") {
        "write the number as a string, in quotes"
    } else if flaw.what.contains("twice") {
        "keep one of the two"
    } else if text.trim_start().starts_with(['[', '{']) && flaw.what.starts_with("EOF") {
        "write each object on one line (jq -c . file.json, for an array jq -c '.[]' file.json)"
    } else {
        "correct the JSON of this line"
    };
    Error::input("DATA", flaw.what)
        .path(path)
        .line(line)
        .got(format!("{:?} at byte column {}", excerpt(text, flaw.column), flaw.column + skipped))
        .fix(fix)
        .into()
}

/// Some characters around byte `column` (from 1).
fn excerpt(text: &str, column: usize) -> &str {
    let text = text.trim_end();
    let near = column.saturating_sub(1).min(text.len());
    let start = char_boundary(text, near.saturating_sub(12));
    let end = char_boundary(text, (near + 12).min(text.len()));
    &text[start..end]
}

#[cfg(test)]
#[path = "jsonl_tests.rs"]
mod tests;
