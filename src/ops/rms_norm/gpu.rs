//! RMSNorm on a GPU: a row in the registers of one to eight warps.

use super::{Backward, Norm, OP};
use crate::device::kernels::params::{RmsNormApplyParams, RmsNormBwdParams, RmsNormFwdParams};
use crate::device::kernels::{DevicePtr, Kernel};
use crate::device::{Device, Launch, Tensor};
use crate::error::{Error, Result};
use crate::ops::check_pieces;
use crate::tensor::Real;

/// Columns that a warp holds.
const GROUP: usize = 1024;
/// Warps of a block.
const WARPS: usize = 8;
/// The most columns: two groups a warp.
const MAX_COLS: usize = 2 * WARPS * GROUP;

/// How `rows` rows of `cols` columns are cut into blocks: rows of a block, and whether warps hold two groups of columns.
pub(super) fn plan(rows: usize, cols: usize) -> (u32, bool) {
    let warps_per_row = cols.div_ceil(GROUP).clamp(1, WARPS);
    (rows.div_ceil(WARPS / warps_per_row) as u32, cols > WARPS * GROUP)
}

/// See [`super::forward`].
pub(super) fn forward<T: Real>(
    device: &Device,
    x: &mut Tensor<T>,
    residual: Option<&Tensor<T>>,
    norm: &Norm<'_, T>,
    y: &mut Tensor<T>,
    rstd: &mut Tensor<T::Stat>,
) -> Result<()> {
    let kernels = [Kernel::RmsNormFwdBf16, Kernel::RmsNormFwdBf16Wide];
    let Some(launch) = launch(x, kernels)? else { return Ok(()) };
    let params = RmsNormFwdParams {
        x: x.ptr(),
        residual: address(residual),
        weight: norm.weight.ptr(),
        y: y.ptr(),
        rstd: rstd.ptr(),
        live_rows: device.live_rows(),
        rows: x.rows() as i32,
        cols: x.cols() as i32,
        eps: norm.eps.to_f64() as f32,
        reserved: 0,
    };
    device.launch(&launch, &params)
}

/// See [`super::apply`].
pub(super) fn apply<T: Real>(
    device: &Device,
    s: &Tensor<T>,
    norm: &Norm<'_, T>,
    rstd: &Tensor<T::Stat>,
    y: &mut Tensor<T>,
) -> Result<()> {
    let kernels = [Kernel::RmsNormApplyBf16, Kernel::RmsNormApplyBf16Wide];
    let Some(launch) = launch(s, kernels)? else { return Ok(()) };
    let params = RmsNormApplyParams {
        s: s.ptr(),
        weight: norm.weight.ptr(),
        rstd: rstd.ptr(),
        y: y.ptr(),
        live_rows: device.live_rows(),
        rows: s.rows() as i32,
        cols: s.cols() as i32,
    };
    device.launch(&launch, &params)
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(device: &Device, args: Backward<'_, T>) -> Result<()> {
    let Backward { dy, s, norm, rstd, d_in, ds, normed } = args;
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
        live_rows: device.live_rows(),
        rows: s.rows() as i32,
        cols: s.cols() as i32,
    };
    device.launch(&launch, &params)
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
