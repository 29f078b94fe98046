//! DoRA on a GPU: the operations between the matrix products of a layer with magnitudes, one or two launches
//! per function.
//!
//! With `c` of [`norm`], `g = magnitude / c`, `x~, rest` of [`dropout`] and `z = x~ W^T + scaling * (x~ A^T)
//! B^T` (the layer's own kernels on `x~`, without bias), the layer is `y = g z + bias` without dropout
//! ([`scale`] in place), and with it `y = rest W^T + g z + bias` ([`scale`] with an addend). Backward: `dyg =
//! g dy` ([`scale`]) takes the place of `dy` in `dxa`, `dA` and `dB`; without dropout also in `dx`, and with
//! it `dx = dy W + mask(u)` with `u = ((g - 1) dy) W + dxa A`, the kernel of `dx` without mask on `(g - 1)
//! dy` ([`scale`] with [`Gain::LessOne`]), masked by [`dropout`] with an addend. [`magnitude_gradient`] takes
//! `dy` and `z`. [`Rows`] says which adapter a row uses, so one launch serves all adapters of a batch. The
//! caller records the work in the ledger.

use super::{Dropout, Rows, lora_dropout};
use crate::device::kernels::params::{
    DoraFactor, DoraMagnitudeParams, DoraNormParams, DoraScaleParams, DropoutApplyParams,
};
use crate::device::kernels::{DevicePtr, Kernel};
use crate::device::{Device, Launch, Table, Tensor};
use crate::error::{Error, Result};
use crate::ops::check_shape;
use crate::ops::lora_matmul::{Merged, OP};
use crate::tensor::Real;

/// Rows of W per block of the norm kernel.
const NORM_ROWS: usize = 16;
/// Rows and columns per block of the scale kernel.
const SCALE: [usize; 2] = [8, 1024];
/// Columns per block of the gradient kernel.
const GRAD_COLUMNS: usize = 256;
/// Rows per block of the gradient kernel.
const SLAB_ROWS: usize = 128;
/// Threads per block of the dropout kernel, and columns that two of them share.
const DROPOUT: [usize; 2] = [128, 128];

/// Writes `norm[j] = || (W + scaling * B A)[j, :] ||`, `[1, out_features]`, f32.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit; errors of the device.
pub fn norm<T: Real>(device: &Device, merged: Merged<'_, T>, norm: &mut Tensor<T::Stat>) -> Result<()> {
    let [out_features, in_features] = merged.weight.shape();
    check_multiple("weight", out_features)?;
    check_multiple("weight", in_features)?;
    let r = merged.a.rows();
    check_shape(OP, "lora_a", merged.a, [r, in_features])?;
    check_shape(OP, "lora_b transposed", merged.b, [r, out_features])?;
    check_shape(OP, "dora_norm", norm, [1, out_features])?;
    let params = DoraNormParams {
        weight: merged.weight.ptr(),
        a: merged.a.ptr(),
        b_t: merged.b.ptr(),
        norm: norm.ptr(),
        in_features: in_features as i32,
        out_features: out_features as i32,
        r: r as i32,
        scaling: merged.scaling.to_f64() as f32,
    };
    let grid = [out_features.div_ceil(NORM_ROWS) as u32, 1, 1];
    device.launch(&Launch { kernel: Kernel::DoraNorm, grid, dynamic_smem: 0 }, &params)
}

/// The magnitude of one adapter in a layer.
#[derive(Debug, Clone, Copy)]
pub struct Magnitude<'a, T: Real> {
    /// `[1, out_features]`.
    pub magnitude: &'a Tensor<T>,
    /// Of [`norm`].
    pub norm: &'a Tensor<T::Stat>,
    /// Its gradient, added to; `None` if it is not trained.
    pub grad: Option<&'a Tensor<T::Stat>>,
}

/// The magnitudes of one layer's adapters, in device memory.
#[derive(Debug)]
pub struct Magnitudes {
    table: Table<DoraFactor>,
    out_features: usize,
}

impl Magnitudes {
    /// The table, by adapter; the gains of one without magnitude are 1.
    ///
    /// # Errors
    /// [`Error::Shape`] if shapes do not fit; errors of the device.
    pub fn new<T: Real>(
        device: &Device,
        out_features: usize,
        adapters: &[Option<Magnitude<'_, T>>],
    ) -> Result<Self> {
        check_multiple("magnitude", out_features)?;
        let mut entries = Vec::new();
        for adapter in adapters {
            let Some(Magnitude { magnitude, norm, grad }) = adapter else {
                entries.push(<DoraFactor as bytemuck::Zeroable>::zeroed());
                continue;
            };
            check_shape(OP, "magnitude", magnitude, [1, out_features])?;
            check_shape(OP, "dora_norm", norm, [1, out_features])?;
            if let Some(grad) = grad {
                check_shape(OP, "d magnitude", grad, [1, out_features])?;
            }
            entries.push(DoraFactor {
                magnitude: magnitude.ptr(),
                norm: norm.ptr(),
                grad: grad.map_or(DevicePtr(0), Tensor::ptr),
            });
        }
        Ok(Self { table: Table::new(device, &entries)?, out_features })
    }

    fn check(&self, rows: &Rows) -> Result<()> {
        if rows.adapters_named() > self.table.capacity() {
            let expected = format!("below {}", self.table.capacity());
            return Err(Error::shape(OP, "adapter", expected, rows.adapters_named() - 1));
        }
        Ok(())
    }
}

/// The factor of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gain {
    /// `g`.
    Whole,
    /// `g - 1`.
    LessOne,
}

/// What [`scale`] reads beside its output.
#[derive(Debug, Clone, Copy)]
pub struct Scale<'a, T: Real> {
    /// The gains.
    pub magnitudes: &'a Magnitudes,
    /// The input, `[rows, out_features]`; `None`: the output is scaled in place.
    pub input: Option<&'a Tensor<T>>,
    /// The factor.
    pub gain: Gain,
    /// Added to the result, `[rows, out_features]`.
    pub addend: Option<&'a Tensor<T>>,
    /// Added to every row, `[1, out_features]`.
    pub bias: Option<&'a Tensor<T>>,
}

/// Writes `out[t, j] = gain[j] * input[t, j] + addend[t, j] + bias[j]` with the gains of the adapter of row
/// `t`.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit; errors of the device.
pub fn scale<T: Real>(device: &Device, rows: &Rows, args: Scale<'_, T>, out: &mut Tensor<T>) -> Result<()> {
    let magnitudes = args.magnitudes;
    let shape = [rows.capacity(), magnitudes.out_features];
    check_shape(OP, "y", out, shape)?;
    magnitudes.check(rows)?;
    for tensor in args.input.into_iter().chain(args.addend) {
        check_shape(OP, "y", tensor, shape)?;
    }
    if let Some(bias) = args.bias {
        check_shape(OP, "bias", bias, [1, magnitudes.out_features])?;
    }
    if rows.capacity() == 0 {
        return Ok(());
    }
    let [runs, num_runs] = rows.run_ptrs();
    let or_null = |tensor: Option<&Tensor<T>>| tensor.map_or(DevicePtr(0), Tensor::ptr);
    let params = DoraScaleParams {
        input: args.input.map_or(out.ptr(), Tensor::ptr),
        output: out.ptr(),
        addend: or_null(args.addend),
        bias: or_null(args.bias),
        factors: magnitudes.table.ptr(),
        runs,
        num_runs,
        live_rows: rows.live().ptr(),
        rows: rows.capacity() as i32,
        columns: magnitudes.out_features as i32,
        less: if args.gain == Gain::LessOne { 1.0 } else { 0.0 },
        reserved: 0,
    };
    let pieces = [rows.capacity().div_ceil(SCALE[0]), magnitudes.out_features.div_ceil(SCALE[1])];
    let grid = [pieces[0] as u32, pieces[1] as u32, 1];
    device.launch(&Launch { kernel: Kernel::DoraScale, grid, dynamic_smem: 0 }, &params)
}

/// What [`magnitude_gradient`] reads.
#[derive(Debug, Clone, Copy)]
pub struct MagnitudeGradient<'a, T: Real> {
    /// The norms `c`, and where the gradients go.
    pub magnitudes: &'a Magnitudes,
    /// Gradient of the output, `[rows, out_features]`.
    pub dy: &'a Tensor<T>,
    /// See the module documentation, `[rows, out_features]`.
    pub z: &'a Tensor<T>,
}

/// Adds `d magnitude[j] += sum over the adapter's rows of dy[t, j] * z[t, j] / c[j]` for every adapter with a gradient.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit; errors of the device.
pub fn magnitude_gradient<T: Real>(
    device: &Device,
    rows: &Rows,
    args: MagnitudeGradient<'_, T>,
) -> Result<()> {
    let MagnitudeGradient { magnitudes, dy, z } = args;
    let columns = magnitudes.out_features;
    check_shape(OP, "dy", dy, [rows.capacity(), columns])?;
    check_shape(OP, "z", z, [rows.capacity(), columns])?;
    magnitudes.check(rows)?;
    let adapters = magnitudes.table.capacity();
    if rows.capacity() == 0 || adapters == 0 {
        return Ok(());
    }
    let num_slabs = rows.capacity().div_ceil(SLAB_ROWS);
    let [runs, num_runs] = rows.run_ptrs();
    let partial: Tensor<f32> = device.empty(adapters * num_slabs, columns)?;
    let params = DoraMagnitudeParams {
        dy: dy.ptr(),
        z: z.ptr(),
        partial: partial.ptr(),
        factors: magnitudes.table.ptr(),
        runs,
        num_runs,
        live_rows: rows.live().ptr(),
        rows: rows.capacity() as i32,
        columns: columns as i32,
        slab_rows: SLAB_ROWS as i32,
        num_slabs: num_slabs as i32,
    };
    let pieces = columns.div_ceil(GRAD_COLUMNS) as u32;
    let launch = |kernel, grid| Launch { kernel, grid, dynamic_smem: 0 };
    let grid = [pieces, num_slabs as u32, adapters as u32];
    device.launch(&launch(Kernel::DoraMagnitudePartial, grid), &params)?;
    device.launch(&launch(Kernel::DoraMagnitudeTotal, [pieces, adapters as u32, 1]), &params)
}

/// What [`dropout`] reads and writes beside its input, which is `out` if there is no other.
#[derive(Debug)]
pub struct Dropped<'a, T: Real> {
    /// The mask.
    pub mask: Dropout,
    /// `dropout(input) + addend`, overwritten. If `None`, the addend is overwritten.
    pub out: Option<&'a mut Tensor<T>>,
    /// `input - out`, overwritten; only allowed with an `out` and without an addend.
    pub rest: Option<&'a mut Tensor<T>>,
    /// Added before rounding.
    pub addend: Option<&'a mut Tensor<T>>,
}

/// Applies the mask of a layer with dropout to `input` `[rows, features]`: kept elements are divided by the probability to keep them.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit or layer or rows have no keys; errors of the device.
pub fn dropout<T: Real>(
    device: &Device,
    rows: &Rows,
    input: Option<&Tensor<T>>,
    args: Dropped<'_, T>,
) -> Result<()> {
    let Some(input) = input.or(args.out.as_deref()) else {
        return Err(Error::shape(OP, "x", "a tensor", "none"));
    };
    let shape = input.shape();
    check_shape(OP, "x", input, [rows.capacity(), shape[1]])?;
    check_multiple("x", shape[1])?;
    for tensor in args.out.iter().chain(&args.rest).chain(&args.addend) {
        check_shape(OP, "dropout(x)", tensor, shape)?;
    }
    let Some(out) = args.out.as_deref().or(args.addend.as_deref()) else {
        return Err(Error::shape(OP, "dropout(x)", "a tensor", "none"));
    };
    if !rows.has_key_table() || args.mask.key_ptr() == DevicePtr(0) {
        return Err(Error::shape(OP, "dropout", "keys of layer and rows", "none"));
    }
    let [threads, columns] = DROPOUT;
    let blocks = (rows.capacity() * shape[1].div_ceil(columns) * 2).div_ceil(threads);
    if blocks == 0 {
        return Ok(());
    }
    let params = DropoutApplyParams {
        input: input.ptr(),
        output: out.ptr(),
        rest: args.rest.as_ref().map_or(DevicePtr(0), |t| t.ptr()),
        addend: args.addend.as_ref().map_or(DevicePtr(0), |t| t.ptr()),
        key: args.mask.key_ptr(),
        live_rows: rows.live().ptr(),
        dropout: lora_dropout(rows, Some(args.mask)),
        rows: rows.capacity() as i32,
        columns: shape[1] as i32,
    };
    let grid = [blocks as u32, 1, 1];
    device.launch(&Launch { kernel: Kernel::DropoutApply, grid, dynamic_smem: 0 }, &params)
}

fn check_multiple(arg: &'static str, features: usize) -> Result<()> {
    match features.is_multiple_of(8) {
        true => Ok(()),
        false => Err(Error::shape(OP, arg, "a multiple of 8 features", features)),
    }
}

#[cfg(test)]
mod tests;
