//! LM head and cross-entropy in one op, over the supervised rows only; the logits are never held for all rows
//! at once.
//!
//! With `z[r, :] = x[r, :] W^T` and targets `(row, token, weight)`: `logprob = z[row, token] -
//! logsumexp(z[row, :])`, `loss = -sum(weight * logprob)`. For the gradient, with `w[r]` the sum of the
//! weights on row `r`: `dz[r, j] = scale * (w[r] * softmax(z[r])[j] - sum of weights of targets (r, j))`, `dx
//! = dz W`.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `x` | `[rows, hidden_size]` | the normed hidden states of rows that have targets; rows beyond those of the targets are not read |
//! | `W` | `[vocab_size, hidden_size]` | frozen |
//! | `targets` | [`Targets`] | sorted by row; several may share a row; with the scale of the loss |
//! | `dx` | `[rows, hidden_size]` | the rows of the targets are overwritten, others left alone |
//!
//! Rows are taken in chunks whose logits fit [`LOGITS_BYTES`] or [`GPU_LOGITS_BYTES`]; the logits are
//! computed once (4 h V operations per row with the gradient, where recomputing them would take 6 h V).
//! `scale` is one over the total weight of the optimizer step. On a GPU `hidden_size` is a multiple of 8,
//! log-probabilities are computed from the f32 sums and never from rounded logits, and the scores stay in GPU
//! memory until they are read.

mod cpu;
mod gpu;
pub mod plan;
mod targets;

#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

pub use targets::{Scores, Targets};

use super::{Runner, check_shape, runner};
use crate::device::{Device, Machine, Tensor, Work};
use crate::error::{Error, Result};
use crate::tensor::Real;
use targets::Place;

const OP: &str = "linear_cross_entropy";

/// Maximum bytes of logits held at once on the CPU.
pub const LOGITS_BYTES: usize = 512 << 20;

/// Maximum bytes of logits held at once on a GPU, where memory is scarce: 512 rows of Qwen's vocabulary in
/// bf16.
pub const GPU_LOGITS_BYTES: usize = 160 << 20;

/// The score of one target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetScore {
    /// Natural log of the probability of the token.
    pub logprob: f64,
    /// True if no token has a larger logit.
    pub is_argmax: bool,
}

/// What [`forward`] reads and writes.
#[derive(Debug)]
pub struct Forward<'a, T: Real> {
    /// Final hidden states, `[rows, hidden_size]`.
    pub x: &'a Tensor<T>,
    /// The head, `[vocab_size, hidden_size]`.
    pub weight: &'a Tensor<T>,
    /// Targets of the rows.
    pub targets: &'a Targets,
    /// Overwritten; needs capacity for the targets.
    pub scores: &'a mut Scores,
    /// `[rows, hidden_size]`, overwritten; `None` if no gradient is needed.
    pub dx: Option<&'a mut Tensor<T>>,
}

/// Computes the log-probabilities of the targets, and `dx` unless it is `None`.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module, a token is out of range or the
/// scores lack the capacity; errors of the device.
pub fn forward<T: Real>(device: &Device, args: Forward<'_, T>) -> Result<()> {
    let Forward { x, weight, targets, scores, dx } = args;
    check_shape(OP, "weight", weight, [weight.rows(), x.cols()])?;
    if let Some(dx) = &dx {
        check_shape(OP, "dx", dx, x.shape())?;
    }
    if targets.max_rows() > x.rows() {
        return Err(Error::shape(OP, "targets", format!("at most {} rows", x.rows()), targets.max_rows()));
    }
    if let Some(target) = targets.list().iter().find(|t| t.token as usize >= weight.rows()) {
        return Err(Error::shape(OP, "targets", format!("tokens below {}", weight.rows()), target));
    }
    record(device, x, weight, dx.is_some());
    match (runner::<T>(device, OP)?, &mut scores.place) {
        (Runner::Gpu, Place::Device(tensor, count)) => {
            check_shape(OP, "scores", tensor, [tensor.rows().max(targets.max_targets()), 2])?;
            *count = targets.list().len();
            gpu::forward(device, gpu::Operands { x, weight, targets, scores: tensor, dx })
        }
        (Runner::Cpu, Place::Host(found)) => {
            *found = cpu::forward(device, x, weight, targets, dx)?;
            Ok(())
        }
        // A dry run allocates the temporary tensors of the CPU's code and computes nothing.
        (Runner::Skip, place) => {
            let zeros = cpu::forward(device, x, weight, targets, dx)?;
            if let Place::Host(found) = place {
                *found = zeros;
            }
            Ok(())
        }
        _ => Err(Error::shape(OP, "scores", format!("made for {}", device.label()), "another device")),
    }
}

/// The weight is read once per chunk and product. Logits are written and read, and with a gradient replaced and read again.
fn record<T: Real>(device: &Device, x: &Tensor<T>, weight: &Tensor<T>, has_gradient: bool) {
    let products = if has_gradient { 2 } else { 1 };
    let chunks = x.rows().div_ceil(chunk_rows::<T>(device.machine(), weight.rows()));
    let logits = 2 * products * x.rows() * weight.rows();
    let numbers = chunks * products * weight.len() + logits + products * x.len();
    let flops = 2 * products as u64 * x.rows() as u64 * weight.len() as u64;
    device.record(OP, Work::new(flops, (numbers * size_of::<T>()) as u64));
}

/// The logits `x W^T`, `[rows, vocab_size]`: for tests and for the few rows that generation needs. On a GPU a
/// vocabulary size that is not a multiple of 8 is copied through the host.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit each other; those of the device.
pub fn logits<T: Real>(device: &Device, x: &Tensor<T>, weight: &Tensor<T>) -> Result<Tensor<T>> {
    check_shape(OP, "weight", weight, [weight.rows(), x.cols()])?;
    let mut z = device.empty(x.rows(), weight.rows())?;
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::logits(x, weight, &mut z),
        Runner::Gpu => gpu::logits(device, x, weight, &mut z)?,
        Runner::Skip => {}
    }
    Ok(z)
}

/// Rows whose logits are held at once.
fn chunk_rows<T: Real>(machine: Machine, vocab_size: usize) -> usize {
    let bytes = match machine {
        Machine::Cpu => LOGITS_BYTES,
        Machine::Gpu => GPU_LOGITS_BYTES,
    };
    (bytes / size_of::<T>() / vocab_size.max(1) / 64 * 64).clamp(16, 1024)
}
