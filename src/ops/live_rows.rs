//! The number of live rows of a tensor, where it changes from batch to batch.
//!
//! Launches are recorded once, with tensors and grids for the largest batch. The number of rows of the
//! current batch is in GPU memory: kernels read it there, and blocks beyond it return at once. Every launch
//! gets the address of its number.

use crate::device::kernels::DevicePtr;

/// The number of live rows: the first ones of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveRows(DevicePtr);

impl LiveRows {
    /// All rows of the tensors. Always used on a CPU.
    pub const ALL: Self = Self(DevicePtr(0));

    /// The i32 at this GPU address is the number of live rows:
    /// [`Table::count_ptr`](crate::device::Table::count_ptr).
    pub fn at(count: DevicePtr) -> Self {
        Self(count)
    }

    /// For params of kernels.
    pub(in crate::ops) fn ptr(self) -> DevicePtr {
        self.0
    }
}
