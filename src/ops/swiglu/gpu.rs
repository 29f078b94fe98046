//! SwiGLU on a GPU: two pieces of 16 bytes of every tensor a thread.

use super::OP;
use crate::device::kernels::Kernel;
use crate::device::kernels::params::{SwigluBwdParams, SwigluFwdParams};
use crate::device::{Device, Launch, Tensor};
use crate::error::Result;
use crate::ops::check_pieces;
use crate::tensor::Real;

/// Elements of a block: 256 threads with two pieces of eight.
const BLOCK: usize = 256 * 2 * 8;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(
    device: &Device,
    gate: &Tensor<T>,
    up: &Tensor<T>,
    h: &mut Tensor<T>,
) -> Result<()> {
    check_pieces(OP, "gate", gate)?;
    if gate.is_empty() {
        return Ok(());
    }
    let params = SwigluFwdParams {
        gate: gate.ptr(),
        up: up.ptr(),
        h: h.ptr(),
        live_rows: device.live_rows(),
        rows: gate.rows() as i32,
        cols: gate.cols() as i32,
    };
    device.launch(&launch(Kernel::SwigluFwdBf16, gate.len()), &params)
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(
    device: &Device,
    dh: &mut Tensor<T>,
    gate: &mut Tensor<T>,
    up: &mut Tensor<T>,
) -> Result<()> {
    check_pieces(OP, "gate", gate)?;
    if gate.is_empty() {
        return Ok(());
    }
    let params = SwigluBwdParams {
        dh: dh.ptr(),
        gate: gate.ptr(),
        up: up.ptr(),
        live_rows: device.live_rows(),
        rows: gate.rows() as i32,
        cols: gate.cols() as i32,
    };
    device.launch(&launch(Kernel::SwigluBwdBf16, gate.len()), &params)
}

fn launch(kernel: Kernel, elements: usize) -> Launch {
    Launch { kernel, grid: [elements.div_ceil(BLOCK) as u32, 1, 1], dynamic_smem: 0 }
}
