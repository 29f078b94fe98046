//! The adapter tables in device memory: the addresses of factors and gradients, for kernels.

use std::sync::Arc;

use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{DropoutKey, LoraFactor};
use crate::device::{Device, Table, Tensor};
use crate::error::Result;
use crate::ops::check_shape;
use crate::ops::lora_matmul::OP;
use crate::tensor::Real;

/// Gradients of an adapter's part of a layer.
#[derive(Debug, Clone, Copy)]
pub struct FactorGrads<'a, T: Real> {
    /// Of `A`.
    pub a: &'a Tensor<T::Stat>,
    /// Of `B` transposed.
    pub b_t: &'a Tensor<T::Stat>,
}

/// A layer and its adapters.
#[derive(Debug, Clone)]
pub struct LayerFactors<'a, T: Real> {
    /// `[out_features, in_features]`.
    pub shape: [usize; 2],
    /// By adapter index; `None` where an adapter does not target the layer.
    pub adapters: Vec<Option<Factors<'a, T>>>,
}

/// One adapter's part of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a, T: Real> {
    /// `A`, `[r, in_features]`.
    pub a: &'a Tensor<T>,
    /// `B` transposed, `[r, out_features]`.
    pub b_t: &'a Tensor<T>,
    /// Their gradients, added to by [`gradients`](crate::ops::lora_matmul::gradients); `None` if they are not
    /// trained.
    pub grads: Option<FactorGrads<'a, T>>,
    /// `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub scaling: f32,
}

/// The adapters of one layer, in device memory.
#[derive(Debug, Clone)]
pub struct LayerAdapters {
    /// Address of the table of `A`, by adapter.
    pub(super) a: DevicePtr,
    /// Address of the table of `B` transposed, by adapter.
    pub(super) b_t: DevicePtr,
    pub(super) max_rank: usize,
    /// The memory of the tables, shared with other layers.
    _memory: Arc<Tensor<u32>>,
}

impl LayerAdapters {
    /// The table of the adapters of a layer `[out_features, in_features]`, by index; `None` where an adapter
    /// does not target the layer.
    ///
    /// # Errors
    /// As [`LayerAdapters::of_layers`].
    pub fn new<T: Real>(
        device: &Device,
        shape: [usize; 2],
        adapters: &[Option<Factors<'_, T>>],
    ) -> Result<Self> {
        Ok(Self::of_layers(device, &[LayerFactors { shape, adapters: adapters.to_vec() }])?.remove(0))
    }

    /// The tables of many layers, in one allocation.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) if a factor or gradient has another shape than its layer `[out_features, in_features]`; errors of the
    /// device.
    pub fn of_layers<T: Real>(device: &Device, layers: &[LayerFactors<'_, T>]) -> Result<Vec<Self>> {
        let mut entries: Vec<LoraFactor> = Vec::new();
        let mut max_ranks = Vec::new();
        for LayerFactors { shape: [out_features, in_features], adapters } in layers {
            let (mut a, mut b_t, mut max_rank) = (Vec::new(), Vec::new(), 0);
            for adapter in adapters {
                let Some(factors) = adapter else {
                    a.push(<LoraFactor as bytemuck::Zeroable>::zeroed());
                    b_t.push(<LoraFactor as bytemuck::Zeroable>::zeroed());
                    continue;
                };
                let r = factors.a.rows();
                max_rank = max_rank.max(r);
                check_shape(OP, "lora_a", factors.a, [r, *in_features])?;
                check_shape(OP, "lora_b transposed", factors.b_t, [r, *out_features])?;
                if let Some(grads) = factors.grads {
                    check_shape(OP, "d lora_a", grads.a, [r, *in_features])?;
                    check_shape(OP, "d lora_b transposed", grads.b_t, [r, *out_features])?;
                }
                let entry = |value: &Tensor<T>, grad: Option<&Tensor<T::Stat>>| LoraFactor {
                    value: value.ptr(),
                    grad: grad.map_or(DevicePtr(0), Tensor::ptr),
                    r: r as i32,
                    scaling: factors.scaling,
                };
                a.push(entry(factors.a, factors.grads.map(|grads| grads.a)));
                b_t.push(entry(factors.b_t, factors.grads.map(|grads| grads.b_t)));
            }
            entries.extend(a);
            entries.extend(b_t);
            max_ranks.push(max_rank);
        }
        let words = size_of::<LoraFactor>() / size_of::<u32>();
        let memory = Arc::new(device.tensor(entries.len(), words, bytemuck::cast_slice(&entries))?);
        let mut next = memory.ptr().0;
        let mut place = |adapters: usize| {
            let at = DevicePtr(next);
            next += (adapters * size_of::<LoraFactor>()) as u64;
            at
        };
        let of_layer = |(layer, max_rank): (&LayerFactors<'_, T>, usize)| Self {
            a: place(layer.adapters.len()),
            b_t: place(layer.adapters.len()),
            max_rank,
            _memory: memory.clone(),
        };
        Ok(layers.iter().zip(max_ranks).map(of_layer).collect())
    }
}

/// The dropout keys of all layers; [`Table::write`] sets those of another step.
///
/// # Errors
/// Errors of the device.
pub fn dropout_keys(device: &Device, keys: &[[u32; 2]]) -> Result<Table<DropoutKey>> {
    Table::new(device, &keys.iter().map(|&word| DropoutKey { word }).collect::<Vec<_>>())
}
