//! What a pass reads of its adapters beside their factors: where these are, for kernels; the keys of the dropout masks of the step;
//! and the norms that DoRA divides by.

use super::adapter::Adapter;
use super::block::{DropoutStep, dropout_of};
use super::weights::{Module, Weights, linear_shape};
use crate::config::ModelConfig;
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::DropoutKey;
use crate::device::{Class, Device, Machine, Table, Tensor};
use crate::error::Result;
use crate::ops::lora_matmul::gpu::dora::{Magnitude, Magnitudes};
use crate::ops::lora_matmul::gpu::{Factors, LayerAdapters};
use crate::ops::lora_matmul::{self, RowKeys};
use crate::tensor::Real;

/// What DoRA divides by in one adapter, by block and module.
type Norms<T> = Vec<[Option<Tensor<<T as Real>::Stat>>; 7]>;

/// See the module text.
pub(super) struct AdapterTables<T: Real> {
    /// By block and module; empty on a CPU.
    on_gpu: Vec<[Option<LayerAdapters>; 7]>,
    /// By block and module; empty on a CPU.
    magnitudes: Vec<[Option<Magnitudes>; 7]>,
    /// By number of the layer in the model.
    dropout_keys: Option<Table<DropoutKey>>,
    /// By adapter, block and module.
    dora_norms: Vec<Norms<T>>,
}

impl<T: Real> AdapterTables<T> {
    /// The tables of `adapters`; `grads` are where a backward pass will add to, by adapter, and none without one. The norms
    /// of DoRA are those of the last [`AdapterTables::measure`].
    pub(super) fn new(
        device: &Device,
        config: &ModelConfig,
        adapters: &[Adapter<T>],
        grads: &[Adapter<T::Stat>],
        dropout: Option<DropoutStep>,
    ) -> Result<Self> {
        let tables = device.class(Class::Tables);
        let on_gpu = match device.machine() {
            Machine::Gpu => layer_adapters(&tables, config, adapters, grads)?,
            Machine::Cpu => Vec::new(),
        };
        let keys = dropout.map_or(Vec::new(), |step| keys_of(config, adapters, step));
        let dropout_keys = match device.machine() {
            Machine::Gpu if !keys.is_empty() => Some(Table::new(&tables, &keys)?),
            _ => None,
        };
        let dora_norms = room_for_norms(&tables, config, adapters)?;
        let magnitudes = match device.machine() {
            Machine::Gpu => layer_magnitudes(&tables, config, (adapters, &dora_norms), grads)?,
            Machine::Cpu => Vec::new(),
        };
        Ok(Self { on_gpu, magnitudes, dropout_keys, dora_norms })
    }

    /// Takes the keys of another step.
    pub(super) fn set_step(
        &mut self,
        device: &Device,
        config: &ModelConfig,
        adapters: &[Adapter<T>],
        step: DropoutStep,
    ) -> Result<()> {
        match &mut self.dropout_keys {
            Some(table) => table.write(device, &keys_of(config, adapters, step)),
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
        for (adapter, blocks) in adapters.iter().zip(&mut self.dora_norms) {
            for (layer, (block, norms)) in weights.blocks.iter().zip(blocks).enumerate() {
                for (module, norm) in Module::ALL.into_iter().zip(norms) {
                    let (Some(params), Some(norm)) = (adapter.params(layer, module), norm) else { continue };
                    let weight = &block.linears[module as usize].weight;
                    let scaling = T::Stat::from_f64(adapter.config().scaling());
                    lora_matmul::dora_norm(device, weight, (&params.a, &params.b), scaling, norm)?;
                }
            }
        }
        Ok(())
    }

    /// The norms of one layer, if its adapter has magnitudes.
    pub(super) fn dora_norm(&self, adapter: usize, layer: usize, module: Module) -> Option<&Tensor<T::Stat>> {
        self.dora_norms[adapter][layer][module as usize].as_ref()
    }

    /// The adapters of a layer as kernels find them; none where no adapter has it as a target.
    pub(super) fn on_gpu(&self, layer: usize, module: Module) -> Option<&LayerAdapters> {
        self.on_gpu.get(layer).and_then(|block| block[module as usize].as_ref())
    }

    /// The magnitudes of a layer as kernels find them; none where no adapter has one there.
    pub(super) fn magnitudes(&self, layer: usize, module: Module) -> Option<&Magnitudes> {
        self.magnitudes.get(layer).and_then(|block| block[module as usize].as_ref())
    }

    /// Address of the key of a layer, by its number in the model; null without dropout.
    pub(super) fn dropout_key(&self, number: usize) -> DevicePtr {
        self.dropout_keys
            .as_ref()
            .map_or(DevicePtr(0), |keys| DevicePtr(keys.ptr().0 + (number * size_of::<DropoutKey>()) as u64))
    }
}

/// The keys of all layers in one step; none without dropout.
fn keys_of<T: Real>(config: &ModelConfig, adapters: &[Adapter<T>], step: DropoutStep) -> Vec<DropoutKey> {
    let nobody = RowKeys::default();
    let key = |number| Some(DropoutKey { word: dropout_of(adapters, step, number, &nobody)?.key() });
    (0..config.num_hidden_layers * Module::ALL.len()).filter_map(key).collect()
}

/// Room for the norms of all layers with a magnitude, by adapter, block and module.
fn room_for_norms<T: Real>(
    device: &Device,
    config: &ModelConfig,
    adapters: &[Adapter<T>],
) -> Result<Vec<Norms<T>>> {
    let of_adapter = |adapter: &Adapter<T>| {
        let of_block = |l: usize| {
            let mut norms = [const { None }; 7];
            for (module, norm) in Module::ALL.into_iter().zip(&mut norms) {
                if let Some(magnitude) = adapter.params(l, module).and_then(|p| p.magnitude.as_ref()) {
                    *norm = Some(device.empty(1, magnitude.cols())?);
                }
            }
            Ok(norms)
        };
        (0..config.num_hidden_layers).map(of_block).collect()
    };
    adapters.iter().map(of_adapter).collect()
}

/// The tables of the magnitudes of all linear layers, by block and module; none where no adapter has one.
fn layer_magnitudes<T: Real>(
    device: &Device,
    config: &ModelConfig,
    (adapters, norms): (&[Adapter<T>], &[Norms<T>]),
    grads: &[Adapter<T::Stat>],
) -> Result<Vec<[Option<Magnitudes>; 7]>> {
    let of_block = |l: usize| {
        let mut tables = [const { None }; 7];
        for (module, table) in Module::ALL.into_iter().zip(&mut tables) {
            let entries: Vec<_> = (0..adapters.len())
                .map(|i| magnitude_of(&adapters[i], &norms[i], grads.get(i), (l, module)))
                .collect();
            if entries.iter().any(Option::is_some) {
                *table = Some(Magnitudes::new(device, linear_shape(config, module)[0], &entries)?);
            }
        }
        Ok(tables)
    };
    (0..config.num_hidden_layers).map(of_block).collect()
}

/// The magnitude of one adapter in a layer, with its norm and gradient.
fn magnitude_of<'a, T: Real>(
    adapter: &'a Adapter<T>,
    norms: &'a [[Option<Tensor<T::Stat>>; 7]],
    grads: Option<&'a Adapter<T::Stat>>,
    (layer, module): (usize, Module),
) -> Option<Magnitude<'a, T>> {
    Some(Magnitude {
        magnitude: adapter.params(layer, module)?.magnitude.as_ref()?,
        norm: norms[layer][module as usize].as_ref()?,
        grad: grads.and_then(|g| g.params(layer, module)?.magnitude.as_ref()),
    })
}

/// The tables of the adapters of all linear layers, by block and module; none where no adapter has a layer as a target.
fn layer_adapters<T: Real>(
    device: &Device,
    config: &ModelConfig,
    adapters: &[Adapter<T>],
    grads: &[Adapter<T::Stat>],
) -> Result<Vec<[Option<LayerAdapters>; 7]>> {
    let places = || (0..config.num_hidden_layers).flat_map(|l| Module::ALL.into_iter().map(move |m| (l, m)));
    let is_adapted = |&(l, m): &(usize, Module)| adapters.iter().any(|a| a.params(l, m).is_some());
    let of_place = |(l, m): (usize, Module)| {
        let factors = adapters.iter().enumerate().map(|(i, adapter)| {
            let grads = grads.get(i).and_then(|g| g.params(l, m)).map(|g| (&g.a, &g.b));
            let params = adapter.params(l, m)?;
            let scaling = adapter.config().scaling() as f32;
            Some(Factors { a: &params.a, b_t: &params.b, grads, scaling })
        });
        (linear_shape(config, m), factors.collect::<Vec<_>>())
    };
    let layers: Vec<_> = places().filter(is_adapted).map(of_place).collect();
    let made = LayerAdapters::of_layers(device, &layers)?;
    let mut blocks: Vec<[Option<LayerAdapters>; 7]> =
        (0..config.num_hidden_layers).map(|_| [const { None }; 7]).collect();
    for ((l, m), adapters) in places().filter(is_adapted).zip(made) {
        blocks[l][m as usize] = Some(adapters);
    }
    Ok(blocks)
}
