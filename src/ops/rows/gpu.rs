//! Gather and scatter-add of rows on a GPU: one block per row of the index.

use super::{OP, RowIndex};
use crate::device::kernels::Kernel;
use crate::device::kernels::params::{RowsGatherParams, RowsScatterAddParams};
use crate::device::{Device, Launch, Tensor};
use crate::error::Result;
use crate::ops::check_pieces;
use crate::ops::cols::Cols;
use crate::tensor::Real;

/// See [`super::gather`].
pub(super) fn gather<T: Real>(
    device: &Device,
    x: Cols<'_, T>,
    index: &RowIndex,
    y: &mut Tensor<T>,
) -> Result<()> {
    x.check_pieces(OP, "x")?;
    if y.is_empty() {
        return Ok(());
    }
    let params = RowsGatherParams {
        x: x.ptr(),
        index: index.ptr(),
        y: y.ptr(),
        live_rows: index.live_rows().ptr(),
        rows: y.rows() as i32,
        cols: y.cols() as i32,
        x_stride: x.row_stride() as i32,
        reserved: 0,
    };
    device.launch(&launch(Kernel::RowsGatherBf16, y.rows()), &params)
}

/// See [`super::scatter_add`].
pub(super) fn scatter_add<T: Real>(
    device: &Device,
    y: &Tensor<T>,
    index: &RowIndex,
    x: &mut Tensor<T>,
) -> Result<()> {
    check_pieces(OP, "x", x)?;
    check_pieces(OP, "y", y)?;
    if y.is_empty() {
        return Ok(());
    }
    let params = RowsScatterAddParams {
        y: y.ptr(),
        index: index.ptr(),
        x: x.ptr(),
        live_rows: index.live_rows().ptr(),
        rows: y.rows() as i32,
        cols: y.cols() as i32,
        x_stride: x.cols() as i32,
        reserved: 0,
    };
    device.launch(&launch(Kernel::RowsScatterAddBf16, y.rows()), &params)
}

fn launch(kernel: Kernel, rows: usize) -> Launch {
    Launch { kernel, grid: [rows as u32, 1, 1], dynamic_smem: 0 }
}
