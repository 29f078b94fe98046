//! The output folder before a run: what an earlier run left there, and the checkpoint to go on from.

use std::path::{Path, PathBuf};

use super::event::Event;
use super::log;
use crate::config::{Resume, TrainConfig};
use crate::error::{Error, Result};
use crate::formats::checkpoint::{self, Checkpoint, RunLock};
use crate::formats::model_folder::is_model_folder;
use crate::session::{Notice, labels, text_settings};

/// Files that are results of a run.
const RESULTS: [&str; 6] = [
    log::NAME,
    "adapter_config.json",
    "adapter_model.safetensors",
    "trainer_state.json",
    "loss.svg",
    labels::NAME,
];

/// Files that say how a run was made; the next one writes them anew.
const SETTINGS: [&str; 3] = ["training_config.toml", text_settings::NAME, RunLock::NAME];

/// What is in an output folder.
#[derive(Debug, Default)]
struct Found {
    /// Results and checkpoints of an earlier run.
    of_run: Vec<PathBuf>,
    /// The first thing that no run makes.
    foreign: Option<PathBuf>,
    /// Whether something has the name of a result, whoever made it.
    has_results: bool,
}

/// Looks through an output folder, which need not exist.
fn look(dir: &Path) -> Result<Found> {
    let failed = |e| Error::io(dir, "list the folder", e);
    let mut paths = Vec::new();
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                paths.push(entry.map_err(failed)?.path());
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    paths.sort();
    let mut found = Found::default();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind = path.symlink_metadata().map_err(|e| Error::io(&path, "look at", e))?;
        // A config.json is that of a run where a run says so.
        let is_config = name == labels::CONFIG_NAME && dir.join(labels::NAME).is_file();
        let is_result = is_config || RESULTS.contains(&&*name);
        found.has_results |= is_result || name.starts_with("checkpoint-");
        if is_result && !kind.is_dir() || kind.is_dir() && checkpoint::is_ours(&path)? {
            found.of_run.push(path);
        } else if !(SETTINGS.contains(&&*name) && !kind.is_dir() || checkpoint::is_leftover(&name)) {
            found.foreign.get_or_insert(path);
        }
    }
    Ok(found)
}

/// An output folder that holds a run is only touched if the user says so, and nothing but a run is ever removed.
pub(super) fn check_output(config: &TrainConfig) -> Result<()> {
    let dir = &config.output_dir;
    if is_model_folder(dir) {
        return Error::input("CONFIG", "the output folder holds a model")
            .path(dir)
            .field("output_dir")
            .fix("choose another --output-dir: a model folder holds the files of the model alone")
            .into();
    }
    let found = look(dir)?;
    if config.resume.is_some() || (!config.overwrite && !found.has_results) {
        return Ok(());
    }
    if config.overwrite {
        return refuse_foreign(&found);
    }
    Error::input("CONFIG", "the output folder already holds a run")
        .path(&config.output_dir)
        .field("output_dir")
        .fix("choose another --output-dir, go on with --resume auto, or replace it with --overwrite")
        .into()
}

/// Fails if there is something that no run has made.
fn refuse_foreign(found: &Found) -> Result<()> {
    let Some(path) = &found.foreign else { return Ok(()) };
    Error::input("CONFIG", "--overwrite removes an earlier run of tanren, and this was not made by one")
        .path(path)
        .field("overwrite")
        .fix("move it away or remove it, or choose another --output-dir")
        .into()
}

/// Removes what an earlier run left, where the user asked to replace it.
pub(super) fn remove_old_run(config: &TrainConfig) -> Result<()> {
    if !config.overwrite {
        return Ok(());
    }
    let found = look(&config.output_dir)?;
    refuse_foreign(&found)?;
    for path in found.of_run {
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(|e| Error::io(&path, "remove the earlier run", e))?;
    }
    Ok(())
}

/// The checkpoint that `--resume` asks for, if there is one.
pub(super) fn checkpoint_to_resume(
    config: &TrainConfig,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Checkpoint>> {
    match &config.resume {
        None => Ok(None),
        Some(Resume::Dir(dir)) => checkpoint::open(dir).map(Some),
        Some(Resume::Auto) => {
            let (newest, skipped) = checkpoint::newest(&config.output_dir)?;
            for skipped in skipped {
                let (path, why) = (skipped.path.display(), skipped.why);
                watch(Event::Notice(Notice::Warning(format!(
                    "{path} is not whole and was passed over: {why}"
                ))));
            }
            if newest.is_none() {
                watch(Event::Notice(Notice::Note(
                    "there is no checkpoint to resume from: starting afresh".into(),
                )));
            }
            Ok(newest)
        }
    }
}
