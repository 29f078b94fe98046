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
//! Both directions come in steps, because what makes `x` or `dy` may make the narrow product with it along the way, and because the
//! gradients of several layers go through one launch on a GPU: [`project`] gives `xa`, [`apply`] `y`; [`project_back`] gives `dxa`,
//! [`backward_input`] gives `dx = dy W + mask(dxa A)` (and `mask(((g - 1) * dy) W)` for DoRA), summed over the layers of the group in
//! their order, and [`gradients`] adds `dB += scaling * (g * dy)^T xa` and `dA += dxa^T x~`; `c` counts as a constant, as in PEFT.
//! [`recompute`] is [`apply`] once more, with the same bits. On a GPU `B` and its gradient are kept transposed, `[r, out_features]`,
//! `xa` includes the scaling, and the columns of `xa` and `dxa` are rounded up to 16.
//! The dropout mask is a function of seed, step, layer, sample, position and column: it is never stored, and packing or
//! splitting a batch does not change it. Sources: Hu et al., "LoRA", 2021; Kalajdzievski, "rsLoRA", 2023; Liu et al., "DoRA", 2024;
//! behaviour of PEFT 0.18.

mod backward;
mod cpu;
mod dispatch;
mod dropout;
pub mod gpu;
#[cfg(test)]
mod gpu_dora_tests;
pub mod plan;
#[cfg(test)]
mod tests;
mod work;

pub use backward::{
    Backward, GradJob, LayerBackward, backward, backward_input, gradients, project_back, projection_back,
};
pub use dropout::{Dropout, RowKeys};

use super::{Runner, check_shape, runner};
use crate::batch::AdapterRows;
use crate::device::kernels::DevicePtr;
use crate::device::{Device, Machine, Tensor, Work};
use crate::error::{Error, Result};
use crate::tensor::Real;

const OP: &str = "lora_matmul";

/// The frozen part.
#[derive(Debug, Clone, Copy)]
pub struct Frozen<'a, T: Real> {
    /// `[out_features, in_features]`.
    pub weight: &'a Tensor<T>,
    /// `[1, out_features]`.
    pub bias: Option<&'a Tensor<T>>,
}

/// One adapter of the layer.
#[derive(Debug, Clone, Copy)]
pub struct Lora<'a, T: Real> {
    /// `[r, in_features]`.
    pub a: &'a Tensor<T>,
    /// `[out_features, r]`.
    pub b: &'a Tensor<T>,
    /// `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub scaling: T::Stat,
    /// Magnitude and the norms of [`dora_norm`], `[1, out_features]` each.
    pub dora: Option<(&'a Tensor<T>, &'a Tensor<T::Stat>)>,
}

/// Gradients of one adapter; they accumulate.
#[derive(Debug)]
pub struct LoraGrad<'a, T: Real> {
    /// `[r, in_features]`.
    pub a: &'a mut Tensor<T>,
    /// `[out_features, r]`.
    pub b: &'a mut Tensor<T>,
    /// `[1, out_features]`, where the adapter has a magnitude.
    pub magnitude: Option<&'a mut Tensor<T>>,
}

/// One layer as both directions see it.
#[derive(Debug, Clone, Copy)]
pub struct LoraMatmul<'a, T: Real> {
    /// The frozen part.
    pub frozen: Frozen<'a, T>,
    /// Adapters by index; none where the layer is not a target.
    pub loras: &'a [Option<Lora<'a, T>>],
    /// Which rows go through which adapter; may leave rows out.
    pub rows: &'a [AdapterRows],
    /// Dropout on the adapters' input; none in evaluation.
    pub dropout: Option<Dropout<'a>>,
    /// What kernels read of all this; none on a CPU.
    pub gpu: Option<OnGpu<'a>>,
}

/// The tables of a layer in the memory of a GPU.
#[derive(Debug, Clone, Copy)]
pub struct OnGpu<'a> {
    /// The adapters of the layer, with their gradients.
    pub adapters: Option<&'a gpu::LayerAdapters>,
    /// The magnitudes of those that have one, with the norms of [`dora_norm`] and their gradients.
    pub magnitudes: Option<&'a gpu::dora::Magnitudes>,
    /// Which rows go through which adapter.
    pub rows: &'a gpu::Rows,
    /// Address of the key of the dropout masks; null without dropout.
    pub key: DevicePtr,
    /// Address of the number of rows there are, for [`gradients`], whose jobs have rows of their own; null: all.
    pub live_rows: DevicePtr,
}

/// Columns of `xa` and `dxa` of layer `i` of a group. On a GPU: the largest rank of the group, rounded up to whole fragments of the
/// tensor cores; none where the layer has no adapter.
pub fn xa_cols<T: Real>(device: &Device, layers: &[LoraMatmul<'_, T>], i: usize) -> usize {
    let own = layers[i].max_rank();
    match device.machine() {
        Machine::Gpu if own > 0 => {
            let ranks = layers.iter().map(LoraMatmul::max_rank);
            ranks.max().unwrap_or(0).next_multiple_of(plan::RANK_UNIT)
        }
        _ => own,
    }
}

/// Shape of `B`, which a GPU keeps transposed.
pub fn b_shape(device: &Device, out_features: usize, r: usize) -> [usize; 2] {
    match device.machine() {
        Machine::Cpu => [out_features, r],
        Machine::Gpu => [r, out_features],
    }
}

impl<T: Real> LoraMatmul<'_, T> {
    /// The largest rank of any adapter.
    pub fn max_rank(&self) -> usize {
        self.loras.iter().flatten().map(|l| l.a.rows()).max().unwrap_or(0)
    }

    /// True if any adapter has a magnitude: `dxa` is then not a product with `dy` itself.
    pub fn has_dora(&self) -> bool {
        self.loras.iter().flatten().any(|lora| lora.dora.is_some())
    }

    fn check(&self, device: &Device, rows: usize, xa: &Tensor<T>, xa_cols: usize) -> Result<()> {
        let [out_features, in_features] = self.frozen.weight.shape();
        if let Some(bias) = self.frozen.bias {
            check_shape(OP, "bias", bias, [1, out_features])?;
        }
        check_shape(OP, "xa", xa, [rows, xa_cols])?;
        for lora in self.loras.iter().flatten() {
            check_shape(OP, "lora_a", lora.a, [lora.a.rows(), in_features])?;
            check_shape(OP, "lora_b", lora.b, b_shape(device, out_features, lora.a.rows()))?;
            if let Some((magnitude, norm)) = lora.dora {
                check_shape(OP, "magnitude", magnitude, [1, out_features])?;
                check_shape(OP, "dora_norm", norm, [1, out_features])?;
            }
        }
        let mut next = 0;
        for run in self.rows {
            if run.rows.start < next || run.rows.end > rows || run.rows.start > run.rows.end {
                return Err(Error::shape(OP, "rows", format!("ascending, below {rows}"), &run.rows));
            }
            if run.adapter >= self.loras.len() && !self.loras.is_empty() {
                return Err(Error::shape(OP, "adapter", format!("below {}", self.loras.len()), run.adapter));
            }
            next = run.rows.end;
        }
        match &self.dropout {
            Some(dropout)
                if dropout.rows.len() > rows || (self.gpu.is_none() && dropout.rows.len() < rows) =>
            {
                Err(Error::shape(OP, "dropout.rows", rows, dropout.rows.len()))
            }
            _ => Ok(()),
        }
    }

    fn check_grads(&self, device: &Device, grads: &[Option<LoraGrad<'_, T::Stat>>]) -> Result<()> {
        if grads.len() != self.loras.len() {
            return Err(Error::shape(OP, "grads", self.loras.len(), grads.len()));
        }
        for (lora, grad) in self.loras.iter().zip(grads) {
            match (lora, grad) {
                (Some(lora), Some(grad)) => {
                    check_shape(OP, "d lora_a", grad.a, lora.a.shape())?;
                    check_shape(
                        OP,
                        "d lora_b",
                        grad.b,
                        b_shape(device, self.frozen.weight.rows(), lora.a.rows()),
                    )?;
                    if let (Some((m, _)), Some(dm)) = (lora.dora, grad.magnitude.as_deref()) {
                        check_shape(OP, "d magnitude", dm, m.shape())?;
                    }
                }
                (None, None) => {}
                _ => return Err(Error::shape(OP, "grads", "one per adapter of the layer", "others")),
            }
        }
        Ok(())
    }

    /// The adapter and rows of every run that has one.
    fn runs(&self) -> impl Iterator<Item = (usize, &Lora<'_, T>, std::ops::Range<usize>)> {
        self.rows.iter().filter_map(|run| {
            let lora = self.loras.get(run.adapter)?.as_ref()?;
            (!run.rows.is_empty()).then(|| (run.adapter, lora, run.rows.clone()))
        })
    }
}

/// Outputs of one layer of a group.
#[derive(Debug)]
pub struct Forward<'a, T: Real> {
    /// `[rows, out_features]`, overwritten.
    pub y: &'a mut Tensor<T>,
    /// `[rows, r]`, overwritten.
    pub xa: &'a mut Tensor<T>,
}

/// Writes `xa` and `y` of every layer of a group: [`project`] and [`apply`].
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module.
pub fn forward<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    layers: &[LoraMatmul<'_, T>],
    outputs: &mut [Forward<'_, T>],
) -> Result<()> {
    check_count("outputs", layers, outputs.len())?;
    project(device, x, layers, &mut outputs.iter_mut().map(|out| &mut *out.xa).collect::<Vec<_>>())?;
    let outputs = outputs.iter_mut().map(|out| Apply { y: &mut *out.y, xa: &*out.xa });
    apply(device, x, layers, &mut outputs.collect::<Vec<_>>())
}

/// The products that give `xa` of a group, for the kernel of another op that makes the group's input and multiplies along the way.
/// None where [`project`] has to do it: on a CPU, and with DoRA.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module.
pub fn projection<T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    xa: &[&Tensor<T>],
) -> Result<Option<gpu::Project>> {
    check_count("xa", layers, xa.len())?;
    if layers.iter().any(LoraMatmul::has_dora) || runner::<T>(device, OP)? != Runner::Gpu {
        return Ok(None);
    }
    let rows = xa.first().map_or(0, |xa| xa.rows());
    work::record_project(device, rows, layers, false);
    dispatch::projection(layers, xa)
}

/// Writes `xa` of every layer of a group.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module.
pub fn project<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    layers: &[LoraMatmul<'_, T>],
    xa: &mut [&mut Tensor<T>],
) -> Result<()> {
    check_count("xa", layers, xa.len())?;
    for (i, (layer, xa)) in layers.iter().zip(&*xa).enumerate() {
        check_shape(OP, "x", x, [x.rows(), layer.frozen.weight.cols()])?;
        layer.check(device, x.rows(), xa, xa_cols(device, layers, i))?;
    }
    work::record_project(device, x.rows(), layers, true);
    match runner::<T>(device, OP)? {
        Runner::Gpu => dispatch::project(device, x, layers, xa),
        // Temporary tensors of the CPU belong into its plan.
        Runner::Cpu | Runner::Nobody => {
            layers.iter().zip(xa).try_for_each(|(layer, xa)| cpu::project(device, x, layer, xa))
        }
    }
}

/// One layer of a group with its saved `xa`, and where its output goes.
#[derive(Debug)]
pub struct Apply<'a, T: Real> {
    /// `[rows, out_features]`, overwritten.
    pub y: &'a mut Tensor<T>,
    /// Of [`project`].
    pub xa: &'a Tensor<T>,
}

/// Writes `y` of every layer of a group, given `xa`.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module.
pub fn apply<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    layers: &[LoraMatmul<'_, T>],
    outputs: &mut [Apply<'_, T>],
) -> Result<()> {
    apply_as(["lora_matmul.forward", "lora_matmul.forward.lora"], device, x, layers, outputs)
}

/// Writes `y` of every layer of a group again, with the bits that [`forward`] gave.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module.
pub fn recompute<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    layers: &[LoraMatmul<'_, T>],
    outputs: &mut [Apply<'_, T>],
) -> Result<()> {
    apply_as(["lora_matmul.recompute", "lora_matmul.recompute.lora"], device, x, layers, outputs)
}

fn apply_as<T: Real>(
    names: [&'static str; 2],
    device: &Device,
    x: &Tensor<T>,
    layers: &[LoraMatmul<'_, T>],
    outputs: &mut [Apply<'_, T>],
) -> Result<()> {
    check_count("outputs", layers, outputs.len())?;
    for (i, (layer, out)) in layers.iter().zip(&*outputs).enumerate() {
        let [out_features, in_features] = layer.frozen.weight.shape();
        check_shape(OP, "x", x, [x.rows(), in_features])?;
        check_shape(OP, "y", out.y, [x.rows(), out_features])?;
        layer.check(device, x.rows(), out.xa, xa_cols(device, layers, i))?;
    }
    work::record_apply(device, names, x.rows(), layers);
    match runner::<T>(device, OP)? {
        Runner::Gpu => dispatch::apply(device, x, layers, outputs),
        Runner::Cpu | Runner::Nobody => layers
            .iter()
            .zip(outputs)
            .try_for_each(|(layer, out)| cpu::apply(device, x, layer, out.xa, out.y)),
    }
}

/// A group has at least one layer, and as many arguments as layers.
fn check_count<T: Real>(arg: &'static str, layers: &[LoraMatmul<'_, T>], count: usize) -> Result<()> {
    match layers.len() == count && count > 0 {
        true => Ok(()),
        false => Err(Error::shape(OP, arg, layers.len().max(1), count)),
    }
}

/// Writes the norms of the rows of `W + scaling * B A`, `[1, out_features]`: the divisor of DoRA. `B` is as in [`Lora`].
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit each other; errors of the device.
pub fn dora_norm<T: Real>(
    device: &Device,
    weight: &Tensor<T>,
    (a, b): (&Tensor<T>, &Tensor<T>),
    scaling: T::Stat,
    norm: &mut Tensor<T::Stat>,
) -> Result<()> {
    check_shape(OP, "lora_a", a, [a.rows(), weight.cols()])?;
    check_shape(OP, "lora_b", b, b_shape(device, weight.rows(), a.rows()))?;
    check_shape(OP, "dora_norm", norm, [1, weight.rows()])?;
    device.record(
        "lora_matmul.dora_norm",
        Work::new(2 * (weight.len() * (a.rows() + 1)) as u64, (weight.len() * size_of::<T>()) as u64),
    );
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::dora_norm(weight, a, b, scaling, norm),
        Runner::Gpu => {
            let merged = gpu::dora::Merged { weight, a, b_t: b, scaling: scaling.to_f64() as f32 };
            gpu::dora::norm(device, merged, norm)?;
        }
        Runner::Nobody => {}
    }
    Ok(())
}
