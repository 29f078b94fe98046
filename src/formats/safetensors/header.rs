//! The header of a file: strict checks first, then the rules of the `safetensors` library.
//!
//! The checks here are those that the library lacks: the header is at most half of the file plus 1 MB (real
//! ones are far smaller; a small file must not cost much memory), 1,000,000 tensors, 8 dimensions, names of 1
//! to 512 bytes without control characters, no duplicate and no unknown keys. The library checks types, sizes
//! and offsets ([`Metadata`]).

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use ::safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::{CODE, METADATA};
use crate::error::{Error, InputError, Result, shorten};
use crate::formats::strict_json::{UniqueMap, twice};

/// Bytes before the text of the header: its length.
pub(super) const LENGTH_BYTES: usize = 8;

const MAX_HEADER: u64 = 100_000_000;
const MAX_TENSORS: usize = 1_000_000;
const MAX_RANK: usize = 8;
const MAX_NAME: usize = 512;

/// A header that fits its file.
#[derive(Debug)]
pub struct Header {
    /// Free text of the writer.
    pub(super) text: BTreeMap<String, String>,
    /// The tensors, in the type of the library.
    pub(super) tensors: Metadata,
    /// The names, sorted.
    pub(super) names: Vec<String>,
    /// Offset of the data in the file.
    pub(super) data_start: u64,
}

impl Header {
    /// Reads the header at the start of `bytes`, which may be the whole file or its start, of a file of `file_len` bytes.
    /// `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Input`] that names the rule, and the tensor where it is about one.
    pub fn parse(path: &Path, bytes: &[u8], file_len: u64) -> Result<Self> {
        let length = text_length(path, bytes, file_len)?;
        let bad = |what: String| Error::input(CODE, what).path(path);
        let end = LENGTH_BYTES + length;
        let text = bytes.get(LENGTH_BYTES..end).unwrap_or_default();
        if text.first() != Some(&b'{') {
            return again(bad("the header does not start with \"{\"".to_owned()));
        }
        let Parsed { text: free_text, tensors, unknown } = match read(text) {
            Ok(parsed) => parsed,
            Err(error) => return again(bad(format!("invalid header: {error}"))),
        };
        if let Some((name, dtype)) = unknown {
            return bad("the type of the tensor is unknown".to_owned())
                .field(name)
                .got(dtype)
                .expected("a type of the safetensors format, such as F32, F16 or BF16")
                .fix("save the tensor in one of these types")
                .into();
        }
        let mut names: Vec<String> = tensors.iter().map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        let tensors = match Metadata::new(None, tensors) {
            Ok(tensors) => tensors,
            Err(error) => return again(fault(path, text, &error.to_string())),
        };
        let data_len = file_len - end as u64;
        if tensors.data_len() as u64 != data_len {
            return again(
                bad("the file does not end where its last tensor ends".to_owned())
                    .got(format!("{data_len} bytes of data"))
                    .expected(tensors.data_len()),
            );
        }
        Ok(Self { text: free_text, tensors, names, data_start: end as u64 })
    }

    /// Types, shapes and offsets of the tensors, as the `safetensors` library has them.
    pub fn tensors(&self) -> &Metadata {
        &self.tensors
    }
}

/// The length of the text of a header, in bytes, from the start of a file of `file_len` bytes.
pub(super) fn text_length(path: &Path, start: &[u8], file_len: u64) -> Result<usize> {
    let bad = |what: &str| Error::input(CODE, what).path(path);
    if start.starts_with(b"version ") {
        return bad("a Git LFS pointer, not the file itself").fix("run `git lfs pull` in the folder").into();
    }
    let Some(length) = start.first_chunk::<LENGTH_BYTES>() else {
        return again(bad("too short for a safetensors file").got(format!("{file_len} bytes")));
    };
    let length = u64::from_le_bytes(*length);
    let room = MAX_HEADER.min(file_len / 2 + 1_000_000).min(file_len.saturating_sub(LENGTH_BYTES as u64));
    match usize::try_from(length) {
        Ok(length) if length as u64 <= room => Ok(length),
        _ => again(
            bad("header length out of range").got(length).expected(format!("at most {room} bytes here")),
        ),
    }
}

/// Checks that `name` may be the name of a tensor; says why not.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!("tensor name of {} bytes; 1 to {MAX_NAME} are allowed", name.len()));
    }
    match name.chars().any(char::is_control) {
        true => Err(format!("tensor name {name:?} has a control character")),
        false => Ok(()),
    }
}

/// The error of the library, with the name of the tensor, which most of its messages lack.
fn fault(path: &Path, text: &[u8], message: &str) -> InputError {
    let error = |name: &str, what: &str| Error::input(CODE, what).path(path).field(name);
    let tensors = read(text).map(|parsed| parsed.tensors).unwrap_or_default();
    let mut next = 0;
    for (name, info) in &tensors {
        let (start, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &d| n.checked_mul(d));
        let Some(bits) = bits else {
            return error(name, "the shape overflows").got(format!("{:?}", info.shape));
        };
        if bits % 8 != 0 || end.checked_sub(start) != Some(bits / 8) {
            let got = format!("data_offsets [{start}, {end}]");
            let expected = format!("{bits} bits");
            return error(name, "offsets and shape disagree").got(got).expected(expected);
        }
        if start != next {
            let what =
                if start < next { "overlaps another tensor" } else { "there is a gap before the tensor" };
            return error(name, what).got(format!("offset {start}")).expected(next);
        }
        next = end;
    }
    Error::input(CODE, format!("invalid header: {message}")).path(path)
}

/// The error of a file that is damaged.
fn again<T>(error: InputError) -> Result<T> {
    error.fix("the file is damaged or incomplete; copy or download it again").into()
}

/// The content of a header.
#[derive(Default)]
struct Parsed {
    text: BTreeMap<String, String>,
    /// Sorted by offset, as the library requires.
    tensors: Vec<(String, TensorInfo)>,
    /// The first tensor of an unknown type, and the type.
    unknown: Option<(String, String)>,
}

/// Parses the text of a header.
fn read(text: &[u8]) -> serde_json::Result<Parsed> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let mut parsed = HeaderSeed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    parsed.tensors.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    if let Some(pair) = parsed.tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(twice(&pair[0].0));
    }
    parsed.tensors.sort_by_key(|(_, info)| info.data_offsets);
    Ok(parsed)
}

struct HeaderSeed;

impl<'de> DeserializeSeed<'de> for HeaderSeed {
    type Value = Parsed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parsed, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        let mut parsed = Parsed::default();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(twice(METADATA));
                }
                // The library accepts null for no metadata.
                parsed.text =
                    map.next_value::<Option<UniqueMap<String>>>()?.map_or_else(BTreeMap::new, |m| m.0);
                continue;
            }
            check_name(&name).map_err(A::Error::custom)?;
            if parsed.tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            let Entry { dtype, shape, offsets } = map
                .next_value_seed(EntrySeed)
                .map_err(|e| A::Error::custom(format!("tensor {name:?}: {e}")))?;
            match dtype {
                Ok(dtype) => {
                    parsed.tensors.push((name, TensorInfo { dtype, shape, data_offsets: offsets }));
                }
                Err(dtype) => drop(parsed.unknown.get_or_insert((name, dtype))),
            }
        }
        Ok(parsed)
    }
}

/// An entry of a header. Its type may be one that the library does not know.
struct Entry {
    dtype: Result<Dtype, String>,
    shape: Vec<usize>,
    offsets: (usize, usize),
}

struct EntrySeed;

impl<'de> DeserializeSeed<'de> for EntrySeed {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        // The library would also accept an array in place of the object.
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let repeated = match key.as_str() {
                "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                "shape" => shape.replace(map.next_value::<Vec<usize>>()?).is_some(),
                "data_offsets" => offsets.replace(map.next_value()?).is_some(),
                _ => return Err(A::Error::custom(format!("unknown key {:?}", shorten(&key)))),
            };
            if repeated {
                return Err(twice(&key));
            }
        }
        let dtype = dtype.ok_or_else(|| A::Error::missing_field("dtype"))?;
        let shape: Vec<usize> = shape.ok_or_else(|| A::Error::missing_field("shape"))?;
        if shape.len() > MAX_RANK {
            return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
        }
        let known = serde_json::from_value(dtype.clone().into());
        Ok(Entry {
            dtype: known.map_err(|_| dtype),
            shape,
            offsets: offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
        })
    }
}
