//! A two-dimensional row-major buffer with a shape, on the host or on a GPU. Its memory is freed on drop.

use std::fmt;
use std::sync::Arc;

use super::Device;
use super::class::Class;
use super::kernels::DevicePtr;
use super::pool::Pool;
use super::region::{Block, LOWER};
use crate::error::{Error, Result};
use crate::tensor::Element;

/// A slice of memory with another owner.
pub type HostData<T> = Arc<dyn AsRef<[T]> + Send + Sync>;

/// Elements `[rows, cols]`, row-major. On a GPU the content is in its memory, not on the host; a dry device
/// has no content.
pub struct Tensor<T: Element> {
    rows: usize,
    cols: usize,
    storage: Storage<T>,
    class: Class,
    pool: Arc<Pool>,
}

enum Storage<T> {
    Pooled(Vec<u64>),
    Borrowed(HostData<T>),
    Device(Block),
    Dry,
}

impl<T: Element> Tensor<T> {
    /// Unspecified content; none on a dry device.
    pub(super) fn new(device: &Device, rows: usize, cols: usize) -> Result<Self> {
        let size = rows.checked_mul(cols).and_then(|len| len.checked_mul(size_of::<T>()));
        let Some(bytes) = size.filter(|&bytes| isize::try_from(bytes).is_ok()) else {
            return Err(too_large(device, &format!("[{rows}, {cols}] of {}", T::DTYPE)));
        };
        let storage = match device.gpu() {
            Some(gpu) => Storage::Device(gpu.block(bytes as u64)?),
            None if device.is_dry() => Storage::Dry,
            None => Storage::Pooled(
                device
                    .pool
                    .take(bytes.div_ceil(size_of::<u64>()))
                    .ok_or_else(|| too_large(device, &format!("{bytes} bytes")))?,
            ),
        };
        device.pool.count(device.class, bytes as u64);
        Ok(Self { rows, cols, storage, class: device.class, pool: device.pool.clone() })
    }

    pub(super) fn borrowed(device: &Device, rows: usize, cols: usize, data: HostData<T>) -> Self {
        device.pool.count_borrowed((rows * cols * size_of::<T>()) as u64, true);
        let storage = Storage::Borrowed(data);
        Self { rows, cols, storage, class: Class::Weights, pool: device.pool.clone() }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all elements.
    pub(super) fn bytes(&self) -> u64 {
        (self.len() * size_of::<T>()) as u64
    }

    /// The memory on a GPU.
    pub(super) fn block(&self) -> Option<&Block> {
        match &self.storage {
            Storage::Device(block) => Some(block),
            _ => None,
        }
    }

    /// The address on a GPU, for params of kernels; null on other devices.
    pub fn ptr(&self) -> DevicePtr {
        self.block().map_or(DevicePtr(0), Block::ptr)
    }

    /// The content; empty on a GPU (see [`Device::read`]) and on a dry device.
    pub fn data(&self) -> &[T] {
        match &self.storage {
            Storage::Pooled(words) => &bytemuck::cast_slice(words)[..self.len()],
            Storage::Borrowed(data) => data.as_ref().as_ref(),
            Storage::Device(_) | Storage::Dry => &[],
        }
    }

    /// The content, mutable; empty on a GPU and on a dry device. Borrowed memory is copied first.
    pub fn data_mut(&mut self) -> &mut [T] {
        let len = self.len();
        if let Storage::Borrowed(data) = &self.storage {
            let num_words = (len * size_of::<T>()).div_ceil(size_of::<u64>());
            let mut words = self.pool.take(num_words).unwrap_or_else(|| vec![0; num_words]);
            bytemuck::cast_slice_mut(&mut words)[..len].copy_from_slice(data.as_ref().as_ref());
            self.pool.count_borrowed(self.bytes(), false);
            self.pool.count(self.class, self.bytes());
            self.storage = Storage::Pooled(words);
        }
        match &mut self.storage {
            Storage::Pooled(words) => &mut bytemuck::cast_slice_mut(words)[..len],
            Storage::Borrowed(_) | Storage::Device(_) | Storage::Dry => &mut [],
        }
    }

    /// Row `row`.
    pub fn row(&self, row: usize) -> &[T] {
        &self.data()[row * self.cols..(row + 1) * self.cols]
    }
}

impl<T: Element> Drop for Tensor<T> {
    fn drop(&mut self) {
        let bytes = self.bytes();
        match std::mem::replace(&mut self.storage, Storage::Dry) {
            Storage::Pooled(words) => {
                self.pool.discount(self.class, bytes);
                self.pool.give(words);
            }
            Storage::Borrowed(_) => self.pool.count_borrowed(bytes, false),
            Storage::Device(_) | Storage::Dry => self.pool.discount(self.class, bytes),
        }
    }
}

impl<T: Element> fmt::Debug for Tensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor<{}>[{}, {}]", T::DTYPE, self.rows, self.cols)
    }
}

/// The out-of-memory error for a size.
fn too_large(device: &Device, size: &str) -> Error {
    Error::Device { what: format!("{}: out of memory: {size} needed", device.label()), fix: LOWER.into() }
}
