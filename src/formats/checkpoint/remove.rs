//! Removing old checkpoints and leftovers of killed runs.

use std::path::{Path, PathBuf};

use super::manifest::MANIFEST_NAME;
use super::{OLD, PREFIX, TEMPORARY, entries, list, newest};
use crate::error::{Error, Result};
use crate::formats::atomic::is_temporary_name;
use crate::formats::storage::{Disk, Storage, remove_tree};

/// Removes the oldest checkpoints until at most `keep` are left, and returns the removed ones. Those in `protected` and the
/// newest one that verifies are never removed, even if more than `keep` are left.
///
/// # Errors
/// [`Error::Io`]; the checkpoints that are still visible are whole.
pub fn rotate(output_dir: &Path, keep: usize, protected: &[PathBuf]) -> Result<Vec<PathBuf>> {
    rotate_on(&Disk, output_dir, keep, protected)
}

/// [`rotate`] on a given disk.
pub(super) fn rotate_on(
    storage: &dyn Storage,
    output_dir: &Path,
    keep: usize,
    protected: &[PathBuf],
) -> Result<Vec<PathBuf>> {
    let all = list(output_dir)?;
    let mut excess = all.len().saturating_sub(keep);
    if excess == 0 {
        return Ok(Vec::new());
    }
    // Without a whole checkpoint nothing is removed, since the damaged ones may be all there is to recover
    // from.
    let (Some(newest), _) = newest(output_dir)? else { return Ok(Vec::new()) };
    let same = |a: &Path, b: &Path| {
        a == b || a.canonicalize().ok().zip(b.canonicalize().ok()).is_some_and(|(a, b)| a == b)
    };
    let mut removed = Vec::new();
    for (step, path) in all {
        if excess == 0 {
            break;
        }
        if same(&path, newest.path()) || protected.iter().any(|p| same(&path, p)) {
            continue;
        }
        remove(storage, output_dir, step, &path)?;
        removed.push(path);
        excess -= 1;
    }
    Ok(removed)
}

/// Removes the leftovers of killed runs in `output_dir`: hidden folders and files that were being written or
/// removed. A checkpoint that was being replaced is restored. Only the holder of the [`super::RunLock`] may
/// call it.
///
/// # Errors
/// [`Error::Io`].
pub fn clean_stale(output_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for (name, path) in entries(output_dir)? {
        let is_dir = path.symlink_metadata().is_ok_and(|m| m.is_dir());
        let result = if let Some(step) = hidden_step(&name, OLD).filter(|_| is_dir) {
            let visible = output_dir.join(format!("{PREFIX}{step}"));
            if visible.symlink_metadata().is_ok() {
                remove_tree(&Disk, &path)
            } else {
                Disk.rename(&path, &visible)
            }
        } else if hidden_step(&name, TEMPORARY).is_some() && is_dir {
            remove_tree(&Disk, &path)
        } else if is_temporary_name(&name) && !is_dir {
            Disk.remove_file(&path)
        } else {
            continue;
        };
        result.map_err(|e| Error::io(&path, "remove", e))?;
        removed.push(path);
    }
    removed.sort();
    Ok(removed)
}

/// True if [`clean_stale`] removes a file or folder of this name.
pub fn is_leftover(name: &str) -> bool {
    let hidden = |prefix| hidden_step(name, prefix).is_some();
    hidden(OLD) || hidden(TEMPORARY) || is_temporary_name(name)
}

/// Removes one checkpoint: first it is hidden, then its manifest is removed, then the rest.
fn remove(storage: &dyn Storage, output_dir: &Path, step: u64, path: &Path) -> Result<()> {
    let failed = |e| Error::io(path, "remove", e);
    // Not the name that `save` uses, so that the two cannot collide.
    let hidden = output_dir.join(format!("{TEMPORARY}{step}-removed-{}", std::process::id()));
    if hidden.symlink_metadata().is_ok() {
        remove_tree(storage, &hidden).map_err(failed)?;
    }
    storage.rename(path, &hidden).map_err(failed)?;
    storage.sync_dir(output_dir).map_err(failed)?;
    let manifest = hidden.join(MANIFEST_NAME);
    if manifest.symlink_metadata().is_ok() {
        storage.remove_file(&manifest).map_err(failed)?;
        storage.sync_dir(&hidden).map_err(failed)?;
    }
    remove_tree(storage, &hidden).map_err(failed)
}

/// The step in a hidden name: the prefix, the step, a dash, and anything.
fn hidden_step(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix)?.split_once('-')?.0.parse().ok()
}
