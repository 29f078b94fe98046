//! Heads for labels on a GPU, see `kernels/label_head.cu`.

use super::targets::Targets;
use super::{Backward, Layer, Loss, OP, PreparedLoss};
use crate::device::kernels::params::{
    LabelBackwardParams, LabelForwardParams, LabelLossParams, LabelPoolParams,
};
use crate::device::kernels::{DevicePtr, Kernel};
use crate::device::{Device, Launch, Tensor};
use crate::error::Result;
use crate::ops::{LiveRows, check_pieces};
use crate::tensor::Real;

fn launch(kernel: Kernel, grid: [usize; 2]) -> Launch {
    Launch { kernel, grid: [grid[0] as u32, grid[1] as u32, 1], dynamic_smem: 0 }
}

/// See [`super::pool`].
pub(super) fn pool<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    targets: &Targets,
    y: &mut Tensor<T>,
) -> Result<()> {
    pooled(device, Kernel::LabelHeadPoolBf16, x, targets, y)
}

/// See [`super::pool_backward`].
pub(super) fn pool_backward<T: Real>(
    device: &Device,
    dy: &Tensor<T>,
    targets: &Targets,
    dx: &mut Tensor<T>,
) -> Result<()> {
    pooled(device, Kernel::LabelHeadPoolBwdBf16, dy, targets, dx)
}

fn pooled<T: Real>(
    device: &Device,
    kernel: Kernel,
    from: &Tensor<T>,
    targets: &Targets,
    to: &mut Tensor<T>,
) -> Result<()> {
    check_pieces(OP, "x", from)?;
    let tables = targets.tables()?;
    if targets.capacity() == 0 {
        return Ok(());
    }
    let params = LabelPoolParams {
        from: from.ptr(),
        ranges: tables.ranges.ptr(),
        to: to.ptr(),
        live_rows: tables.ranges.count_ptr(),
        rows: targets.capacity() as i32,
        cols: from.cols() as i32,
    };
    device.launch(&launch(kernel, [targets.capacity(), 1]), &params)
}

/// See [`super::forward`] and [`super::logits`].
pub(super) fn forward<T: Real>(
    device: &Device,
    layer: &Layer<'_, T>,
    x: &Tensor<T>,
    (y, logits): (DevicePtr, DevicePtr),
    live_rows: LiveRows,
) -> Result<()> {
    check_pieces(OP, "x", x)?;
    let [outputs, inputs] = layer.weight.shape();
    if x.is_empty() {
        return Ok(());
    }
    let params = LabelForwardParams {
        x: x.ptr(),
        weight: layer.weight.ptr(),
        bias: layer.bias.map_or(DevicePtr(0), Tensor::ptr),
        y,
        logits,
        live_rows: live_rows.ptr(),
        rows: x.rows() as i32,
        in_features: inputs as i32,
        out_features: outputs as i32,
        has_tanh: i32::from(layer.tanh),
    };
    device.launch(&launch(Kernel::LabelHeadFwdBf16, [outputs.div_ceil(4), x.rows().div_ceil(4)]), &params)
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(
    device: &Device,
    layer: &Layer<'_, T>,
    args: &Backward<'_, T>,
    live_rows: LiveRows,
) -> Result<()> {
    check_pieces(OP, "x", args.x)?;
    let [outputs, inputs] = layer.weight.shape();
    if args.x.is_empty() {
        return Ok(());
    }
    let params = LabelBackwardParams {
        x: args.x.ptr(),
        y: args.y.map_or(DevicePtr(0), Tensor::ptr),
        dy: args.dy.ptr(),
        weight: layer.weight.ptr(),
        dx: args.dx.as_ref().map_or(DevicePtr(0), |dx| dx.ptr()),
        d_weight: args.d_weight.ptr(),
        d_bias: args.d_bias.as_ref().map_or(DevicePtr(0), |d_bias| d_bias.ptr()),
        live_rows: live_rows.ptr(),
        rows: args.x.rows() as i32,
        in_features: inputs as i32,
        out_features: outputs as i32,
        has_tanh: i32::from(layer.tanh),
    };
    device.launch(&launch(Kernel::LabelHeadGradBf16, [outputs, 1]), &params)?;
    match args.dx {
        Some(_) => device.launch(&launch(Kernel::LabelHeadDxBf16, [args.x.rows(), 1]), &params),
        None => Ok(()),
    }
}

/// See [`super::loss_gradient`].
pub(super) fn loss<T: Real>(
    device: &Device,
    loss: &PreparedLoss,
    logits: &Tensor<T::Stat>,
    targets: &Targets,
    d_logits: &mut Tensor<T>,
) -> Result<()> {
    let tables = targets.tables()?;
    if logits.is_empty() {
        return Ok(());
    }
    let (kind, smoothing) = match &loss.loss {
        Loss::CrossEntropy { label_smoothing, .. } => (0, *label_smoothing as f32),
        Loss::Bce { .. } => (1, 0.0),
        Loss::Mse => (2, 0.0),
        Loss::SigmoidMse => (3, 0.0),
    };
    let params = LabelLossParams {
        logits: logits.ptr(),
        entries: tables.entries.ptr(),
        numbers: tables.numbers.ptr(),
        weights: loss.weights.as_ref().map_or(DevicePtr(0), Tensor::ptr),
        d_logits: d_logits.ptr(),
        live_rows: tables.entries.count_ptr(),
        rows: logits.rows() as i32,
        out_features: logits.cols() as i32,
        kind,
        smoothing,
    };
    device.launch(&launch(Kernel::LabelHeadLoss, [logits.rows().div_ceil(8), 1]), &params)
}
