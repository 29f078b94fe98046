//! How much memory tensors may take, and how much they took.

use serde::Serialize;

use crate::config::ModelConfig;
use crate::device::{Class, Device, Machine, available_memory};
use crate::error::Result;
use crate::model::init;
use crate::model::weights::Weights;
use crate::tensor::Real;

/// Part of the free memory of this machine that a run may take unless told otherwise: the rest is for rows, the tokenizer, and
/// other programs.
const DEFAULT_PART: f64 = 0.8;

/// The same of the free memory of a GPU, which a run takes in one piece: the rest is for what the driver needs on top.
const CARD_PART: f64 = 0.97;

/// Most memory for tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Limit {
    /// Bytes.
    pub bytes: u64,
    /// Who says so.
    pub source: String,
}

/// Bytes of memory as messages have them.
pub(crate) fn size(bytes: u64) -> String {
    match bytes as f64 / f64::from(1 << 20) {
        mib if mib < 1024.0 => format!("{mib:.1} MiB"),
        mib => format!("{:.2} GiB", mib / 1024.0),
    }
}

impl Limit {
    /// What is free on a GPU, with what the run has taken there already; none if the device does not know.
    ///
    /// # Errors
    /// That of the driver.
    pub(crate) fn of_card(device: &Device) -> Result<Option<Self>> {
        let ours = device.memory().live_bytes;
        Ok(device.card_memory()?.map(|memory| Self {
            bytes: ((memory.free_bytes + ours) as f64 * CARD_PART) as u64,
            source: format!("{:.0}% of the memory of the card that is free", 100.0 * CARD_PART),
        }))
    }

    /// What is free on this machine; none if it does not say.
    pub(crate) fn of_machine() -> Option<Self> {
        available_memory().map(|bytes| Self {
            bytes: (bytes as f64 * DEFAULT_PART) as u64,
            source: format!("{:.0}% of the memory that is free", 100.0 * DEFAULT_PART),
        })
    }

    /// What a run on `device` may take without being told.
    ///
    /// # Errors
    /// That of the driver.
    pub(crate) fn of(device: &Device) -> Result<Option<Self>> {
        match device.machine() {
            Machine::Cpu => Ok(Self::of_machine()),
            Machine::Gpu => Self::of_card(device),
        }
    }
}

/// Bytes of weights of this shape in `T`, before they are loaded.
///
/// # Errors
/// None of its own; those of the device.
pub(crate) fn weights_bytes<T: Real>(config: &ModelConfig) -> Result<u64> {
    let device = Device::dry();
    let weights = init::dry::<T>(&device.class(Class::Weights), config)?;
    let bytes = device.memory().live_bytes;
    drop(weights);
    Ok(bytes)
}

/// Bytes of weights that are there.
pub(crate) fn held_bytes<T: Real>(weights: &Weights<T>) -> u64 {
    weights.tensors().iter().map(|tensor| (tensor.len() * size_of::<T>()) as u64).sum()
}

/// The most bytes that tensors took: `weights` and what came to them. On a GPU that is how far they reached in the memory that was
/// taken for them, and the weights, which were there before. Files in the page cache, rows and the program do not count.
pub(crate) fn peak_bytes<T: Real>(device: &Device, weights: &Weights<T>) -> u64 {
    let memory = device.memory();
    match device.arena() {
        Some(arena) => arena.high_water_bytes + held_bytes(weights),
        None => memory.peak_bytes + memory.borrowed_bytes,
    }
}
