//! Linear layers with LoRA that share their input: the frozen weights, their adapters, and dropout on the adapters' input, for
//! rows of several adapters.
//!
//! For one layer of the group and the rows of one adapter, with `x~ = dropout(x)`:
//! `y = x W^T + bias + scaling * (x~ A^T) B^T`. With DoRA, `c[j] = || (W + scaling * B A)[j, :] ||` and `g = magnitude / c`:
//! `y = x W^T + bias + (g - 1) * x~ W^T + g * scaling * (x~ A^T) B^T`, which without dropout is `g * (W + scaling B A) x + bias`.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `x` | `[rows, in_features]` | shared by the layers of a group |
//! | `W`, `bias` | `[out_features, in_features]`, `[1, out_features]` | frozen |
//! | `A`, `B` | `[r, in_features]`, `[out_features, r]` | trained |
//! | `magnitude` | `[1, out_features]` | trained, DoRA only |
//! | `y` | `[rows, out_features]` | overwritten |
//! | `xa` | `[rows, r]` | `x~ A^T`, saved for the backward pass; the largest `r` where adapters differ |
//!
//! | `dxa` | `[rows, r]` | `scaling * (g * dy) B`, of the backward pass |
//!
//! Both directions are divided into steps, because the projections can be fused into the kernel that produces
//! `x` or `dy`, and because the gradients of several layers share one launch on a GPU: [`project`] gives
//! `xa`, [`apply`] `y`; [`project_back`] gives `dxa`, [`backward_input`] gives `dx = dy W + mask(dxa A)` (and
//! `mask(((g - 1) * dy) W)` for DoRA), summed over the layers of the group in their order, and [`gradients`]
//! adds `dB += scaling * (g * dy)^T xa` and `dA += dxa^T x~`; `c` counts as a constant, as in PEFT.
//! [`recompute`] repeats [`apply`] and gives the same bits. On a GPU `B` and its gradient are stored
//! transposed, `[r, out_features]`, `xa` includes the scaling, and the columns of `xa` and `dxa` are rounded
//! up to 16. The dropout mask is a function of seed, step, layer, sample, position and column: it is never
//! stored, and packing or splitting a batch does not change it. Sources: Hu et al., "LoRA", 2021;
//! Kalajdzievski, "rsLoRA", 2023; Liu et al., "DoRA", 2024; behaviour of PEFT 0.18.

mod backward;
mod cpu;
mod dropout;
pub mod gpu;
#[cfg(test)]
mod gpu_dora_tests;
mod group;
mod masked;
#[cfg(test)]
mod masked_tests;
pub mod plan;
mod rows;
#[cfg(test)]
mod tests;
mod work;

pub use backward::{
    Backward, GradJob, InputGradient, LayerBackward, backward, backward_input, gradients, project_back,
    projection_back,
};
pub use dropout::{Dropout, RowKeys};
pub use group::{Dora, Group, Layer, Lora, LoraGrad, b_shape};
pub use masked::{mask, mask_in_place};
pub use rows::Rows;

use super::projection::FusedProjection;
use super::{Runner, check_shape, runner};
use crate::device::{Device, Tensor, Work};
use crate::error::Result;
use crate::tensor::Real;

const OP: &str = "lora_matmul";

/// Outputs of one layer of a group.
#[derive(Debug)]
pub struct Forward<'a, T: Real> {
    /// `[rows, out_features]`, overwritten.
    pub y: &'a mut Tensor<T>,
    /// `[rows, r]` ([`Group::xa_cols`]), overwritten.
    pub xa: &'a mut Tensor<T>,
}

/// Writes `xa` and `y` of every layer of a group: [`project`] and [`apply`].
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module; errors of the device.
pub fn forward<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    outputs: &mut [Forward<'_, T>],
) -> Result<()> {
    group.check_count("outputs", outputs.len())?;
    project(device, group, x, &mut outputs.iter_mut().map(|out| &mut *out.xa).collect::<Vec<_>>())?;
    let outputs = outputs.iter_mut().map(|out| Apply { y: &mut *out.y, xa: &*out.xa });
    apply(device, group, x, &mut outputs.collect::<Vec<_>>())
}

/// The projection of a group (which gives `xa`), to fuse into the kernel of the op that produces the group's
/// input. `None` if [`project`] must be called instead: on a CPU, with DoRA, and without adapters.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module.
pub fn projection<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    xa: &[&Tensor<T>],
) -> Result<Option<FusedProjection>> {
    group.check_count("xa", xa.len())?;
    if group.has_dora() || runner::<T>(device, OP)? != Runner::Gpu {
        return Ok(None);
    }
    work::record_project(device, group, false);
    gpu::projection(group, xa)
}

/// Writes `xa` of every layer of a group.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module; errors of the device.
pub fn project<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    xa: &mut [&mut Tensor<T>],
) -> Result<()> {
    group.check_count("xa", xa.len())?;
    check_shape(OP, "x", x, [group.rows.capacity(), group.in_features()])?;
    group.check(xa.iter().map(|xa| &**xa))?;
    work::record_project(device, group, true);
    match runner::<T>(device, OP)? {
        Runner::Gpu => gpu::project(device, group, x, xa),
        // The memory plan of a CPU counts its temporary tensors.
        Runner::Cpu | Runner::Skip => cpu::project(device, group, x, xa),
    }
}

/// The output of one layer of a group, and its saved `xa`.
#[derive(Debug)]
pub struct Apply<'a, T: Real> {
    /// `[rows, out_features]`, overwritten.
    pub y: &'a mut Tensor<T>,
    /// From [`project`].
    pub xa: &'a Tensor<T>,
}

/// Writes `y` of every layer of a group, given `xa`.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module; errors of the device.
pub fn apply<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    outputs: &mut [Apply<'_, T>],
) -> Result<()> {
    check_apply(group, x, outputs)?;
    work::record_apply(device, ["lora_matmul.forward", "lora_matmul.forward.lora"], group);
    run_apply(device, group, x, outputs)
}

/// Writes `y` of every layer of a group again, with the bits that [`forward`] gave.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module; errors of the device.
pub fn recompute<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    outputs: &mut [Apply<'_, T>],
) -> Result<()> {
    check_apply(group, x, outputs)?;
    work::record_apply(device, ["lora_matmul.recompute", "lora_matmul.recompute.lora"], group);
    run_apply(device, group, x, outputs)
}

fn check_apply<T: Real>(group: &Group<'_, T>, x: &Tensor<T>, outputs: &[Apply<'_, T>]) -> Result<()> {
    let rows = group.rows.capacity();
    group.check_count("outputs", outputs.len())?;
    check_shape(OP, "x", x, [rows, group.in_features()])?;
    for (layer, out) in group.layers.iter().zip(outputs) {
        check_shape(OP, "y", out.y, [rows, layer.out_features()])?;
    }
    group.check(outputs.iter().map(|out| out.xa))
}

fn run_apply<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    outputs: &mut [Apply<'_, T>],
) -> Result<()> {
    match runner::<T>(device, OP)? {
        Runner::Gpu => gpu::apply(device, group, x, outputs),
        Runner::Cpu | Runner::Skip => cpu::apply(device, group, x, outputs),
    }
}

/// A weight with an adapter added to it: `W + scaling * B A`.
#[derive(Debug, Clone, Copy)]
pub struct Merged<'a, T: Real> {
    /// `[out_features, in_features]`; on a GPU multiples of 8.
    pub weight: &'a Tensor<T>,
    /// `[r, in_features]`.
    pub a: &'a Tensor<T>,
    /// As in [`Lora`].
    pub b: &'a Tensor<T>,
    /// `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub scaling: T::Stat,
}

/// Writes the norms of the rows of a merged weight, `[1, out_features]`: the divisor of DoRA.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not fit each other; errors of the device.
pub fn dora_norm<T: Real>(device: &Device, merged: Merged<'_, T>, norm: &mut Tensor<T::Stat>) -> Result<()> {
    let Merged { weight, a, b, .. } = merged;
    check_shape(OP, "lora_a", a, [a.rows(), weight.cols()])?;
    check_shape(OP, "lora_b", b, b_shape(device, weight.rows(), a.rows()))?;
    check_shape(OP, "dora_norm", norm, [1, weight.rows()])?;
    device.record(
        "lora_matmul.dora_norm",
        Work::new(2 * (weight.len() * (a.rows() + 1)) as u64, (weight.len() * size_of::<T>()) as u64),
    );
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::dora_norm(merged, norm),
        Runner::Gpu => gpu::dora::norm(device, merged, norm)?,
        Runner::Skip => {}
    }
    Ok(())
}
