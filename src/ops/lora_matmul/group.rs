//! The inputs of the op: linear layers that share their input, their adapters, and the rows that go through
//! them.

use std::ops::Range;

use super::gpu::LayerAdapters;
use super::gpu::dora::Magnitudes;
use super::plan::RANK_UNIT;
use super::{Dropout, OP, Rows};
use crate::device::{Device, Machine, Tensor};
use crate::error::{Error, Result};
use crate::ops::check_shape;
use crate::tensor::Real;

/// Layers that share their input (q, k and v; gate and up), or one alone, and the rows that go through them.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a, T: Real> {
    /// At least one; on a GPU at most [`MAX_LAYERS`](super::plan::MAX_LAYERS).
    pub layers: &'a [Layer<'a, T>],
    /// Maps rows to adapters.
    pub rows: &'a Rows,
    /// Overrides the tile that the plan would choose on a GPU, for benchmarks and tests.
    pub tile: Option<[usize; 2]>,
}

/// One linear layer: its frozen weights, and its adapters in the form for the CPU and in the form for
/// kernels.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a, T: Real> {
    /// `[out_features, in_features]`, frozen; on a GPU multiples of 8.
    pub weight: &'a Tensor<T>,
    /// `[1, out_features]`, frozen.
    pub bias: Option<&'a Tensor<T>>,
    /// Adapters by index; `None` where an adapter does not target the layer.
    pub loras: &'a [Option<Lora<'a, T>>],
    /// The adapters for kernels, with their gradients; `None` on a CPU, and if the layer is not a target.
    pub adapters: Option<&'a LayerAdapters>,
    /// The DoRA magnitudes and norms for kernels, with their gradients; `None` on a CPU, and without DoRA.
    pub magnitudes: Option<&'a Magnitudes>,
    /// Dropout on the adapters' input; `None` in evaluation.
    pub dropout: Option<Dropout>,
}

/// One adapter of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Lora<'a, T: Real> {
    /// `[r, in_features]`.
    pub a: &'a Tensor<T>,
    /// `[out_features, r]`; on a GPU transposed ([`b_shape`]).
    pub b: &'a Tensor<T>,
    /// `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub scaling: T::Stat,
    /// The magnitude, for DoRA.
    pub dora: Option<Dora<'a, T>>,
}

/// The magnitude of an adapter and its divisor, `[1, out_features]` each.
#[derive(Debug, Clone, Copy)]
pub struct Dora<'a, T: Real> {
    /// Trained.
    pub magnitude: &'a Tensor<T>,
    /// From [`dora_norm`](super::dora_norm).
    pub norm: &'a Tensor<T::Stat>,
}

/// Gradients of one adapter; they accumulate.
#[derive(Debug)]
pub struct LoraGrad<'a, T: Real> {
    /// `[r, in_features]`.
    pub a: &'a mut Tensor<T>,
    /// In the shape of `B`.
    pub b: &'a mut Tensor<T>,
    /// `[1, out_features]`, where the adapter has a magnitude.
    pub magnitude: Option<&'a mut Tensor<T>>,
}

/// A layer and the rows that go through it.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerRows<'a, T: Real> {
    pub(super) layer: &'a Layer<'a, T>,
    pub(super) rows: &'a Rows,
}

/// Shape of `B`, which a GPU keeps transposed.
pub fn b_shape(device: &Device, out_features: usize, r: usize) -> [usize; 2] {
    b_shape_on(device.machine(), out_features, r)
}

fn b_shape_on(machine: Machine, out_features: usize, r: usize) -> [usize; 2] {
    match machine {
        Machine::Cpu => [out_features, r],
        Machine::Gpu => [r, out_features],
    }
}

impl<'a, T: Real> Group<'a, T> {
    /// A group of these layers and rows, with the tile that the plan chooses.
    pub fn new(layers: &'a [Layer<'a, T>], rows: &'a Rows) -> Self {
        Self { layers, rows, tile: None }
    }

    /// Columns of `xa` and `dxa` of layer `i`. On a GPU: the largest rank of the group, rounded up to the
    /// fragment size of the tensor cores; 0 if the layer has no adapter.
    pub fn xa_cols(&self, i: usize) -> usize {
        let own = self.layers[i].max_rank();
        match self.rows.machine() {
            Machine::Gpu if own > 0 => {
                let ranks = self.layers.iter().map(Layer::max_rank);
                ranks.max().unwrap_or(0).next_multiple_of(RANK_UNIT)
            }
            _ => own,
        }
    }

    /// Columns of the input.
    pub(super) fn in_features(&self) -> usize {
        self.layers.first().map_or(0, Layer::in_features)
    }

    /// True if any adapter has a magnitude.
    pub(super) fn has_dora(&self) -> bool {
        self.layers.iter().any(Layer::has_dora)
    }

    /// The dropout of the layers, which differ in their keys alone.
    pub(super) fn dropout(&self) -> Option<Dropout> {
        self.layers.iter().find_map(|layer| layer.dropout)
    }

    /// Layer by layer.
    pub(super) fn each(&self) -> impl Iterator<Item = LayerRows<'a, T>> {
        let rows = self.rows;
        self.layers.iter().map(move |layer| LayerRows { layer, rows })
    }

    /// Fails unless the group has at least one layer, and one argument per layer.
    pub(super) fn check_count(&self, arg: &'static str, count: usize) -> Result<()> {
        match self.layers.len() == count && count > 0 {
            true => Ok(()),
            false => Err(Error::shape(OP, arg, self.layers.len().max(1), count)),
        }
    }

    /// The layers, each with its `xa` or `dxa`.
    pub(super) fn check<'t>(&self, xa: impl Iterator<Item = &'t Tensor<T>>) -> Result<()> {
        for (i, (one, xa)) in self.each().zip(xa).enumerate() {
            check_shape(OP, "weight", one.layer.weight, [one.layer.out_features(), self.in_features()])?;
            check_shape(OP, "xa", xa, [self.rows.capacity(), self.xa_cols(i)])?;
            one.check()?;
        }
        match self.layers.iter().any(|layer| layer.dropout.is_some() != self.dropout().is_some()) {
            true => Err(Error::shape(OP, "dropout", "on all layers or none", "some")),
            false => Ok(()),
        }
    }
}

impl<T: Real> Layer<'_, T> {
    /// Columns of the output.
    pub(super) fn out_features(&self) -> usize {
        self.weight.rows()
    }

    /// Columns of the input.
    pub(super) fn in_features(&self) -> usize {
        self.weight.cols()
    }

    /// The largest rank of any adapter.
    pub fn max_rank(&self) -> usize {
        self.loras.iter().flatten().map(|lora| lora.a.rows()).max().unwrap_or(0)
    }

    /// True if any adapter has a magnitude: `dxa` is then not a product with `dy` itself.
    pub fn has_dora(&self) -> bool {
        self.loras.iter().flatten().any(|lora| lora.dora.is_some())
    }

    /// The layer without its adapters.
    pub(super) fn frozen(&self) -> Self {
        Self { loras: &[], adapters: None, magnitudes: None, dropout: None, ..*self }
    }
}

impl<'a, T: Real> LayerRows<'a, T> {
    /// Adapter and rows of every run with an adapter.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, &'a Lora<'a, T>, Range<usize>)> {
        let loras = self.layer.loras;
        self.rows.runs().iter().filter_map(|run| {
            let lora = loras.get(run.adapter)?.as_ref()?;
            (!run.rows.is_empty()).then(|| (run.adapter, lora, run.rows.clone()))
        })
    }

    pub(super) fn check(&self) -> Result<()> {
        let Self { layer, rows } = self;
        let (out_features, in_features) = (layer.out_features(), layer.in_features());
        if let Some(bias) = layer.bias {
            check_shape(OP, "bias", bias, [1, out_features])?;
        }
        for lora in layer.loras.iter().flatten() {
            let r = lora.a.rows();
            check_shape(OP, "lora_a", lora.a, [r, in_features])?;
            check_shape(OP, "lora_b", lora.b, b_shape_on(rows.machine(), out_features, r))?;
            if let Some(Dora { magnitude, norm }) = lora.dora {
                check_shape(OP, "magnitude", magnitude, [1, out_features])?;
                check_shape(OP, "dora_norm", norm, [1, out_features])?;
            }
        }
        let (named, adapters) = (rows.adapters_named(), layer.loras.len());
        if adapters > 0 && named > adapters {
            return Err(Error::shape(OP, "adapter", format!("below {adapters}"), named - 1));
        }
        match layer.dropout {
            Some(_) if rows.machine() == Machine::Cpu && rows.keys().len() != rows.capacity() => {
                Err(Error::shape(OP, "keys of rows", rows.capacity(), rows.keys().len()))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_grads(&self, grads: &[Option<LoraGrad<'_, T::Stat>>]) -> Result<()> {
        let Self { layer, rows } = self;
        if grads.len() != layer.loras.len() {
            return Err(Error::shape(OP, "grads", layer.loras.len(), grads.len()));
        }
        for (lora, grad) in layer.loras.iter().zip(grads) {
            match (lora, grad) {
                (Some(lora), Some(grad)) => {
                    let b = b_shape_on(rows.machine(), layer.out_features(), lora.a.rows());
                    check_shape(OP, "d lora_a", grad.a, lora.a.shape())?;
                    check_shape(OP, "d lora_b", grad.b, b)?;
                    if let (Some(dora), Some(dm)) = (lora.dora, grad.magnitude.as_deref()) {
                        check_shape(OP, "d magnitude", dm, dora.magnitude.shape())?;
                    }
                }
                (None, None) => {}
                _ => return Err(Error::shape(OP, "grads", "one per adapter of the layer", "others")),
            }
        }
        Ok(())
    }
}
