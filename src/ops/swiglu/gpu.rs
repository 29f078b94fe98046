//! SwiGLU on a GPU: each thread handles two 16-byte pieces of every tensor.

use super::{Backward, Forward, OP};
use crate::device::kernels::Kernel;
use crate::device::kernels::params::{
    SwigluBwdLoraParams, SwigluBwdParams, SwigluFwdLoraParams, SwigluFwdParams,
};
use crate::device::{Device, Launch};
use crate::error::Result;
use crate::ops::check_pieces;
use crate::ops::projection::BLOCK_ROWS;
use crate::tensor::Real;

/// Elements per block: 256 threads with two pieces of eight.
const BLOCK: usize = 256 * 2 * 8;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(device: &Device, args: Forward<'_, T>) -> Result<()> {
    let Forward { gate, up, h, live_rows, projection } = args;
    check_pieces(OP, "gate", gate)?;
    if gate.is_empty() {
        return Ok(());
    }
    let params = SwigluFwdParams {
        gate: gate.ptr(),
        up: up.ptr(),
        h: h.ptr(),
        live_rows: live_rows.ptr(),
        rows: gate.rows() as i32,
        cols: gate.cols() as i32,
    };
    let Some(projection) = projection else {
        return device.launch(&launch(Kernel::SwigluFwdBf16, gate.len()), &params);
    };
    let masked = projection.is_masked();
    let kernel = if masked { Kernel::SwigluFwdBf16LoraDropout } else { Kernel::SwigluFwdBf16Lora };
    let project = projection.of_one(h)?;
    device.launch(&fused(kernel, gate.rows()), &SwigluFwdLoraParams { swiglu: params, project })
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(device: &Device, args: Backward<'_, T>) -> Result<()> {
    let Backward { dh, gate, up, live_rows, projection } = args;
    check_pieces(OP, "gate", gate)?;
    if gate.is_empty() {
        return Ok(());
    }
    let params = SwigluBwdParams {
        dh: dh.ptr(),
        gate: gate.ptr(),
        up: up.ptr(),
        live_rows: live_rows.ptr(),
        rows: gate.rows() as i32,
        cols: gate.cols() as i32,
    };
    let Some(projection) = projection else {
        return device.launch(&launch(Kernel::SwigluBwdBf16, gate.len()), &params);
    };
    let project = projection.of_each(&[&*gate, &*up])?;
    let launch = fused(Kernel::SwigluBwdBf16Lora, gate.rows());
    device.launch(&launch, &SwigluBwdLoraParams { swiglu: params, project })
}

/// The launch of a kernel with a fused projection.
fn fused(kernel: Kernel, rows: usize) -> Launch {
    Launch { kernel, grid: [rows.div_ceil(BLOCK_ROWS) as u32, 1, 1], dynamic_smem: 0 }
}

fn launch(kernel: Kernel, elements: usize) -> Launch {
    Launch { kernel, grid: [elements.div_ceil(BLOCK) as u32, 1, 1], dynamic_smem: 0 }
}
