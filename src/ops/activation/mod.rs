//! Activations of an MLP and of a pooler: `h = act(gate) * up`, or `h = act(x)`.
//!
//! | function | `act(x)` |
//! |---|---|
//! | [`Activation::Silu`] | `x / (1 + exp(-x))`; with a gate this is SwiGLU |
//! | [`Activation::Gelu`] | `x (1 + erf(x / sqrt(2))) / 2`; with a gate this is GeGLU |
//! | [`Activation::GeluTanh`] | `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`, the `gelu_new` of GPT-2 |
//! | [`Activation::Tanh`] | `tanh(x)` |
//!
//! `h`, `gate`, `up` and `x` are `[rows, n]`; one layer that makes gate and up gives `[rows, 2 n]`, the gate first. Backward with
//! `a = act(gate)`: `dgate = dh * up * act'(gate)`, `dup = dh * a`; both overwrite their inputs, which are not needed any more. `dh`
//! becomes `h` again, the same bits as forward: the gradients of the next product need it. Sources: Shazeer, "GLU variants improve
//! transformer", 2020; Hendrycks and Gimpel, "Gaussian error linear units", 2016.

mod cpu;
mod gpu;
#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

pub use crate::kinds::Activation;

use super::{LiveRows, Runner, check_shape, runner};
use crate::device::{Device, Tensor, Work};
use crate::error::{Error, Result};
use crate::ops::projection::FusedProjection;
use crate::tensor::Real;

const OP: &str = "activation";

/// What goes in.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a, T: Real> {
    /// Two tensors `[rows, n]`: the input of `act`, and the factor of its output.
    Gated {
        /// Input of `act`.
        gate: &'a Tensor<T>,
        /// Factor of `act(gate)`.
        up: &'a Tensor<T>,
    },
    /// Both side by side, `[rows, 2 n]`.
    Fused(&'a Tensor<T>),
    /// The input of `act` alone.
    Plain(&'a Tensor<T>),
}

/// What goes in, to become its gradient.
#[derive(Debug)]
pub enum InputMut<'a, T: Real> {
    /// As [`Input::Gated`].
    Gated {
        /// Becomes `dgate`.
        gate: &'a mut Tensor<T>,
        /// Becomes `dup`.
        up: &'a mut Tensor<T>,
    },
    /// As [`Input::Fused`].
    Fused(&'a mut Tensor<T>),
    /// As [`Input::Plain`].
    Plain(&'a mut Tensor<T>),
}

impl<T: Real> InputMut<'_, T> {
    fn as_input(&self) -> Input<'_, T> {
        match self {
            Self::Gated { gate, up } => Input::Gated { gate, up },
            Self::Fused(gate_up) => Input::Fused(gate_up),
            Self::Plain(x) => Input::Plain(x),
        }
    }
}

impl<T: Real> Input<'_, T> {
    /// Fails unless it has the shape that goes with `h`.
    fn check(&self, h: &Tensor<T>) -> Result<()> {
        match self {
            Self::Gated { gate, up } => {
                check_shape(OP, "gate", gate, h.shape())?;
                check_shape(OP, "up", up, h.shape())
            }
            Self::Fused(gate_up) => check_shape(OP, "gate_up", gate_up, [h.rows(), 2 * h.cols()]),
            Self::Plain(x) => check_shape(OP, "x", x, h.shape()),
        }
    }

    /// Tensors like `h` that it is.
    fn width(&self) -> usize {
        match self {
            Self::Gated { .. } | Self::Fused(_) => 2,
            Self::Plain(_) => 1,
        }
    }
}

/// Whether kernels that make `h`, or the gradients, can multiply them along the way.
pub fn fuses(act: Activation, is_gated_by_a_layer: bool) -> bool {
    act == Activation::Silu && is_gated_by_a_layer
}

/// What [`forward`] reads and writes.
#[derive(Debug)]
pub struct Forward<'a, T: Real> {
    /// The function.
    pub act: Activation,
    /// What goes in.
    pub input: Input<'a, T>,
    /// Overwritten.
    pub h: &'a mut Tensor<T>,
    /// How many of the rows there are.
    pub live_rows: LiveRows,
    /// The projection of the layer that reads `h`; `None` on a CPU, and where [`fuses`] says no.
    pub projection: Option<FusedProjection>,
}

/// Writes `h`.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ; errors of the device.
pub fn forward<T: Real>(device: &Device, args: Forward<'_, T>) -> Result<()> {
    args.input.check(args.h)?;
    check_fused(args.act, &args.input, args.projection)?;
    record(device, "activation.forward", args.h, 1 + args.input.width());
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::forward(args.act, args.input, args.h),
        Runner::Gpu => gpu::forward(device, args)?,
        Runner::Skip => {}
    }
    Ok(())
}

/// What [`backward`] reads and writes.
#[derive(Debug)]
pub struct Backward<'a, T: Real> {
    /// The function.
    pub act: Activation,
    /// Gradient of `h`; becomes `h`.
    pub dh: &'a mut Tensor<T>,
    /// What went in; becomes its gradient.
    pub input: InputMut<'a, T>,
    /// How many of the rows there are.
    pub live_rows: LiveRows,
    /// The projection of the layers that take the results as `dy`; `None` on a CPU, and where [`fuses`] says no.
    pub projection: Option<FusedProjection>,
}

/// Replaces the input by its gradient, and `dh` by `h`.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ; errors of the device.
pub fn backward<T: Real>(device: &Device, args: Backward<'_, T>) -> Result<()> {
    args.input.as_input().check(args.dh)?;
    check_fused(args.act, &args.input.as_input(), args.projection)?;
    record(device, "activation.backward", args.dh, 2 + 2 * args.input.as_input().width());
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::backward(args.act, args.dh, args.input),
        Runner::Gpu => gpu::backward(device, args)?,
        Runner::Skip => {}
    }
    Ok(())
}

fn check_fused<T: Real>(
    act: Activation,
    input: &Input<'_, T>,
    projection: Option<FusedProjection>,
) -> Result<()> {
    match projection {
        Some(_) if !fuses(act, matches!(input, Input::Gated { .. })) => {
            Err(Error::shape(OP, "projection", "none", "one"))
        }
        _ => Ok(()),
    }
}

fn record<T: Real>(device: &Device, op: &'static str, x: &Tensor<T>, passes: usize) {
    device.record(op, Work::new(6 * x.len() as u64, (passes * x.len() * size_of::<T>()) as u64));
}
