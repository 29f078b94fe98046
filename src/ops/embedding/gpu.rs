//! Embedding lookup on a GPU: a block copies a row.

use super::{Forward, Lookup, OP};
use crate::device::kernels::params::EmbeddingParams;
use crate::device::kernels::{DevicePtr, Kernel};
use crate::device::{Device, Launch};
use crate::error::Result;
use crate::ops::check_pieces;
use crate::tensor::Real;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(device: &Device, args: Forward<'_, T>) -> Result<()> {
    let Forward { table, ids, types, positions, y, live_rows } = args;
    check_pieces(OP, "table", table)?;
    if y.is_empty() {
        return Ok(());
    }
    let params = EmbeddingParams {
        table: table.ptr(),
        ids: ids.ptr(),
        types: address(types),
        type_ids: types.map_or(DevicePtr(0), |types| types.ids.ptr()),
        positions: address(positions),
        position_ids: positions.map_or(DevicePtr(0), |positions| positions.ids.ptr()),
        y: y.ptr(),
        live_rows: live_rows.ptr(),
        rows: y.rows() as i32,
        cols: y.cols() as i32,
    };
    let launch = Launch { kernel: Kernel::EmbeddingBf16, grid: [y.rows() as u32, 1, 1], dynamic_smem: 0 };
    device.launch(&launch, &params)
}

/// Where a table is; null for none.
fn address<T: Real>(lookup: Option<Lookup<'_, T>>) -> DevicePtr {
    lookup.map_or(DevicePtr(0), |lookup| lookup.table.ptr())
}
