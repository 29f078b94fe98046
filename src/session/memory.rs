//! The memory limit of a run, and its peak use.

use serde::Serialize;

use crate::config::ModelConfig;
use crate::device::{Class, Device, Machine, available_memory};
use crate::error::Result;
use crate::model::init;
use crate::model::weights::Weights;
use crate::tensor::Real;

/// Default share of the free memory of this machine that tensors may take: the rest is for rows, the
/// tokenizer, and other programs.
const DEFAULT_PART: f64 = 0.8;

/// Default share of the free memory of a GPU, which a run takes in one block: the rest is for the driver.
const CARD_PART: f64 = 0.97;

/// Memory limit for tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Limit {
    /// The limit in bytes.
    pub bytes: u64,
    /// Where the limit comes from.
    pub source: String,
}

/// Formats bytes for messages.
pub(crate) fn size(bytes: u64) -> String {
    match bytes as f64 / f64::from(1 << 20) {
        mib if mib < 1024.0 => format!("{mib:.1} MiB"),
        mib => format!("{:.2} GiB", mib / 1024.0),
    }
}

impl Limit {
    /// The limit from the free memory of a GPU, including memory that the run has taken already; `None` if
    /// the device does not report it.
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

    /// The limit from the free memory of this machine; `None` if the system does not report it.
    pub(crate) fn of_machine() -> Option<Self> {
        available_memory().map(|bytes| Self {
            bytes: (bytes as f64 * DEFAULT_PART) as u64,
            source: format!("{:.0}% of the memory that is free", 100.0 * DEFAULT_PART),
        })
    }

    /// The default limit of a run on `device`.
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

/// Bytes of the weights of a model of this shape in `T`, before they are loaded.
///
/// # Errors
/// Errors of the device only.
pub(crate) fn weights_bytes<T: Real>(config: &ModelConfig) -> Result<u64> {
    let device = Device::dry();
    let weights = init::dry::<T>(&device.class(Class::Weights), config)?;
    let bytes = device.memory().live_bytes;
    drop(weights);
    Ok(bytes)
}

/// Bytes of loaded weights.
pub(crate) fn held_bytes<T: Real>(weights: &Weights<T>) -> u64 {
    weights.tensors().iter().map(|tensor| (tensor.len() * size_of::<T>()) as u64).sum()
}

/// Peak bytes of tensors, `weights` included. On a GPU this is the high-water mark of the reserved block plus
/// the weights, which were loaded before. The page cache, rows and the program do not count.
pub(crate) fn peak_bytes<T: Real>(device: &Device, weights: &Weights<T>) -> u64 {
    let memory = device.memory();
    match device.arena() {
        Some(arena) => arena.high_water_bytes + held_bytes(weights),
        None => memory.peak_bytes + memory.borrowed_bytes,
    }
}
