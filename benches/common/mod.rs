//! What all benchmarks share: the settings of criterion, the device, and the size of a row.

use std::time::Duration;

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;

/// Tokens of one row: the mean of the law questions in `examples/lawqa`, with the tokenizer of Qwen3.
pub(crate) const ROW: usize = 654;

/// Rank of the adapters.
pub(crate) const LORA_R: usize = 16;

/// Criterion with the settings of this repository; flags of the command line come over them.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(10)
        .configure_from_args()
}

/// The device that everything is measured on: all cores.
///
/// # Errors
/// If the system gives no threads.
pub(crate) fn device() -> Result<Device> {
    Device::cpu(0)
}
