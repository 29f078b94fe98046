//! What this build can do of what can be configured. The only place that knows: checks and the help ask here.

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

/// The error for the first `(option, value, supported values)` whose value is not supported.
pub(super) fn unsupported(table: &[(&str, String, &[&str])]) -> Result<()> {
    match table.iter().find(|(_, value, supported)| !supported.contains(&value.as_str())) {
        None => Ok(()),
        Some((field, value, supported)) => Error::input("CONFIG", "not supported by this build")
            .field(*field)
            .got(value)
            .expected(supported.join(" or "))
            .fix(format!("leave {field} out or choose a supported value"))
            .into(),
    }
}
