//! Checkpoints: folders `checkpoint-N` that are there only when they are complete.
//!
//! A checkpoint is written under a hidden name, its `MANIFEST.json` (size and SHA-256 of every file) last, and renamed when
//! all of it is on the disk. Whoever reads one verifies every hash first. Removing goes the other way: the folder gets a hidden
//! name, then its manifest goes, then the rest. So whatever moment a run is killed at, every `checkpoint-N` is whole, and
//! the newest one survives. Names that start with a dot are leftovers of killed runs, for [`clean_stale`].

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

/// Start of the visible name.
const PREFIX: &str = "checkpoint-";
/// Start of the name while it is written or removed; the step and the pid follow.
const TEMPORARY: &str = ".tmp-checkpoint-";
/// Start of the name of one that is being replaced, where the file system cannot swap two folders.
const OLD: &str = ".old-checkpoint-";

/// The step in a visible name.
fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    let step = digits.parse().ok()?;
    // One name per step: no sign, no leading zeros.
    (digits == format!("{step}")).then_some(step)
}

/// All visible checkpoints of a run with their steps, whole or not, oldest first.
fn list(output_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for (name, path) in entries(output_dir)? {
        let Some(step) = step_of(&name) else { continue };
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => found.push((step, path)),
            // A link is not ours to rotate or to resume from by itself.
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(&path, "look at the checkpoint", error)),
        }
    }
    found.sort();
    Ok(found)
}

/// Names and paths of what is in a folder; none if there is no folder.
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
        // A name that is not UTF-8 is none of ours.
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}
