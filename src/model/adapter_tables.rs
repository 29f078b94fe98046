//! What a pass reads of its adapters beside their factors: where these are, for kernels; the keys of the dropout masks of the step;
//! and the norms that DoRA divides by.

use super::adapter::{Adapter, LoraParams};
use super::base_masks::BaseMasks;
use super::block::{DropoutStep, dropout_of};
use super::weights::Weights;
use crate::config::{ModelConfig, PerSite, Sites};
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::DropoutKey;
use crate::device::{Class, Device, Machine, Table, Tensor};
use crate::error::Result;
use crate::ops::lora_matmul::gpu::dora::{Magnitude, Magnitudes};
use crate::ops::lora_matmul::gpu::{FactorGrads, Factors, LayerAdapters, LayerFactors};
use crate::ops::lora_matmul::{self, Merged};
use crate::tensor::Real;

/// What DoRA divides by in one adapter.
type Norms<T> = PerSite<Option<Tensor<<T as Real>::Stat>>>;

/// See the module text.
pub(super) struct AdapterTables<T: Real> {
    /// None on a CPU.
    on_gpu: Option<PerSite<Option<LayerAdapters>>>,
    /// None on a CPU.
    magnitudes: Option<PerSite<Option<Magnitudes>>>,
    /// By number of the layer in the model.
    dropout_keys: Option<Table<DropoutKey>>,
    /// Masks of the frozen model.
    pub(super) base: BaseMasks,
    /// By adapter.
    dora_norms: Vec<Norms<T>>,
}

impl<T: Real> AdapterTables<T> {
    /// The tables of `adapters`; `grads` are where a backward pass will add to, by adapter, and none without one. The norms
    /// of DoRA are those of the last [`AdapterTables::measure`].
    pub(super) fn new(
        device: &Device,
        (model, sites): (&ModelConfig, &Sites),
        adapters: &[Adapter<T>],
        grads: &[Adapter<T::Stat>],
        dropout: Option<DropoutStep>,
    ) -> Result<Self> {
        let tables = device.class(Class::Tables);
        let on_gpu = match device.machine() {
            Machine::Gpu => Some(layer_adapters(&tables, sites, adapters, grads)?),
            Machine::Cpu => None,
        };
        let keys = dropout.map_or(Vec::new(), |step| keys_of(sites, adapters, step));
        let dropout_keys = match device.machine() {
            Machine::Gpu if !keys.is_empty() => Some(Table::new(&tables, &keys)?),
            _ => None,
        };
        let dora_norms = room_for_norms(&tables, adapters)?;
        let magnitudes = match device.machine() {
            Machine::Gpu => Some(layer_magnitudes(&tables, sites, (adapters, &dora_norms), grads)?),
            Machine::Cpu => None,
        };
        let base = BaseMasks::new(&tables, model, dropout)?;
        Ok(Self { on_gpu, magnitudes, dropout_keys, base, dora_norms })
    }

    /// Takes the keys of another step.
    pub(super) fn set_step(
        &mut self,
        device: &Device,
        (model, sites): (&ModelConfig, &Sites),
        adapters: &[Adapter<T>],
        step: DropoutStep,
    ) -> Result<()> {
        self.base.set_step(device, model, step)?;
        match &mut self.dropout_keys {
            Some(table) => table.write(device, &keys_of(sites, adapters, step)),
            None => Ok(()),
        }
    }

    /// Computes the norms of DoRA for the adapters as they are.
    pub(super) fn measure(
        &mut self,
        device: &Device,
        weights: &Weights<T>,
        adapters: &[Adapter<T>],
    ) -> Result<()> {
        for (adapter, norms) in adapters.iter().zip(&mut self.dora_norms) {
            for (number, norm) in norms.iter_mut().enumerate() {
                let (Some(params), Some(norm)) = (adapter.params(number), norm) else { continue };
                let (weight, scaling) =
                    (weights.linears[number].weight.dense(), T::Stat::from_f64(params.scaling));
                let merged = Merged { weight, a: &params.a, b: &params.b, scaling };
                lora_matmul::dora_norm(device, merged, norm)?;
            }
        }
        Ok(())
    }

    /// The norms of one layer, if its adapter has magnitudes.
    pub(super) fn dora_norm(&self, adapter: usize, number: usize) -> Option<&Tensor<T::Stat>> {
        self.dora_norms[adapter][number].as_ref()
    }

    /// The adapters of a layer as kernels find them; none where no adapter has it as a target.
    pub(super) fn on_gpu(&self, number: usize) -> Option<&LayerAdapters> {
        self.on_gpu.as_ref()?[number].as_ref()
    }

    /// The magnitudes of a layer as kernels find them; none where no adapter has one there.
    pub(super) fn magnitudes(&self, number: usize) -> Option<&Magnitudes> {
        self.magnitudes.as_ref()?[number].as_ref()
    }

    /// Address of the key of a layer, by its number in the model; null without dropout.
    pub(super) fn dropout_key(&self, number: usize) -> DevicePtr {
        self.dropout_keys
            .as_ref()
            .map_or(DevicePtr(0), |keys| DevicePtr(keys.ptr().0 + (number * size_of::<DropoutKey>()) as u64))
    }
}

/// The keys of all layers in one step; none without dropout.
fn keys_of<T: Real>(sites: &Sites, adapters: &[Adapter<T>], step: DropoutStep) -> Vec<DropoutKey> {
    let key = |number| Some(DropoutKey { word: dropout_of(adapters, step, number)?.key() });
    (0..sites.len()).filter_map(key).collect()
}

/// Empty tensors for the norms of all layers with a magnitude, by adapter.
fn room_for_norms<T: Real>(device: &Device, adapters: &[Adapter<T>]) -> Result<Vec<Norms<T>>> {
    let norm = |params: &Option<LoraParams<T>>| {
        let magnitude = params.as_ref().and_then(|p| p.magnitude.as_ref());
        magnitude.map(|magnitude| device.empty(1, magnitude.cols())).transpose()
    };
    adapters.iter().map(|adapter| adapter.all_params().try_map(norm)).collect()
}

/// The tables of the magnitudes of all linear layers; none where no adapter has one.
fn layer_magnitudes<T: Real>(
    device: &Device,
    sites: &Sites,
    (adapters, norms): (&[Adapter<T>], &[Norms<T>]),
    grads: &[Adapter<T::Stat>],
) -> Result<PerSite<Option<Magnitudes>>> {
    PerSite::try_of(sites, |number, site| {
        let entries: Vec<_> = (0..adapters.len())
            .map(|i| magnitude_of(&adapters[i], &norms[i], grads.get(i), number))
            .collect();
        let has_one = entries.iter().any(Option::is_some);
        has_one.then(|| Magnitudes::new(device, site.shape[0], &entries)).transpose()
    })
}

/// The magnitude of one adapter in a layer, with its norm and gradient.
fn magnitude_of<'a, T: Real>(
    adapter: &'a Adapter<T>,
    norms: &'a Norms<T>,
    grads: Option<&'a Adapter<T::Stat>>,
    number: usize,
) -> Option<Magnitude<'a, T>> {
    Some(Magnitude {
        magnitude: adapter.params(number)?.magnitude.as_ref()?,
        norm: norms[number].as_ref()?,
        grad: grads.and_then(|g| g.params(number)?.magnitude.as_ref()),
    })
}

/// The tables of the adapters of all linear layers; none where no adapter has a layer as a target.
fn layer_adapters<T: Real>(
    device: &Device,
    sites: &Sites,
    adapters: &[Adapter<T>],
    grads: &[Adapter<T::Stat>],
) -> Result<PerSite<Option<LayerAdapters>>> {
    let is_adapted = |number: usize| adapters.iter().any(|a| a.params(number).is_some());
    let of_site = |number: usize| {
        let factors = adapters.iter().enumerate().map(|(i, adapter)| {
            let grads = grads.get(i).and_then(|g| g.params(number));
            let grads = grads.map(|g| FactorGrads { a: &g.a, b_t: &g.b });
            let params = adapter.params(number)?;
            Some(Factors { a: &params.a, b_t: &params.b, grads, scaling: params.scaling as f32 })
        });
        LayerFactors { shape: sites[number].shape, adapters: factors.collect() }
    };
    let layers: Vec<_> = (0..sites.len()).filter(|&number| is_adapted(number)).map(of_site).collect();
    let mut made = LayerAdapters::of_layers(device, &layers)?.into_iter();
    Ok((0..sites.len()).map(|number| if is_adapted(number) { made.next() } else { None }).collect())
}
