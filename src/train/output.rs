//! The output folder before a run: what an earlier run left there, and the checkpoint to go on from.

use std::path::{Path, PathBuf};

use super::event::Event;
use super::log;
use crate::config::{Resume, TrainConfig};
use crate::error::{Error, Result};
use crate::formats::checkpoint::{self, Checkpoint};
use crate::session::Notice;

/// Files that an earlier run left in the output folder.
fn traces(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names =
        [log::NAME, "adapter_config.json", "adapter_model.safetensors", "trainer_state.json", "loss.svg"];
    let of_run = |name: &str| names.contains(&name) || name.starts_with("checkpoint-");
    let paths = entries.filter_map(|e| e.ok()).filter(|e| e.file_name().to_str().is_some_and(of_run));
    paths.map(|e| e.path()).collect()
}

/// An output folder that holds a run is only touched if the user says so.
pub(super) fn check_output(config: &TrainConfig) -> Result<()> {
    if config.resume.is_some() || config.overwrite || traces(&config.output_dir).is_empty() {
        return Ok(());
    }
    Error::input("CONFIG", "the output folder already holds a run")
        .path(&config.output_dir)
        .field("output_dir")
        .fix("choose another --output-dir, go on with --resume auto, or replace it with --overwrite")
        .into()
}

/// Removes what an earlier run left, where the user asked to replace it.
pub(super) fn remove_old_run(config: &TrainConfig) -> Result<()> {
    if !config.overwrite {
        return Ok(());
    }
    for path in traces(&config.output_dir) {
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
