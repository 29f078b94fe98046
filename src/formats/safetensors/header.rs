//! The header check: everything about a file that can be wrong is found here, before a tensor is looked at.
//!
//! Limits beyond the format's own: the header is at most half of the file plus 1 MB (real ones are far smaller; a small
//! file must not cost much memory), 1,000,000 tensors, 8 dimensions, names of 1 to 512 bytes without control characters, no
//! duplicate or unknown keys.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{CODE, METADATA};
use crate::error::{Error, InputError, Result};
use crate::formats::strict_json::UniqueMap;
use crate::tensor::DType;

const MAX_HEADER: u64 = 100_000_000;
const MAX_TENSORS: usize = 1_000_000;
const MAX_RANK: usize = 8;
const MAX_NAME: usize = 512;

/// A header. [`parse`] returns it checked against its file.
#[derive(Debug, Default)]
pub(super) struct Header {
    /// Free text of the writer.
    pub(super) metadata: BTreeMap<String, String>,
    /// The tensors, sorted by name. A list, because a map takes twice the memory for a header of many small entries.
    pub(super) tensors: Vec<(Box<str>, TensorInfo)>,
}

impl Header {
    /// The tensor called `name`.
    pub(super) fn get(&self, name: &str) -> Option<&TensorInfo> {
        let place = self.tensors.binary_search_by(|(other, _)| (**other).cmp(name)).ok()?;
        Some(&self.tensors[place].1)
    }
}

/// One tensor of a header.
#[derive(Debug, Clone)]
pub(super) struct TensorInfo {
    pub(super) dtype: DType,
    pub(super) shape: Box<[usize]>,
    /// First byte, counted from the start of the file (in the file itself: from the start of the data).
    pub(super) start: usize,
    /// Byte after the last.
    pub(super) end: usize,
}

/// Reads and checks the header of `file`; `path` is its name in messages.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header> {
    let bad = |what: &str| Error::input(CODE, what).path(path);
    if file.starts_with(b"version https://git-lfs") {
        return bad("a Git LFS pointer, not the file itself").fix("run `git lfs pull` in the folder").into();
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return again(bad("too short for a safetensors file").got(format!("{} bytes", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    let limit = MAX_HEADER.min(file.len() as u64 / 2 + 1_000_000);
    if length > limit || length > rest.len() as u64 {
        let room = limit.min(rest.len() as u64);
        return again(
            bad("header length out of range").got(length).expected(format!("at most {room} bytes here")),
        );
    }
    let (text, data) = rest.split_at(length as usize);
    if text.first() != Some(&b'{') {
        return again(bad("the header does not start with \"{\""));
    }
    let mut header: Header = match serde_json::from_slice(text) {
        Ok(header) => header,
        Err(error) => return again(bad(&format!("invalid header: {error}"))),
    };
    place(path, &mut header.tensors, 8 + text.len(), data.len())?;
    Ok(header)
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

/// Checks that the tensors fill the `data_len` bytes after `data_start` without gap or overlap, each with the size that
/// its shape and type ask for; then counts their offsets from the start of the file.
fn place(
    path: &Path,
    tensors: &mut [(Box<str>, TensorInfo)],
    data_start: usize,
    data_len: usize,
) -> Result<()> {
    let bad = |name: &str, what: &str| Error::input(CODE, what).path(path).field(name);
    for (name, tensor) in &*tensors {
        let (start, end) = (tensor.start, tensor.end);
        let size = tensor.shape.iter().try_fold(tensor.dtype.size(), |n, &d| n.checked_mul(d));
        let Some(size) = size else {
            return again(bad(name, "the shape overflows").got(format!("{:?}", tensor.shape)));
        };
        if end.checked_sub(start) != Some(size) {
            let got = format!("data_offsets [{start}, {end}]");
            return again(bad(name, "offsets and shape disagree").got(got).expected(format!("{size} bytes")));
        }
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_unstable_by_key(|&i| (tensors[i].1.start, tensors[i].1.end));
    let mut next = 0;
    for i in order {
        let (name, TensorInfo { start, end, .. }) = (&tensors[i].0, &tensors[i].1);
        if *start != next {
            let what = if *start < next { "overlaps another tensor" } else { "a gap lies before the tensor" };
            return again(bad(name, what).got(format!("offset {start}")).expected(next));
        }
        next = *end;
    }
    if next != data_len {
        let what = "the file does not end where its last tensor ends";
        let got = format!("{data_len} bytes of data");
        return again(Error::input(CODE, what).path(path).got(got).expected(next));
    }
    // Every offset is now at most the length of the data, so the sums are at most the length of the file.
    for (_, tensor) in tensors {
        tensor.start += data_start;
        tensor.end += data_start;
    }
    Ok(())
}

/// The error of a file that is damaged.
fn again<T>(error: InputError) -> Result<T> {
    error.fix("the file is damaged or incomplete; copy or download it again").into()
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom("duplicate key \"__metadata__\""));
                }
                header.metadata = map.next_value::<UniqueMap<String>>()?.0;
                continue;
            }
            check_name(&name).map_err(A::Error::custom)?;
            if header.tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            let tensor = map.next_value();
            let tensor = tensor.map_err(|e| A::Error::custom(format!("tensor {name:?}: {e}")))?;
            header.tensors.push((name.into(), tensor));
        }
        header.tensors.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        if let Some(pair) = header.tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(A::Error::custom(format!("duplicate tensor {:?}", pair[0].0)));
        }
        Ok(header)
    }
}

impl<'de> Deserialize<'de> for TensorInfo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A derived implementation would also take an array in place of the object.
        deserializer.deserialize_map(TensorVisitor)
    }
}

struct TensorVisitor;

impl<'de> Visitor<'de> for TensorVisitor {
    type Value = TensorInfo;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TensorInfo, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let repeated = match key.as_str() {
                "dtype" => dtype.replace(dtype_of(&map.next_value::<String>()?)?).is_some(),
                "shape" => shape.replace(map.next_value::<Shape>()?.0).is_some(),
                "data_offsets" => offsets.replace(map.next_value()?).is_some(),
                _ => return Err(A::Error::custom(format!("unknown key {key:?}"))),
            };
            if repeated {
                return Err(A::Error::custom(format!("duplicate key {key:?}")));
            }
        }
        let [start, end] = offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?;
        Ok(TensorInfo {
            dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
            shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            start,
            end,
        })
    }
}

/// Truth values are bytes (old GPT-2 files carry masks of them); 8-bit floats and the like are not supported.
fn dtype_of<E: serde::de::Error>(name: &str) -> Result<DType, E> {
    Ok(match name {
        "F64" => DType::F64,
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::Bf16,
        "I64" => DType::I64,
        "I32" => DType::I32,
        "U8" | "BOOL" => DType::U8,
        _ => {
            let known = "F64, F32, F16, BF16, I64, I32, U8, BOOL";
            return Err(E::custom(format!("dtype {name:?} is not supported (only {known})")));
        }
    })
}

/// The dimensions; reading stops at the ninth.
struct Shape(Box<[usize]>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX_RANK} dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = seq.next_element()? {
            if shape.len() == MAX_RANK {
                return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
            }
            shape.push(dimension);
        }
        Ok(Shape(shape.into()))
    }
}
