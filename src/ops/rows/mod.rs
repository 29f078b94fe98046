//! Picking some rows of a tensor, and adding them back: the last layer runs on the supervised rows only.
//!
//! `gather`: `y[i, :] = x[rows[i], :]`. `scatter_add`: `x[rows[i], :] += y[i, :]`. `rows` is ascending without repeats.

mod cpu;
#[cfg(test)]
mod tests;

use super::{check_shape, computes};
use crate::device::{Device, Tensor, Work};
use crate::error::{Error, Result};
use crate::tensor::Real;

/// The rows `rows` of `x`, as a new tensor `[rows.len(), cols]`.
///
/// # Errors
/// [`Error::Shape`] if `rows` is not ascending or leaves `x`.
pub fn gather<T: Real>(device: &Device, x: &Tensor<T>, rows: &[usize]) -> Result<Tensor<T>> {
    check_rows(rows, x.rows())?;
    let mut y = device.empty(rows.len(), x.cols())?;
    device.record("rows.gather", Work::new(0, 2 * (y.len() * size_of::<T>()) as u64));
    if computes(device, "rows")? {
        cpu::gather(x, rows, &mut y);
    }
    Ok(y)
}

/// Adds `y`, `[rows.len(), cols]`, to the rows `rows` of `x`.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit, or `rows` is not ascending or leaves `x`.
pub fn scatter_add<T: Real>(device: &Device, y: &Tensor<T>, rows: &[usize], x: &mut Tensor<T>) -> Result<()> {
    check_rows(rows, x.rows())?;
    check_shape("rows", "y", y, [rows.len(), x.cols()])?;
    let work = Work::new(y.len() as u64, 3 * (y.len() * size_of::<T>()) as u64);
    device.record("rows.scatter_add", work);
    if computes(device, "rows")? {
        cpu::scatter_add(y, rows, x);
    }
    Ok(())
}

fn check_rows(rows: &[usize], limit: usize) -> Result<()> {
    let ascending = rows.windows(2).all(|w| w[0] < w[1]);
    if ascending && rows.last().is_none_or(|&row| row < limit) {
        Ok(())
    } else {
        Err(Error::shape("rows", "rows", format!("ascending, below {limit}"), rows.last()))
    }
}
