//! Embedding lookup: `y[t, :] = table[ids[t], :]`, plus rows of a table of token types and of one of positions, where a model has
//! these. The tables are frozen, so there is no backward. Sums are in f32 and rounded once.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `table` | `[vocab_size, hidden_size]` | frozen |
//! | `ids` | `[total_tokens, 1]` | below `vocab_size` |
//! | `types.table`, `positions.table` | `[any, hidden_size]` | frozen |
//! | `types.ids`, `positions.ids` | `[total_tokens, 1]` | rows of their table |
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
    /// What is added for the type of a token; none in models without types.
    pub types: Option<Lookup<'a, T>>,
    /// What is added for the position of a token; none in models without learned positions.
    pub positions: Option<Lookup<'a, T>>,
    /// `[total_tokens, hidden_size]`, overwritten.
    pub y: &'a mut Tensor<T>,
    /// Number of live tokens.
    pub live_rows: LiveRows,
}

/// Rows of a further table.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a, T: Real> {
    /// `[any, hidden_size]`.
    pub table: &'a Tensor<T>,
    /// `[total_tokens, 1]`.
    pub ids: &'a Tensor<u32>,
}

/// Copies the rows that `ids` name, and adds those of the other tables.
///
/// ```
/// use tanren::ops::{LiveRows, embedding};
///
/// let device = tanren::device::Device::cpu(1)?;
/// let table = device.tensor(3, 2, &[0.0, 0.1, 1.0, 1.1, 2.0, 2.1f32])?;
/// let ids = device.tensor(2, 1, &[2u32, 0])?;
/// let mut y = device.empty(2, 2)?;
/// let live_rows = LiveRows::ALL;
/// let (types, positions) = (None, None);
/// embedding::forward(&device, embedding::Forward { table: &table, ids: &ids, types, positions, y: &mut y, live_rows })?;
/// assert_eq!(y.data(), [2.0, 2.1, 0.0, 0.1]);
/// # Ok::<(), tanren::error::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] on a wrong shape or, on a CPU, an id that is not in the table; errors of the device.
pub fn forward<T: Real>(device: &Device, args: Forward<'_, T>) -> Result<()> {
    let Forward { table, ids, types, positions, y, .. } = &args;
    let added = [*types, *positions].into_iter().flatten();
    for Lookup { table, ids } in [Lookup { table, ids }].into_iter().chain(added.clone()) {
        check_shape(OP, "ids", ids, [y.rows(), 1])?;
        check_shape(OP, "table", table, [table.rows(), y.cols()])?;
        if let Some(id) = ids.data().iter().find(|&&id| id as usize >= table.rows()) {
            return Err(Error::shape(OP, "ids", format!("below {}", table.rows()), id));
        }
    }
    let tables = 1 + added.count();
    device.record(OP, Work::new(0, (1 + tables) as u64 * (y.len() * size_of::<T>()) as u64));
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::forward(args),
        Runner::Gpu => gpu::forward(device, args)?,
        Runner::Skip => {}
    }
    Ok(())
}
