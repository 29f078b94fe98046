//! SwiGLU: `h = silu(gate) * up` with `silu(x) = x / (1 + exp(-x))`.
//!
//! All tensors are `[rows, intermediate_size]`. Backward with `sigma = 1 / (1 + exp(-gate))`:
//! `dgate = dh * up * sigma * (1 + gate * (1 - sigma))`, `dup = dh * silu(gate)`; both overwrite their inputs, which are not
//! needed any more. `dh` becomes `h` again, the same bits as forward: the gradients of the next product need it. Source: Shazeer, "GLU variants improve transformer", 2020.

mod cpu;
mod gpu;
#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

use super::{Runner, check_shape, runner};
use crate::device::{Device, Tensor, Work};
use crate::error::Result;
use crate::ops::lora_matmul::gpu::Project;
use crate::tensor::Real;

const OP: &str = "swiglu";

/// Writes `h`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ; errors of the device.
pub fn forward<T: Real>(device: &Device, gate: &Tensor<T>, up: &Tensor<T>, h: &mut Tensor<T>) -> Result<()> {
    forward_with(device, gate, up, h, None)
}

/// As [`forward`], and on a GPU the narrow products of the layer that reads `h`, in the same launch.
///
/// # Errors
/// As [`forward`]; on a CPU there is no [`Project`].
pub fn forward_with<T: Real>(
    device: &Device,
    gate: &Tensor<T>,
    up: &Tensor<T>,
    h: &mut Tensor<T>,
    project: Option<&Project>,
) -> Result<()> {
    check_shape(OP, "up", up, gate.shape())?;
    check_shape(OP, "h", h, gate.shape())?;
    record(device, "swiglu.forward", gate, 3);
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::forward(gate, up, h),
        Runner::Gpu => gpu::forward(device, gate, up, h, project)?,
        Runner::Nobody => {}
    }
    Ok(())
}

/// Replaces `gate` by `dgate`, `up` by `dup`, and `dh` by `h`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ; errors of the device.
pub fn backward<T: Real>(
    device: &Device,
    dh: &mut Tensor<T>,
    gate: &mut Tensor<T>,
    up: &mut Tensor<T>,
) -> Result<()> {
    backward_with(device, dh, gate, up, None)
}

/// As [`backward`], and on a GPU the narrow products of the two layers whose output gradients are made, in the same launch.
///
/// # Errors
/// As [`backward`]; on a CPU there is no [`Project`].
pub fn backward_with<T: Real>(
    device: &Device,
    dh: &mut Tensor<T>,
    gate: &mut Tensor<T>,
    up: &mut Tensor<T>,
    project: Option<&Project>,
) -> Result<()> {
    check_shape(OP, "up", up, gate.shape())?;
    check_shape(OP, "dh", dh, gate.shape())?;
    record(device, "swiglu.backward", gate, 6);
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::backward(dh, gate, up),
        Runner::Gpu => gpu::backward(device, dh, gate, up, project)?,
        Runner::Nobody => {}
    }
    Ok(())
}

fn record<T: Real>(device: &Device, op: &'static str, x: &Tensor<T>, passes: usize) {
    device.record(op, Work::new(6 * x.len() as u64, (passes * x.len() * size_of::<T>()) as u64));
}
