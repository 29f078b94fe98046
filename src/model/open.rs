//! From the name of a model to its folder and shape, and model folders with random weights.
//!
//! A variant that no hub has (`qwen3-tiny`) is made on first use, always the same, in the user's cache folder; its tokenizer is
//! embedded in the binary. So a first training needs no download.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::init;
use super::weights::Weights;
use crate::config::{Dtype, ModelConfig, Variant, variant};
use crate::device::Device;
use crate::error::{Error, Result, shorten};
use crate::formats::atomic::write_file;
use crate::formats::hub;
use crate::formats::model_folder::ModelFolder;
use crate::formats::safetensors::{NamedTensor, TensorData, write_safetensors};

/// Seed of the weights of a variant that is made on first use.
const CACHED_SEED: u64 = 0;

/// The tokenizer of the variants that are made here.
const TOKENIZER: [(&str, &[u8]); 2] = [
    ("tokenizer.json", include_bytes!("../../assets/tiny_tokenizer/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../assets/tiny_tokenizer/tokenizer_config.json")),
];

/// A model folder and the shape it says it has.
#[derive(Debug)]
pub struct OpenModel {
    /// The files.
    pub folder: ModelFolder,
    /// Shape and constants.
    pub config: ModelConfig,
}

impl OpenModel {
    /// Tokens that end a generated text: those of `generation_config.json`, else those of `config.json`.
    pub fn stop_token_ids(&self) -> Vec<u32> {
        self.stops().unwrap_or_default().unwrap_or_else(|| self.config.eos_token_ids.clone())
    }

    /// What is wrong with files that a run can do without, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let stops = self.stops().err().map(|what| {
            format!("generation_config.json is not used for the tokens that end a text: {}", shorten(&what))
        });
        let unused = ModelConfig::unused(self.folder.config_json().1);
        self.folder.notes().iter().cloned().chain(stops).chain(unused).collect()
    }

    /// The tokens of `generation_config.json`, if it names any; else what is wrong with it.
    fn stops(&self) -> Result<Option<Vec<u32>>, String> {
        let Some((_, text)) = self.folder.generation_config_json() else { return Ok(None) };
        let file: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        let Value::Object(keys) = file else { return Err("not a JSON object".to_owned()) };
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| format!("eos_token_id holds {value}, which is no token id"))
        };
        match keys.get("eos_token_id") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(ids)) => ids.iter().map(id).collect::<Result<_, _>>().map(Some),
            Some(one) => id(one).map(|id| Some(vec![id])),
        }
    }
}

/// Opens the model `name`: a folder, a Hugging Face id, or a variant that is made on first use. `watch` is told what takes time,
/// and may stop a download.
///
/// # Errors
/// An input error that says what was tried, or what is wrong with the folder.
pub fn open(name: &str, watch: &hub::Watch<'_>) -> Result<OpenModel> {
    let local = variant(name).filter(|v| v.hf_ids.is_empty() && !Path::new(name).is_dir());
    let dir = match local {
        Some(variant) => cached(variant, watch)?,
        None => hub::resolve_model_with(name, &hub::HubEnv::from_process(), watch)?,
    };
    let folder = ModelFolder::open(&dir)?;
    let (path, text) = folder.config_json();
    let config = ModelConfig::from_json(path, text)?;
    Ok(OpenModel { folder, config })
}

/// Writes a model folder with random weights: `config.json`, `model.safetensors`, and the small embedded tokenizer if the
/// vocabulary is its size.
///
/// # Errors
/// An input error for a variant whose family has no blocks here, or an I/O error.
pub fn write_random(variant: &Variant, dir: &Path, seed: u64, dtype: Dtype) -> Result<ModelConfig> {
    let config = variant.model_config()?;
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create the folder", e))?;
    let device = Device::cpu(0)?;
    let weights = device.run(|| init::random::<f32>(&device, &config, seed))?;
    let mut tensors = Vec::new();
    named(&config, &weights, &mut tensors)?;
    let halves: Vec<Vec<half::bf16>> = match dtype {
        Dtype::F32 => Vec::new(),
        Dtype::Bf16 => tensors
            .iter()
            .map(|(_, _, data)| data.iter().map(|&x| half::bf16::from_f32(x)).collect())
            .collect(),
    };
    let tensors: Vec<NamedTensor<'_>> = tensors
        .iter()
        .enumerate()
        .map(|(i, (name, shape, data))| NamedTensor {
            name: name.clone(),
            shape: shape.clone(),
            data: halves.get(i).map_or(TensorData::F32(data), |half| TensorData::Bf16(half)),
        })
        .collect();
    write_safetensors(&dir.join("model.safetensors"), &tensors, &[("format", "pt")])?;
    if config.vocab_size == TOKENIZER_SIZE {
        for (name, bytes) in TOKENIZER {
            write_file(&dir.join(name), bytes)?;
        }
    }
    // Last, so that an interrupted folder does not look like a model.
    write_file(&dir.join("config.json"), config.to_json().as_bytes())?;
    Ok(config)
}

/// Tokens of the embedded tokenizer.
const TOKENIZER_SIZE: usize = 4096;

/// Name, shape and content of every weight, as files have them. The numbers of a matrix that is stored transposed are taken as
/// those of its transpose: random ones are as good.
fn named<'a>(
    config: &ModelConfig,
    weights: &'a Weights<f32>,
    into: &mut Vec<(String, Vec<usize>, &'a [f32])>,
) -> Result<()> {
    let mut data = weights.tensors().into_iter();
    let dry = Device::dry();
    Weights::<f32>::build(config, |name, [rows, cols], role| {
        into.extend(
            data.next().map(|tensor| (name.to_owned(), role.stored_shape([rows, cols]), tensor.data())),
        );
        dry.empty(rows, cols)
    })
    .map(drop)
}

/// The folder of a variant in the cache, made if it is not there.
fn cached(variant: &Variant, watch: &hub::Watch<'_>) -> Result<PathBuf> {
    let env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = env("XDG_CACHE_HOME").or_else(|| Some(env("HOME")?.join(".cache")));
    let Some(cache) = cache else {
        return Error::input("MODEL", "no cache folder is known")
            .got(variant.name)
            .fix("set XDG_CACHE_HOME, or make the model with tanren init and name its folder")
            .into();
    };
    // Another version may make other weights: the folder is named by what it is made from.
    let config = variant.model_config()?.to_json();
    let made_from: String = Sha256::digest(config).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let dir = cache.join("tanren/models").join(format!("{}-{made_from}-seed{CACHED_SEED}", variant.name));
    if !dir.join("config.json").is_file() {
        let note = format!("making {} with random weights in {}", variant.name, dir.display());
        (watch.tell)(hub::Progress::Note(&note));
        write_random(variant, &dir, CACHED_SEED, Dtype::F32)?;
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_config_that_says_nonsense_is_noted_and_not_used() {
        let dir = tempfile::tempdir().unwrap();
        write_random(variant("qwen3-tiny").unwrap(), dir.path(), 1, Dtype::F32).unwrap();
        let name = dir.path().to_str().unwrap();
        let of = |text: &str| {
            std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
            let model = open(name, &hub::Watch { tell: &|_| {}, stop: &|| false }).unwrap();
            (model.stop_token_ids(), model.notes().concat(), model.config.eos_token_ids)
        };
        for text in ["{\"eos_token_id\": 7}", "{\"eos_token_id\": [7]}"] {
            let (stops, notes, _) = of(text);
            assert_eq!((stops, notes.as_str()), (vec![7], ""), "{text}");
        }
        let (stops, notes, default) = of("{\"eos_token_id\": null}");
        assert_eq!((stops, notes.as_str()), (default, ""));
        for text in [
            "{",
            "[]",
            "{\"eos_token_id\": \"x\"}",
            "{\"eos_token_id\": [7, -1]}",
            "{\"eos_token_id\": 4294967296}",
        ] {
            let (stops, notes, default) = of(text);
            assert_eq!(stops, default, "{text}");
            assert!(notes.contains("generation_config.json is not used"), "{text}: {notes}");
        }
    }
}
