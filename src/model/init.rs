//! Random weights, for models that are made and not downloaded.

use super::weights::{Role, Weights};
use crate::config::ModelConfig;
use crate::device::Device;
use crate::error::Result;
use crate::rng::{Purpose, Stream};
use crate::tensor::Real;

/// Weights as transformers initialises them: matrices normal with `initializer_range`, biases 0, norms 1.
///
/// Every tensor has a stream of its own, so the same seed gives the same weights whatever else is asked for.
///
/// # Errors
/// None of its own; those of the device.
pub fn random<T: Real>(device: &Device, config: &ModelConfig, seed: u64) -> Result<Weights<T>> {
    let mut index = 0;
    Weights::build(config, |_, [rows, cols], role| {
        let mut stream = Stream::new(seed, Purpose::ModelInit, index);
        index += 1;
        let range = config.initializer_range as f32;
        let value = |_| {
            T::from_f32(match role {
                Role::Matrix | Role::Conv1d => stream.normal() * range,
                Role::Bias => 0.0,
                Role::Norm => 1.0,
            })
        };
        let values: Vec<T> = (0..rows * cols).map(value).collect();
        device.tensor(rows, cols, &values)
    })
}

/// Weights with shapes and no content, on a dry device: for plans.
///
/// # Errors
/// None of its own; those of the device.
pub fn dry<T: Real>(device: &Device, config: &ModelConfig) -> Result<Weights<T>> {
    Weights::build(config, |_, [rows, cols], _| device.empty(rows, cols))
}
