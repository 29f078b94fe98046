//! LoRA adapters in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Files of PEFT 0.17 to 0.20 are read; the files written load without a warning in all of these, in vLLM and in llama.cpp's
//! converter. A config that asks for something we would compute differently is refused, not ignored.
//! Source: PEFT `config.py`, `tuners/lora/config.py`, `utils/save_and_load.py`.

mod config;
mod names;

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::path::Path;

use super::atomic;
use super::folder::Folder;
use super::model_folder::{pickle_fix, pickled};
use super::safetensors::{NamedTensor, TensorData, serialize};
use super::storage::{Disk, Storage};
use super::weight_files::WeightFormat;
use crate::error::{Error, Result};

pub use config::{AdapterConfig, TargetModules};

const CODE: &str = "ADAPTER";
/// Name of the configuration in the folder of an adapter.
pub const CONFIG_NAME: &str = "adapter_config.json";
const WEIGHTS_NAME: &str = "adapter_model.safetensors";
/// The tensors as older versions of PEFT wrote them; read where there is no other file, and never run.
const PICKLED_NAME: &str = "adapter_model.bin";

/// Largest `adapter_config.json`; real ones have about 1 kB.
const MAX_CONFIG: u64 = 4 << 20;

/// An adapter as it was read.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its configuration.
    pub config: AdapterConfig,
    /// Its tensors by their names as PEFT writes them (`base_model.model....lora_A.weight`), whatever wrapper they were saved
    /// from.
    pub tensors: BTreeMap<String, AdapterTensor>,
}

/// One tensor of an adapter: finite, single precision.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterTensor {
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: Vec<f32>,
}

/// Reads the adapter in `dir`.
///
/// # Errors
/// [`Error::Io`], or [`Error::Input`] if a file is missing, malformed or a pickle, if the config asks for something
/// unsupported, if a number is not finite, or if the A and B of a module do not fit each other or the rank.
pub fn read_adapter(dir: &Path) -> Result<Adapter> {
    let folder = Folder::open(CODE, dir)?;
    let Some(text) = folder.text(CONFIG_NAME, MAX_CONFIG)? else {
        return Error::input(CODE, "no adapter_config.json")
            .path(dir)
            .fix("name a folder with adapter_config.json and adapter_model.safetensors")
            .into();
    };
    let config = AdapterConfig::from_json(&folder.path(CONFIG_NAME), &text)?;
    let mut found = None;
    for (format, name) in [(WeightFormat::Safetensors, WEIGHTS_NAME), (WeightFormat::Pickled, PICKLED_NAME)] {
        // What stands beside a file that is read is not looked at.
        if found.is_none() {
            found = folder.file(name)?.map(|file| (format, file, folder.path(name)));
        }
    }
    let Some((format, file, path)) = found else {
        let error = Error::input(CODE, "no adapter_model.safetensors").path(dir);
        return match pickled(&folder.names()?) {
            Some(name) => error.got(&name).fix(pickle_fix(&name)).into(),
            None => error.fix("copy the adapter again, with both its files").into(),
        };
    };
    let file = format.open(file, &path)?;
    let mut tensors = BTreeMap::new();
    for view in file.names().filter_map(|name| file.get(name)) {
        let name = names::canonical(view.name());
        if tensors.contains_key(&name) {
            return Error::input(CODE, "the file has two tensors for the same part of the model")
                .path(&path)
                .field(view.name())
                .got(format!("another one for {name}"))
                .fix("save each adapter into a folder of its own")
                .into();
        }
        let data = view.to_f32()?;
        check_finite(view.name(), &data).map_err(|e| refuse(e, &path))?;
        tensors.insert(name, AdapterTensor { shape: view.shape().to_vec(), data });
    }
    file.check_unchanged()?;
    let adapter = Adapter { config, tensors };
    adapter.check_ranks(&path)?;
    Ok(adapter)
}

/// The text of another file in the folder of an adapter, of at most `limit` bytes; none if there is none.
///
/// # Errors
/// [`Error::Io`], or [`Error::Input`] if it is larger, no text, or a link that leads out of the folder.
pub fn read_text(dir: &Path, name: &str, limit: u64) -> Result<Option<String>> {
    Folder::open(CODE, dir)?.text(name, limit)
}

/// Names and bytes of the two files of an adapter.
///
/// # Errors
/// [`Error::Input`] if a tensor is malformed, and [`Error::Numeric`] if a number is not finite: no such adapter is published.
pub fn adapter_files(config: &AdapterConfig, tensors: &[NamedTensor<'_>]) -> Result<Vec<(String, Vec<u8>)>> {
    for tensor in tensors {
        let finite = match tensor.data {
            TensorData::F32(data) => check_finite(&tensor.name, data),
            TensorData::F64(data) => check_finite(&tensor.name, data),
            TensorData::Bf16(_) | TensorData::U8(_) => Ok(()),
        };
        finite.map_err(|what| Error::Numeric {
            what: format!("{what}; the adapter is not written"),
            fix: "lower --learning-rate or set --max-grad-norm".to_owned(),
        })?;
    }
    Ok(vec![
        (CONFIG_NAME.to_owned(), config.to_json().into_bytes()),
        (WEIGHTS_NAME.to_owned(), serialize(tensors, &[("format", "pt")])?),
    ])
}

/// Writes an adapter into `dir`, which is created if it is missing. An adapter that is there is replaced, and at no moment
/// do the config of one and the tensors of the other stand together.
///
/// # Errors
/// Those of [`adapter_files`], and [`Error::Io`].
pub fn write_adapter(dir: &Path, config: &AdapterConfig, tensors: &[NamedTensor<'_>]) -> Result<()> {
    let files = adapter_files(config, tensors)?;
    atomic::create_output_dir(dir)?;
    publish(&Disk, dir, &files)
}

/// Writes the files, the config last. Two files cannot be replaced in one step, so a config that changes goes first: a
/// folder without one is no adapter, which is better than an adapter with another one's scale.
fn publish(storage: &dyn Storage, dir: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    for (name, bytes) in files.iter().filter(|(name, _)| name == CONFIG_NAME) {
        let path = dir.join(name);
        let is_same = || {
            let len = path.symlink_metadata().ok().filter(Metadata::is_file).map(|data| data.len());
            len == Some(bytes.len() as u64) && std::fs::read(&path).ok().as_ref() == Some(bytes)
        };
        if path.symlink_metadata().is_ok() && !is_same() {
            storage.remove_file(&path).map_err(|e| Error::io(&path, "replace", e))?;
            storage.sync_dir(dir).map_err(|e| Error::io(dir, "sync the folder", e))?;
        }
    }
    for (name, bytes) in files.iter().rev() {
        atomic::write_file_on(storage, &dir.join(name), &mut |out| out.write_all(bytes))?;
    }
    Ok(())
}

impl Adapter {
    /// Checks that every A has its B, that both have one rank, and that it is the config's.
    fn check_ranks(&self, path: &Path) -> Result<()> {
        let bad = |name: &str, what: &str| Error::input(CODE, what).path(path).field(name);
        let fix = "the file is damaged, or its config belongs to another adapter";
        let mut pairs = 0;
        for (name, tensor) in &self.tensors {
            let Some((prefix, a, b, suffix)) = split_ab(name) else { continue };
            let Some((first, last)) =
                tensor.shape.first().zip(tensor.shape.last()).filter(|_| tensor.shape.len() == 2)
            else {
                return bad(name, "not a matrix").got(format!("{:?}", tensor.shape)).fix(fix).into();
            };
            let rank = if a { *first } else { *last };
            let other = format!("{prefix}{b}{suffix}");
            let other_rank = self.tensors.get(&other).map(|t| t.shape.get(usize::from(a)).copied());
            match other_rank {
                None => return bad(name, &format!("{other} is missing")).fix(fix).into(),
                Some(other_rank) if other_rank != Some(rank) => {
                    return bad(name, "A and B have different ranks").got(rank).fix(fix).into();
                }
                Some(_) => pairs += 1,
            }
            // With a pattern the rank of a module depends on the names of all modules of the model.
            if self.config.rank_pattern.is_empty() && rank != self.config.r {
                return bad(name, "the rank is not the config's")
                    .got(rank)
                    .expected(self.config.r)
                    .fix(fix)
                    .into();
            }
        }
        match pairs {
            0 => bad("lora_A", "no LoRA tensors in the file").fix("use an adapter that PEFT saved").into(),
            _ => Ok(()),
        }
    }
}

/// Splits the name of an A or B around it: what precedes, whether it is A, the other's part, what follows.
fn split_ab(name: &str) -> Option<(&str, bool, &'static str, &str)> {
    let parts = [
        (".lora_A.", true, ".lora_B."),
        (".lora_B.", false, ".lora_A."),
        (".lora_embedding_A", true, ".lora_embedding_B"),
        (".lora_embedding_B", false, ".lora_embedding_A"),
    ];
    parts.into_iter().find_map(|(part, a, other)| {
        let (prefix, suffix) = name.rsplit_once(part)?;
        Some((prefix, a, other, suffix))
    })
}

/// Says where a number that is not finite stands.
fn check_finite<T: crate::tensor::Real>(name: &str, data: &[T]) -> Result<(), String> {
    match data.iter().position(|x| !x.is_finite()) {
        Some(i) => Err(format!("{} at element {i} of {name}", data[i])),
        None => Ok(()),
    }
}

/// The error of an adapter file whose numbers are not finite.
fn refuse(what: String, path: &Path) -> Error {
    let error = Error::input(CODE, format!("not finite: {what}")).path(path).expected("finite numbers");
    error.fix("use an earlier checkpoint; this training had diverged").into()
}

#[cfg(test)]
mod tests;
