//! Which valid option values this build supports. The only place that knows it; checks and the help use it.
//!
//! Supported models are defined by `families`, supported features of PEFT adapters by their reader.

use std::fmt;

use super::values::DeviceChoice;
use crate::error::{Error, Result};

/// Options with valid values that this build does not support, and the values that it supports.
const SUPPORTED: [(&str, &[&str]); 5] = [
    ("quant", &["none"]),
    // An option of quantization.
    ("double_quant", &[]),
    ("format", &["auto", "plain", "chat"]),
    ("group_by", &["absent"]),
    ("mode", &["auto", "logprob", "choice", "classify", "regress"]),
];

/// The supported values of an option; empty if all values are supported.
pub fn supported(option: &str) -> &'static [&'static str] {
    SUPPORTED.iter().find(|(name, _)| *name == option).map_or(&[], |(_, values)| *values)
}

/// True if an option leaves no choice: at most one of its values is supported.
pub fn has_no_choice(option: &str) -> bool {
    SUPPORTED.iter().any(|(name, values)| *name == option && values.len() < 2)
}

/// The element types that a device computes in.
pub(super) fn dtypes(device: DeviceChoice) -> &'static [&'static str] {
    if device.is_gpu() { &["bf16"] } else { &["f32"] }
}

/// The error for an option value that this build does not support.
pub fn unsupported<T>(option: &str, value: impl fmt::Display) -> Result<T> {
    refuse(option, value, supported(option))
}

/// Refuses the first `(option, value, supported values)` whose value is not supported.
pub(super) fn check(table: &[(&str, String, &[&str])]) -> Result<()> {
    match table.iter().find(|(_, value, supported)| !supported.contains(&value.as_str())) {
        None => Ok(()),
        Some((option, value, supported)) => refuse(option, value, supported),
    }
}

fn refuse<T>(option: &str, value: impl fmt::Display, supported: &[&str]) -> Result<T> {
    Error::input("CONFIG", "not supported by this build")
        .field(option)
        .got(value)
        .expected(supported.join(" or "))
        .fix(format!("leave {option} out or choose a supported value"))
        .into()
}
