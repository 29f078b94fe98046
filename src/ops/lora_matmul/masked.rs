//! Dropout of a whole matrix, apart from any layer: `y[t, i] = mask[t, i] * x[t, i] / (1 - p)`.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `x` | `[rows, features]` | features a multiple of 8 on a GPU |
//! | `y` | `[rows, features]` | overwritten |
//!
//! The mask is a function of the sample and the position of a row, its column, and the key of the mask
//! ([`Dropout`]), as in the layers; so the backward pass is the same op on the gradient of `y`, and nothing is stored. One kernel
//! with that of DoRA. Source: Srivastava et al., "Dropout", 2014.

use super::gpu::dora::{self, Dropped};
use super::{Dropout, Rows};
use crate::device::{Device, Tensor, Work};
use crate::error::Result;
use crate::ops::gemm::Write;
use crate::ops::{Runner, check_shape, runner};
use crate::tensor::Real;

const OP: &str = "dropout";

/// Writes the masked `x` to `y`.
///
/// # Errors
/// [`crate::error::Error::Shape`] if the shapes do not follow the table of the module, or rows or mask have no keys; errors of the device.
pub fn mask<T: Real>(
    device: &Device,
    (dropout, rows): (Dropout, &Rows),
    x: &Tensor<T>,
    y: &mut Tensor<T>,
) -> Result<()> {
    check_shape(OP, "y", y, x.shape())?;
    check_shape(OP, "x", x, [rows.capacity(), x.cols()])?;
    record(device, x);
    match runner::<T>(device, OP)? {
        Runner::Cpu => dropout.apply(rows.keys().as_slice(), x.data(), y.data_mut(), Write::Overwrite),
        Runner::Gpu => {
            let args = Dropped { mask: dropout, out: Some(y), rest: None, addend: None };
            dora::dropout(device, rows, Some(x), args)?;
        }
        Runner::Skip => {}
    }
    Ok(())
}

/// Masks `x` where it is.
///
/// # Errors
/// As [`mask`].
pub fn mask_in_place<T: Real>(
    device: &Device,
    (dropout, rows): (Dropout, &Rows),
    x: &mut Tensor<T>,
) -> Result<()> {
    check_shape(OP, "x", x, [rows.capacity(), x.cols()])?;
    record(device, x);
    match runner::<T>(device, OP)? {
        Runner::Cpu => dropout.apply_in_place(rows.keys().as_slice(), x.data_mut()),
        Runner::Gpu => {
            let args = Dropped { mask: dropout, out: Some(x), rest: None, addend: None };
            dora::dropout(device, rows, None, args)?;
        }
        Runner::Skip => {}
    }
    Ok(())
}

fn record<T: Real>(device: &Device, x: &Tensor<T>) {
    device.record(OP, Work::new(x.len() as u64, (2 * x.len() * size_of::<T>()) as u64));
}
