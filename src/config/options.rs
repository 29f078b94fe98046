//! Options as pairs of a name and a value, for programs that do not want to write TOML.

use std::path::{Path, PathBuf};

/// A value of an option. Made with `into` from texts, paths, numbers, truth values, and lists of these.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// A text. If the option is not a text, it is parsed as on the command line: `"16"` is 16.
    Text(String),
    /// Several values.
    List(Vec<Value>),
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<&Path> for Value {
    /// Paths in options must be UTF-8. Other bytes are replaced, so such a path is not found.
    fn from(value: &Path) -> Self {
        Self::Text(value.to_string_lossy().into_owned())
    }
}

impl From<PathBuf> for Value {
    fn from(value: PathBuf) -> Self {
        value.as_path().into()
    }
}

impl<V: Into<Value>> From<Vec<V>> for Value {
    fn from(values: Vec<V>) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}

impl<V: Into<Value>, const N: usize> From<[V; N]> for Value {
    fn from(values: [V; N]) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}

/// `From` for each integer type. A number of 2^63 or more becomes a text, which numeric options refuse.
macro_rules! whole_numbers {
    ($($number:ty),+) => { $(
        impl From<$number> for Value {
            fn from(value: $number) -> Self {
                i64::try_from(value).map_or_else(|_| Self::Text(value.to_string()), Self::Integer)
            }
        }
    )+ };
}

whole_numbers!(i32, i64, u32, u64, usize);

impl Value {
    /// The value in TOML.
    pub(crate) fn into_toml(self) -> toml::Value {
        match self {
            Self::Bool(value) => value.into(),
            Self::Integer(value) => value.into(),
            Self::Number(value) => value.into(),
            Self::Text(value) => value.into(),
            Self::List(values) => values.into_iter().map(Self::into_toml).collect::<Vec<_>>().into(),
        }
    }

    /// A value of TOML. Dates and tables, which no option takes, become texts.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command line has options as TOML"))]
    pub(crate) fn from_toml(value: toml::Value) -> Self {
        match value {
            toml::Value::Boolean(value) => Self::Bool(value),
            toml::Value::Integer(value) => Self::Integer(value),
            toml::Value::Float(value) => Self::Number(value),
            toml::Value::String(value) => Self::Text(value),
            toml::Value::Array(values) => Self::List(values.into_iter().map(Self::from_toml).collect()),
            other => Self::Text(other.to_string()),
        }
    }
}

/// Options in the order in which they were set. Names are those of the flags and the TOML file, and those of other tools.
///
/// ```
/// use tanren::config::{Options, TrainConfig};
/// let options = Options::new()
///     .set("model", "Qwen/Qwen3-0.6B")
///     .set("train_file", ["a.jsonl", "b.jsonl"])
///     .set("output_dir", std::path::Path::new("runs/a"))
///     .set("per_device_train_batch_size", 2)
///     .set("learning_rate", 1e-4)
///     .set("shuffle", false);
/// let config = TrainConfig::from_pairs(options)?;
/// assert_eq!((config.batch_size, config.train_file.len()), (Some(2), 2));
/// # Ok::<(), tanren::error::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options(Vec<(String, Value)>);

impl Options {
    /// No options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an option. Giving one twice is an error when the options are resolved.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.push((name.into(), value.into()));
        self
    }

    /// True if nothing was set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys of a TOML table as options.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command line has options as TOML"))]
    pub(crate) fn from_table(table: toml::Table) -> Self {
        Self(table.into_iter().map(|(name, value)| (name, Value::from_toml(value))).collect())
    }
}

impl IntoIterator for Options {
    type Item = (String, Value);
    type IntoIter = std::vec::IntoIter<(String, Value)>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Options {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_from_what_programs_have() {
        assert_eq!(Value::from(3_usize), Value::Integer(3));
        assert_eq!(Value::from(u64::MAX), Value::Text("18446744073709551615".into()));
        assert_eq!(Value::from(Path::new("a")), Value::from("a".to_owned()));
        assert_eq!(Value::from(["a", "b"]), Value::from(vec!["a", "b"]));
        for value in [Value::from(true), Value::from(1.5), Value::from([1, 2]), Value::from("x")] {
            assert_eq!(Value::from_toml(value.clone().into_toml()), value);
        }
    }
}
