//! From layers to one value: defaults, then the preset of the model, then a TOML file, then the command line.
//!
//! Every layer is a table with the option names as keys. Each key is checked where it stands, so that a message can name its
//! file and line; then the layers are laid over each other key by key and read once. Relative paths, in files as on the
//! command line, start at the current folder, so that a command means the same with and without its file.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::aliases::{Alias, SWITCHES, canonical, nearest};
use super::keys::keys_of;
use crate::error::{Error, InputError, Result};

/// Largest file of options.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Options of one command: any type that serde reads and writes, with the defaults in `Default`.
pub(super) trait Options: Serialize + DeserializeOwned + Default {
    /// Other names of its keys.
    const ALIASES: &'static [Alias];
    /// Pairs `(key, other)`: giving `key` takes back what a lower layer says of `other`.
    const REPLACES: &'static [(&'static str, &'static str)];
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq)]
enum Origin {
    Flag,
    Preset(&'static str),
    File(PathBuf, usize),
}

/// Values and where they were given. Keys are those of the options.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Layers {
    table: Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    /// The lowest layer: every option that has a default.
    pub(super) fn defaults<T: Options>() -> Result<Self> {
        let table = Table::try_from(T::default())
            .map_err(|error| Error::input("CONFIG", format!("a default cannot be written: {error}")))?;
        Ok(Self { table, origins: BTreeMap::new() })
    }

    /// The layer of the command line.
    pub(super) fn from_flags<T: Options>(flags: Table) -> Result<Self> {
        let mut layer = Self::default();
        for (key, value) in flags {
            layer.insert::<T>(&key, value, Origin::Flag)?;
        }
        Ok(layer)
    }

    /// The layer of a preset.
    pub(super) fn from_preset<T: Options>(name: &'static str, preset: Table) -> Result<Self> {
        let mut layer = Self::default();
        for (key, value) in preset {
            layer.insert::<T>(&key, value, Origin::Preset(name))?;
        }
        Ok(layer)
    }

    /// The layer of a TOML file.
    pub(super) fn from_file<T: Options>(path: &Path) -> Result<Self> {
        let failed = |source| Error::io(path, "read", source);
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Error::input("CONFIG", "the file is too large for a configuration")
                .path(path)
                .expected(format!("at most {MAX_FILE_BYTES} bytes"))
                .fix("name a TOML file with options")
                .into();
        }
        Self::from_text::<T>(path, &text)
    }

    /// The layer of the text of a TOML file.
    pub(super) fn from_text<T: Options>(path: &Path, text: &str) -> Result<Self> {
        let line_of = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        let broken = |error: toml::de::Error| -> Error {
            let line = line_of(error.span().map_or(0, |span| span.start));
            Error::input("CONFIG", format!("not TOML: {}", error.message().replace('\n', ", ")))
                .path(path)
                .line(line)
                .fix("write one `key = value` per line; texts need quotes")
                .into()
        };
        let places = toml::de::DeTable::parse(text).map_err(broken)?;
        let values: Table = text.parse().map_err(broken)?;
        let mut lines: Vec<(usize, String)> = places
            .get_ref()
            .iter()
            .map(|(key, _)| (line_of(key.span().start), key.get_ref().to_string()))
            .collect();
        lines.sort();
        let mut layer = Self::default();
        for (line, key) in lines {
            if let Some(value) = values.get(&key) {
                layer.insert::<T>(&key, value.clone(), Origin::File(path.to_owned(), line))?;
            }
        }
        Ok(layer)
    }

    /// This layer over a lower one.
    pub(super) fn over<T: Options>(self, mut lower: Self) -> Self {
        for (key, other) in T::REPLACES {
            if self.table.contains_key(*key) && !self.table.contains_key(*other) {
                lower.table.remove(*other);
                lower.origins.remove(*other);
            }
        }
        lower.table.extend(self.table);
        lower.origins.extend(self.origins);
        lower
    }

    /// The text under `key`, if it was given.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.table.get(key).and_then(Value::as_str)
    }

    /// Reads all layers as one value.
    pub(super) fn read<T: Options>(&self) -> Result<T> {
        T::deserialize(self.table.clone())
            .map_err(|error| Error::input("CONFIG", error.message().to_owned()).into())
    }

    /// An error about `key`, with the place that gave it.
    pub(super) fn error(&self, key: &str, what: impl Into<String>) -> InputError {
        place(Error::input("CONFIG", what).field(key), self.origins.get(key))
    }

    /// Puts the place that gave `key` into an error.
    pub(super) fn locate(&self, key: &str, error: InputError) -> Error {
        place(error, self.origins.get(key)).into()
    }

    /// Adds one value after checking its name and type.
    fn insert<T: Options>(&mut self, name: &str, value: Value, origin: Origin) -> Result<()> {
        let switch = SWITCHES.iter().find(|switch| switch.name == name.replace('-', "_"));
        let (name, value) = match (switch, &value) {
            (Some(switch), Value::Boolean(on)) => match switch.value(*on) {
                Some(word) => (switch.option, Value::String(word.to_owned())),
                None => return Ok(()),
            },
            _ => (name, value),
        };
        let keys = keys_of::<T>();
        let Some(key) = canonical(name, keys, T::ALIASES) else {
            let names =
                keys.iter().copied().chain(T::ALIASES.iter().flat_map(|(_, names)| names.iter().copied()));
            let fix = match nearest(name, names) {
                Some(known) => format!("did you mean {}?", known.replace('-', "_")),
                None => "see --help for all options".to_owned(),
            };
            return place(Error::input("CONFIG", "unknown option").field(name), Some(&origin))
                .fix(fix)
                .into();
        };
        if let Some(first) = self.origins.get(key) {
            let before = match first {
                Origin::File(_, line) => format!(" (first on line {line})"),
                Origin::Flag | Origin::Preset(_) => String::new(),
            };
            let what = format!("\"{key}\" is given twice{before}");
            return place(Error::input("CONFIG", what).field(name), Some(&origin))
                .fix("keep one of them; aliases are the same option")
                .into();
        }
        let mut trial = Self::defaults::<T>()?.table;
        trial.insert(key.to_owned(), value.clone());
        if let Err(error) = T::deserialize(trial) {
            return place(type_error(key, &value, error.message()), Some(&origin)).into();
        }
        self.table.insert(key.to_owned(), value);
        self.origins.insert(key.to_owned(), origin);
        Ok(())
    }
}

/// Adds the place to an error. Flags need none: the field names them.
fn place(error: InputError, origin: Option<&Origin>) -> InputError {
    match origin {
        Some(Origin::File(path, line)) => error.path(path).line(*line),
        Some(Origin::Preset(name)) => error.path(format!("preset of {name}")),
        Some(Origin::Flag) | None => error,
    }
}

/// Turns serde's message about a value into one for people who do not write Rust.
fn type_error(key: &str, value: &Value, message: &str) -> InputError {
    let message = message.lines().next().unwrap_or_default();
    let number = matches!(value, Value::Integer(_) | Value::Float(_));
    let Some((_, expected)) = message.split_once(", expected ") else {
        return Error::input("CONFIG", message).field(key).got(value).fix("see --help");
    };
    let (expected, fix) = match expected.trim() {
        "usize" | "u64" | "u32" if number => {
            ("a whole number of at least 0", "write a whole number without a point")
        }
        "usize" | "u64" | "u32" => ("a whole number", "write the number without quotes"),
        "f64" => ("a number", "write the number without quotes"),
        "a boolean" => ("true or false", "write true or false without quotes"),
        "a string" | "path string" => ("a text", "put the text in quotes"),
        other => (other, "see --help"),
    };
    Error::input("CONFIG", "wrong type").field(key).got(value).expected(expected).fix(fix)
}
