//! What must be the same for a resumed run to be the run that was interrupted.
//!
//! The state of a run is a function of its settings, its rows and its model; a checkpoint keeps a fingerprint of them
//! (`run_identity.json`), and going on with others is an error that lists the fields. How long the run goes on, how often it
//! logs, saves and evaluates, and how many threads it uses may change.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::prepare::Prepared;
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::tensor::Real;

/// Options that may differ between a run and its continuation.
const FREE: [&str; 33] = [
    "activation_policy",
    "device",
    "dry_run",
    "early_stopping_patience",
    "escape_special",
    "eval_batch_size",
    "eval_file",
    "eval_fraction",
    "eval_steps",
    "format",
    "gpu",
    "greater_is_better",
    "init_adapter",
    "load_best_model_at_end",
    "logging_steps",
    "max_seq_length",
    "mask_history",
    "max_steps",
    "memory_limit",
    "metric_for_best_model",
    "model",
    "num_epochs",
    "output_dir",
    "overwrite",
    "preset",
    "resume",
    "save_steps",
    "save_total_limit",
    "skip_empty",
    "threads",
    "train_file",
    "train_mode",
    "truncation",
];

/// Name and value of everything that counts.
pub(super) type Identity = BTreeMap<String, String>;

/// The fingerprint of a prepared run. Rows count as tokens, so that a moved file is no other file; of the weights a sample is
/// hashed, enough to tell two models apart.
///
/// # Errors
/// That of reading the sample.
pub(super) fn identity<T: Real>(config: &TrainConfig, prepared: &Prepared<T>) -> Result<Identity> {
    let mut identity = Identity::new();
    if let Ok(toml::Value::Table(options)) = toml::Value::try_from(config) {
        let counts = |key: &str| !FREE.contains(&key);
        identity.extend(options.iter().filter(|(k, _)| counts(k)).map(|(k, v)| (k.clone(), v.to_string())));
    }
    let mut rows = Sha256::new();
    for row in &prepared.train {
        rows.update((row.example.len() as u64).to_le_bytes());
        rows.update(bytemuck::cast_slice::<u32, u8>(&row.example.input_ids));
        rows.update(bytemuck::cast_slice::<i64, u8>(&row.example.labels));
        let (_, _, types, label) = row.example.identity();
        rows.update(bytemuck::cast_slice::<u32, u8>(types));
        rows.update(bytemuck::cast_slice::<u32, u8>(&label));
    }
    identity.insert("training rows".into(), hex(rows));
    let mut weights = Sha256::new();
    weights.update(prepared.model.folder.config_json().1);
    let folder = &prepared.model.folder;
    for view in folder.tensor_names().iter().filter_map(|name| folder.tensor(name)) {
        weights.update(view.num_bytes().to_le_bytes());
        weights.update(&view.bytes(1024)?);
    }
    identity.insert("model".into(), hex(weights));
    Ok(identity)
}

/// Compares the identity of a checkpoint with that of this run.
///
/// # Errors
/// An input error that lists the fields that differ.
pub(super) fn check(path: &Path, text: &[u8], identity: &Identity) -> Result<()> {
    let saved: Identity = serde_json::from_slice(text).map_err(|e| {
        let what = format!("not an identity of tanren: {e}");
        Error::input("CHECKPOINT", what).path(path).fix("resume from another checkpoint")
    })?;
    let keys: std::collections::BTreeSet<&String> = saved.keys().chain(identity.keys()).collect();
    let shown = |value: Option<&String>| value.map_or("nothing".to_owned(), |v| v.chars().take(40).collect());
    let differs: Vec<String> = keys
        .into_iter()
        .filter(|key| saved.get(*key) != identity.get(*key))
        .map(|key| format!("{key} was {}, is {}", shown(saved.get(key)), shown(identity.get(key))))
        .collect();
    if differs.is_empty() {
        return Ok(());
    }
    Error::input("CHECKPOINT", format!("the run to resume was another one: {}", differs.join("; ")))
        .path(path)
        .fix("pass the same settings and rows, or start a new run with --init-adapter")
        .into()
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
