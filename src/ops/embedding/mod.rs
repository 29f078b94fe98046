//! Embedding lookup: `y[t, :] = table[input_ids[t], :]`. The table is frozen, so there is no backward.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `table` | `[vocab_size, hidden_size]` | frozen |
//! | `input_ids` | `[total_tokens]` | below `vocab_size` |
//! | `y` | `[total_tokens, hidden_size]` | overwritten |

mod cpu;
#[cfg(test)]
mod tests;

use super::{check_shape, computes};
use crate::device::{Device, Tensor, Work};
use crate::error::{Error, Result};
use crate::tensor::Real;

/// Copies the rows that `input_ids` name.
///
/// ```
/// let device = tanren::device::Device::cpu(1)?;
/// let table = device.tensor(3, 2, &[0.0, 0.1, 1.0, 1.1, 2.0, 2.1f32])?;
/// let mut y = device.empty(2, 2)?;
/// tanren::ops::embedding::forward(&device, &table, &[2, 0], &mut y)?;
/// assert_eq!(y.data(), [2.0, 2.1, 0.0, 0.1]);
/// # Ok::<(), tanren::error::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] on a wrong shape or an id that is not in the table.
pub fn forward<T: Real>(
    device: &Device,
    table: &Tensor<T>,
    input_ids: &[u32],
    y: &mut Tensor<T>,
) -> Result<()> {
    check_shape("embedding", "y", y, [input_ids.len(), table.cols()])?;
    if let Some(id) = input_ids.iter().find(|&&id| id as usize >= table.rows()) {
        return Err(Error::shape("embedding", "input_ids", format!("below {}", table.rows()), id));
    }
    device.record("embedding", Work::new(0, 2 * (y.len() * size_of::<T>()) as u64));
    if computes(device, "embedding")? {
        cpu::forward(table, input_ids, y);
    }
    Ok(())
}
