//! Named tensors of a file, read on demand.
//!
//! Files are read, not memory-mapped: if another program truncates a file, a read gives an error, while a map
//! would end the process (SIGBUS). And numbers that were read cannot change during a run. Reading is as fast
//! as the page cache, on all threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::safetensors::tensor::{Dtype, TensorInfo};
use half::{bf16, f16};
use rayon::prelude::*;

use super::CODE;
use super::header::{Header, LENGTH_BYTES, text_length};
use crate::error::{Error, Result};
use crate::formats::stamp::Stamp;
use crate::formats::torch_bin;
use crate::tensor::{DType, Element};

/// A safetensors file, or one that `torch.save` wrote: its header checked, open as long as a view of it lives.
#[derive(Debug)]
pub struct TensorFile {
    source: Arc<Source>,
    layout: Layout,
}

/// Where the tensors of a file are.
#[derive(Debug)]
enum Layout {
    Safetensors(Header),
    Pickled(torch_bin::Layout),
}

impl TensorFile {
    /// Opens the file at `path` and checks its header.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Input`] that names the tensor and the rule if it is
    /// malformed, or not a regular file (a pipe would block).
    pub fn open(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
        if !kind.is_file() {
            return Error::input("FILE", "not a regular file").path(path).fix("name a file").into();
        }
        Self::from_file(File::open(path).map_err(|e| Error::io(path, "read", e))?, path)
    }

    /// As [`TensorFile::open`], for a file that is open already.
    pub(in crate::formats) fn from_file(file: File, path: &Path) -> Result<Self> {
        let metadata = file.metadata().map_err(|e| Error::io(path, "read", e))?;
        let source = Source { file, path: path.to_owned(), stamp: Stamp::of(&metadata) };
        let file_len = metadata.len();
        let mut start = vec![0; file_len.min(LENGTH_BYTES as u64) as usize];
        source.read(0, &mut start)?;
        let length = text_length(path, &start, file_len)?;
        start.resize(LENGTH_BYTES + length, 0);
        source.read(LENGTH_BYTES as u64, &mut start[LENGTH_BYTES..])?;
        let header = Header::parse(path, &start, file_len)?;
        Ok(Self { source: Arc::new(source), layout: Layout::Safetensors(header) })
    }

    /// A file that `torch.save` wrote, which is read and not run.
    ///
    /// # Errors
    /// As [`torch_bin::Layout::read`].
    pub(in crate::formats) fn pickled(file: File, path: &Path) -> Result<Self> {
        let metadata = file.metadata().map_err(|e| Error::io(path, "read", e))?;
        let layout = Layout::Pickled(torch_bin::Layout::read(&file, path, metadata.len())?);
        let source = Source { file, path: path.to_owned(), stamp: Stamp::of(&metadata) };
        Ok(Self { source: Arc::new(source), layout })
    }

    /// The writer's text under `key`; `pt` under `format` in most files.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        match &self.layout {
            Layout::Safetensors(header) => header.text.get(key).map(String::as_str),
            Layout::Pickled(_) => None,
        }
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names = match &self.layout {
            Layout::Safetensors(header) => &header.names,
            Layout::Pickled(layout) => &layout.names,
        };
        names.iter().map(String::as_str)
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<TensorView> {
        let (info, start) = match &self.layout {
            Layout::Safetensors(header) => {
                let info = header.tensors.info(name)?.clone();
                let start = header.data_start + info.data_offsets.0 as u64;
                (info, start)
            }
            Layout::Pickled(layout) => layout.tensors.get(name)?.clone(),
        };
        Some(TensorView { source: Arc::clone(&self.source), name: name.to_owned(), info, start })
    }

    /// Bytes of all tensors together.
    pub fn data_bytes(&self) -> u64 {
        match &self.layout {
            Layout::Safetensors(header) => header.tensors.data_len() as u64,
            Layout::Pickled(layout) => layout.data_bytes(),
        }
    }

    /// Fails if the file has changed since it was opened: truncated, modified, replaced or removed.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.source.check()
    }
}

/// One tensor of a file. Keeps the file open; cloning is cheap.
#[derive(Debug, Clone)]
pub struct TensorView {
    source: Arc<Source>,
    name: String,
    info: TensorInfo,
    /// First byte in the file.
    start: u64,
}

impl TensorView {
    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    /// Its dimensions, outermost first; empty for a single number.
    pub fn shape(&self) -> &[usize] {
        &self.info.shape
    }

    /// Its size in bytes.
    pub fn num_bytes(&self) -> u64 {
        (self.info.data_offsets.1 - self.info.data_offsets.0) as u64
    }

    /// The file it is in.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// Its first `limit` bytes, or all if there are fewer: elements row-major and little-endian.
    ///
    /// # Errors
    /// [`Error::Changed`] if the file was cut short, or [`Error::Io`].
    pub fn bytes(&self, limit: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; limit.min(self.num_bytes() as usize)];
        self.source.read(self.start, &mut bytes)?;
        Ok(bytes)
    }

    /// True if [`TensorView::to_f32`] can convert its elements.
    pub fn is_real(&self) -> bool {
        matches!(self.dtype(), Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    /// Its elements as f32; doubles are rounded.
    ///
    /// # Errors
    /// [`Error::Input`] if the elements are of another type, [`Error::Changed`] if the file was cut short, or [`Error::Io`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.dtype() {
            Dtype::F32 => self.read_all(),
            Dtype::F16 => self.convert(|b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => self.convert(|b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => self.convert(|b| f64::from_le_bytes(b) as f32),
            other => Error::input(CODE, "the type of the tensor is not supported")
                .path(self.path())
                .field(self.name())
                .got(other)
                .expected("F32, F16, BF16 or F64")
                .fix("use weights saved as floating point numbers of 16 bits or more")
                .into(),
        }
    }

    /// Its elements, if they are of this type.
    ///
    /// # Errors
    /// [`Error::Changed`] if the file was cut short, or [`Error::Io`].
    pub fn elements<T: Element>(&self) -> Result<Option<Vec<T>>> {
        match self.dtype() == of_element(T::DTYPE) {
            true => self.read_all().map(Some),
            false => Ok(None),
        }
    }

    /// All elements; `T` is their type.
    fn read_all<T: Element>(&self) -> Result<Vec<T>> {
        let mut numbers = vec![T::zeroed(); self.num_bytes() as usize / size_of::<T>()];
        let read = |(chunk, to): (usize, &mut [T])| {
            let start = self.start + (chunk * CHUNK * size_of::<T>()) as u64;
            self.source.read(start, bytemuck::cast_slice_mut(to))
        };
        numbers.par_chunks_mut(CHUNK).enumerate().try_for_each(read)?;
        Ok(numbers)
    }

    /// Converts elements of `SIZE` bytes.
    fn convert<const SIZE: usize>(&self, element: impl Fn([u8; SIZE]) -> f32 + Sync) -> Result<Vec<f32>> {
        let mut numbers = vec![0.0; self.num_bytes() as usize / SIZE];
        let read = |bytes: &mut Vec<u8>, (chunk, to): (usize, &mut [f32])| {
            bytes.resize(to.len() * SIZE, 0);
            self.source.read(self.start + (chunk * CHUNK * SIZE) as u64, bytes)?;
            for (to, &from) in to.iter_mut().zip(bytes.as_chunks::<SIZE>().0) {
                *to = element(from);
            }
            Ok::<(), Error>(())
        };
        numbers.par_chunks_mut(CHUNK).enumerate().try_for_each_init(Vec::new, read)?;
        Ok(numbers)
    }
}

/// The type of elements in a file.
pub(super) fn of_element(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
    }
}

/// Elements read at once by a thread.
const CHUNK: usize = 1 << 18;

/// An open file and its stamp at that time.
#[derive(Debug)]
struct Source {
    file: File,
    path: PathBuf,
    stamp: Stamp,
}

impl Source {
    /// Fills `to` with the bytes from `start` on.
    fn read(&self, start: u64, to: &mut [u8]) -> Result<()> {
        match self.file.read_exact_at(to, start) {
            Ok(()) => Ok(()),
            // Every offset was checked against the length of the file.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Stamp::changed(&self.path)),
            Err(error) => Err(Error::io(&self.path, "read", error)),
        }
    }

    fn check(&self) -> Result<()> {
        self.stamp.check(&self.path)
    }
}
