//! Writing safetensors: the same bytes for the same tensors, in whatever order they are given.
//!
//! Tensors are sorted by element size (largest first, so that all are aligned), then by name, and the header
//! is padded to 8 bytes; this is what the `safetensors` library does.

use std::path::Path;

use super::{CODE, METADATA, header};
use crate::error::{Error, InputError, Result};
use crate::formats::atomic;
use crate::tensor::DType;

/// A tensor to write.
#[derive(Debug, Clone)]
pub struct NamedTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: TensorData<'a>,
}

/// Elements of a tensor to write.
#[derive(Debug, Clone, Copy)]
pub enum TensorData<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Double precision.
    F64(&'a [f64]),
    /// bfloat16.
    Bf16(&'a [half::bf16]),
    /// Bytes.
    U8(&'a [u8]),
}

impl TensorData<'_> {
    /// Their type in the file.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
            Self::Bf16(_) => DType::Bf16,
            Self::U8(_) => DType::U8,
        }
    }

    /// Their bytes in the file.
    fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(data) => bytemuck::cast_slice(data),
            Self::F64(data) => bytemuck::cast_slice(data),
            Self::Bf16(data) => bytemuck::cast_slice(data),
            Self::U8(data) => data,
        }
    }
}

/// The bytes of a safetensors file with these tensors and this free text.
///
/// # Errors
/// [`Error::Input`] if a name is invalid or appears twice, or if a shape does not fit its data.
pub fn serialize(tensors: &[NamedTensor<'_>], metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let (mut bytes, order) = layout(tensors, metadata)?;
    bytes.reserve_exact(order.iter().map(|t| t.data.bytes().len()).sum());
    for tensor in order {
        bytes.extend_from_slice(tensor.data.bytes());
    }
    Ok(bytes)
}

/// Writes the file that [`serialize`] describes, safely (see [`atomic`]) and without a copy of the tensors in memory.
///
/// # Errors
/// Those of [`serialize`], and [`Error::Io`]; a file that was at `path` is then as it was.
pub fn write_safetensors(path: &Path, tensors: &[NamedTensor<'_>], metadata: &[(&str, &str)]) -> Result<()> {
    let (head, order) = layout(tensors, metadata)?;
    atomic::write_file_with(path, |out| {
        out.write_all(&head)?;
        order.iter().try_for_each(|tensor| out.write_all(tensor.data.bytes()))
    })
}

/// The bytes before the data, and the tensors in their order in the file.
fn layout<'t, 'a>(
    tensors: &'t [NamedTensor<'a>],
    metadata: &[(&str, &str)],
) -> Result<(Vec<u8>, Vec<&'t NamedTensor<'a>>)> {
    let mut order: Vec<&NamedTensor<'_>> = tensors.iter().collect();
    order.sort_by(|a, b| {
        let size = |t: &NamedTensor<'_>| std::cmp::Reverse(t.data.dtype().size());
        size(a).cmp(&size(b)).then_with(|| a.name.cmp(&b.name))
    });
    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        let mut sorted = metadata.to_vec();
        sorted.sort_unstable();
        let text: serde_json::Map<_, _> = sorted.iter().map(|&(k, v)| (k.to_owned(), v.into())).collect();
        if text.len() != metadata.len() {
            return bug("a metadata key appears twice").into();
        }
        entries.insert(METADATA.to_owned(), text.into());
    }
    let mut offset = 0;
    for tensor in &order {
        header::check_name(&tensor.name).map_err(|why| bug(&why))?;
        let size = tensor.data.bytes().len();
        let wanted = tensor.shape.iter().try_fold(tensor.data.dtype().size(), |n, &d| n.checked_mul(d));
        if wanted != Some(size) || tensor.name == METADATA {
            return bug("cannot be written")
                .field(&tensor.name)
                .got(format!("shape {:?} of {} with {size} bytes", tensor.shape, tensor.data.dtype()))
                .into();
        }
        let entry = serde_json::json!({
            "dtype": tensor.data.dtype().to_string(),
            "shape": tensor.shape,
            "data_offsets": [offset, offset + size],
        });
        if entries.insert(tensor.name.clone(), entry).is_some() {
            return bug("the tensor appears twice").field(&tensor.name).into();
        }
        offset += size;
    }
    let text = serde_json::Value::Object(entries).to_string();
    let padded = text.len().next_multiple_of(8);
    let mut head = Vec::with_capacity(8 + padded);
    head.extend_from_slice(&(padded as u64).to_le_bytes());
    head.extend_from_slice(text.as_bytes());
    head.resize(8 + padded, b' ');
    Ok((head, order))
}

/// The error of a mistake by the caller.
fn bug(what: &str) -> InputError {
    Error::input(CODE, what).fix("this is a mistake of the program; please report it")
}
