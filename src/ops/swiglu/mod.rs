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

use super::{LiveRows, Runner, check_shape, runner};
use crate::device::{Device, Tensor, Work};
use crate::error::Result;
use crate::ops::projection::FusedProjection;
use crate::tensor::Real;

const OP: &str = "swiglu";

/// What [`forward`] reads and writes.
#[derive(Debug)]
pub struct Forward<'a, T: Real> {
    /// Input of `silu`.
    pub gate: &'a Tensor<T>,
    /// Factor of `silu(gate)`.
    pub up: &'a Tensor<T>,
    /// Overwritten.
    pub h: &'a mut Tensor<T>,
    /// How many of the rows there are.
    pub live_rows: LiveRows,
    /// The projection of the layer that reads `h`; `None` on a CPU.
    pub projection: Option<FusedProjection>,
}

/// Writes `h`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ; errors of the device.
pub fn forward<T: Real>(device: &Device, args: Forward<'_, T>) -> Result<()> {
    check_shape(OP, "up", args.up, args.gate.shape())?;
    check_shape(OP, "h", args.h, args.gate.shape())?;
    record(device, "swiglu.forward", args.gate, 3);
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::forward(args.gate, args.up, args.h),
        Runner::Gpu => gpu::forward(device, args)?,
        Runner::Skip => {}
    }
    Ok(())
}

/// What [`backward`] reads and writes.
#[derive(Debug)]
pub struct Backward<'a, T: Real> {
    /// Gradient of `h`; becomes `h`.
    pub dh: &'a mut Tensor<T>,
    /// Becomes `dgate`.
    pub gate: &'a mut Tensor<T>,
    /// Becomes `dup`.
    pub up: &'a mut Tensor<T>,
    /// How many of the rows there are.
    pub live_rows: LiveRows,
    /// The projection of the gate and up layers, which take the results as `dy`; `None` on a CPU.
    pub projection: Option<FusedProjection>,
}

/// Replaces `gate` by `dgate`, `up` by `dup`, and `dh` by `h`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes differ; errors of the device.
pub fn backward<T: Real>(device: &Device, args: Backward<'_, T>) -> Result<()> {
    check_shape(OP, "up", args.up, args.gate.shape())?;
    check_shape(OP, "dh", args.dh, args.gate.shape())?;
    record(device, "swiglu.backward", args.gate, 6);
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::backward(args.dh, args.gate, args.up),
        Runner::Gpu => gpu::backward(device, args)?,
        Runner::Skip => {}
    }
    Ok(())
}

fn record<T: Real>(device: &Device, op: &'static str, x: &Tensor<T>, passes: usize) {
    device.record(op, Work::new(6 * x.len() as u64, (passes * x.len() * size_of::<T>()) as u64));
}
