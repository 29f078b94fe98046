//! Files compressed by gzip: their unpacked bytes, and what is wrong with a file that is cut short or damaged.
//!
//! A file may have several members, as `cat a.gz b.gz` makes them. They are told apart here and not by the
//! crate, which takes any bytes behind a member for the next one: a line end there would be a file cut short.

use std::io::{self, BufRead, ErrorKind, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;

use crate::error::Error;

/// What every member begins with.
pub(super) const MAGIC: [u8; 2] = *b"\x1F\x8B";

/// Most bytes that a compressed file may unpack to: no file of rows that fits a memory is larger.
const MAX_UNPACKED_BYTES: u64 = 64 << 30;

/// What stands behind the last member.
const BEHIND: &str = "bytes behind the end of the compressed data";

/// A file that goes on for too long.
const TOO_LONG: &str = "more than 64 GiB when unpacked";

/// The bytes of a file before it was compressed.
pub(super) struct Unpacked<R> {
    /// The member that is read; none behind the last one.
    member: Option<GzDecoder<R>>,
    bytes: u64,
}

impl<R: BufRead> Unpacked<R> {
    pub(super) fn new(source: R) -> Self {
        Self { member: Some(GzDecoder::new(source)), bytes: 0 }
    }
}

impl<R: BufRead> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            self.bytes += read as u64;
            if self.bytes > MAX_UNPACKED_BYTES {
                return Err(io::Error::new(ErrorKind::InvalidData, TOO_LONG));
            }
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(mut source) = self.member.take().map(GzDecoder::into_inner) else { break };
            self.member = match source.fill_buf()?.first() {
                None => None,
                Some(first) if *first == MAGIC[0] => Some(GzDecoder::new(source)),
                Some(_) => return Err(io::Error::new(ErrorKind::InvalidData, BEHIND)),
            };
        }
        Ok(0)
    }
}

/// The error for a damaged file; none if the system refused to read, which says nothing about the bytes.
pub(super) fn damage(path: &Path, error: &io::Error) -> Option<Error> {
    if error.raw_os_error().is_some() {
        return None;
    }
    let said = error.to_string();
    let (what, fix) = match error.kind() {
        ErrorKind::UnexpectedEof => ("the compressed file is cut short", "download or copy it again"),
        ErrorKind::InvalidData if said == TOO_LONG => (
            "the compressed file is too large",
            "divide it, or check where it came from: such a file may be an attack",
        ),
        ErrorKind::InvalidData if said == BEHIND => (
            "the compressed file goes on behind its end",
            "download or copy it again; if all rows are there, unpack it (gunzip -c FILE > rows.jsonl) and name the new file",
        ),
        ErrorKind::InvalidInput | ErrorKind::InvalidData => {
            ("the compressed file is damaged", "download or copy it again")
        }
        _ => return None,
    };
    Some(Error::input("DATA", what).path(path).got(said).expected("a whole gzip file").fix(fix).into())
}
