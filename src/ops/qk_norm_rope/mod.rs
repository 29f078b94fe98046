//! QK-norm and rotary position embedding of queries or keys, in one pass.
//!
//! Per row `t` and head: `n = x * rstd * weight` with `rstd = 1 / sqrt(mean(x^2) + eps)` over the head (left out without a
//! weight), then pairs `(i, i + d/2)` turn by the angle `position[t] * theta^(-2i/d)`:
//! `y[i] = n[i] cos - n[i + d/2] sin`, `y[i + d/2] = n[i + d/2] cos + n[i] sin`.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `x` | `[rows, num_heads * head_dim]` | as the projection made it; kept for the backward pass |
//! | `weight` | `[1, head_dim]` | optional, frozen, shared by all heads |
//! | `y` | `[rows, num_heads * head_dim]` | overwritten |
//!
//! Backward turns the gradient back and goes through the norm, whose statistics it computes again from `x`.
//! Sources: Su et al., "RoFormer", 2021 (half-split form of GPT-NeoX and transformers); QK-norm as in Qwen3.

mod cpu;
#[cfg(test)]
mod tests;

use super::{check_shape, computes};
use crate::device::{Device, Tensor, Work};
use crate::error::{Error, Result};
use crate::tensor::{DType, Real};

/// Cosines and sines of the rows' positions, `[rows, head_dim / 2]` each.
#[derive(Debug)]
pub struct RopeTable<T: Real> {
    cos: Tensor<T>,
    sin: Tensor<T>,
}

impl<T: Real> RopeTable<T> {
    /// The table for `positions` with base `theta`.
    ///
    /// The angles of f32 are rounded where transformers rounds them (inverse frequency and product in f32), since at position
    /// 1000 one rounding more or less is an angle of 6e-5. In f64 nothing is rounded.
    ///
    /// # Errors
    /// [`Error::Shape`] if `head_dim` is odd; else errors of the device.
    pub fn new(device: &Device, positions: &[usize], head_dim: usize, theta: f64) -> Result<Self> {
        if !head_dim.is_multiple_of(2) || head_dim == 0 {
            return Err(Error::shape("qk_norm_rope", "head_dim", "an even number", head_dim));
        }
        let half = head_dim / 2;
        let mut table =
            Self { cos: device.empty(positions.len(), half)?, sin: device.empty(positions.len(), half)? };
        if device.is_dry() {
            return Ok(table);
        }
        let inverse: Vec<f64> =
            (0..half).map(|i| 1.0 / theta.powf(2.0 * i as f64 / head_dim as f64)).collect();
        for (t, &position) in positions.iter().enumerate() {
            for (i, &inverse) in inverse.iter().enumerate() {
                let angle = match T::DTYPE {
                    DType::F64 => position as f64 * inverse,
                    _ => f64::from(position as f32 * inverse as f32),
                };
                table.cos.data_mut()[t * half + i] = T::from_f64(angle.cos());
                table.sin.data_mut()[t * half + i] = T::from_f64(angle.sin());
            }
        }
        Ok(table)
    }

    /// The same table for some of its rows.
    ///
    /// # Errors
    /// Those of the device.
    pub fn gather(&self, device: &Device, rows: &[usize]) -> Result<Self> {
        let pick = |from: &Tensor<T>| -> Result<Tensor<T>> {
            let mut to = device.empty(rows.len(), from.cols())?;
            if computes(device, "qk_norm_rope")? {
                for (i, &row) in rows.iter().enumerate() {
                    to.data_mut()[i * from.cols()..(i + 1) * from.cols()].copy_from_slice(from.row(row));
                }
            }
            Ok(to)
        };
        Ok(Self { cos: pick(&self.cos)?, sin: pick(&self.sin)? })
    }
}

/// The parameters of one call.
#[derive(Debug, Clone, Copy)]
pub struct QkNormRope<'a, T: Real> {
    /// Norm weight and eps; none for models without QK-norm.
    pub norm: Option<(&'a Tensor<T>, T::Stat)>,
    /// Angles of the rows.
    pub table: &'a RopeTable<T::Stat>,
    /// Elements of one head.
    pub head_dim: usize,
}

impl<T: Real> QkNormRope<'_, T> {
    fn check(&self, x: &Tensor<T>, y: &Tensor<T>) -> Result<()> {
        const OP: &str = "qk_norm_rope";
        if !x.cols().is_multiple_of(self.head_dim) {
            return Err(Error::shape(OP, "x", format!("heads of {}", self.head_dim), x.shape()));
        }
        check_shape(OP, "y", y, x.shape())?;
        check_shape(OP, "table", &self.table.cos, [x.rows(), self.head_dim / 2])?;
        match self.norm {
            Some((weight, _)) => check_shape(OP, "weight", weight, [1, self.head_dim]),
            None => Ok(()),
        }
    }
}

/// Writes `y`.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module.
pub fn forward<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    op: &QkNormRope<'_, T>,
    y: &mut Tensor<T>,
) -> Result<()> {
    op.check(x, y)?;
    record(device, "qk_norm_rope.forward", x, 2);
    if computes(device, "qk_norm_rope")? {
        cpu::forward(x, op, y);
    }
    Ok(())
}

/// Replaces `dy` by `dx`; `x` is the input of the forward pass.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module.
pub fn backward<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    op: &QkNormRope<'_, T>,
    dy: &mut Tensor<T>,
) -> Result<()> {
    op.check(x, dy)?;
    record(device, "qk_norm_rope.backward", x, 3);
    if computes(device, "qk_norm_rope")? {
        cpu::backward(x, op, dy);
    }
    Ok(())
}

fn record<T: Real>(device: &Device, op: &'static str, x: &Tensor<T>, passes: usize) {
    device.record(op, Work::new(10 * x.len() as u64, (passes * x.len() * size_of::<T>()) as u64));
}
