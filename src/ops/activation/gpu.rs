//! Activations on a GPU: each thread handles two 16-byte pieces of every tensor.

use super::{Activation, Backward, Forward, Input, InputMut, OP};
use crate::device::kernels::params::{
    ActivationBwdParams, ActivationFwdParams, SwigluBwdLoraParams, SwigluBwdParams, SwigluFwdLoraParams,
    SwigluFwdParams,
};
use crate::device::kernels::{DevicePtr, Kernel};
use crate::device::{Device, Launch, Tensor};
use crate::error::Result;
use crate::ops::check_pieces;
use crate::ops::cols::at_column;
use crate::ops::projection::BLOCK_ROWS;
use crate::tensor::Real;

/// Elements per block: 256 threads with two pieces of eight.
const BLOCK: usize = 256 * 2 * 8;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(device: &Device, args: Forward<'_, T>) -> Result<()> {
    let Forward { act, input, h, live_rows, projection } = args;
    check_pieces(OP, "h", h)?;
    if h.is_empty() {
        return Ok(());
    }
    if let (Activation::Silu, Input::Gated { gate, up }) = (act, input) {
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
        return device.launch(&fused(kernel, gate.rows()), &SwigluFwdLoraParams { swiglu: params, project });
    }
    let (gate, up, stride) = places(input, h.cols());
    let params = ActivationFwdParams {
        gate,
        up,
        h: h.ptr(),
        live_rows: live_rows.ptr(),
        rows: h.rows() as i32,
        cols: h.cols() as i32,
        stride,
        act: number(act),
    };
    device.launch(&launch(Kernel::ActivationFwdBf16, h.len()), &params)
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(device: &Device, args: Backward<'_, T>) -> Result<()> {
    let Backward { act, dh, input, live_rows, projection } = args;
    check_pieces(OP, "dh", dh)?;
    if dh.is_empty() {
        return Ok(());
    }
    if let (Activation::Silu, InputMut::Gated { gate, up }) = (act, &input) {
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
        let project = projection.of_each(&[&**gate, &**up])?;
        let launch = fused(Kernel::SwigluBwdBf16Lora, gate.rows());
        return device.launch(&launch, &SwigluBwdLoraParams { swiglu: params, project });
    }
    let (gate, up, stride) = places(input.as_input(), dh.cols());
    let params = ActivationBwdParams {
        dh: dh.ptr(),
        gate,
        up,
        live_rows: live_rows.ptr(),
        rows: dh.rows() as i32,
        cols: dh.cols() as i32,
        stride,
        act: number(act),
    };
    device.launch(&launch(Kernel::ActivationBwdBf16, dh.len()), &params)
}

/// Where the input of the function and the factor are, and their row stride.
fn places<T: Real>(input: Input<'_, T>, cols: usize) -> (DevicePtr, DevicePtr, i32) {
    let stride = |tensor: &Tensor<T>| tensor.cols() as i32;
    match input {
        Input::Gated { gate, up } => (gate.ptr(), up.ptr(), stride(gate)),
        Input::Fused(gate_up) => (gate_up.ptr(), at_column(gate_up, cols), stride(gate_up)),
        Input::Plain(x) => (x.ptr(), DevicePtr(0), stride(x)),
    }
}

/// The function as kernels know it.
fn number(act: Activation) -> i32 {
    match act {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Tanh => 3,
    }
}

/// The launch of a kernel with a fused projection.
fn fused(kernel: Kernel, rows: usize) -> Launch {
    Launch { kernel, grid: [rows.div_ceil(BLOCK_ROWS) as u32, 1, 1], dynamic_smem: 0 }
}

fn launch(kernel: Kernel, elements: usize) -> Launch {
    Launch { kernel, grid: [elements.div_ceil(BLOCK) as u32, 1, 1], dynamic_smem: 0 }
}
