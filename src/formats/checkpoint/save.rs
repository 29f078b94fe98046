//! Saving a checkpoint atomically.

use std::io;
use std::path::{Path, PathBuf};

use super::manifest::{MANIFEST_NAME, Manifest};
use super::{CODE, OLD, PREFIX, TEMPORARY};
use crate::error::{Error, Result};
use crate::formats::storage::{Disk, Storage, remove_tree};

/// Writes `output_dir/checkpoint-STEP` with these files (name, bytes) and returns its path. The folder
/// `output_dir` must exist; if it was removed during a run, it is not created again without the user knowing.
/// An existing checkpoint of this step is replaced; if the file system can swap two folders, one of the two
/// exists at every moment.
///
/// # Errors
/// [`Error::Io`], after which all checkpoints are as they were; [`Error::Input`] if a name is not a plain file name.
pub fn save(output_dir: &Path, step: u64, files: &[(String, Vec<u8>)]) -> Result<PathBuf> {
    save_on(&Disk, output_dir, step, files)
}

/// [`save`] on a given disk, into a folder that exists.
pub(super) fn save_on(
    storage: &dyn Storage,
    output_dir: &Path,
    step: u64,
    files: &[(String, Vec<u8>)],
) -> Result<PathBuf> {
    let manifest = Manifest::of(step, files)?;
    let path = output_dir.join(format!("{PREFIX}{step}"));
    let exists = path.symlink_metadata().is_ok();
    if exists && !path.is_dir() {
        return Error::input(CODE, "in the way of a checkpoint").path(&path).fix("move the file away").into();
    }
    let pid = std::process::id();
    let temporary = output_dir.join(format!("{TEMPORARY}{step}-{pid}"));
    let written = fill(storage, &temporary, &manifest, files).and_then(|()| {
        if exists {
            replace(storage, &temporary, &path, &output_dir.join(format!("{OLD}{step}-{pid}")))
        } else {
            storage.rename(&temporary, &path)
        }
    });
    if let Err(error) = written {
        // The first error is the one to report; leftovers are removed by the next clean-up.
        let _ = remove_tree(storage, &temporary);
        return Err(Error::io(&path, "write", error));
    }
    storage.sync_dir(output_dir).map_err(|e| Error::io(output_dir, "sync the folder", e))?;
    if exists {
        // The new checkpoint is in place and the old one is hidden; if it cannot be removed, the next
        // clean-up removes it.
        let _ = remove_tree(storage, &temporary);
    }
    Ok(path)
}

/// Writes the files and then the manifest into the new folder `dir`.
fn fill(
    storage: &dyn Storage,
    dir: &Path,
    manifest: &Manifest,
    files: &[(String, Vec<u8>)],
) -> io::Result<()> {
    if dir.symlink_metadata().is_ok() {
        // Left by a failed save of this process, or of a dead one with the same number.
        remove_tree(storage, dir)?;
    }
    storage.create_dir(dir)?;
    for (name, bytes) in files {
        storage.write_new(&dir.join(name), &mut |out| out.write_all(bytes))?;
    }
    let text = manifest.to_text();
    storage.write_new(&dir.join(MANIFEST_NAME), &mut |out| out.write_all(&text))?;
    storage.sync_dir(dir)
}

/// Swaps `new` and `path`; afterwards the old checkpoint is called `new`.
fn replace(storage: &dyn Storage, new: &Path, path: &Path, aside: &Path) -> io::Result<()> {
    match storage.exchange(new, path) {
        Err(error) if cannot_exchange(&error) => {}
        result => return result,
    }
    // Between the next two steps only hidden names exist; `clean_stale` would restore the old one.
    storage.rename(path, aside)?;
    if let Err(error) = storage.rename(new, path) {
        storage.rename(aside, path)?;
        return Err(error);
    }
    storage.rename(aside, new)
}

/// True if the file system does not support the swap (NFS, some overlays).
fn cannot_exchange(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, Unsupported};
    matches!(error.kind(), InvalidInput | Unsupported)
}
