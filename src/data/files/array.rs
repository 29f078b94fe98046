//! A file that is one JSON array of objects, as `json.dump` writes it.

use std::io::BufRead;

use serde_json::value::RawValue;

use super::jsonl::{bad_json, not_utf8};
use super::{Place, Rows, UTF8_BOM, lines};
use crate::data::record::Record;
use crate::error::{Error, Result};
use crate::formats::strict_json;

/// Reads the elements of the array; their lines are those they start in.
pub(super) fn read(place: Place<'_>, source: impl BufRead) -> Result<Vec<Record>> {
    let path = place.path;
    let bytes = super::whole(place, source)?;
    let bytes = bytes.strip_prefix(UTF8_BOM).unwrap_or(&bytes);
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let before = &bytes[..e.valid_up_to()];
        let start = before.iter().rposition(|&b| b == b'\n').map_or(0, |last| last + 1);
        not_utf8(path, lines(before) + 1, &bytes[start..], e.valid_up_to() - start)
    })?;
    let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(|e| {
        Error::input("DATA", "the file starts like one JSON array, and is none")
            .path(path)
            .line(e.line())
            .got(format!("{e}"))
            .fix("correct it there, or write one object per line")
    })?;
    let mut rows = Rows::new(place);
    let (mut line, mut counted) = (1, 0);
    for element in elements {
        let element = element.get();
        // Elements are parts of `text`, in order.
        let start = (element.as_ptr() as usize).saturating_sub(text.as_ptr() as usize).min(text.len());
        line += lines(&text.as_bytes()[counted..start]);
        counted = start;
        let value = strict_json::parse(element).map_err(|flaw| bad_json(path, line, element, flaw, 0))?;
        rows.push(line, value)?;
    }
    rows.finish()
}
