//! What all benchmarks share: the settings of criterion, the device, what is asked for, and the size of a row.

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

/// Whether only the short lists are wanted: `TANREN_BENCH_QUICK=1`.
pub(crate) fn is_quick() -> bool {
    std::env::var("TANREN_BENCH_QUICK").is_ok_and(|value| value == "1")
}

/// The parts of names on the command line. Criterion knows its filter too, but says nothing about it before a benchmark is made.
pub(crate) fn filters() -> Vec<String> {
    names(std::env::args().skip(1))
}

/// What of `args` is neither an option nor the value of one.
pub(crate) fn names(args: impl Iterator<Item = String>) -> Vec<String> {
    // Options of criterion that stand alone; all others take a value.
    const ALONE: [&str; 9] = [
        "--bench",
        "--test",
        "--list",
        "--exact",
        "--quick",
        "--quiet",
        "--verbose",
        "--noplot",
        "--discard-baseline",
    ];
    let mut names = Vec::new();
    let mut is_value = false;
    for arg in args {
        let is_option = arg.starts_with('-');
        if !is_option && !is_value {
            names.push(arg);
            continue;
        }
        is_value =
            is_option && !arg.contains('=') && !ALONE.contains(&arg.as_str()) && arg != "-n" && arg != "-v";
    }
    names
}
