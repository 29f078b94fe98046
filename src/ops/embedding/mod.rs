//! Embedding lookup: `y[t, :] = table[ids[t], :]`. The table is frozen, so there is no backward.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `table` | `[vocab_size, hidden_size]` | frozen |
//! | `ids` | `[total_tokens, 1]` | below `vocab_size` |
//! | `y` | `[total_tokens, hidden_size]` | overwritten |
//!
//! The CPU checks the ids. A kernel cannot report an error, so on a GPU [`crate::batch::Batch::validate`]
//! must have checked them before.

mod cpu;
mod gpu;
#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

use super::{LiveRows, Runner, check_shape, runner};
use crate::device::{Device, Tensor, Work};
use crate::error::{Error, Result};
use crate::tensor::Real;

const OP: &str = "embedding";

/// What [`forward`] reads and writes.
#[derive(Debug)]
pub struct Forward<'a, T: Real> {
    /// `[vocab_size, hidden_size]`.
    pub table: &'a Tensor<T>,
    /// `[total_tokens, 1]`.
    pub ids: &'a Tensor<u32>,
    /// `[total_tokens, hidden_size]`, overwritten.
    pub y: &'a mut Tensor<T>,
    /// Number of live tokens.
    pub live_rows: LiveRows,
}

/// Copies the rows that `ids` name.
///
/// ```
/// use tanren::ops::{LiveRows, embedding};
///
/// let device = tanren::device::Device::cpu(1)?;
/// let table = device.tensor(3, 2, &[0.0, 0.1, 1.0, 1.1, 2.0, 2.1f32])?;
/// let ids = device.tensor(2, 1, &[2u32, 0])?;
/// let mut y = device.empty(2, 2)?;
/// let live_rows = LiveRows::ALL;
/// embedding::forward(&device, embedding::Forward { table: &table, ids: &ids, y: &mut y, live_rows })?;
/// assert_eq!(y.data(), [2.0, 2.1, 0.0, 0.1]);
/// # Ok::<(), tanren::error::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] on a wrong shape or, on a CPU, an id that is not in the table; errors of the device.
pub fn forward<T: Real>(device: &Device, args: Forward<'_, T>) -> Result<()> {
    let Forward { table, ids, y, .. } = &args;
    check_shape(OP, "ids", ids, [y.rows(), 1])?;
    check_shape(OP, "y", y, [ids.rows(), table.cols()])?;
    if let Some(id) = ids.data().iter().find(|&&id| id as usize >= table.rows()) {
        return Err(Error::shape(OP, "ids", format!("below {}", table.rows()), id));
    }
    device.record(OP, Work::new(0, 2 * (y.len() * size_of::<T>()) as u64));
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::forward(args.table, args.ids.data(), args.y),
        Runner::Gpu => gpu::forward(device, args)?,
        Runner::Skip => {}
    }
    Ok(())
}
