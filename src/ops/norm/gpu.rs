//! Norms on a GPU: a row in the registers of one to eight warps.

use super::{Apply, Backward, Forward, NormKind, OP};
use crate::device::kernels::params::{
    LayerNormApplyParams, LayerNormBwdParams, LayerNormFwdParams, RmsNormApplyParams, RmsNormBwdLoraParams,
    RmsNormBwdParams, RmsNormFwdLoraParams, RmsNormFwdParams,
};
use crate::device::kernels::{DevicePtr, Kernel};
use crate::device::{Device, Launch, Tensor};
use crate::error::{Error, Result};
use crate::ops::check_pieces;
use crate::ops::projection::BLOCK_ROWS;
use crate::tensor::Real;

/// Columns per warp.
const GROUP: usize = 1024;
/// Warps per block.
const WARPS: usize = 8;
/// Maximum columns: two groups per warp.
const MAX_COLS: usize = 2 * WARPS * GROUP;

/// A piece of each of the four rows of 256 threads.
const SLOT_BYTES: u32 = 4 * 256 * 16;
/// Slots of a group of columns: 256 columns of 32 rows each.
const SLOTS_PER_GROUP: usize = 4;
/// Maximum slots: every GPU from sm_80 on has shared memory for these beside the sums.
const MAX_SLOTS: usize = 6;
/// Bytes of the sums of the projections: 64 columns of 32 rows of 4 warps.
const SUMS_BYTES: u32 = 4 * 32 * 64 * 4;

/// How `rows` rows of `cols` columns are cut into blocks: rows of a block, and whether warps hold two groups of columns.
pub(super) fn plan(rows: usize, cols: usize) -> (u32, bool) {
    let warps_per_row = cols.div_ceil(GROUP).clamp(1, WARPS);
    (rows.div_ceil(WARPS / warps_per_row) as u32, cols > WARPS * GROUP)
}

/// See [`super::forward`].
pub(super) fn forward<T: Real>(device: &Device, args: Forward<'_, T>) -> Result<()> {
    let Forward { x, residual, norm, y, rstd, live_rows, projection } = args;
    if norm.kind == NormKind::Layer {
        let kernels = [Kernel::LayerNormFwdBf16, Kernel::LayerNormFwdBf16Wide];
        let Some(launch) = launch(x, kernels)? else { return Ok(()) };
        let params = LayerNormFwdParams {
            x: x.ptr(),
            residual: address(residual),
            weight: norm.weight.ptr(),
            bias: address(norm.bias),
            y: y.ptr(),
            rstd: rstd.ptr(),
            live_rows: live_rows.ptr(),
            rows: x.rows() as i32,
            cols: x.cols() as i32,
            eps: norm.eps.to_f64() as f32,
            reserved: 0,
        };
        return device.launch(&launch, &params);
    }
    let kernels = [Kernel::RmsNormFwdBf16, Kernel::RmsNormFwdBf16Wide];
    let Some(launch) = launch(x, kernels)? else { return Ok(()) };
    let params = RmsNormFwdParams {
        x: x.ptr(),
        residual: address(residual),
        weight: norm.weight.ptr(),
        y: y.ptr(),
        rstd: rstd.ptr(),
        live_rows: live_rows.ptr(),
        rows: x.rows() as i32,
        cols: x.cols() as i32,
        eps: norm.eps.to_f64() as f32,
        reserved: 0,
    };
    let Some(projection) = projection else { return device.launch(&launch, &params) };
    let masked = projection.is_masked();
    let kernel = if masked { Kernel::RmsNormFwdBf16LoraDropout } else { Kernel::RmsNormFwdBf16Lora };
    let (launch, slots) = fused(kernel, x.rows(), x.cols(), 1);
    let project = projection.of_one(y)?;
    device.launch(&launch, &RmsNormFwdLoraParams { norm: params, project, slots, reserved: 0 })
}

/// See [`super::apply`].
pub(super) fn apply<T: Real>(device: &Device, args: Apply<'_, T>) -> Result<()> {
    let Apply { s, norm, rstd, y, live_rows } = args;
    if norm.kind == NormKind::Layer {
        let kernels = [Kernel::LayerNormApplyBf16, Kernel::LayerNormApplyBf16Wide];
        let Some(launch) = launch(s, kernels)? else { return Ok(()) };
        let params = LayerNormApplyParams {
            s: s.ptr(),
            weight: norm.weight.ptr(),
            bias: address(norm.bias),
            rstd: rstd.ptr(),
            y: y.ptr(),
            live_rows: live_rows.ptr(),
            rows: s.rows() as i32,
            cols: s.cols() as i32,
        };
        return device.launch(&launch, &params);
    }
    let kernels = [Kernel::RmsNormApplyBf16, Kernel::RmsNormApplyBf16Wide];
    let Some(launch) = launch(s, kernels)? else { return Ok(()) };
    let params = RmsNormApplyParams {
        s: s.ptr(),
        weight: norm.weight.ptr(),
        rstd: rstd.ptr(),
        y: y.ptr(),
        live_rows: live_rows.ptr(),
        rows: s.rows() as i32,
        cols: s.cols() as i32,
    };
    device.launch(&launch, &params)
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(device: &Device, args: Backward<'_, T>) -> Result<()> {
    let Backward { dy, s, norm, rstd, d_in, ds, normed, live_rows, projection } = args;
    if norm.kind == NormKind::Layer {
        let kernels = [Kernel::LayerNormBwdBf16, Kernel::LayerNormBwdBf16Wide];
        let Some(launch) = launch(s, kernels)? else { return Ok(()) };
        let params = LayerNormBwdParams {
            dy: dy.ptr(),
            s: s.ptr(),
            weight: norm.weight.ptr(),
            bias: address(norm.bias),
            rstd: rstd.ptr(),
            d_in: address(d_in),
            ds: ds.ptr(),
            normed: address(normed.as_deref()),
            live_rows: live_rows.ptr(),
            rows: s.rows() as i32,
            cols: s.cols() as i32,
        };
        return device.launch(&launch, &params);
    }
    let kernels = [Kernel::RmsNormBwdBf16, Kernel::RmsNormBwdBf16Wide];
    let Some(launch) = launch(s, kernels)? else { return Ok(()) };
    let params = RmsNormBwdParams {
        dy: dy.ptr(),
        s: s.ptr(),
        weight: norm.weight.ptr(),
        rstd: rstd.ptr(),
        d_in: address(d_in),
        ds: ds.ptr(),
        normed: address(normed.as_deref()),
        live_rows: live_rows.ptr(),
        rows: s.rows() as i32,
        cols: s.cols() as i32,
    };
    let Some(projection) = projection else { return device.launch(&launch, &params) };
    let (launch, slots) = fused(Kernel::RmsNormBwdBf16Lora, s.rows(), s.cols(), 2);
    let project = projection.of_one(ds)?;
    device.launch(&launch, &RmsNormBwdLoraParams { norm: params, project, slots, reserved: 0 })
}

/// The launch of a kernel with a fused projection, and how many slots of shared memory keep columns of its
/// `tensors` inputs.
pub(super) fn fused(kernel: Kernel, rows: usize, cols: usize, tensors: usize) -> (Launch, i32) {
    let slots = (tensors * cols.div_ceil(GROUP) * SLOTS_PER_GROUP).min(MAX_SLOTS);
    let dynamic_smem = (slots as u32 * SLOT_BYTES).max(SUMS_BYTES);
    let grid = [rows.div_ceil(BLOCK_ROWS) as u32, 1, 1];
    (Launch { kernel, grid, dynamic_smem }, slots as i32)
}

/// The launch over the rows of `x` with the narrow or the wide one of `kernels`; none without rows.
fn launch<T: Real>(x: &Tensor<T>, kernels: [Kernel; 2]) -> Result<Option<Launch>> {
    check_pieces(OP, "x", x)?;
    if x.cols() > MAX_COLS {
        return Err(Error::shape(OP, "x", format!("at most {MAX_COLS} columns"), x.shape()));
    }
    let (blocks, wide) = plan(x.rows(), x.cols());
    let kernel = kernels[usize::from(wide)];
    Ok((!x.is_empty()).then_some(Launch { kernel, grid: [blocks, 1, 1], dynamic_smem: 0 }))
}

fn address<T: Real>(tensor: Option<&Tensor<T>>) -> DevicePtr {
    tensor.map_or(DevicePtr(0), Tensor::ptr)
}
