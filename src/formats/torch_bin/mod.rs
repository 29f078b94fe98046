//! Weights as `torch.save` wrote them (`pytorch_model.bin`, `adapter_model.bin`), read without running anything.
//!
//! Such a file is a pickle: a program for a small stack machine, which Python's `pickle` lets call any function. `unpickle` knows the
//! few instructions and the handful of names that a dictionary of tensors is made of; whatever else the file says is refused by its
//! name. Numbers are then read like those of a safetensors file, where the pickle says they are. Both containers are known: the zip
//! archive of PyTorch 1.6 and later, and the one before it, of several pickles with the numbers behind them.
//! Sources: PyTorch `serialization.py`, `_utils.py`; Python `pickletools.py`.

mod unpickle;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use ::safetensors::tensor::{Dtype, TensorInfo};
use zip::{CompressionMethod, ZipArchive};

use self::unpickle::{Machine, Named, Tensor};
use crate::error::{Error, InputError, Result};

/// Class of the errors of this format.
const CODE: &str = "PICKLE";

/// Largest pickle: names and shapes of all tensors.
const MAX_PICKLE: u64 = 16 << 20;

/// Most tensors, as in safetensors files.
const MAX_TENSORS: usize = 1_000_000;

/// Where the tensors of a file are.
#[derive(Debug, Default)]
pub struct Layout {
    /// Type and shape of every tensor, and its first byte in the file. Offsets of the type of the library start at 0.
    pub(super) tensors: BTreeMap<String, (TensorInfo, u64)>,
    /// The names, sorted.
    pub(super) names: Vec<String>,
}

/// Where the numbers of a storage are: its first byte and its length.
type Storages = BTreeMap<String, (u64, u64)>;

impl Layout {
    /// Reads where the tensors of an open file of `file_len` bytes are; `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Input`] that names what is wrong, or what the pickle asks for besides tensors; [`Error::Io`].
    pub fn read(mut file: impl Read + Seek, path: &Path, file_len: u64) -> Result<Self> {
        let io = |e| Error::io(path, "read", e);
        let mut start = [0; 4];
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let is_zip = file.read_exact(&mut start).is_ok() && start == *b"PK\x03\x04";
        if start == *b"vers" {
            return bad(path, "a Git LFS pointer, not the file itself")
                .fix("run `git lfs pull` in the folder")
                .into();
        }
        let (tensors, storages) = match is_zip {
            true => archive(file, path)?,
            false => stream(file, path, file_len)?,
        };
        Self::new(path, tensors, &storages, file_len)
    }

    fn new(path: &Path, tensors: Vec<Named>, storages: &Storages, file_len: u64) -> Result<Self> {
        let mut layout = Self::default();
        if tensors.len() > MAX_TENSORS {
            return again(bad(path, "too many tensors").got(tensors.len()));
        }
        for (name, tensor) in tensors {
            let fault = |what: &str| bad(path, what).field(&*name);
            let Some(&(start, length)) = storages.get(&*tensor.storage) else {
                return again(fault("the numbers of the tensor are missing"));
            };
            let size = tensor.dtype.bitsize() as u64 / 8;
            let count = tensor.shape.iter().try_fold(1u64, |all, &one| all.checked_mul(one as u64));
            let first = tensor.offset.checked_mul(size);
            let (Some(bytes), Some(first)) = (count.and_then(|count| count.checked_mul(size)), first) else {
                return again(fault("the size of the tensor is out of range"));
            };
            let fits = first.checked_add(bytes).is_some_and(|end| end <= length);
            if !fits || start.checked_add(length).is_none_or(|end| end > file_len) {
                return again(fault("the tensor goes beyond its numbers"));
            }
            if bytes > 0 && !is_row_major(&tensor) {
                return fault("the numbers of the tensor are not in the order of its shape")
                    .got(format!("strides {:?} for {:?}", tensor.strides, tensor.shape))
                    .fix("save it after .contiguous(), or with save_pretrained(safe_serialization=True)")
                    .into();
            }
            let info = TensorInfo {
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                data_offsets: (0, bytes as usize),
            };
            if layout.tensors.insert(name.to_string(), (info, start + first)).is_some() {
                return again(fault("the file has two tensors of this name"));
            }
        }
        layout.names = layout.tensors.keys().cloned().collect();
        Ok(layout)
    }

    /// Name of each tensor, its type and shape, and its first byte in the file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo, u64)> {
        self.tensors.iter().map(|(name, (info, start))| (name.as_str(), info, *start))
    }

    /// Bytes of all tensors together; numbers that several of them share count for each.
    pub(super) fn data_bytes(&self) -> u64 {
        self.tensors.values().map(|(info, _)| info.data_offsets.1 as u64).sum()
    }
}

/// Whether a tensor is one run of numbers in the order of its shape.
fn is_row_major(tensor: &Tensor) -> bool {
    let mut step = 1u64;
    let dims = tensor.shape.iter().zip(&tensor.strides).rev();
    tensor.shape.len() == tensor.strides.len()
        && dims.fold(true, |all, (&size, &stride)| {
            let fits = size == 1 || stride == step;
            step = step.saturating_mul(size as u64);
            all && fits
        })
}

/// The zip archive of PyTorch 1.6 and later: `NAME/data.pkl`, `NAME/byteorder`, and a file `NAME/data/KEY` for every storage.
fn archive(file: impl Read + Seek, path: &Path) -> Result<(Vec<Named>, Storages)> {
    let refuse = |error: zip::result::ZipError| match error {
        zip::result::ZipError::Io(error) => Error::io(path, "read", error),
        other => bad(path, "not a zip archive of torch.save").got(other).fix(AGAIN).into(),
    };
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(refuse)?;
    if archive.len() > MAX_TENSORS {
        return again(bad(path, "too many files in the archive").got(archive.len()));
    }
    let (mut pickle, mut storages) = (None, Storages::new());
    for index in 0..archive.len() {
        let mut entry = archive.by_index_raw(index).map_err(refuse)?;
        let name = entry.name().map_err(refuse)?.into_owned();
        let Some((_, inner)) = name.split_once('/') else { continue };
        let is_plain = entry.compression() == CompressionMethod::Stored && !entry.encrypted();
        let is_wanted = ["data.pkl", "byteorder"].contains(&inner) || inner.starts_with("data/");
        if !is_wanted {
            continue;
        }
        let (Some(start), true) = (entry.data_start(), is_plain && entry.size() == entry.compressed_size())
        else {
            return again(
                bad(path, "a compressed file in the archive")
                    .got(&name)
                    .expected("files as torch.save stores them"),
            );
        };
        match inner {
            "data.pkl" if pickle.is_some() => return again(bad(path, "two pickles in the archive")),
            "data.pkl" | "byteorder" => {
                if entry.size() > MAX_PICKLE {
                    return again(
                        bad(path, "the pickle is too large").got(format!("{} bytes", entry.size())),
                    );
                }
                let mut bytes = Vec::new();
                let size = entry.size();
                Read::by_ref(&mut entry)
                    .take(size)
                    .read_to_end(&mut bytes)
                    .map_err(|e| Error::io(path, "read", e))?;
                if inner == "data.pkl" {
                    pickle = Some(bytes);
                } else if bytes != b"little" {
                    return bad(path, "the numbers are in another byte order")
                        .got(String::from_utf8_lossy(&bytes))
                        .expected("little")
                        .fix("save the file again on a machine with little-endian numbers")
                        .into();
                }
            }
            storage => {
                let key = storage.trim_start_matches("data/").to_owned();
                if storages.insert(key, (start, entry.size())).is_some() {
                    return again(bad(path, "two files of one name in the archive").got(&name));
                }
            }
        }
    }
    let Some(pickle) = pickle else { return again(bad(path, "the archive has no data.pkl")) };
    let mut machine = Machine::new(&pickle);
    let value = machine.run().map_err(|fault| fault.into_error(path))?;
    Ok((machine.tensors(&value).map_err(|fault| fault.into_error(path))?, storages))
}

/// The format before PyTorch 1.6: a magic number, a version, a description of the machine, the object and the keys of its storages as
/// pickles one behind the other; then for every key, in order, the number of elements and the elements.
fn stream(mut reader: impl Read + Seek, path: &Path, file_len: u64) -> Result<(Vec<Named>, Storages)> {
    let io = |e| Error::io(path, "read", e);
    reader.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut reader).take(MAX_PICKLE.min(file_len)).read_to_end(&mut bytes).map_err(io)?;
    let mut machine = Machine::new(&bytes);
    let fault = |fault: unpickle::Fault| fault.into_error(path);
    let magic = machine.run().map_err(fault)?;
    if !magic.is_magic() {
        return bad(path, "not a file of torch.save")
            .expected("a zip archive, or PyTorch's older format")
            .fix("convert the model with save_pretrained(safe_serialization=True)")
            .into();
    }
    if machine.run().map_err(fault)?.int() != Some(1001) {
        return again(bad(path, "another version of PyTorch's older format"));
    }
    let system = machine.run().map_err(fault)?;
    if !machine.is_little_endian(&system) {
        return again(bad(path, "the numbers are in another byte order"));
    }
    let value = machine.run().map_err(fault)?;
    let tensors = machine.tensors(&value).map_err(fault)?;
    let keys = machine.run().map_err(fault)?;
    let keys = machine.texts(&keys).map_err(fault)?;
    // The numbers follow the last pickle.
    let sizes: BTreeMap<&str, u64> = machine.storages().collect();
    let (mut at, mut storages) = (machine.position() as u64, Storages::new());
    for key in keys {
        let mut count = [0; 8];
        reader.seek(SeekFrom::Start(at)).and_then(|_| reader.read_exact(&mut count)).map_err(io)?;
        let size = sizes.get(&*key).copied();
        let length = size.and_then(|size| size.checked_mul(u64::from_le_bytes(count)));
        let end = length.and_then(|length| (at + 8).checked_add(length));
        let (Some(length), Some(end)) = (length, end.filter(|end| *end <= file_len)) else {
            return again(bad(path, "the file ends before its numbers do").field(&*key));
        };
        storages.insert(key.to_string(), (at + 8, length));
        at = end;
    }
    Ok((tensors, storages))
}

const AGAIN: &str = "copy or download the file again";

fn bad(path: &Path, what: &str) -> InputError {
    Error::input(CODE, what).path(path)
}

fn again<T>(error: InputError) -> Result<T> {
    error.fix(AGAIN).into()
}

/// The type of the numbers of a storage class of PyTorch.
fn dtype_of(class: &str) -> Option<Dtype> {
    Some(match class {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}
