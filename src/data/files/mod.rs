//! Data files: JSON Lines, one JSON array, or CSV, each as it is or compressed with gzip. What a file is, its bytes say.
//!
//! Files of other kinds are named in the error, with the way to convert them.

mod array;
mod delimited;
mod gzip;
mod jsonl;

pub use jsonl::read_rows;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::record::Record;
use super::rows::{self, Parsed};
use crate::error::{Error, Result};

/// A byte order mark, which may stand at the start of a file.
const UTF8_BOM: &[u8] = b"\xEF\xBB\xBF";

/// Kinds of files by their first bytes, with the way to convert them.
const MAGIC: [(&[u8], &str, &str); 9] = [
    (b"PAR1", "a Parquet file", PANDAS),
    (b"ARROW1", "an Arrow file", PANDAS),
    (b"FEA1", "a Feather file", PANDAS),
    (b"PK\x03\x04", "a zip file or a spreadsheet", "unpack it, or export the sheet as CSV"),
    (b"\x28\xB5\x2F\xFD", "compressed with zstd", "unpack it with zstd -d, or compress it with gzip"),
    (b"\xFD7zXZ\0", "compressed with xz", "unpack it with xz -d, or compress it with gzip"),
    (b"BZh", "compressed with bzip2", "unpack it with bzip2 -d, or compress it with gzip"),
    (b"SQLite format 3\0", "an SQLite data base", "export the table as CSV"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", PANDAS),
];

const PANDAS: &str = "convert it: python -c \"import pandas as pd; pd.read_parquet('FILE').to_json('rows.jsonl', \
                      orient='records', lines=True, force_ascii=False)\" (read_feather for Arrow and Feather files)";

/// Asked again and again while rows are read; its error ends the reading.
pub type GoOn<'a> = &'a dyn Fn() -> Result<()>;

/// Reads several files while `go_on` has no error; their rows follow each other (the sampler mixes them).
///
/// # Errors
/// As [`read_file`], for the first file that fails; or that of `go_on`.
pub fn read_files(paths: &[PathBuf], go_on: GoOn<'_>) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for path in paths {
        records.append(&mut read_file_while(path, go_on)?);
    }
    Ok(records)
}

/// Reads all rows of one file.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Input`] with line and field for the first bad row, for a file without
/// rows, for a compressed file that is damaged, and for a file of another kind.
pub fn read_file(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    read_file_while(path.as_ref(), &|| Ok(()))
}

fn read_file_while(path: &Path, go_on: GoOn<'_>) -> Result<Vec<Record>> {
    let place = Place { path, go_on };
    let file = File::open(path).map_err(|e| place.failed(e))?;
    let mut source = BufReader::with_capacity(1 << 20, file);
    if peek(place, &mut source)?.starts_with(&gzip::MAGIC) {
        let unpacked = gzip::Unpacked::new(source);
        return read_unpacked(place, &name_without_gz(path), BufReader::with_capacity(1 << 20, unpacked));
    }
    read_unpacked(place, &name_of(path), source)
}

/// Reads all rows of the bytes of a file; `path` is its name in messages, and its ending says if it is a table.
///
/// # Errors
/// As [`read_file`], except that compressed bytes are refused.
pub fn read_bytes(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    read_unpacked(Place { path, go_on: &|| Ok(()) }, &name_of(path), bytes)
}

/// Which file is read, and whether to go on with it.
#[derive(Clone, Copy)]
struct Place<'a> {
    path: &'a Path,
    go_on: GoOn<'a>,
}

impl Place<'_> {
    /// The error for bytes that could not be read: what the system refused, or what is wrong with compressed
    /// bytes.
    fn failed(&self, error: io::Error) -> Error {
        gzip::damage(self.path, &error).unwrap_or_else(|| Error::io(self.path, "read", error))
    }
}

/// Reads rows; `name` is that of the file before it was compressed.
fn read_unpacked(place: Place<'_>, name: &str, mut source: impl BufRead) -> Result<Vec<Record>> {
    let start = peek(place, &mut source)?;
    if let Some((_, kind, fix)) = MAGIC.iter().find(|(magic, ..)| start.starts_with(magic)) {
        return Error::input("DATA", format!("the file is {kind}"))
            .path(place.path)
            .expected("JSON Lines, a JSON array or CSV, compressed with gzip or not")
            .fix(*fix)
            .into();
    }
    let text = start.strip_prefix(UTF8_BOM).unwrap_or(start);
    let first = text.iter().copied().find(|byte| !byte.is_ascii_whitespace());
    match (first, name.rsplit_once('.').map(|(_, ending)| ending)) {
        (_, Some("csv")) => delimited::read(place, b',', source),
        (_, Some("tsv")) => delimited::read(place, b'\t', source),
        (Some(b'['), _) => array::read(place, source),
        _ => jsonl::read(place, source),
    }
}

/// The next bytes, which stay where they are.
fn peek<'s>(place: Place<'_>, source: &'s mut impl BufRead) -> Result<&'s [u8]> {
    source.fill_buf().map_err(|e| place.failed(e))
}

/// Most bytes of a file that is held in memory as a whole.
const MAX_WHOLE_BYTES: u64 = 8 << 30;

/// All bytes of a file.
fn whole(place: Place<'_>, mut source: impl BufRead) -> Result<Vec<u8>> {
    /// Bytes between two questions whether to go on.
    const PART: u64 = 64 << 20;
    let mut bytes = Vec::new();
    while source.by_ref().take(PART).read_to_end(&mut bytes).map_err(|e| place.failed(e))? > 0 {
        (place.go_on)()?;
        if bytes.len() as u64 > MAX_WHOLE_BYTES {
            return Error::input("DATA", format!("the file has more than {MAX_WHOLE_BYTES} bytes"))
                .path(place.path)
                .fix("write each row on its own line as a JSON object, or divide the file")
                .into();
        }
    }
    Ok(bytes)
}

/// Line ends in `bytes`.
fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn name_without_gz(path: &Path) -> String {
    let name = name_of(path);
    name.strip_suffix(".gz").unwrap_or(&name).to_owned()
}

/// The rows of a file as they are read.
struct Rows<'a> {
    go_on: GoOn<'a>,
    file: Arc<Path>,
    records: Vec<Record>,
    /// The columns of the last row: most rows have the same ones.
    columns: Arc<[String]>,
    json_texts: Arc<[String]>,
}

impl<'a> Rows<'a> {
    fn new(place: Place<'a>) -> Self {
        let (columns, json_texts) = (Arc::new([]), Arc::new([]));
        Self { go_on: place.go_on, file: place.path.into(), records: Vec::new(), columns, json_texts }
    }

    /// Adds the row that starts at `line`.
    fn push(&mut self, line: usize, value: Value) -> Result<()> {
        (self.go_on)()?;
        let parsed = rows::parse(value);
        let Parsed { body, meta, columns, json_texts } =
            parsed.map_err(|e| super::at(e, |e| e.path(&self.file).line(line)))?;
        if *self.columns != *columns {
            self.columns = columns.into();
        }
        if *self.json_texts != *json_texts {
            self.json_texts = json_texts.into();
        }
        let file = Arc::clone(&self.file);
        let (columns, json_texts) = (Arc::clone(&self.columns), Arc::clone(&self.json_texts));
        self.records.push(Record { file, line, body, meta, columns, json_texts });
        Ok(())
    }

    fn finish(self) -> Result<Vec<Record>> {
        if self.records.is_empty() {
            return Error::input("DATA", "the file has no rows")
                .path(&self.file)
                .fix("write one JSON object per line, for example {\"input\": \"2+2?\", \"output\": \"4\"}")
                .into();
        }
        Ok(self.records)
    }
}

#[cfg(test)]
mod tests;
