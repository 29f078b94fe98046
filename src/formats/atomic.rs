//! Atomic file writes: a file appears whole or not at all, and then survives a power cut.
//!
//! A file is written beside its final name, synced, and moved over it; then the folder is synced. The old
//! file is never truncated, so its readers still get its bytes (truncating can destroy a safetensors file
//! that is saved over its own source).

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::storage::{Disk, Fill, Storage};
use crate::error::{Error, Result};

/// Replaces the file at `path` by `bytes`, or creates it.
///
/// # Errors
/// [`Error::Io`]; the file at `path` is then as it was.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file_with(path, |out| out.write_all(bytes))
}

/// Replaces the file at `path` by the output of `fill`, without holding it in memory. `fill` is called once.
///
/// # Errors
/// [`Error::Io`], also for an error of `fill`; the file at `path` is then as it was.
pub fn write_file_with(path: &Path, mut fill: impl FnMut(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    write_file_on(&Disk, path, &mut fill)
}

/// [`write_file_with`] on a given disk.
pub(super) fn write_file_on(storage: &dyn Storage, path: &Path, fill: Fill<'_>) -> Result<()> {
    let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
        return Error::input("FILE", "not the name of a file")
            .path(path)
            .fix("name a file, not a folder")
            .into();
    };
    let parent = parent_of(path);
    let temporary = parent.join(temporary_name(&name.to_string_lossy()));
    let written = storage.write_new(&temporary, fill).and_then(|()| storage.rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to report; leftovers are removed by the next clean-up.
        let _ = storage.remove_file(&temporary);
        return Err(Error::io(path, "write", error));
    }
    storage.sync_dir(parent).map_err(|e| Error::io(parent, "sync the folder", e))
}

/// Prefix of the names of files that are being written.
pub(super) const TEMPORARY_PREFIX: &str = ".tmp-";

/// True if a file called `name` was left by a [`write_file`] that was killed.
pub(super) fn is_temporary_name(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(TEMPORARY_PREFIX) else { return false };
    let mut parts = rest.rsplitn(3, '-');
    let numbers = [parts.next(), parts.next()];
    let is_number =
        |part: Option<&str>| part.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    numbers.into_iter().all(is_number) && parts.next().is_some_and(|name| !name.is_empty())
}

/// The folder a path is in; `.` for a bare name.
pub fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates `dir` and its parents if they are missing, and syncs the folder that now lists it.
pub(super) fn create_output_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create the folder", e))?;
    let parent = parent_of(dir);
    Disk.sync_dir(parent).map_err(|e| Error::io(parent, "sync the folder", e))
}

/// `.tmp-NAME-PID-COUNT`; the name is cut so that the whole fits into the 255 bytes of a file name.
pub(super) fn temporary_name(name: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Another container on the same folder may have the same pid; the clock makes the names differ.
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.subsec_nanos());
    let end = (0..=name.len().min(180)).rev().find(|&i| name.is_char_boundary(i)).unwrap_or(0);
    format!("{TEMPORARY_PREFIX}{}-{}-{count}{nanos:09}", &name[..end], std::process::id()).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::super::storage::failing::{FailingDisk, Failure};
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_by_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_file(&path, b"one").unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        write_file(&path, b"two").unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_ne!(metadata.ino(), inode, "the old file keeps its bytes for whoever maps it");
        assert_eq!(metadata.permissions().mode() & 0o600, 0o600);
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_link_is_replaced_and_its_target_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, b"mine").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_file(&link, b"yours").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"mine");
        assert_eq!(std::fs::read(&link).unwrap(), b"yours");
    }

    #[test]
    fn every_failure_leaves_the_old_or_the_new_file() {
        for failure in [Failure::Error, Failure::CrashBefore, Failure::CrashTorn] {
            for at in 0.. {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("a");
                std::fs::write(&path, b"old").unwrap();
                let disk = FailingDisk::new(at, failure);
                let result = write_file_on(&disk, &path, &mut |out| out.write_all(b"new"));
                let found = std::fs::read(&path).unwrap();
                assert!(found == b"old" || found == b"new", "{failure:?} at {at}: {found:?}");
                for name in names(dir.path()).iter().filter(|name| *name != "a") {
                    assert!(
                        failure != Failure::Error && is_temporary_name(name),
                        "{failure:?} at {at}: {name}"
                    );
                }
                if !disk.failed() {
                    assert!(result.is_ok());
                    break;
                }
                assert!(result.is_err(), "{failure:?} at {at}");
            }
        }
    }

    #[test]
    fn names_of_folders_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write_file(dir.path(), b"").is_err());
        assert!(write_file(Path::new("/"), b"").is_err());
        assert!(write_file(Path::new(".."), b"").is_err());
    }

    #[test]
    fn only_our_own_temporary_files_are_recognised() {
        assert!(is_temporary_name(temporary_name("a-1.txt").to_str().unwrap()));
        assert!(is_temporary_name(temporary_name(&"あ".repeat(85)).to_str().unwrap()));
        for name in [".tmp-", ".tmp-a", ".tmp-1-2", ".tmp-a-b-3", "a-1-2", ".tmp-a-1-"] {
            assert!(!is_temporary_name(name), "{name}");
        }
    }
}
