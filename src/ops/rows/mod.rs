//! Gather and scatter-add of rows: the last layer runs on the supervised rows only.
//!
//! `gather`: `y[i, :] = x[index[i], :]`. `scatter_add`: `x[index[i], :] += y[i, :]`. An index is ascending
//! without repeats. `x` of `gather` may be a run of columns; that of `scatter_add` may have more columns than `y`, and then `y` is
//! added to its first ones. The gathered tensor is `[capacity, cols]`; its first rows, one per entry of the index,
//! are live, the others are left alone.

mod cpu;
mod gpu;
#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

use super::cols::Cols;
use super::{LiveRows, Runner, check_shape, runner};
use crate::device::kernels::DevicePtr;
use crate::device::{Device, Table, Tensor, Work};
use crate::error::{Error, Result};
use crate::tensor::Real;

const OP: &str = "rows";

/// Ascending row indices, on the host and on the device.
#[derive(Debug)]
pub struct RowIndex {
    rows: Vec<usize>,
    table: Table<u32>,
}

impl RowIndex {
    /// The index of these rows, without spare capacity.
    ///
    /// # Errors
    /// [`Error::Shape`] if they do not ascend; errors of the device.
    pub fn new(device: &Device, rows: &[usize]) -> Result<Self> {
        let mut index = Self::with_capacity(device, rows.len())?;
        index.write(device, rows)?;
        Ok(index)
    }

    /// Empty, with capacity for `capacity` rows.
    ///
    /// # Errors
    /// Those of the device.
    pub fn with_capacity(device: &Device, capacity: usize) -> Result<Self> {
        let mut table = Table::with_capacity(device, capacity)?;
        table.write(device, &[])?;
        Ok(Self { rows: Vec::new(), table })
    }

    /// Replaces the rows, after all work queued so far.
    ///
    /// # Errors
    /// [`Error::Shape`] if they do not ascend or exceed the capacity; errors of the device.
    pub fn write(&mut self, device: &Device, rows: &[usize]) -> Result<()> {
        let entries: Option<Vec<u32>> = rows.iter().map(|&row| u32::try_from(row).ok()).collect();
        let ascending = rows.windows(2).all(|w| w[0] < w[1]);
        let (Some(entries), true) = (entries, ascending) else {
            return Err(Error::shape(OP, "rows", "ascending numbers", rows.last()));
        };
        self.table.write(device, &entries)?;
        self.rows.clear();
        self.rows.extend_from_slice(rows);
        Ok(())
    }

    /// The rows, ascending.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// The number of live rows of the gathered tensor.
    pub fn live_rows(&self) -> LiveRows {
        LiveRows::at(self.table.count_ptr())
    }

    /// Capacity in rows.
    pub fn capacity(&self) -> usize {
        self.table.capacity()
    }

    /// Address of the first entry.
    fn ptr(&self) -> DevicePtr {
        self.table.ptr()
    }

    fn check(&self, limit: usize) -> Result<()> {
        match self.rows.last() {
            Some(&row) if row >= limit => Err(Error::shape(OP, "rows", format!("below {limit}"), row)),
            _ => Ok(()),
        }
    }
}

/// The rows `index` of `x`, as a new tensor `[capacity, cols]`.
///
/// # Errors
/// [`Error::Shape`] if the index leaves `x`; errors of the device.
pub fn gather<'a, T: Real>(
    device: &Device,
    x: impl Into<Cols<'a, T>>,
    index: &RowIndex,
) -> Result<Tensor<T>> {
    let x = x.into();
    index.check(x.rows())?;
    let mut y = device.empty(index.capacity(), x.cols())?;
    device.record("rows.gather", Work::new(0, 2 * (y.len() * size_of::<T>()) as u64));
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::gather(x, index.rows(), &mut y),
        Runner::Gpu => gpu::gather(device, x, index, &mut y)?,
        Runner::Skip => {}
    }
    Ok(y)
}

/// Adds `y`, `[capacity, cols]`, to the rows `index` of `x`, which has at least as many columns.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or the index leaves `x`; errors of the device.
pub fn scatter_add<T: Real>(
    device: &Device,
    y: &Tensor<T>,
    index: &RowIndex,
    x: &mut Tensor<T>,
) -> Result<()> {
    index.check(x.rows())?;
    check_shape(OP, "y", y, [index.capacity(), y.cols().min(x.cols())])?;
    let work = Work::new(y.len() as u64, 3 * (y.len() * size_of::<T>()) as u64);
    device.record("rows.scatter_add", work);
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::scatter_add(y, index.rows(), x),
        Runner::Gpu => gpu::scatter_add(device, y, index, x)?,
        Runner::Skip => {}
    }
    Ok(())
}
