//! The trained part of a head for labels or numbers: pooling, one or two linear layers, and the loss, for one row per sequence.
//!
//! | step | formula | shapes |
//! |---|---|---|
//! | [`pool`] | `y[i] = mean(x[rows of sequence i])` | `x` `[rows, hidden_size]`, `y` `[sequences, hidden_size]` |
//! | [`forward`] | `y = act(x W^T + b)`, with `act` nothing or tanh | `W` `[out_features, in_features]`, `b` `[1, out_features]` |
//! | [`loss`] | see [`Loss`] | logits `[sequences, num_labels]` |
//!
//! Backward: `dz = dy act'(z)`, `dx = dz W`, `dW += dz^T x`, `db += sum(dz)`; every sum has a fixed order. The rows are few, and so is
//! the work: this op has an implementation for the CPU only.

mod cpu;
mod loss;
#[cfg(test)]
mod tests;

pub use loss::{LabelScore, Loss, loss};

use std::ops::Range;

use super::{Runner, check_shape, runner};
use crate::device::{Device, Tensor, Work};
use crate::error::{Error, Result};
use crate::tensor::Real;

const OP: &str = "label_head";

/// A trained linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a, T: Real> {
    /// `[out_features, in_features]`.
    pub weight: &'a Tensor<T>,
    /// `[1, out_features]`.
    pub bias: Option<&'a Tensor<T>>,
    /// Whether tanh follows.
    pub tanh: bool,
}

impl<T: Real> Layer<'_, T> {
    fn check(&self, x: &Tensor<T>, y: &Tensor<T>) -> Result<()> {
        let [outputs, inputs] = self.weight.shape();
        check_shape(OP, "x", x, [x.rows(), inputs])?;
        check_shape(OP, "y", y, [x.rows(), outputs])?;
        self.bias.map_or(Ok(()), |bias| check_shape(OP, "bias", bias, [1, outputs]))
    }

    fn work(&self, rows: usize, products: usize) -> Work {
        let [outputs, inputs] = self.weight.shape();
        let numbers = products * (self.weight.len() + rows * (inputs + outputs));
        Work::new((2 * products * rows * self.weight.len()) as u64, (numbers * size_of::<T>()) as u64)
    }
}

/// Whether the device computes this op.
fn runs<T: Real>(device: &Device) -> Result<bool> {
    match runner::<T>(device, OP)? {
        Runner::Cpu => Ok(true),
        Runner::Skip => Ok(false),
        Runner::Gpu => Err(Error::Device {
            what: format!("{}: heads for labels have no kernels in this build", device.label()),
            fix: "use --device cpu for classify and regress".into(),
        }),
    }
}

/// The mean over the rows of every sequence; `ranges` ascend and are not empty.
///
/// # Errors
/// [`Error::Shape`] if a range leaves `x`; errors of the device.
pub fn pool<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    ranges: &[Range<usize>],
    y: &mut Tensor<T>,
) -> Result<()> {
    check_ranges(ranges, x, y)?;
    device
        .record("label_head.pool", Work::new(x.len() as u64, ((x.len() + y.len()) * size_of::<T>()) as u64));
    if runs::<T>(device)? {
        cpu::pool(x, ranges, y);
    }
    Ok(())
}

/// The gradient of the input of [`pool`]: `dx`, `[rows, hidden_size]`, is overwritten; rows of no sequence get 0.
///
/// # Errors
/// As [`pool`].
pub fn pool_backward<T: Real>(
    device: &Device,
    dy: &Tensor<T>,
    ranges: &[Range<usize>],
    dx: &mut Tensor<T>,
) -> Result<()> {
    check_ranges(ranges, dx, dy)?;
    let bytes = ((dx.len() + dy.len()) * size_of::<T>()) as u64;
    device.record("label_head.pool_backward", Work::new(dx.len() as u64, bytes));
    if runs::<T>(device)? {
        cpu::pool_backward(dy, ranges, dx);
    }
    Ok(())
}

fn check_ranges<T: Real>(ranges: &[Range<usize>], x: &Tensor<T>, y: &Tensor<T>) -> Result<()> {
    check_shape(OP, "y", y, [ranges.len(), x.cols()])?;
    match ranges.iter().find(|range| range.is_empty() || range.end > x.rows()) {
        Some(range) => Err(Error::shape(OP, "ranges", format!("rows below {}", x.rows()), range)),
        None => Ok(()),
    }
}

/// Writes `y`, `[rows, out_features]`.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module; errors of the device.
pub fn forward<T: Real>(
    device: &Device,
    layer: &Layer<'_, T>,
    x: &Tensor<T>,
    y: &mut Tensor<T>,
) -> Result<()> {
    layer.check(x, y)?;
    device.record("label_head.forward", layer.work(x.rows(), 1));
    if runs::<T>(device)? {
        cpu::forward(layer, x, y);
    }
    Ok(())
}

/// What [`backward`] reads and writes.
#[derive(Debug)]
pub struct Backward<'a, T: Real> {
    /// Input of the forward pass.
    pub x: &'a Tensor<T>,
    /// Output of the forward pass.
    pub y: &'a Tensor<T>,
    /// Gradient of `y`; becomes that of what goes into tanh.
    pub dy: &'a mut Tensor<T>,
    /// Overwritten with the gradient of `x`, where that is wanted.
    pub dx: Option<&'a mut Tensor<T>>,
    /// Added to.
    pub d_weight: &'a mut Tensor<T::Stat>,
    /// Added to.
    pub d_bias: Option<&'a mut Tensor<T::Stat>>,
}

/// The way back through a layer.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module; errors of the device.
pub fn backward<T: Real>(device: &Device, layer: &Layer<'_, T>, args: Backward<'_, T>) -> Result<()> {
    layer.check(args.x, args.y)?;
    check_shape(OP, "dy", args.dy, args.y.shape())?;
    check_shape(OP, "d_weight", args.d_weight, layer.weight.shape())?;
    if let Some(dx) = &args.dx {
        check_shape(OP, "dx", dx, args.x.shape())?;
    }
    if let Some(d_bias) = &args.d_bias {
        check_shape(OP, "d_bias", d_bias, [1, layer.weight.rows()])?;
    }
    device.record("label_head.backward", layer.work(args.x.rows(), 1 + usize::from(args.dx.is_some())));
    if runs::<T>(device)? {
        cpu::backward(layer, args);
    }
    Ok(())
}
