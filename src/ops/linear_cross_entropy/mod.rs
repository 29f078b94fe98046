//! LM head and cross-entropy in one op, over the supervised rows only; the logits of all rows never exist at once.
//!
//! With `z[r, :] = x[r, :] W^T` and targets `(row, token, weight)`: `logprob = z[row, token] - logsumexp(z[row, :])`,
//! `loss = -sum(weight * logprob)`. Where a gradient is asked for, with `w[r]` the sum of the weights on row `r`:
//! `dz[r, j] = scale * (w[r] * softmax(z[r])[j] - sum of weights of targets (r, j))`, `dx = dz W`.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `x` | `[rows, hidden_size]` | the normed hidden states of rows that have targets |
//! | `W` | `[vocab_size, hidden_size]` | frozen |
//! | `targets` | | sorted by row; several may share a row |
//! | `dx` | `[rows, hidden_size]` | overwritten |
//!
//! Rows are taken in chunks whose logits fit [`LOGITS_BYTES`] or [`GPU_LOGITS_BYTES`]; the logits are computed once (4 h V operations per row with the
//! gradient, where recomputing them would take 6 h V). `scale` is one over the weight of the whole optimizer step.

mod cpu;
#[cfg(test)]
mod tests;

use super::{check_shape, computes};
use crate::batch::Target;
use crate::device::{Class, Device, Machine, Tensor, Work};
use crate::error::{Error, Result};
use crate::tensor::Real;

const OP: &str = "linear_cross_entropy";

/// At most so many bytes of logits exist at once on the CPU.
pub const LOGITS_BYTES: usize = 512 << 20;

/// The same on a GPU, where memory is scarce: 512 rows of Qwen's vocabulary in bf16.
pub const GPU_LOGITS_BYTES: usize = 160 << 20;

/// What the forward pass knows about one target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetScore {
    /// Natural log of the probability of the token.
    pub logprob: f64,
    /// True if no token has a larger logit.
    pub is_argmax: bool,
}

/// Gradient that [`forward`] computes along the way.
#[derive(Debug)]
pub struct Gradient<'a, T: Real> {
    /// `[rows, hidden_size]`, overwritten.
    pub dx: &'a mut Tensor<T>,
    /// Factor of the loss.
    pub scale: f64,
}

/// Log-probabilities of the targets, and `dx` where it is asked for.
///
/// On a dry device every score is zero.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module or a target is out of range or out of order.
pub fn forward<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    weight: &Tensor<T>,
    targets: &[Target],
    gradient: Option<Gradient<'_, T>>,
) -> Result<Vec<TargetScore>> {
    check_shape(OP, "weight", weight, [weight.rows(), x.cols()])?;
    if let Some(gradient) = &gradient {
        check_shape(OP, "dx", gradient.dx, x.shape())?;
    }
    let mut last = 0;
    for target in targets {
        if target.row < last || target.row >= x.rows() || target.token as usize >= weight.rows() {
            return Err(Error::shape(OP, "targets", format!("rows in order, below {}", x.rows()), target));
        }
        last = target.row;
    }
    record(device, x, weight, gradient.is_some());
    computes(device, OP)?;
    if device.machine() == Machine::Gpu {
        let rows = chunk_rows::<T>(device.machine(), weight.rows()).min(x.rows());
        let logits = device.class(Class::Logits).empty::<T>(rows, weight.rows())?;
        // Largest logit, sum and logit of the target, by row.
        drop((logits, device.empty::<T::Stat>(rows, 3)?));
        return Ok(vec![TargetScore { logprob: 0.0, is_argmax: false }; targets.len()]);
    }
    cpu::forward(device, x, weight, targets, gradient)
}

/// The weight is read once per chunk and product. Logits are written and read, and with a gradient replaced and read again.
fn record<T: Real>(device: &Device, x: &Tensor<T>, weight: &Tensor<T>, has_gradient: bool) {
    let products = if has_gradient { 2 } else { 1 };
    let chunks = x.rows().div_ceil(chunk_rows::<T>(device.machine(), weight.rows()));
    let logits = 2 * products * x.rows() * weight.rows();
    let numbers = chunks * products * weight.len() + logits + products * x.len();
    let flops = 2 * products as u64 * x.rows() as u64 * weight.len() as u64;
    let launches = (chunks * (2 * products)) as u64;
    device.record(OP, Work { launches, ..Work::new(flops, (numbers * size_of::<T>()) as u64) });
}

/// The logits `x W^T`, `[rows, vocab_size]`: for tests and for the few rows that generation looks at.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit each other.
pub fn logits<T: Real>(device: &Device, x: &Tensor<T>, weight: &Tensor<T>) -> Result<Tensor<T>> {
    check_shape(OP, "weight", weight, [weight.rows(), x.cols()])?;
    let mut z = device.empty(x.rows(), weight.rows())?;
    if computes(device, OP)? {
        cpu::logits(x, weight, &mut z);
    }
    Ok(z)
}

/// Rows whose logits exist at once.
fn chunk_rows<T: Real>(machine: Machine, vocab_size: usize) -> usize {
    let bytes = match machine {
        Machine::Cpu => LOGITS_BYTES,
        Machine::Gpu => GPU_LOGITS_BYTES,
    };
    (bytes / size_of::<T>() / vocab_size.max(1) / 64 * 64).clamp(16, 1024)
}
