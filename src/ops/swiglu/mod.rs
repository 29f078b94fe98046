//! SwiGLU: `h = silu(gate) * up` with `silu(x) = x / (1 + exp(-x))`.
//!
//! All tensors are `[rows, intermediate_size]`. Backward with `sigma = 1 / (1 + exp(-gate))`:
//! `dgate = dh * up * sigma * (1 + gate * (1 - sigma))`, `dup = dh * silu(gate)`; both overwrite their inputs, which are not
//! needed any more. Source: Shazeer, "GLU variants improve transformer", 2020.

mod cpu;
#[cfg(test)]
mod tests;

use super::{check_shape, computes};
use crate::device::{Device, Tensor, Work};
use crate::error::Result;
use crate::tensor::Real;

/// Writes `h`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ.
pub fn forward<T: Real>(device: &Device, gate: &Tensor<T>, up: &Tensor<T>, h: &mut Tensor<T>) -> Result<()> {
    check_shape("swiglu", "up", up, gate.shape())?;
    check_shape("swiglu", "h", h, gate.shape())?;
    record(device, "swiglu.forward", gate, 3);
    if computes(device, "swiglu")? {
        cpu::forward(gate, up, h);
    }
    Ok(())
}

/// Replaces `gate` by `dgate` and `up` by `dup`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ.
pub fn backward<T: Real>(
    device: &Device,
    dh: &Tensor<T>,
    gate: &mut Tensor<T>,
    up: &mut Tensor<T>,
) -> Result<()> {
    check_shape("swiglu", "up", up, gate.shape())?;
    check_shape("swiglu", "dh", dh, gate.shape())?;
    record(device, "swiglu.backward", gate, 5);
    if computes(device, "swiglu")? {
        cpu::backward(dh, gate, up);
    }
    Ok(())
}

fn record<T: Real>(device: &Device, op: &'static str, x: &Tensor<T>, passes: usize) {
    device.record(op, Work::new(6 * x.len() as u64, (passes * x.len() * size_of::<T>()) as u64));
}
