//! How many rows of a tensor there are, where that changes from batch to batch.
//!
//! Launches are recorded once, with tensors and grids for the largest batch. How many of the rows a batch has stands in the memory of
//! the GPU; kernels read it there, and blocks beyond it end at once. Every launch says which number is its own.

use crate::device::kernels::DevicePtr;

/// The number of rows that there are: the first ones of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveRows(DevicePtr);

impl LiveRows {
    /// All rows that the tensors have. So it always is on a CPU.
    pub const ALL: Self = Self(DevicePtr(0));

    /// As many as the number at this address of a GPU says, an i32: [`Table::count_ptr`](crate::device::Table::count_ptr).
    pub fn at(count: DevicePtr) -> Self {
        Self(count)
    }

    /// For params of kernels.
    pub(in crate::ops) fn ptr(self) -> DevicePtr {
        self.0
    }
}
