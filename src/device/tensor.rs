//! A two-dimensional row-major buffer that knows its shape and gives its memory back when dropped.

use std::fmt;
use std::sync::Arc;

use super::class::Class;
use super::pool::Pool;
use crate::tensor::Element;

/// Memory that somebody else keeps, as numbers.
pub type HostData<T> = Arc<dyn AsRef<[T]> + Send + Sync>;

/// Numbers `[rows, cols]`, row-major. On a dry device it has a shape and no content.
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
    Dry,
}

impl<T: Element> Tensor<T> {
    pub(super) fn pooled(pool: &Arc<Pool>, class: Class, rows: usize, cols: usize, dry: bool) -> Self {
        let bytes = rows * cols * size_of::<T>();
        let storage =
            if dry { Storage::Dry } else { Storage::Pooled(pool.take(bytes.div_ceil(size_of::<u64>()))) };
        pool.count(class, bytes as u64);
        Self { rows, cols, storage, class, pool: pool.clone() }
    }

    pub(super) fn borrowed(pool: &Arc<Pool>, rows: usize, cols: usize, data: HostData<T>) -> Self {
        pool.count_borrowed((rows * cols * size_of::<T>()) as u64, true);
        Self { rows, cols, storage: Storage::Borrowed(data), class: Class::Weights, pool: pool.clone() }
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

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The content; empty on a dry device.
    pub fn data(&self) -> &[T] {
        match &self.storage {
            Storage::Pooled(words) => &bytemuck::cast_slice(words)[..self.len()],
            Storage::Borrowed(data) => data.as_ref().as_ref(),
            Storage::Dry => &[],
        }
    }

    /// The content, to change; empty on a dry device. Borrowed memory is copied first.
    pub fn data_mut(&mut self) -> &mut [T] {
        if let Storage::Borrowed(data) = &self.storage {
            let mut own = Self::pooled(&self.pool, self.class, self.rows, self.cols, false);
            own.data_mut().copy_from_slice(data.as_ref().as_ref());
            *self = own;
        }
        let len = self.len();
        match &mut self.storage {
            Storage::Pooled(words) => &mut bytemuck::cast_slice_mut(words)[..len],
            Storage::Borrowed(_) | Storage::Dry => &mut [],
        }
    }

    /// Row `row`.
    pub fn row(&self, row: usize) -> &[T] {
        &self.data()[row * self.cols..(row + 1) * self.cols]
    }
}

impl<T: Element> Drop for Tensor<T> {
    fn drop(&mut self) {
        let bytes = (self.len() * size_of::<T>()) as u64;
        match std::mem::replace(&mut self.storage, Storage::Dry) {
            Storage::Pooled(words) => {
                self.pool.discount(self.class, bytes);
                self.pool.give(words);
            }
            Storage::Borrowed(_) => self.pool.count_borrowed(bytes, false),
            Storage::Dry => self.pool.discount(self.class, bytes),
        }
    }
}

impl<T: Element> fmt::Debug for Tensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor<{}>[{}, {}]", T::DTYPE, self.rows, self.cols)
    }
}
