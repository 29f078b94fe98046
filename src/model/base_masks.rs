//! The masks of the dropout of the frozen model: which one belongs to which place, and for kernels the keys of the step.
//!
//! Places have numbers: 0 is the sum of the embeddings, `1..=2 * blocks` are the outputs of the sublayers in their order, and what follows are
//! the inputs of the trained layers of a head. A mask is a function of seed, step, number, sample, position and
//! feature ([`Dropout`]), so that it does not depend on batches, devices or threads.

use super::block::DropoutStep;
use crate::config::{DropoutPlace, ModelConfig};
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::DropoutKey;
use crate::device::{Device, Machine, Table};
use crate::error::Result;
use crate::ops::lora_matmul::Dropout;

/// Most trained layers of a head.
const HEAD_LAYERS: usize = 2;

/// The number of what the trained layer `layer` of the head reads.
pub(super) fn head_input(config: &ModelConfig, layer: usize) -> usize {
    2 * config.num_hidden_layers() + 1 + layer
}

/// The mask of a place; none without dropout there.
pub(super) fn mask(
    config: &ModelConfig,
    DropoutStep { seed, step }: DropoutStep,
    number: usize,
) -> Option<Dropout> {
    let place = match number {
        0 => DropoutPlace::Embeddings,
        number if number < head_input(config, 0) => DropoutPlace::Hidden,
        _ => DropoutPlace::Head,
    };
    Dropout::of_base(config.base_dropout.p(place), seed, step, number as u32)
}

/// The keys of all places, in the memory of a GPU.
pub(super) struct BaseMasks {
    /// None on a CPU, and without dropout.
    keys: Option<Table<DropoutKey>>,
}

impl BaseMasks {
    /// The keys of a step.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn new(device: &Device, config: &ModelConfig, step: Option<DropoutStep>) -> Result<Self> {
        let step = step.filter(|_| config.base_dropout.is_on() && device.machine() == Machine::Gpu);
        let keys = step.map(|step| Table::new(device, &keys_of(config, step))).transpose()?;
        Ok(Self { keys })
    }

    /// Takes the keys of another step.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn set_step(
        &mut self,
        device: &Device,
        config: &ModelConfig,
        step: DropoutStep,
    ) -> Result<()> {
        match &mut self.keys {
            Some(table) => table.write(device, &keys_of(config, step)),
            None => Ok(()),
        }
    }

    /// Address of the key of a place; null on a CPU.
    pub(super) fn key(&self, number: usize) -> DevicePtr {
        let at =
            |keys: &Table<DropoutKey>| DevicePtr(keys.ptr().0 + (number * size_of::<DropoutKey>()) as u64);
        self.keys.as_ref().map_or(DevicePtr(0), at)
    }
}

fn keys_of(config: &ModelConfig, step: DropoutStep) -> Vec<DropoutKey> {
    let key = |number| DropoutKey { word: mask(config, step, number).map_or([0; 2], |mask| mask.key()) };
    (0..head_input(config, HEAD_LAYERS)).map(key).collect()
}
