//! What a checkpoint folder holds, packed and unpacked.
//!
//! `adapter_config.json` and `adapter_model.safetensors` (PEFT loads the folder), `optimizer.safetensors` (moments),
//! `trainer_state.json` (Hugging Face form), `rng_state.json` (the seed and the counters all random numbers come from),
//! `run_identity.json`, `training_config.toml`, `text_settings.json`, with a head for labels also `label_settings.json` and
//! `config.json`; the MANIFEST with hashes is the business of [`crate::formats::checkpoint`].

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::identity::{self, Identity};
use super::state::TrainerState;
use super::trainee::{Trainable, Trainee};
use crate::config::TrainConfig;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::formats::adapter::{AdapterTensor, adapter_files, write_adapter};
use crate::formats::checkpoint::{self, Checkpoint};
use crate::formats::safetensors::{NamedTensor, TensorData, TensorFile, serialize};
use crate::session::text_settings::{self, TextSettings};
use crate::tensor::Real;

const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer_state.json";
const RNG: &str = "rng_state.json";
const IDENTITY: &str = "run_identity.json";

/// Writes the checkpoint of the current step of `trainee`; it is there whole or not at all.
///
/// # Errors
/// An I/O error, or [`Error::Numeric`] if a number of the adapter is not finite.
pub(super) fn save<T: Real<Stat = f32>>(
    device: &Device,
    trainee: &Trainee<'_, T>,
    (text, label_files): (&TextSettings, &[(String, Vec<u8>)]),
) -> Result<PathBuf> {
    let Trainee { config, trainable: Trainable { adapter, optimizer, .. }, state, identity, .. } = trainee;
    let trained = optimizer.trained_to_peft(device, adapter)?;
    let mut files = adapter_files(&adapter.peft_config(&config.model), &named(&trained))?;
    let moments = optimizer.named_state(device)?;
    let step = optimizer.step().to_string();
    files.push((OPTIMIZER.into(), serialize(&named(&moments), &[("format", "pt"), ("step", &step)])?));
    files.push((STATE.into(), state.to_json().into_bytes()));
    let rng = json!({
        "generator": "philox4x32-10",
        "seed": config.seed,
        "counters": { "step": state.global_step },
    });
    files.push((RNG.into(), format!("{rng:#}\n").into_bytes()));
    files.push((IDENTITY.into(), format!("{:#}\n", json!(identity)).into_bytes()));
    files.push(("training_config.toml".into(), config.to_toml().into_bytes()));
    files.push((text_settings::NAME.into(), text.to_json()));
    files.extend(label_files.iter().cloned());
    checkpoint::save(&config.output_dir, state.global_step, &files)
}

/// Puts the numbers of a checkpoint into `trainable` and returns its state.
///
/// # Errors
/// An input error if the checkpoint belongs to another run, or a file of it is not what it should be.
pub(super) fn restore<T: Real<Stat = f32>>(
    checkpoint: &Checkpoint,
    (config, device): (&TrainConfig, &Device),
    trainable: &mut Trainable<T>,
    identity: &Identity,
) -> Result<TrainerState> {
    let path = |name: &str| checkpoint.path().join(name);
    identity::check(&path(IDENTITY), &checkpoint.read(IDENTITY)?, identity)?;
    let state = TrainerState::from_json(&path(STATE), &checkpoint.read(STATE)?)?;
    let rng: Value = serde_json::from_slice(&checkpoint.read(RNG)?).unwrap_or_default();
    if rng["seed"] != json!(config.seed) || rng["counters"]["step"] != json!(state.global_step) {
        return Error::input("CHECKPOINT", "the random state does not belong to this step")
            .path(path(RNG))
            .fix("resume from another checkpoint")
            .into();
    }
    load_adapter(checkpoint.path(), device, trainable)?;
    let file = TensorFile::open(&path(OPTIMIZER))?;
    let step = file.metadata("step").and_then(|s| s.parse().ok());
    let Some(step) = step else {
        return Error::input("CHECKPOINT", "the number of updates is missing")
            .path(path(OPTIMIZER))
            .fix("resume from another checkpoint")
            .into();
    };
    let source = |name: &str, shape: &[usize]| tensor(&file, &path(OPTIMIZER), name, shape);
    trainable.optimizer.restore(device, step, source)?;
    Ok(state)
}

/// Overwrites what is trained with the adapter of the folder `dir`, which must have the same structure.
///
/// # Errors
/// An input error that names the tensor that is missing or has another shape.
pub(super) fn load_adapter<T: Real<Stat = f32>>(
    dir: &Path,
    device: &Device,
    trainable: &mut Trainable<T>,
) -> Result<()> {
    let path = dir.join("adapter_model.safetensors");
    let file = TensorFile::open(&path)?;
    let source = |name: &str, shape: &[usize]| tensor(&file, &path, name, shape);
    trainable.optimizer.set_trained(device, &mut trainable.adapter, source)
}

/// Publishes the adapter in the output folder.
///
/// # Errors
/// As [`save`].
pub(super) fn publish<T: Real<Stat = f32>>(
    config: &TrainConfig,
    device: &Device,
    trainable: &Trainable<T>,
) -> Result<()> {
    let adapter = &trainable.adapter;
    let trained = trainable.optimizer.trained_to_peft(device, adapter)?;
    write_adapter(&config.output_dir, &adapter.peft_config(&config.model), &named(&trained))
}

fn named(tensors: &[(String, AdapterTensor)]) -> Vec<NamedTensor<'_>> {
    let of = |(name, tensor): &'_ (String, AdapterTensor)| (name.clone(), tensor.shape.clone());
    let data = tensors.iter().map(|(_, tensor)| TensorData::F32(&tensor.data));
    tensors.iter().map(of).zip(data).map(|((name, shape), data)| NamedTensor { name, shape, data }).collect()
}

/// The numbers of a tensor of a file.
fn tensor(file: &TensorFile, path: &Path, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let view = file.get(name);
    let values = view.map(|v| v.to_f32()).transpose()?;
    values.filter(|v| v.len() == shape.iter().product::<usize>()).ok_or_else(|| {
        Error::input("CHECKPOINT", "the tensor is missing or has another shape")
            .path(path)
            .field(name)
            .fix("resume with the settings of this run, or from another checkpoint")
            .into()
    })
}
