//! Hashing the files of the cache, weights included: the only way to detect a bit that changed on the disk.

use std::cell::Cell;
use std::fs::File;
use std::path::Path;

use super::cache::blob_of;
use super::hash::{ContentId, hash_file};
use super::{CODE, Progress, Watch};
use crate::error::{Error, Result};

/// Hashes every file of a model folder whose blob is named by its hash, and returns their number: all files
/// in the Hugging Face cache, none in other folders. `watch` gets the progress of each file.
///
/// # Errors
/// [`Error::Input`] with exit code 3 that names the damaged file; [`Error::Io`]; [`Error::Stopped`] if `watch` says so.
pub fn verify(dir: &Path, watch: &Watch<'_>) -> Result<usize> {
    let failed = |e| Error::io(dir, "list the folder", e);
    let mut names = Vec::new();
    for entry in dir.read_dir().map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    names.sort();
    let mut num_checked = 0;
    for name in names {
        let path = dir.join(&name);
        let blob = path.read_link().ok();
        let Some(id) = blob.and_then(|blob| ContentId::parse(blob.file_name()?.to_str()?)) else { continue };
        check(&path, &name.to_string_lossy(), &id, watch)?;
        num_checked += 1;
    }
    Ok(num_checked)
}

fn check(path: &Path, name: &str, id: &ContentId, watch: &Watch<'_>) -> Result<()> {
    let failed = |e| Error::io(path, "read", e);
    let mut file = File::open(path).map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let num_reads = Cell::new(0u64);
    // Asked before every read of a MiB.
    let stop = || {
        let done = (num_reads.replace(num_reads.get() + 1) << 20).min(total);
        (watch.tell)(Progress::File { name, done, total });
        (watch.stop)()
    };
    match hash_file(&mut file, id, &stop) {
        Ok(found) if found == *id => Ok(()),
        Ok(found) => Error::input(CODE, format!("the file is damaged: its {} differs", id.kind()))
            .path(path)
            .got(found.hex())
            .expected(id.hex())
            .fix(format!("remove {} and download the model again", blob_of(path).display()))
            .as_io()
            .into(),
        Err(_) if (watch.stop)() => {
            Err(Error::Stopped { what: "the check of the model's files was stopped".into() })
        }
        Err(error) => Err(failed(error)),
    }
}
