//! The settings that an adapter to start from brings: a layer between the preset and what the user says.
//!
//! Only the file's numbers are looked at here. Whether the adapter is one that can be trained is decided where it is loaded; a
//! folder that cannot be read brings nothing, and loading it reports why.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::layers::Layers;
use super::lora::MODULE_NAMES;
use crate::error::{Error, Result};

/// Largest `adapter_config.json` that is looked at.
const MAX_BYTES: u64 = 4 << 20;

/// Options that say what an adapter is, so that they cannot differ from the one that training starts from.
const FIXED: [&str; 4] = ["lora_r", "lora_alpha", "use_rslora", "use_dora"];

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
    let path = Path::new(given.text("init_adapter")?).join("adapter_config.json");
    let mut text = String::new();
    std::fs::File::open(&path).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).ok()?;
    let peft = Peft::deserialize(serde_json::Value::Object(object)).ok()?;
    let mut table = Table::new();
    table.insert("lora_r".into(), i64::try_from(peft.r).ok()?.into());
    table.insert("lora_alpha".into(), peft.lora_alpha.into());
    table.insert("lora_dropout".into(), peft.lora_dropout.into());
    table.insert("use_rslora".into(), peft.use_rslora.into());
    table.insert("use_dora".into(), peft.use_dora.into());
    table.extend(targets(peft.target_modules).map(|value| ("target_modules".into(), value)));
    Some((path, table))
}

/// The layers as an option, if they can be written as one.
fn targets(targets: Option<Targets>) -> Option<Value> {
    let names = match targets {
        // What PEFT takes for Qwen and Llama.
        None => vec!["q_proj".to_owned(), "v_proj".to_owned()],
        Some(Targets::One(name)) if name == "all-linear" => return Some(name.into()),
        Some(Targets::One(name)) => vec![name],
        Some(Targets::Many(names)) => names,
    };
    names.iter().all(|name| MODULE_NAMES.contains(&name.as_str())).then(|| names.into())
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
