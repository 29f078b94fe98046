//! Checkpoints: folders `checkpoint-N` that are visible only when they are complete.
//!
//! A checkpoint is written under a hidden name, its `MANIFEST.json` (size and SHA-256 of every file) last,
//! and renamed when all of it is on the disk. A reader verifies every hash first. Removal goes in reverse:
//! the folder is renamed to a hidden name, then its manifest is removed, then the rest. So at whatever moment
//! a run is killed, every `checkpoint-N` is whole, and the newest one survives. Names that start with a dot
//! are leftovers of killed runs, for [`clean_stale`].

mod lock;
mod manifest;
mod open;
mod remove;
mod save;

#[cfg(test)]
mod power_cut_tests;
#[cfg(test)]
mod tests;

pub use lock::RunLock;
pub use manifest::Manifest;
pub use open::{Checkpoint, Skipped, is_ours, newest, open};
pub use remove::{clean_stale, is_leftover, rotate};
pub use save::save;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Class of the errors of checkpoints.
const CODE: &str = "CHECKPOINT";

/// Prefix of the visible name.
const PREFIX: &str = "checkpoint-";
/// Prefix of the name while a checkpoint is written or removed; the step and the pid follow.
const TEMPORARY: &str = ".tmp-checkpoint-";
/// Prefix of the name of a checkpoint that is being replaced, if the file system cannot swap two folders.
const OLD: &str = ".old-checkpoint-";

/// The step in a visible name.
fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    let step = digits.parse().ok()?;
    // Exactly one valid name per step: no sign, no leading zeros.
    (digits == format!("{step}")).then_some(step)
}

/// All visible checkpoints of a run with their steps, whole or not, oldest first.
fn list(output_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for (name, path) in entries(output_dir)? {
        let Some(step) = step_of(&name) else { continue };
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => found.push((step, path)),
            // A link was not made by a run, so it is neither rotated nor resumed from automatically.
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(&path, "look at the checkpoint", error)),
        }
    }
    found.sort();
    Ok(found)
}

/// Names and paths of the entries of a folder; empty if there is no folder.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = |e| Error::io(dir, "list the folder", e);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // A name that is not UTF-8 was not written by tanren.
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}
