//! AdamW update of the tensors of an adapter, with the clipping factor applied to the gradients.
//!
//! `g = clip * grad`, `p *= 1 - lr * weight_decay`, `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
//! `p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)`; `t` counts from 1. What belongs together has one shape.
//! Where ops compute in a narrower type than `p` has, they read `shadow`, which is `p` rounded after every update.
//! Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019; order of operations as in PyTorch.

mod cpu;
#[cfg(test)]
mod tests;

use super::{check_shape, computes};
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

/// One trained tensor with what belongs to it.
#[derive(Debug)]
pub struct Trained<'a, T: Real> {
    /// The numbers that are trained, in the statistics type.
    pub param: &'a mut Tensor<T::Stat>,
    /// Their rounded copy, where ops compute in another type.
    pub shadow: Option<&'a mut Tensor<T>>,
    /// Gradient.
    pub grad: &'a Tensor<T::Stat>,
    /// First moment.
    pub exp_avg: &'a mut Tensor<T::Stat>,
    /// Second moment.
    pub exp_avg_sq: &'a mut Tensor<T::Stat>,
}

/// Updates parameters and moments in place, and writes the shadows.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ.
pub fn update<T: Real>(device: &Device, adamw: &AdamW, trained: &mut [Trained<'_, T>]) -> Result<()> {
    let (mut numbers, mut rounded) = (0, 0);
    for one in trained.iter() {
        let shape = one.param.shape();
        check_shape("adamw", "grad", one.grad, shape)?;
        check_shape("adamw", "exp_avg", one.exp_avg, shape)?;
        check_shape("adamw", "exp_avg_sq", one.exp_avg_sq, shape)?;
        if let Some(shadow) = &one.shadow {
            check_shape("adamw", "shadow", shadow, shape)?;
            rounded += shadow.len();
        }
        numbers += one.param.len();
    }
    let bytes = 7 * numbers * size_of::<T::Stat>() + rounded * size_of::<T>();
    device.record("adamw", Work::new(14 * numbers as u64, bytes as u64));
    if computes(device, "adamw")? {
        for one in trained {
            cpu::update(adamw, one);
        }
    }
    Ok(())
}
