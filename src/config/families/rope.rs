//! The rotary frequencies of a `config.json`, in the spellings of transformers: `rope_theta` beside `rope_scaling` (version 4, whose
//! early files say `type` instead of `rope_type`), or all inside `rope_parameters` (version 5).

use serde_json::{Map, Value, json};

use super::file::ConfigFile;
use crate::config::block::{RopeScaling, RopeSpec};
use crate::error::Result;

/// Keys of all types of scaling.
const KEYS: [&str; 14] = [
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "high_freq_factor",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_type",
    "truncate",
    "type",
];

/// The types of scaling that are supported, for messages.
const TYPES: &str = "\"default\", \"linear\", \"dynamic\", \"llama3\" or \"yarn\"";

/// One of the two keys, and what it holds.
struct Scaling<'f, 'a> {
    file: &'f ConfigFile<'a>,
    key: &'static str,
    inner: Map<String, Value>,
}

/// Reads the rotation of a model for sequences of at most `max_positions` tokens.
///
/// # Errors
/// An input error for a wrong number, an unknown type of scaling, or a rotation of a part of a head.
pub(super) fn read(file: &ConfigFile<'_>, max_positions: usize) -> Result<RopeSpec> {
    let partial = "partial_rotary_factor";
    if file.has(partial) && file.value(partial).as_f64() != Some(1.0) {
        return file.refuse(partial, "1.0");
    }
    let theta = file.rope_theta()?;
    let unscaled = RopeSpec::unscaled(theta);
    // Both may be there, where a file was written for both versions: the newer one counts.
    let Some(key) = ["rope_parameters", "rope_scaling"].into_iter().find(|key| file.has(key)) else {
        return Ok(unscaled);
    };
    let Value::Object(inner) = file.value(key) else {
        return file.refuse(key, "null or an object");
    };
    let scaling = Scaling { file, key, inner: inner.clone() };
    scaling.check_keys()?;
    Ok(RopeSpec { scaling: scaling.read(max_positions)?, ..unscaled })
}

impl Scaling<'_, '_> {
    /// Refuses what nobody reads, and what would rotate otherwise.
    fn check_keys(&self) -> Result<()> {
        let says = |(name, value): &(&String, &Value)| match name.as_str() {
            "rope_theta" => self.key == "rope_scaling",
            "partial_rotary_factor" => value.as_f64() != Some(1.0),
            name => !KEYS.contains(&name),
        };
        match self.inner.iter().find(says) {
            None => Ok(()),
            Some((name, _)) => self
                .file
                .error(self.key, format!("{name} needs maths that this build does not support"))
                .got(Value::Object(self.inner.clone()))
                .expected(format!("keys of {TYPES}"))
                .fix("use a model without it")
                .into(),
        }
    }

    fn read(&self, max_positions: usize) -> Result<RopeScaling> {
        let kind = self.inner.get("rope_type").or_else(|| self.inner.get("type"));
        let kind = kind.map_or(Some("default"), Value::as_str);
        match kind {
            Some("default") => {
                let only = ["rope_theta", "rope_type", "type", "partial_rotary_factor"];
                match self.inner.keys().any(|key| !only.contains(&key.as_str())) {
                    true => self.file.refuse(self.key, TYPES),
                    false => Ok(RopeScaling::Default),
                }
            }
            Some("linear") => Ok(RopeScaling::Linear { factor: self.factor()? }),
            Some("dynamic") => Ok(RopeScaling::Dynamic { factor: self.factor()?, max_positions }),
            Some("llama3") => {
                let (low, high) = ("low_freq_factor", "high_freq_factor");
                let scaling = RopeScaling::Llama3 {
                    factor: self.factor()?,
                    low_freq_factor: self.number(low, None)?,
                    high_freq_factor: self.number(high, None)?,
                    original_max_positions: self.original(None)?,
                };
                match self.number(high, None)? > self.number(low, None)? {
                    true => Ok(scaling),
                    false => self.wrong(high, "a number above low_freq_factor"),
                }
            }
            Some("yarn") => self.yarn(max_positions),
            _ => self.file.refuse(self.key, TYPES),
        }
    }

    fn yarn(&self, max_positions: usize) -> Result<RopeScaling> {
        let factor = self.factor()?;
        let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let optional = |key: &str| match self.inner.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.number(key, None).map(Some),
        };
        let attention_factor =
            match (optional("attention_factor")?, optional("mscale")?, optional("mscale_all_dim")?) {
                (Some(factor), ..) => factor,
                (None, Some(own), Some(all)) if own != 0.0 && all != 0.0 => scale(own) / scale(all),
                _ => scale(1.0),
            };
        let truncate = match self.inner.get("truncate") {
            None | Some(Value::Null) => true,
            Some(Value::Bool(truncate)) => *truncate,
            Some(_) => return self.wrong("truncate", "true or false"),
        };
        let (beta_fast, beta_slow) =
            (self.number("beta_fast", Some(32.0))?, self.number("beta_slow", Some(1.0))?);
        if beta_fast < beta_slow || beta_slow <= 0.0 {
            return self.wrong("beta_fast", "a number of at least beta_slow, which is above 0");
        }
        let original_max_positions = self.original(Some(max_positions))?;
        Ok(RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast,
            beta_slow,
            truncate,
            attention_factor,
        })
    }

    /// `factor`, required; transformers warns below 1, where it would make long sequences worse.
    fn factor(&self) -> Result<f64> {
        match self.number("factor", None)? {
            factor if factor >= 1.0 => Ok(factor),
            _ => self.wrong("factor", "a number of at least 1"),
        }
    }

    fn original(&self, default: Option<usize>) -> Result<usize> {
        let key = "original_max_position_embeddings";
        match (self.inner.get(key), default) {
            (None | Some(Value::Null), Some(default)) => Ok(default),
            (value, _) => match value.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()) {
                Some(positions) if (1..=1 << 28).contains(&positions) => Ok(positions),
                _ => self.wrong(key, "a whole number above 0"),
            },
        }
    }

    /// A finite number of at least 0.
    fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match (self.inner.get(key), default) {
            (None | Some(Value::Null), Some(default)) => Ok(default),
            (value, _) => match value.and_then(Value::as_f64) {
                Some(number) if (0.0..1e9).contains(&number) => Ok(number),
                _ => self.wrong(key, "a number"),
            },
        }
    }

    fn wrong<T>(&self, key: &str, expected: &str) -> Result<T> {
        let what = if self.inner.contains_key(key) { "wrong" } else { "missing" };
        self.file
            .error(self.key, format!("{key} is {what}"))
            .got(self.inner.get(key).unwrap_or(&Value::Null))
            .expected(expected)
            .fix("check config.json")
            .into()
    }
}

/// `rope_scaling` as transformers 4.57 writes it; version 5 reads it too.
pub(super) fn write(rope: &RopeSpec) -> Value {
    match rope.scaling {
        RopeScaling::Default => Value::Null,
        RopeScaling::Linear { factor } => json!({"factor": factor, "rope_type": "linear"}),
        RopeScaling::Dynamic { factor, .. } => json!({"factor": factor, "rope_type": "dynamic"}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "factor": factor,
            "high_freq_factor": high_freq_factor,
            "low_freq_factor": low_freq_factor,
            "original_max_position_embeddings": original_max_positions,
            "rope_type": "llama3",
        }),
        RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast,
            beta_slow,
            truncate,
            attention_factor,
        } => json!({
            "attention_factor": attention_factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "factor": factor,
            "original_max_position_embeddings": original_max_positions,
            "rope_type": "yarn",
            "truncate": truncate,
        }),
    }
}
