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

use super::aliases::{Alias, Off, SWITCHES, Switch, canonical, meaning, nearest, truth};
use super::foreign;
use super::keys::keys_of;
use super::options::Options;
use crate::error::{Error, InputError, Result};

/// Largest file of options.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Options of one command: any type that serde reads and writes, with the defaults in `Default`.
pub(super) trait Keyed: Serialize + DeserializeOwned + Default {
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
    Adapter(PathBuf),
    File(PathBuf, usize),
}

/// Values and where they were given. Keys are those of the options.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Layers {
    table: Table,
    origins: BTreeMap<String, Origin>,
    /// What the user hears about options of other tools.
    notes: Vec<String>,
    /// Switches that are off and leave it to another option to say what is meant.
    named: Vec<(&'static Switch, Origin)>,
}

impl Layers {
    /// The lowest layer: every option that has a default.
    pub(super) fn defaults<T: Keyed>() -> Result<Self> {
        let table = Table::try_from(T::default())
            .map_err(|error| Error::input("CONFIG", format!("a default cannot be written: {error}")))?;
        Ok(Self { table, ..Self::default() })
    }

    /// What was given: `flags` over `file`.
    pub(super) fn given<T: Keyed>(flags: Options, file: Option<&Path>) -> Result<Self> {
        let flags = Self::from_flags::<T>(flags)?;
        Ok(match file {
            Some(path) => flags.over::<T>(Self::from_file::<T>(path)?),
            None => flags,
        })
    }

    /// The layer of the command line, or of a program.
    pub(super) fn from_flags<T: Keyed>(flags: Options) -> Result<Self> {
        let mut layer = Self::default();
        for (key, value) in flags {
            layer.insert::<T>(&key, value.into_toml(), Origin::Flag)?;
        }
        Ok(layer)
    }

    /// The layer of a preset.
    pub(super) fn from_preset<T: Keyed>(name: &'static str, preset: Table) -> Result<Self> {
        let mut layer = Self::default();
        for (key, value) in preset {
            layer.insert::<T>(&key, value, Origin::Preset(name))?;
        }
        Ok(layer)
    }

    /// The layer of an adapter to start from, whose file is `path`.
    pub(super) fn from_adapter<T: Keyed>(path: &Path, settings: Table) -> Result<Self> {
        let mut layer = Self::default();
        for (key, value) in settings {
            layer.insert::<T>(&key, value, Origin::Adapter(path.to_owned()))?;
        }
        Ok(layer)
    }

    /// The layer of a TOML file.
    pub(super) fn from_file<T: Keyed>(path: &Path) -> Result<Self> {
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
    pub(super) fn from_text<T: Keyed>(path: &Path, text: &str) -> Result<Self> {
        let line_of = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        let broken = |error: toml::de::Error| -> Error {
            let line = line_of(error.span().map_or(0, |span| span.start));
            let written = text.lines().nth(line - 1).and_then(|line| line.split_once('='));
            if let Some((key, value)) = written.filter(|(_, value)| is_too_large(number(value))) {
                return too_large(key.trim(), number(value)).path(path).line(line).into();
            }
            let fix = match written.map(|(_, value)| value.trim()) {
                Some("True") => "write true in small letters",
                Some("False") => "write false in small letters",
                Some("None" | "null") => "leave the line out",
                _ => "write one `key = value` per line; texts need quotes",
            };
            Error::input("CONFIG", format!("not TOML: {}", error.message().replace('\n', ", ")))
                .path(path)
                .line(line)
                .fix(fix)
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
    pub(super) fn over<T: Keyed>(self, mut lower: Self) -> Self {
        for (key, other) in T::REPLACES {
            if self.table.contains_key(*key) && !self.table.contains_key(*other) {
                lower.table.remove(*other);
                lower.origins.remove(*other);
            }
        }
        lower.table.extend(self.table);
        lower.origins.extend(self.origins);
        lower.notes.extend(self.notes);
        lower.named.extend(self.named);
        lower
    }

    /// What the user hears about options of other tools.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The value under `key`, if it was given.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.table.get(key)
    }

    /// The text under `key`, if it was given.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.table.get(key).and_then(Value::as_str)
    }

    /// Reads all layers as one value.
    pub(super) fn read<T: Keyed>(&self) -> Result<T> {
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

    /// Fails for a switch that is off where nothing says what is meant in its place.
    ///
    /// # Errors
    /// An input error with the place of the switch.
    pub(super) fn check_named(&self) -> Result<()> {
        let is_given = |option: &str| matches!(self.origins.get(option), Some(origin) if !matches!(origin, Origin::Preset(_)));
        match self.named.iter().find(|(switch, _)| !is_given(switch.option)) {
            None => Ok(()),
            Some((switch, origin)) => {
                let what = format!("without it {} has to be given", switch.option);
                let error = Error::input("CONFIG", what).field(switch.name).got("false");
                let fix =
                    format!("give {}, or leave {} out, which is {}", switch.option, switch.name, switch.on);
                place(error, Some(origin)).fix(fix).into()
            }
        }
    }

    /// Adds one value after checking its name and type.
    fn insert<T: Keyed>(&mut self, name: &str, value: Value, origin: Origin) -> Result<()> {
        let keys = keys_of::<T>();
        // What training calls the kind of adapter is the folder of one in scoring.
        let (name, value) = match keys.contains(&name) && name == "adapter" {
            true => (name, value),
            false => match in_our_words(name, value) {
                Said::Option(name, value) => (name, value),
                Said::Nothing => return Ok(()),
                Said::Off(switch) => {
                    let why = match switch.off {
                        Off::Nothing(why) => why.to_owned(),
                        _ => format!("{} says it", switch.option),
                    };
                    self.notes.push(format!("{} = false changes nothing: {why}", switch.name));
                    self.named.extend((switch.off == Off::Named).then_some((switch, origin)));
                    return Ok(());
                }
            },
        };
        let Some(key) = canonical(name, keys, T::ALIASES) else {
            return match foreign::answer(name, &value) {
                Some(Ok(note)) => {
                    self.notes.push(note);
                    Ok(())
                }
                Some(Err(error)) => place(error, Some(&origin)).into(),
                None => place(unknown(name, keys, T::ALIASES), Some(&origin)).into(),
            };
        };
        if let Some(first) = self.origins.get(key) {
            let before = match first {
                Origin::File(_, line) => format!(" (first on line {line})"),
                Origin::Flag | Origin::Preset(_) | Origin::Adapter(_) => String::new(),
            };
            let what = format!("\"{key}\" is given twice{before}");
            return place(Error::input("CONFIG", what).field(name), Some(&origin))
                .fix("keep one of them; aliases are the same option")
                .into();
        }
        let defaults = Self::defaults::<T>()?.table;
        let value = fitting::<T>(&defaults, key, value, &origin).map_err(|e| place(e, Some(&origin)))?;
        self.table.insert(key.to_owned(), value);
        self.origins.insert(key.to_owned(), origin);
        Ok(())
    }
}

/// What an option says in the words that are used here.
enum Said<'a> {
    Option(&'a str, Value),
    Nothing,
    /// A switch of another tool that is off, which is no value of an option.
    Off(&'static Switch),
}

/// An option as it is called here: switches and words of other tools become the option that they stand for.
fn in_our_words(name: &str, value: Value) -> Said<'_> {
    let word = match &value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if let Some(says) = meaning(name, &word) {
        return says.map_or(Said::Nothing, |(option, value)| Said::Option(option, value.into()));
    }
    let switch = SWITCHES.iter().find(|switch| switch.name == name.replace('-', "_"));
    match (switch, truth(&word)) {
        (Some(switch), Some(on)) => match switch.value(on) {
            Some(value) => Said::Option(switch.option, value.into()),
            None => Said::Off(switch),
        },
        _ => Said::Option(name, value),
    }
}

/// The error for a name that nobody knows.
fn unknown(name: &str, keys: &[&str], aliases: &[Alias]) -> InputError {
    let others = aliases.iter().flat_map(|(_, names)| names.iter().copied());
    let fix = match nearest(name, keys.iter().copied().chain(others)) {
        Some(known) => format!("did you mean {}?", known.replace('-', "_")),
        None => "see --help for all options".to_owned(),
    };
    Error::input("CONFIG", "unknown option").field(name).fix(fix)
}

/// The value as the option takes it, or what is wrong with it. A text that was typed, or that a program gives, stands for the
/// number or truth value that it says where the option is no text; in a file only for a truth value as Python writes it.
#[expect(clippy::result_large_err, reason = "read once per run; the place is added by the caller")]
fn fitting<T: Keyed>(
    defaults: &Table,
    key: &str,
    value: Value,
    origin: &Origin,
) -> Result<Value, InputError> {
    let refused = |value: &Value| {
        let mut trial = defaults.clone();
        trial.insert(key.to_owned(), value.clone());
        T::deserialize(trial).err().map(|error| type_error(key, value, error.message()))
    };
    let Some(error) = refused(&value) else { return Ok(value) };
    let Value::String(text) = &value else { return Err(error) };
    let says: Vec<Value> = match origin {
        Origin::File(..) => matches!(text.as_str(), "True" | "False" | "true" | "false")
            .then(|| Value::Boolean(text.to_lowercase() == "true"))
            .into_iter()
            .collect(),
        _ => {
            let whole = text.trim().parse::<i64>().ok().map(Value::from);
            let number = text.trim().parse::<f64>().ok().map(Value::from);
            whole.into_iter().chain(number).chain(truth(text).map(Value::from)).collect()
        }
    };
    if let Some(fits) = says.iter().find(|value| refused(value).is_none()) {
        return Ok(fits.clone());
    }
    if is_too_large(text) && !says.is_empty() {
        return Err(too_large(key, text));
    }
    // What is wrong with the number is worth more than that it is a text.
    Err(says.first().and_then(refused).unwrap_or(error))
}

/// What stands behind the `=` of a line, without a comment.
fn number(value: &str) -> &str {
    value.split('#').next().unwrap_or_default().trim()
}

/// Whether a text is a whole number that TOML cannot hold.
fn is_too_large(text: &str) -> bool {
    let digits = text.trim().trim_start_matches(['+', '-']);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    is_number && text.trim().replace('_', "").parse::<i64>().is_err()
}

fn too_large(key: &str, text: &str) -> InputError {
    Error::input("CONFIG", "the number is too large")
        .field(key)
        .got(text)
        .expected(format!("at most {}", i64::MAX))
        .fix("write a smaller number")
}

/// Adds the place to an error. Flags need none: the field names them.
fn place(error: InputError, origin: Option<&Origin>) -> InputError {
    match origin {
        Some(Origin::File(path, line)) => error.path(path).line(*line),
        Some(Origin::Preset(name)) => error.path(format!("preset of {name}")),
        Some(Origin::Adapter(path)) => error.path(path),
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
    let quoted = value.as_str().is_some_and(|text| text.trim().parse::<f64>().is_ok());
    let without_quotes = if quoted { "write the number without quotes" } else { "write a number" };
    let (expected, fix) = match expected.trim() {
        "usize" | "u64" | "u32" if number => {
            ("a whole number of at least 0", "write a whole number without a point")
        }
        "usize" | "u64" | "u32" => ("a whole number", without_quotes),
        "f64" => ("a number", without_quotes),
        "a boolean" => ("true or false", "write true or false"),
        "a string" | "path string" => ("a text", "put the text in quotes"),
        other => (other, "see --help"),
    };
    Error::input("CONFIG", "wrong type").field(key).got(value).expected(expected).fix(fix)
}
