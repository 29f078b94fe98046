//! The settings that an adapter to start from brings: a layer between the preset and what the user says.
//!
//! Only the file's numbers are looked at here. Whether the adapter is one that can be trained is decided where it is loaded; a
//! folder that cannot be read brings nothing, and loading it reports why.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::lora::{MODULE_NAMES, TargetModules};
use super::setting_layers::Layers;
use super::sites::last_part;
use crate::error::{Error, Result};

/// Largest `adapter_config.json` that is looked at.
const MAX_BYTES: u64 = 4 << 20;

/// Options that say what an adapter is, so that they cannot differ from the one that training starts from.
const FIXED: [&str; 6] = ["lora_r", "lora_alpha", "use_rslora", "use_dora", "task", "loss"];

/// The keys of PEFT's file that are options here, with PEFT's defaults.
#[derive(Deserialize)]
#[serde(default)]
struct Peft {
    r: usize,
    lora_alpha: f64,
    lora_dropout: f64,
    use_rslora: bool,
    use_dora: bool,
    target_modules: Option<Targets>,
    exclude_modules: Option<Targets>,
    layers_to_transform: serde_json::Value,
    layers_pattern: serde_json::Value,
    rank_pattern: serde_json::Map<String, serde_json::Value>,
    alpha_pattern: serde_json::Map<String, serde_json::Value>,
}

impl Default for Peft {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            target_modules: None,
            exclude_modules: None,
            layers_to_transform: serde_json::Value::Null,
            layers_pattern: serde_json::Value::Null,
            rank_pattern: serde_json::Map::new(),
            alpha_pattern: serde_json::Map::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    One(String),
    Many(Vec<String>),
}

/// The file of the adapter that the options name, and what it says.
pub(super) fn of(given: &Layers) -> Option<(PathBuf, Table)> {
    let dir = Path::new(given.text("init_adapter")?);
    let path = dir.join("adapter_config.json");
    let object = object(&path)?;
    let peft = Peft::deserialize(serde_json::Value::Object(object)).ok()?;
    let mut table = Table::new();
    table.insert("lora_r".into(), i64::try_from(peft.r).ok()?.into());
    table.insert("lora_alpha".into(), peft.lora_alpha.into());
    table.insert("lora_dropout".into(), peft.lora_dropout.into());
    table.insert("use_rslora".into(), peft.use_rslora.into());
    table.insert("use_dora".into(), peft.use_dora.into());
    // What PEFT takes for Qwen and Llama.
    let default = || Targets::Many(vec!["q_proj".to_owned(), "v_proj".to_owned()]);
    let target = targets(peft.target_modules.unwrap_or_else(default));
    table.extend(target.map(|value| ("target_modules".into(), value)));
    let exclude = peft.exclude_modules.and_then(targets);
    table.extend(exclude.map(|value| ("exclude_modules".into(), value)));
    for (key, value) in
        [("layers_to_transform", peft.layers_to_transform), ("layers_pattern", peft.layers_pattern)]
    {
        let value = if value.is_string() { serde_json::json!([value]) } else { value };
        let is_used = !value.is_null() && value != serde_json::json!([]);
        let value = if is_used { Value::try_from(value).ok() } else { None };
        table.extend(value.map(|value| (key.into(), value)));
    }
    for (key, patterns) in [("rank_pattern", peft.rank_pattern), ("alpha_pattern", peft.alpha_pattern)] {
        let pairs: Vec<String> = patterns.iter().map(|(name, value)| format!("{name}={value}")).collect();
        table.extend((!pairs.is_empty()).then(|| (key.into(), pairs.into())));
    }
    // What an adapter with labels was trained for.
    let labels = object_of_labels(dir);
    for key in ["task", "loss"] {
        let word = labels.get(key).and_then(serde_json::Value::as_str);
        table.extend(word.map(|word| (key.into(), word.into())));
    }
    Some((path, table))
}

/// The object that a file holds, if it is one.
fn object(path: &Path) -> Option<serde_json::Map<String, serde_json::Value>> {
    // A pipe would be waited for.
    let file = path.is_file().then(|| std::fs::File::open(path).ok())??;
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// What the training of an adapter with a head for labels wrote beside it; nothing for other adapters.
fn object_of_labels(dir: &Path) -> serde_json::Map<String, serde_json::Value> {
    object(&dir.join("label_settings.json")).unwrap_or_default()
}

/// The layers as an option, if they can be written as one.
fn targets(targets: Targets) -> Option<Value> {
    let names = match targets {
        Targets::One(text) if text == "all-linear" || TargetModules::is_expression(&text) => {
            return Some(text.into());
        }
        Targets::One(name) => vec![name],
        Targets::Many(names) => names,
    };
    let is_known = |name: &String| MODULE_NAMES.contains(&last_part(name));
    (!names.is_empty() && names.iter().all(is_known)).then(|| names.into())
}

/// Refuses options that contradict the adapter.
///
/// # Errors
/// An input error with the place of the option and the file of the adapter.
pub(super) fn check(given: &Layers, path: &Path, adapter: &Table) -> Result<()> {
    for key in FIXED {
        let (Some(wanted), Some(has)) = (given.get(key), adapter.get(key)) else { continue };
        let number = |value: &Value| value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
        if wanted != has && (number(wanted).is_none() || number(wanted) != number(has)) {
            let error = given.error(key, format!("{} says something else", path.display()));
            let fix = format!("leave {key} out, which keeps the adapter's, or start without init_adapter");
            return Err(Error::from(error.got(wanted).expected(has).fix(fix)));
        }
    }
    Ok(())
}
