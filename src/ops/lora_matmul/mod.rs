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
//! Backward with `dxa = scaling * (g * dy) B`: `dB += scaling * (g * dy)^T xa`, `dA += dxa^T x~`, and
//! `dx [+]= dy W + mask(dxa A)` (and `mask(((g - 1) * dy) W)` for DoRA), summed over the layers of the group in their order;
//! `c` counts as a constant, as in PEFT. [`recompute`] gives `y` again from the saved `xa`, with the same bits, and [`project`]
//! gives `xa` alone.
//! The dropout mask is a function of seed, step, layer, sample, position and column: it is never stored, and packing or
//! splitting a batch does not change it. Sources: Hu et al., "LoRA", 2021; Kalajdzievski, "rsLoRA", 2023; Liu et al., "DoRA", 2024;
//! behaviour of PEFT 0.18.

mod cpu;
mod dropout;
pub mod gpu;
pub mod plan;
#[cfg(test)]
mod tests;
mod work;

pub use dropout::{Dropout, RowKeys};

use super::{check_shape, computes};
use crate::batch::AdapterRows;
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
}

impl<T: Real> LoraMatmul<'_, T> {
    /// The largest rank of any adapter.
    pub fn max_rank(&self) -> usize {
        self.loras.iter().flatten().map(|l| l.a.rows()).max().unwrap_or(0)
    }

    /// Columns of `xa`: the largest rank, on a GPU rounded up to whole fragments of its tensor cores.
    pub fn xa_cols(&self, device: &Device) -> usize {
        match device.machine() {
            Machine::Cpu => self.max_rank(),
            Machine::Gpu => self.max_rank().next_multiple_of(plan::RANK_UNIT),
        }
    }

    fn check(&self, device: &Device, rows: usize, xa: &Tensor<T>) -> Result<()> {
        let [out_features, in_features] = self.frozen.weight.shape();
        if let Some(bias) = self.frozen.bias {
            check_shape(OP, "bias", bias, [1, out_features])?;
        }
        check_shape(OP, "xa", xa, [rows, self.xa_cols(device)])?;
        for lora in self.loras.iter().flatten() {
            check_shape(OP, "lora_a", lora.a, [lora.a.rows(), in_features])?;
            check_shape(OP, "lora_b", lora.b, [out_features, lora.a.rows()])?;
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
            Some(dropout) if dropout.rows.len() != rows => {
                Err(Error::shape(OP, "dropout.rows", rows, dropout.rows.len()))
            }
            _ => Ok(()),
        }
    }

    fn check_forward(&self, device: &Device, x: &Tensor<T>, y: &Tensor<T>, xa: &Tensor<T>) -> Result<()> {
        let [out_features, in_features] = self.frozen.weight.shape();
        check_shape(OP, "x", x, [x.rows(), in_features])?;
        check_shape(OP, "y", y, [x.rows(), out_features])?;
        self.check(device, x.rows(), xa)
    }

    fn check_grads(&self, grads: &[Option<LoraGrad<'_, T::Stat>>]) -> Result<()> {
        if grads.len() != self.loras.len() {
            return Err(Error::shape(OP, "grads", self.loras.len(), grads.len()));
        }
        for (lora, grad) in self.loras.iter().zip(grads) {
            match (lora, grad) {
                (Some(lora), Some(grad)) => {
                    check_shape(OP, "d lora_a", grad.a, lora.a.shape())?;
                    check_shape(OP, "d lora_b", grad.b, lora.b.shape())?;
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

/// Writes `y` and `xa` of every layer of a group.
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
    for (layer, out) in layers.iter().zip(outputs.iter()) {
        layer.check_forward(device, x, out.y, out.xa)?;
    }
    work::record_forward(device, ["lora_matmul.forward", "lora_matmul.forward.lora"], x.rows(), layers, true);
    computes(device, OP)?;
    if device.machine() == Machine::Gpu {
        return Ok(());
    }
    for (layer, out) in layers.iter().zip(outputs) {
        cpu::project(device, x, layer, out.xa)?;
        cpu::apply(device, x, layer, out.xa, out.y)?;
    }
    Ok(())
}

/// One layer of a group whose output is wanted once more.
#[derive(Debug)]
pub struct Recompute<'a, T: Real> {
    /// `[rows, out_features]`, overwritten.
    pub y: &'a mut Tensor<T>,
    /// Saved by the forward pass.
    pub xa: &'a Tensor<T>,
}

/// Writes `y` of every layer of a group again, with the bits that [`forward`] gave.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module.
pub fn recompute<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    layers: &[LoraMatmul<'_, T>],
    outputs: &mut [Recompute<'_, T>],
) -> Result<()> {
    check_count("outputs", layers, outputs.len())?;
    for (layer, out) in layers.iter().zip(outputs.iter()) {
        layer.check_forward(device, x, out.y, out.xa)?;
    }
    let names = ["lora_matmul.recompute", "lora_matmul.recompute.lora"];
    work::record_forward(device, names, x.rows(), layers, false);
    computes(device, OP)?;
    if device.machine() == Machine::Gpu {
        return Ok(());
    }
    for (layer, out) in layers.iter().zip(outputs) {
        cpu::apply(device, x, layer, out.xa, out.y)?;
    }
    Ok(())
}

/// Writes `xa` of one layer, with the bits that [`forward`] gives, and leaves the layer itself out.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module.
pub fn project<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    layer: &LoraMatmul<'_, T>,
    xa: &mut Tensor<T>,
) -> Result<()> {
    check_shape(OP, "x", x, [x.rows(), layer.frozen.weight.cols()])?;
    layer.check(device, x.rows(), xa)?;
    work::record_project(device, x.rows(), layer);
    computes(device, OP)?;
    if device.machine() == Machine::Cpu {
        return cpu::project(device, x, layer, xa);
    }
    Ok(())
}

/// What the backward pass reads and writes for one layer of a group.
#[derive(Debug)]
pub struct LayerBackward<'a, 'g, T: Real> {
    /// Gradient of the output, `[rows, out_features]`.
    pub dy: &'a Tensor<T>,
    /// Saved by the forward pass.
    pub xa: &'a Tensor<T>,
    /// Gradients by adapter index, as long as `loras`.
    pub grads: &'a mut [Option<LoraGrad<'g, T::Stat>>],
}

/// What the backward pass of a group reads and writes beside its layers.
#[derive(Debug)]
pub struct Backward<'a, 'g, T: Real> {
    /// Input of the forward pass, `[rows, in_features]`.
    pub x: &'a Tensor<T>,
    /// Where `dx` goes, and whether it is overwritten or added to; none where nobody needs it.
    pub dx: Option<(&'a mut Tensor<T>, super::gemm::Write)>,
    /// By layer.
    pub layers: &'a mut [LayerBackward<'a, 'g, T>],
}

/// Adds to the adapters' gradients and writes `dx`.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module.
pub fn backward<T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    args: Backward<'_, '_, T>,
) -> Result<()> {
    let Backward { x, mut dx, layers: of_layers } = args;
    check_count("layers", layers, of_layers.len())?;
    if let Some((dx, _)) = &dx {
        check_shape(OP, "dx", dx, x.shape())?;
    }
    for (layer, args) in layers.iter().zip(of_layers.iter()) {
        layer.check_forward(device, x, args.dy, args.xa)?;
        layer.check_grads(args.grads)?;
    }
    work::record_backward(device, x.rows(), layers, dx.as_ref().map(|(_, write)| *write));
    computes(device, OP)?;
    if device.machine() == Machine::Gpu {
        drop(work::gpu_temporaries(device, x.rows(), layers)?);
        return Ok(());
    }
    for (layer, args) in layers.iter().zip(of_layers) {
        cpu::backward(device, layer, x, args, dx.as_mut().map(|(dx, write)| (&mut **dx, *write)))?;
        // The layers after the first one add to what it left.
        dx = dx.map(|(dx, _)| (dx, super::gemm::Write::Add));
    }
    Ok(())
}

/// A group has at least one layer, and as many arguments as layers.
fn check_count<T: Real>(arg: &'static str, layers: &[LoraMatmul<'_, T>], count: usize) -> Result<()> {
    match layers.len() == count && count > 0 {
        true => Ok(()),
        false => Err(Error::shape(OP, arg, layers.len().max(1), count)),
    }
}

/// Norms of the rows of `W + scaling * B A`, `[1, out_features]`: the divisor of DoRA.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit each other.
pub fn dora_norm<T: Real>(
    device: &Device,
    weight: &Tensor<T>,
    a: &Tensor<T>,
    b: &Tensor<T>,
    scaling: T::Stat,
) -> Result<Tensor<T::Stat>> {
    check_shape(OP, "lora_a", a, [a.rows(), weight.cols()])?;
    check_shape(OP, "lora_b", b, [weight.rows(), a.rows()])?;
    let mut norm = device.empty(1, weight.rows())?;
    device.record(
        "lora_matmul.dora_norm",
        Work::new(2 * (weight.len() * (a.rows() + 1)) as u64, (weight.len() * size_of::<T>()) as u64),
    );
    if computes(device, OP)? {
        cpu::dora_norm(weight, a, b, scaling, &mut norm);
    }
    Ok(norm)
}
