//! A run of columns of a tensor: queries, keys and values that one layer made side by side.

use std::ops::Range;

use crate::device::Tensor;
use crate::device::kernels::DevicePtr;
use crate::error::{Error, Result};
use crate::tensor::Element;

/// Columns `first..first + cols` of all rows of a tensor.
#[derive(Debug)]
pub struct Cols<'a, T: Element> {
    tensor: &'a Tensor<T>,
    first: usize,
    cols: usize,
}

impl<T: Element> Clone for Cols<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Element> Copy for Cols<'_, T> {}

impl<'a, T: Element> From<&'a Tensor<T>> for Cols<'a, T> {
    fn from(tensor: &'a Tensor<T>) -> Self {
        Self { tensor, first: 0, cols: tensor.cols() }
    }
}

impl<'a, T: Element> Cols<'a, T> {
    /// These columns of `tensor`.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has fewer.
    pub fn new(tensor: &'a Tensor<T>, columns: Range<usize>) -> Result<Self> {
        if columns.start > columns.end || columns.end > tensor.cols() {
            return Err(Error::shape("cols", "columns", format!("within {}", tensor.cols()), columns));
        }
        Ok(Self { tensor, first: columns.start, cols: columns.len() })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tensor.rows()
    }

    /// Number of columns of the run.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows(), self.cols]
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows() * self.cols
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements from one row to the next.
    pub fn row_stride(&self) -> usize {
        self.tensor.cols()
    }

    /// The elements from the first one on, on the host; empty on a GPU and on a dry device, and without rows.
    pub fn data(&self) -> &'a [T] {
        self.tensor.data().get(self.first..).unwrap_or_default()
    }

    /// Row `row`, on the host.
    pub fn row(&self, row: usize) -> &'a [T] {
        &self.tensor.row(row)[self.first..self.first + self.cols]
    }

    /// Address of the first element on a GPU.
    pub fn ptr(&self) -> DevicePtr {
        at_column(self.tensor, self.first)
    }

    /// Fails unless pieces of eight elements are aligned: first column, columns and stride are multiples of 8, and rows and columns
    /// fit an i32.
    pub(super) fn check_pieces(&self, op: &'static str, arg: &'static str) -> Result<()> {
        let [rows, cols] = self.tensor.shape();
        let aligned = [self.first, self.cols, cols].iter().all(|n| n.is_multiple_of(8));
        match aligned && i32::try_from(rows.max(cols)).is_ok() {
            true => Ok(()),
            false => Err(Error::shape(op, arg, "columns in multiples of 8", self.tensor.shape())),
        }
    }
}

/// Address of a column of the first row on a GPU; null on other devices.
pub(super) fn at_column<T: Element>(tensor: &Tensor<T>, column: usize) -> DevicePtr {
    match tensor.ptr() {
        DevicePtr(0) => DevicePtr(0),
        DevicePtr(start) => DevicePtr(start + (column * size_of::<T>()) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::cpu;

    #[test]
    fn a_run_is_read_row_by_row() {
        let tensor = cpu().tensor(2, 4, &[0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).unwrap();
        let run = Cols::new(&tensor, 1..3).unwrap();
        assert_eq!((run.row(0), run.row(1), run.row_stride()), (&[1.0, 2.0][..], &[5.0, 6.0][..], 4));
        assert_eq!((run.shape(), run.data()[0]), ([2, 2], 1.0));
        assert!(Cols::new(&tensor, 2..5).is_err());
    }
}
