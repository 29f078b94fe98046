//! AdamW update of the tensors of an adapter, with the clipping factor applied to the gradients.
//!
//! `g = clip * grad`, `p *= 1 - lr * weight_decay`, `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2)
//! g^2`, `p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)`; `t` counts from 1. A parameter,
//! its gradient, its moments and its shadow have one shape. Ops that compute in a narrower type than `p` read
//! `shadow`, which is `p` rounded after every update. On a GPU [`gpu::clip_and_update`] takes the place of
//! this module: it computes the norm, clips and updates all tensors without synchronizing with the host.
//! Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019; order of operations as in
//! PyTorch.

mod cpu;
pub mod gpu;
#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

use super::check_shape;
use crate::device::{Device, Machine, Tensor, Work};
use crate::error::{Error, Result};
use crate::tensor::Real;

const OP: &str = "adamw";

/// The scalars of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Clipping factor: the gradient is multiplied by it.
    pub clip: f64,
    /// Number of this update, from 1.
    pub step: u64,
}

/// The derived factors of the update formula.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Factors {
    step_size: f64,
    root: f64,
    decay: f64,
    beta1: f64,
    rest1: f64,
    beta2: f64,
    rest2: f64,
    epsilon: f64,
}

impl AdamW {
    fn factors(&self) -> Factors {
        let t = i32::try_from(self.step).unwrap_or(i32::MAX);
        Factors {
            step_size: self.learning_rate / (1.0 - self.beta1.powi(t)),
            root: (1.0 - self.beta2.powi(t)).sqrt(),
            decay: 1.0 - self.learning_rate * self.weight_decay,
            beta1: self.beta1,
            rest1: 1.0 - self.beta1,
            beta2: self.beta2,
            rest2: 1.0 - self.beta2,
            epsilon: self.epsilon,
        }
    }
}

/// One trained tensor with its gradient, moments and shadow.
#[derive(Debug)]
pub struct Trained<'a, T: Real> {
    /// The parameters, in the statistics type.
    pub param: &'a mut Tensor<T::Stat>,
    /// Their rounded copy, where ops compute in a narrower type.
    pub shadow: Option<&'a mut Tensor<T>>,
    /// Gradient.
    pub grad: &'a Tensor<T::Stat>,
    /// First moment.
    pub exp_avg: &'a mut Tensor<T::Stat>,
    /// Second moment.
    pub exp_avg_sq: &'a mut Tensor<T::Stat>,
    /// Whether weight decay applies to it.
    pub decays: bool,
}

impl<T: Real> Trained<'_, T> {
    fn check(&self) -> Result<()> {
        let shape = self.param.shape();
        check_shape(OP, "grad", self.grad, shape)?;
        check_shape(OP, "exp_avg", self.exp_avg, shape)?;
        check_shape(OP, "exp_avg_sq", self.exp_avg_sq, shape)?;
        self.shadow.as_ref().map_or(Ok(()), |shadow| check_shape(OP, "shadow", shadow, shape))
    }
}

/// Updates parameters and moments in place, and writes the shadows.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ; [`crate::error::Error::Device`] on a GPU, which takes
/// [`gpu::clip_and_update`].
pub fn update<T: Real>(device: &Device, adamw: &AdamW, trained: &mut [Trained<'_, T>]) -> Result<()> {
    let (mut numbers, mut rounded) = (0, 0);
    for one in trained.iter() {
        one.check()?;
        numbers += one.param.len();
        rounded += one.shadow.as_ref().map_or(0, |shadow| shadow.len());
    }
    let bytes = 7 * numbers * size_of::<T::Stat>() + rounded * size_of::<T>();
    device.record(OP, Work::new(14 * numbers as u64, bytes as u64));
    match device.machine() {
        _ if device.is_dry() => {}
        Machine::Cpu => trained.iter_mut().for_each(|one| cpu::update(adamw, one)),
        Machine::Gpu => {
            return Err(Error::Device {
                what: format!("{}: adamw updates all tensors in one call there", device.label()),
                fix: "call adamw::gpu::clip_and_update".into(),
            });
        }
    }
    Ok(())
}
