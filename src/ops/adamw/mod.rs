//! AdamW update of one tensor, with the clipping factor applied to the gradient.
//!
//! `g = clip * grad`, `p *= 1 - lr * weight_decay`, `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
//! `p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)`; `t` counts from 1. All tensors have one shape.
//! Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019; order of operations as in PyTorch.

mod cpu;
#[cfg(test)]
mod tests;

use super::check_shape;
use crate::device::{Device, Tensor, Work};
use crate::error::Result;
use crate::tensor::Real;

/// The numbers of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Factor of the gradient.
    pub clip: f64,
    /// Number of this update, from 1.
    pub step: u64,
}

/// Updates `param`, `exp_avg` and `exp_avg_sq` in place.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ.
pub fn update<T: Real>(
    device: &Device,
    adamw: &AdamW,
    param: &mut Tensor<T>,
    grad: &Tensor<T>,
    exp_avg: &mut Tensor<T>,
    exp_avg_sq: &mut Tensor<T>,
) -> Result<()> {
    check_shape("adamw", "grad", grad, param.shape())?;
    check_shape("adamw", "exp_avg", exp_avg, param.shape())?;
    check_shape("adamw", "exp_avg_sq", exp_avg_sq, param.shape())?;
    let work = Work { flops: 14 * param.len() as u64, bytes: (7 * param.len() * size_of::<T>()) as u64 };
    device.record("adamw", work);
    if !device.is_dry() {
        cpu::update(adamw, param.data_mut(), grad.data(), exp_avg.data_mut(), exp_avg_sq.data_mut());
    }
    Ok(())
}
