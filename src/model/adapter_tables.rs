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
use crate::ops::lora_matmul::gpu::{Factors, LayerAdapters};
use crate::ops::lora_matmul::{self, RowKeys};
use crate::tensor::Real;

/// See the module text.
pub(super) struct AdapterTables<T: Real> {
    /// By block and module; empty on a CPU.
    on_gpu: Vec<[Option<LayerAdapters>; 7]>,
    /// By number of the layer in the model.
    dropout_keys: Option<Table<DropoutKey>>,
    /// By adapter, block and module.
    dora_norms: Vec<Vec<[Option<Tensor<T::Stat>>; 7]>>,
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
        let blocks = || (0..config.num_hidden_layers).map(|_| [const { None }; 7]).collect();
        Ok(Self { on_gpu, dropout_keys, dora_norms: adapters.iter().map(|_| blocks()).collect() })
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
                for module in Module::ALL {
                    let Some(params) = adapter.params(layer, module) else { continue };
                    if params.magnitude.is_some() {
                        let weight = &block.linears[module as usize].weight;
                        let scaling = T::Stat::from_f64(adapter.config().scaling());
                        let norm = lora_matmul::dora_norm(device, weight, &params.a, &params.b, scaling)?;
                        norms[module as usize] = Some(norm);
                    }
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

    /// Address of the key of a layer, by its number in the model; null without dropout.
    pub(super) fn dropout_key(&self, number: usize) -> DevicePtr {
        self.dropout_keys.as_ref().map_or(DevicePtr(0), |keys| {
            DevicePtr(keys.ptr().0 + (number * size_of::<DropoutKey>()) as u64)
        })
    }
}

/// The keys of all layers in one step; none without dropout.
fn keys_of<T: Real>(config: &ModelConfig, adapters: &[Adapter<T>], step: DropoutStep) -> Vec<DropoutKey> {
    let nobody = RowKeys::default();
    let key = |number| Some(DropoutKey { word: dropout_of(adapters, step, number, &nobody)?.key() });
    (0..config.num_hidden_layers * Module::ALL.len()).filter_map(key).collect()
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

