//! JSON Lines: one object per line becomes one [`Record`], and whatever is wrong is said with file, line and field.
//!
//! The reader is strict where a lenient one would change data silently (encoding, duplicate keys, big integers) and
//! lenient where nothing can be misread (one byte order mark, CRLF, blank lines).

use std::io::{BufRead, Read};
use std::path::Path;

use super::{Place, Rows, UTF8_BOM};
use crate::data::char_boundary;
use crate::data::record::Record;
use crate::error::{Error, Result};
use crate::formats::strict_json;

/// Longest accepted line. A longer one is no row but a file without line ends.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Reads rows from `source`; `path` only names it in errors.
///
/// # Errors
/// As [`super::read_file`].
pub fn read_rows(path: &Path, source: impl BufRead) -> Result<Vec<Record>> {
    read(Place { path, go_on: &|| Ok(()) }, source)
}

/// As [`read_rows`], while there is a reason to go on.
pub(super) fn read(place: Place<'_>, mut source: impl BufRead) -> Result<Vec<Record>> {
    let path = place.path;
    let mut rows = Rows::new(place);
    let mut buffer = Vec::new();
    for line in 1.. {
        buffer.clear();
        let read = source.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut buffer);
        if read.map_err(|e| place.failed(e))? == 0 {
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
        let bom = if line == 1 { UTF8_BOM } else { b"" };
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
        rows.push(line, value)?;
    }
    rows.finish()
}

/// The error for bytes that are not UTF-8, the first of them at `at`.
pub(super) fn not_utf8(path: &Path, line: usize, bytes: &[u8], at: usize) -> Error {
    let utf16 = line == 1 && (bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF"));
    Error::input("DATA", if utf16 { "the file is UTF-16" } else { "the line is not UTF-8" })
        .path(path)
        .line(line)
        .got(format!("byte 0x{:02X} at byte column {}", bytes.get(at).copied().unwrap_or(0), at + 1))
        .expected("UTF-8")
        .fix("convert the file, for example with iconv -f CP932 -t UTF-8 (or -f UTF-16)")
        .into()
}

/// The error for a text that is no JSON; `skipped` bytes stand before it.
pub(super) fn bad_json(
    path: &Path,
    line: usize,
    text: &str,
    flaw: strict_json::Flaw,
    skipped: usize,
) -> Error {
    let fix = if flaw.what.contains("integer") {
        "write the number as a string, in quotes"
    } else if flaw.what.contains("twice") {
        "keep one of the two"
    } else if text.trim_start().starts_with(['[', '{']) && flaw.what.starts_with("EOF") {
        "write each object on one line (jq -c . file.json, for an array jq -c '.[]' file.json)"
    } else if line == 1 && !text.trim_start().starts_with(['[', '{']) {
        match text {
            _ if text.contains('\t') => {
                "if the file is a table with tabs, name the file .tsv; else write one JSON object per line"
            }
            _ if text.contains(',') => {
                "if the file is a table, name the file .csv; else write one JSON object per line"
            }
            _ if text.contains(';') => {
                "if the file is a table, write commas between the cells and name the file .csv; else write one JSON object per line"
            }
            _ => "write one JSON object per line, for example {\"input\": \"2+2?\", \"output\": \"4\"}",
        }
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
