//! Norm of all gradients together: `sqrt(sum over tensors and elements of g^2)`, in f64 and in a fixed order.
//!
//! Clipping multiplies every gradient by `min(1, max_norm / (norm + 1e-6))`, as PyTorch's `clip_grad_norm_`;
//! the factor is applied by the update ([`super::adamw`]), which saves a pass over the gradients.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Device, Machine, Tensor, Work};
use crate::tensor::Real;

/// The norm; not finite if some gradient is not. Zero on a dry device. NaN on a device that runs kernels,
/// where the norm stays on the device ([`super::adamw::gpu::clip_and_update`]).
pub fn grad_norm<T: Real>(device: &Device, grads: &[&Tensor<T>]) -> f64 {
    let elements: usize = grads.iter().map(|g| g.len()).sum();
    device.record("grad_norm", Work::new(2 * elements as u64, (elements * size_of::<T>()) as u64));
    match device.machine() {
        _ if device.is_dry() => 0.0,
        Machine::Cpu => cpu::grad_norm(grads),
        Machine::Gpu => f64::NAN,
    }
}

/// Factor that brings a gradient of norm `norm` down to `max_norm`; 1 without a limit.
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    max_norm.map_or(1.0, |max_norm| (max_norm / (norm + 1e-6)).min(1.0))
}
