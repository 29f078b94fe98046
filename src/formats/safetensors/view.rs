//! Named views into a mapped file.

use std::collections::BTreeMap;
use std::fs::File;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;

use super::CODE;
use super::header::{self, Header, TensorInfo};
use crate::error::{Error, Result};
use crate::formats::mmap::MappedFile;
use crate::tensor::{DType, Element};

/// A safetensors file: checked, mapped, open as long as a view of it lives.
#[derive(Debug)]
pub struct TensorFile {
    source: Arc<Source>,
    header: Header,
}

impl TensorFile {
    /// Maps the file at `path` and checks its header.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Input`] that names the tensor and the rule if it is malformed.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(MappedFile::open(path)?, path)
    }

    /// As [`TensorFile::open`], for a file that is open already.
    pub(in crate::formats) fn from_file(file: &File, path: &Path) -> Result<Self> {
        Self::new(MappedFile::map(file, path)?, path)
    }

    fn new(map: MappedFile, path: &Path) -> Result<Self> {
        let header = header::parse(path, map.bytes())?;
        Ok(Self { source: Arc::new(Source { map, path: path.to_owned() }), header })
    }

    /// The writer's free text; `{"format": "pt"}` in most files.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.iter().map(|(name, _)| &**name)
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<TensorView> {
        let info = self.header.get(name)?.clone();
        Some(TensorView { source: Arc::clone(&self.source), name: name.to_owned(), info })
    }

    /// Bytes of all tensors together.
    pub fn data_bytes(&self) -> u64 {
        self.header.tensors.iter().map(|(_, t)| (t.end - t.start) as u64).sum()
    }
}

/// One tensor of a file. Holds the map; cloning is cheap.
#[derive(Debug, Clone)]
pub struct TensorView {
    source: Arc<Source>,
    name: String,
    info: TensorInfo,
}

impl TensorView {
    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements. Truth values (`BOOL`) are bytes.
    pub fn dtype(&self) -> DType {
        self.info.dtype
    }

    /// Its dimensions, outermost first; empty for a single number.
    pub fn shape(&self) -> &[usize] {
        &self.info.shape
    }

    /// Its elements, row-major, little-endian, not necessarily aligned.
    pub fn bytes(&self) -> &[u8] {
        &self.source.map.bytes()[self.info.start..self.info.end]
    }

    /// The file it is in.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// Its elements as f32; doubles are rounded.
    ///
    /// # Errors
    /// [`Error::Input`] if the elements are integers.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let bytes = self.bytes();
        Ok(match self.dtype() {
            DType::F32 => convert(bytes, f32::from_le_bytes),
            DType::F16 => convert(bytes, |b| f16::from_le_bytes(b).to_f32()),
            DType::Bf16 => convert(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            DType::F64 => convert(bytes, |b| f64::from_le_bytes(b) as f32),
            DType::I64 | DType::I32 | DType::U32 | DType::U8 => {
                return Error::input(CODE, "integers where real numbers are needed")
                    .path(self.path())
                    .field(self.name())
                    .got(self.dtype())
                    .expected("F32, F16, BF16 or F64")
                    .fix("use weights saved as floating point numbers")
                    .into();
            }
        })
    }

    /// Its elements where they are mapped, if they are of this type and lie at a multiple of its size.
    pub fn mapped<T: Element>(&self) -> Option<Mapped<T>> {
        let usable = self.dtype() == T::DTYPE && bytemuck::try_cast_slice::<u8, T>(self.bytes()).is_ok();
        usable.then(|| Mapped(self.clone(), PhantomData))
    }
}

/// A tensor that stays in the mapped file.
#[derive(Debug, Clone)]
pub struct Mapped<T>(TensorView, PhantomData<T>);

impl<T: Element> AsRef<[T]> for Mapped<T> {
    fn as_ref(&self) -> &[T] {
        // Checked when the value was made; a map does not move.
        bytemuck::cast_slice(self.0.bytes())
    }
}

#[derive(Debug)]
struct Source {
    map: MappedFile,
    path: PathBuf,
}

/// Elements converted per task.
const CHUNK: usize = 1 << 16;

/// Converts elements of `SIZE` bytes, on all CPU threads if there are many.
fn convert<const SIZE: usize>(bytes: &[u8], element: impl Fn([u8; SIZE]) -> f32 + Sync) -> Vec<f32> {
    let (elements, _) = bytes.as_chunks::<SIZE>();
    if elements.len() <= CHUNK {
        return elements.iter().map(|&e| element(e)).collect();
    }
    let mut numbers = vec![0.0; elements.len()];
    numbers.par_chunks_mut(CHUNK).zip(elements.par_chunks(CHUNK)).for_each(|(to, from)| {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = element(from);
        }
    });
    numbers
}
