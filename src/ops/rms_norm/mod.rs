//! RMSNorm, with the residual addition in front of it.
//!
//! `s = x + residual` (or `x`), `rstd[t] = 1 / sqrt(mean(s[t, :]^2) + eps)`, `y = s * rstd * weight`.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `x` | `[rows, hidden_size]` | in: output of the sublayer; out: `s`, the residual stream |
//! | `residual` | `[rows, hidden_size]` | optional |
//! | `weight` | `[1, hidden_size]` | frozen |
//! | `y` | `[rows, hidden_size]` | overwritten |
//! | `rstd` | `[rows, 1]` | saved for the backward pass |
//!
//! Backward, with `x^ = s * rstd` and `g = dy * weight`: `ds += rstd * (g - x^ * mean(g * x^))`. It accumulates, because the
//! gradient of the residual stream arrives in the same buffer. Source: Zhang and Sennrich, "Root mean square layer
//! normalization", 2019.

mod cpu;
#[cfg(test)]
mod tests;

use super::{check_shape, computes};
use crate::device::{Device, Tensor, Work};
use crate::error::Result;
use crate::tensor::Real;

/// Adds the residual, normalises, and keeps `rstd`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes do not follow the table of the module.
pub fn forward<T: Real>(
    device: &Device,
    x: &mut Tensor<T>,
    residual: Option<&Tensor<T>>,
    norm: &Norm<'_, T>,
    y: &mut Tensor<T>,
    rstd: &mut Tensor<T::Stat>,
) -> Result<()> {
    norm.check(x, rstd)?;
    check_shape("rms_norm", "y", y, x.shape())?;
    if let Some(residual) = residual {
        check_shape("rms_norm", "residual", residual, x.shape())?;
    }
    record(device, "rms_norm.forward", x, if residual.is_some() { 4 } else { 2 });
    if computes(device, "rms_norm")? {
        cpu::forward(x, residual, norm, y, rstd);
    }
    Ok(())
}

/// Computes `y` again from the saved stream and `rstd`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes do not follow the table of the module.
pub fn apply<T: Real>(
    device: &Device,
    s: &Tensor<T>,
    norm: &Norm<'_, T>,
    rstd: &Tensor<T::Stat>,
    y: &mut Tensor<T>,
) -> Result<()> {
    norm.check(s, rstd)?;
    check_shape("rms_norm", "y", y, s.shape())?;
    record(device, "rms_norm.apply", s, 2);
    if computes(device, "rms_norm")? {
        cpu::apply(s, norm, rstd, y);
    }
    Ok(())
}

/// Adds the gradient that flows through the norm to `ds`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes do not follow the table of the module.
pub fn backward<T: Real>(
    device: &Device,
    dy: &Tensor<T>,
    s: &Tensor<T>,
    norm: &Norm<'_, T>,
    rstd: &Tensor<T::Stat>,
    ds: &mut Tensor<T>,
) -> Result<()> {
    norm.check(s, rstd)?;
    check_shape("rms_norm", "dy", dy, s.shape())?;
    check_shape("rms_norm", "ds", ds, s.shape())?;
    record(device, "rms_norm.backward", s, 4);
    if computes(device, "rms_norm")? {
        cpu::backward(dy, s, norm, rstd, ds);
    }
    Ok(())
}

/// The frozen parameters of a norm.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a, T: Real> {
    /// `[1, hidden_size]`.
    pub weight: &'a Tensor<T>,
    /// Added to the mean square.
    pub eps: T::Stat,
}

impl<T: Real> Norm<'_, T> {
    fn check(&self, x: &Tensor<T>, rstd: &Tensor<T::Stat>) -> Result<()> {
        check_shape("rms_norm", "weight", self.weight, [1, x.cols()])?;
        check_shape("rms_norm", "rstd", rstd, [x.rows(), 1])
    }
}

fn record<T: Real>(device: &Device, op: &'static str, x: &Tensor<T>, passes: usize) {
    device.record(op, Work::new(4 * x.len() as u64, (passes * x.len() * size_of::<T>()) as u64));
}
