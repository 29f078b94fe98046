//! RMSNorm and LayerNorm, with the residual addition in front of them.
//!
//! `s = x + residual` (or `x`). RMSNorm: `rstd[t] = 1 / sqrt(mean(s[t, :]^2) + eps)`, `y = s * rstd * weight`. LayerNorm, with
//! `c = s - mean(s[t, :])`: `rstd[t] = 1 / sqrt(mean(c[t, :]^2) + eps)`, `y = c * rstd * weight + bias`.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `x` | `[rows, hidden_size]` | in: output of the sublayer; out: `s`, the residual stream |
//! | `residual` | `[rows, hidden_size]` | optional |
//! | `weight` | `[1, hidden_size]` | frozen |
//! | `bias` | `[1, hidden_size]` | frozen, optional; none with RMSNorm |
//! | `y` | `[rows, hidden_size]` | overwritten |
//! | `rstd` | `[rows, 1]` | saved for the backward pass |
//!
//! Backward, with `x^ = s * rstd` and `g = dy * weight`: `ds = d_in + rstd * (g - x^ * mean(g * x^))`, where
//! `d_in` is the gradient of the residual stream; LayerNorm, with `x^ = c * rstd`: `ds = d_in + rstd * (g - mean(g) - x^ *
//! mean(g * x^))`. The mean of `s` is computed again wherever it is needed: the row is there. On request backward also
//! writes `y` again, since it reads all inputs of `apply`. On a GPU the statistics are those of the rounded `s`, as stored.
//! Sources: Zhang and Sennrich, "Root mean square layer normalization", 2019; Ba, Kiros and Hinton, "Layer normalization", 2016.

mod cpu;
mod gpu;
#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

use super::{LiveRows, Runner, check_shape, runner};
use crate::device::{Device, Tensor, Work};
use crate::error::{Error, Result};
use crate::ops::projection::FusedProjection;
use crate::tensor::Real;

pub use crate::kinds::NormKind;

const OP: &str = "norm";

/// What [`forward`] reads and writes.
#[derive(Debug)]
pub struct Forward<'a, T: Real> {
    /// Output of the sublayer; becomes the stream `s`.
    pub x: &'a mut Tensor<T>,
    /// Added to `x`.
    pub residual: Option<&'a Tensor<T>>,
    /// The parameters.
    pub norm: Norm<'a, T>,
    /// Overwritten.
    pub y: &'a mut Tensor<T>,
    /// Overwritten.
    pub rstd: &'a mut Tensor<T::Stat>,
    /// How many of the rows there are.
    pub live_rows: LiveRows,
    /// The projection of the layers that read `y`; `None` on a CPU.
    pub projection: Option<FusedProjection>,
}

#[cfg(test)]
impl<'a, T: Real> Forward<'a, T> {
    /// Of all rows, without a residual and a projection.
    fn alone(
        x: &'a mut Tensor<T>,
        norm: Norm<'a, T>,
        y: &'a mut Tensor<T>,
        rstd: &'a mut Tensor<T::Stat>,
    ) -> Self {
        Self { x, residual: None, norm, y, rstd, live_rows: LiveRows::ALL, projection: None }
    }
}

/// Adds the residual, normalises, and keeps `rstd`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes do not follow the table of the module; errors of the device.
pub fn forward<T: Real>(device: &Device, args: Forward<'_, T>) -> Result<()> {
    args.norm.check(args.x, args.rstd)?;
    args.norm.check_fused(args.projection)?;
    check_shape(OP, "y", args.y, args.x.shape())?;
    if let Some(residual) = args.residual {
        check_shape(OP, "residual", residual, args.x.shape())?;
    }
    record(device, "norm.forward", args.x, if args.residual.is_some() { 4 } else { 2 });
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::forward(args),
        Runner::Gpu => gpu::forward(device, args)?,
        Runner::Skip => {}
    }
    Ok(())
}

/// What [`apply`] reads and writes.
#[derive(Debug)]
pub struct Apply<'a, T: Real> {
    /// The residual stream that the forward pass left.
    pub s: &'a Tensor<T>,
    /// The parameters.
    pub norm: Norm<'a, T>,
    /// As the forward pass made it.
    pub rstd: &'a Tensor<T::Stat>,
    /// Overwritten.
    pub y: &'a mut Tensor<T>,
    /// How many of the rows there are.
    pub live_rows: LiveRows,
}

/// Computes `y` again from the saved stream and `rstd`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes do not follow the table of the module; errors of the device.
pub fn apply<T: Real>(device: &Device, args: Apply<'_, T>) -> Result<()> {
    args.norm.check(args.s, args.rstd)?;
    check_shape(OP, "y", args.y, args.s.shape())?;
    record(device, "norm.apply", args.s, 2);
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::apply(args),
        Runner::Gpu => gpu::apply(device, args)?,
        Runner::Skip => {}
    }
    Ok(())
}

/// What [`backward`] reads and writes, all `[rows, hidden_size]` but `rstd`, `[rows, 1]`.
#[derive(Debug)]
pub struct Backward<'a, T: Real> {
    /// Gradient of `y`.
    pub dy: &'a Tensor<T>,
    /// The residual stream that the forward pass left.
    pub s: &'a Tensor<T>,
    /// The parameters.
    pub norm: Norm<'a, T>,
    /// As the forward pass made it.
    pub rstd: &'a Tensor<T::Stat>,
    /// Gradient of the residual stream; `None` means 0.
    pub d_in: Option<&'a Tensor<T>>,
    /// Overwritten.
    pub ds: &'a mut Tensor<T>,
    /// Overwritten with the output of the forward pass; `None` if it is not needed.
    pub normed: Option<&'a mut Tensor<T>>,
    /// How many of the rows there are.
    pub live_rows: LiveRows,
    /// The projection of the layer that takes `ds` as its `dy`; `None` on a CPU.
    pub projection: Option<FusedProjection>,
}

/// Writes `ds`, the gradient through the norm plus `d_in`, and on request `normed`, the `y` of the forward
/// pass.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes do not follow the table of the module; errors of the device.
pub fn backward<T: Real>(device: &Device, args: Backward<'_, T>) -> Result<()> {
    let s = args.s;
    args.norm.check(s, args.rstd)?;
    args.norm.check_fused(args.projection)?;
    check_shape(OP, "dy", args.dy, s.shape())?;
    check_shape(OP, "ds", args.ds, s.shape())?;
    if let Some(d_in) = args.d_in {
        check_shape(OP, "d_in", d_in, s.shape())?;
    }
    if let Some(normed) = &args.normed {
        check_shape(OP, "normed", normed, s.shape())?;
    }
    let passes = 3 + usize::from(args.d_in.is_some()) + usize::from(args.normed.is_some());
    record(device, "norm.backward", s, passes);
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::backward(args),
        Runner::Gpu => gpu::backward(device, args)?,
        Runner::Skip => {}
    }
    Ok(())
}

/// The frozen parameters of a norm.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a, T: Real> {
    /// Which one.
    pub kind: NormKind,
    /// `[1, hidden_size]`.
    pub weight: &'a Tensor<T>,
    /// `[1, hidden_size]`; none with [`NormKind::Rms`].
    pub bias: Option<&'a Tensor<T>>,
    /// Added to the mean square.
    pub eps: T::Stat,
}

impl<T: Real> Norm<'_, T> {
    /// Whether the kernels that make `y` and `ds` can multiply these along the way.
    pub fn fuses(&self) -> bool {
        self.kind == NormKind::Rms
    }

    fn check_fused(&self, projection: Option<FusedProjection>) -> Result<()> {
        match projection {
            Some(_) if !self.fuses() => Err(Error::shape(OP, "projection", "none with LayerNorm", "one")),
            _ => Ok(()),
        }
    }

    fn check(&self, x: &Tensor<T>, rstd: &Tensor<T::Stat>) -> Result<()> {
        check_shape(OP, "weight", self.weight, [1, x.cols()])?;
        match (self.kind, self.bias) {
            (_, None) => {}
            (NormKind::Layer, Some(bias)) => check_shape(OP, "bias", bias, [1, x.cols()])?,
            (NormKind::Rms, Some(bias)) => return Err(Error::shape(OP, "bias", "none", bias.shape())),
        }
        check_shape(OP, "rstd", rstd, [x.rows(), 1])
    }
}

fn record<T: Real>(device: &Device, op: &'static str, x: &Tensor<T>, passes: usize) {
    device.record(op, Work::new(4 * x.len() as u64, (passes * x.len() * size_of::<T>()) as u64));
}
