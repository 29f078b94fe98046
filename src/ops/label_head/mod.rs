//! The trained part of a head for labels or numbers: pooling, one or two linear layers, and the loss, for one row per sequence.
//!
//! | step | formula | shapes |
//! |---|---|---|
//! | [`pool`] | `y[i] = mean(x[rows of sequence i])` | `x` `[rows, hidden_size]`, `y` `[sequences, hidden_size]` |
//! | [`forward`] | `y = tanh(x W^T + b)` | `W` `[out_features, in_features]`, `b` `[1, out_features]` |
//! | [`logits`] | `z = x W^T + b`, in the statistics type | `[sequences, num_labels]` |
//! | [`loss_gradient`] | the derivative of the loss by `z`, see [`Loss`] | `[sequences, num_labels]` |
//!
//! Backward: `dz = dy act'(z)`, `dx = dz W`, `dW += dz^T x`, `db += sum(dz)`; every sum has a fixed order. The losses themselves are
//! computed on the host, in f64, from the logits. The rows are few, and so is the work.

mod cpu;
mod gpu;
#[cfg(test)]
mod gpu_tests;
mod loss;
mod targets;
#[cfg(test)]
mod tests;

pub use loss::{LabelScore, Loss, PreparedLoss, loss_gradient};
pub use targets::{LabelScores, Targets};

use super::{LiveRows, Runner, check_shape, runner};
use crate::device::kernels::DevicePtr;
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
    fn check<Y: Real>(&self, x: &Tensor<T>, y: &Tensor<Y>) -> Result<()> {
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

/// The mean over the rows of every sequence. `y` has a row for every sequence that `targets` have room for.
///
/// # Errors
/// [`Error::Shape`] if a sequence leaves `x`; errors of the device.
pub fn pool<T: Real>(device: &Device, x: &Tensor<T>, targets: &Targets, y: &mut Tensor<T>) -> Result<()> {
    check_ranges(targets, x, y)?;
    let work = Work::new(x.len() as u64, ((x.len() + y.len()) * size_of::<T>()) as u64);
    device.record("label_head.pool", work);
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::pool(x, targets.list(), y),
        Runner::Gpu => gpu::pool(device, x, targets, y)?,
        Runner::Skip => {}
    }
    Ok(())
}

/// The gradient of the input of [`pool`]: `dx`, `[rows, hidden_size]`, is overwritten. On a CPU rows of no sequence get 0; on a GPU
/// they are left alone, since nothing reads them.
///
/// # Errors
/// As [`pool`].
pub fn pool_backward<T: Real>(
    device: &Device,
    dy: &Tensor<T>,
    targets: &Targets,
    dx: &mut Tensor<T>,
) -> Result<()> {
    check_ranges(targets, dx, dy)?;
    let bytes = ((dx.len() + dy.len()) * size_of::<T>()) as u64;
    device.record("label_head.pool_backward", Work::new(dx.len() as u64, bytes));
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::pool_backward(dy, targets.list(), dx),
        Runner::Gpu => gpu::pool_backward(device, dy, targets, dx)?,
        Runner::Skip => {}
    }
    Ok(())
}

fn check_ranges<T: Real>(targets: &Targets, x: &Tensor<T>, y: &Tensor<T>) -> Result<()> {
    check_shape(OP, "y", y, [targets.capacity(), x.cols()])?;
    match targets.end() > x.rows() {
        true => Err(Error::shape(OP, "targets", format!("rows up to {}", x.rows()), targets.end())),
        false => Ok(()),
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
    live_rows: LiveRows,
) -> Result<()> {
    layer.check(x, y)?;
    device.record("label_head.forward", layer.work(x.rows(), 1));
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::forward(layer, x, y),
        Runner::Gpu => gpu::forward(device, layer, x, (y.ptr(), DevicePtr(0)), live_rows)?,
        Runner::Skip => {}
    }
    Ok(())
}

/// Writes the outputs of the last layer without rounding them.
///
/// # Errors
/// As [`forward`].
pub fn logits<T: Real>(
    device: &Device,
    layer: &Layer<'_, T>,
    x: &Tensor<T>,
    z: &mut Tensor<T::Stat>,
    live_rows: LiveRows,
) -> Result<()> {
    layer.check(x, z)?;
    device.record("label_head.forward", layer.work(x.rows(), 1));
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::logits(layer, x, z),
        Runner::Gpu => gpu::forward(device, layer, x, (DevicePtr(0), z.ptr()), live_rows)?,
        Runner::Skip => {}
    }
    Ok(())
}

/// What [`backward`] reads and writes.
#[derive(Debug)]
pub struct Backward<'a, T: Real> {
    /// Input of the forward pass.
    pub x: &'a Tensor<T>,
    /// Output of the forward pass, where tanh follows.
    pub y: Option<&'a Tensor<T>>,
    /// Gradient of the output; on a CPU it becomes that of what goes into tanh.
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
pub fn backward<T: Real>(
    device: &Device,
    layer: &Layer<'_, T>,
    args: Backward<'_, T>,
    live_rows: LiveRows,
) -> Result<()> {
    layer.check(args.x, args.dy)?;
    match (layer.tanh, args.y) {
        (true, None) => return Err(Error::shape(OP, "y", args.dy.shape(), "none")),
        (_, Some(y)) => check_shape(OP, "y", y, args.dy.shape())?,
        (false, None) => {}
    }
    check_shape(OP, "d_weight", args.d_weight, layer.weight.shape())?;
    if let Some(dx) = &args.dx {
        check_shape(OP, "dx", dx, args.x.shape())?;
    }
    if let Some(d_bias) = &args.d_bias {
        check_shape(OP, "d_bias", d_bias, [1, layer.weight.rows()])?;
    }
    device.record("label_head.backward", layer.work(args.x.rows(), 1 + usize::from(args.dx.is_some())));
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::backward(layer, args),
        Runner::Gpu => gpu::backward(device, layer, &args, live_rows)?,
        Runner::Skip => {}
    }
    Ok(())
}
