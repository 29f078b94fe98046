//! What this build can do of what can be configured. The only place that knows: checks and the help ask here.
//!
//! Which models it can do is said by the families (`families`), and what it can do of an adapter of PEFT by their reader.

use std::fmt;

use super::values::DeviceChoice;
use crate::error::{Error, Result};

/// Options of which this build cannot do every valid value, with those that it can.
const SUPPORTED: [(&str, &[&str]); 8] = [
    ("task", &["causal"]),
    ("quant", &["none"]),
    // It says how to quantize.
    ("double_quant", &[]),
    ("format", &["auto", "plain", "chat"]),
    ("loss", &["cross_entropy"]),
    ("target_shift", &["none"]),
    ("group_by", &["absent"]),
    ("mode", &["logprob", "choice"]),
];

/// The values of an option that this build can do; for one that it can do all of, none are listed.
pub fn supported(option: &str) -> &'static [&'static str] {
    SUPPORTED.iter().find(|(name, _)| *name == option).map_or(&[], |(_, values)| *values)
}

/// Whether there is nothing to choose in an option: at most one of its values can be done.
pub fn has_no_choice(option: &str) -> bool {
    SUPPORTED.iter().any(|(name, values)| *name == option && values.len() < 2)
}

/// The element types that a device computes in.
pub(super) fn dtypes(device: DeviceChoice) -> &'static [&'static str] {
    if device.is_gpu() { &["bf16"] } else { &["f32"] }
}

/// The error for a value of an option that this build cannot do.
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
