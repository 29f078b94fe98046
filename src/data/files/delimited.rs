//! CSV and TSV: the first line names the keys, every further record is a row of texts.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::Path;

use serde_json::{Map, Value};

use super::{Place, Rows, lines};
use crate::data::record::Record;
use crate::error::{Error, Result};

/// Reads all records. An empty cell of a column that a row may lack counts as none.
pub(super) fn read(place: Place<'_>, delimiter: u8, source: impl BufRead) -> Result<Vec<Record>> {
    let path = place.path;
    let bytes = super::whole(place, source)?;
    check_quotes(path, delimiter, &bytes)?;
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(bytes.as_slice());
    let names = reader.headers().map_err(|e| broken(path, &e))?.clone();
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
        return Error::input("DATA", "two columns have one name")
            .path(path)
            .line(1)
            .field(twice)
            .fix("rename one of them")
            .into();
    }
    let mut rows = Rows::new(place);
    let (mut line, mut counted) = (1, 0);
    for record in reader.records() {
        let record = record.map_err(|e| broken(path, &e))?;
        // The crate's count of lines is that of the line end before, where that is CR LF.
        let at = record
            .position()
            .map_or(0, |at| usize::try_from(at.byte()).unwrap_or(usize::MAX))
            .min(bytes.len());
        let blank = bytes[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        line += lines(&bytes[counted..at + blank]);
        counted = at + blank;
        let row: Map<String, Value> =
            names.iter().map(str::to_owned).zip(record.iter().map(Value::from)).collect();
        rows.push(line, Value::Object(row))?;
    }
    rows.finish()
}

/// Fails for a quote that is never closed, which would make one cell of all that follows, and for text behind a closing quote.
fn check_quotes(path: &Path, delimiter: u8, bytes: &[u8]) -> Result<()> {
    let refuse = |line: usize, what: &str, fix: &str| {
        Error::input("DATA", what.to_owned()).path(path).line(line).fix(fix).into()
    };
    let (mut line, mut at, mut begins) = (1, if bytes.starts_with(super::UTF8_BOM) { 3 } else { 0 }, true);
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        if byte != b'"' || !begins {
            line += usize::from(byte == b'\n');
            begins = byte == delimiter || byte == b'\n' || byte == b'\r';
            continue;
        }
        // Two quotes inside a quoted cell are one that is part of it.
        let opened = line;
        loop {
            match (bytes.get(at), bytes.get(at + 1)) {
                (None, _) => {
                    let fix = "close it, or write a quote that is text twice and put the cell in quotes";
                    return refuse(opened, "the quote that opens a cell here is never closed", fix);
                }
                (Some(b'"'), Some(b'"')) => at += 2,
                (Some(b'"'), _) => break,
                (Some(other), _) => {
                    line += usize::from(*other == b'\n');
                    at += 1;
                }
            }
        }
        at += 1;
        if bytes.get(at).is_some_and(|&next| next != delimiter && next != b'\n' && next != b'\r') {
            return refuse(
                line,
                "text behind the quote that closes a cell",
                "write a quote inside a cell twice",
            );
        }
        begins = false;
    }
    Ok(())
}

fn broken(path: &Path, error: &csv::Error) -> Error {
    let line = error.position().map_or(1, csv::Position::line);
    let base = |what: &str| Error::input("DATA", what.to_owned()).path(path);
    let at = usize::try_from(line).unwrap_or(usize::MAX);
    match error.kind() {
        csv::ErrorKind::Io(io) => Error::io(path, "read", io.kind().into()),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => base("wrong number of columns")
            .line(at)
            .got(format!("{len} columns"))
            .expected(format!("{expected_len}, as in the first line"))
            .fix("put texts with the delimiter or line ends in quotes")
            .into(),
        csv::ErrorKind::Utf8 { .. } => base("the record is not UTF-8")
            .line(at)
            .fix("convert the file, for example with iconv -f CP932 -t UTF-8")
            .into(),
        _ => base("not CSV").line(at).got(error).fix("correct the record").into(),
    }
}
