//! Detects changes of a file: by device, inode, length and time of the last change.
//!
//! A run reads its weights once, but its results are meant for the file that the user still has. If the file
//! changes during the run, this is detected before results are published.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Result};

/// The identity of a file at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// The stamp of a file with this metadata.
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    /// Fails if the file at `path` has another stamp.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        match std::fs::metadata(path) {
            Ok(now) if Self::of(&now) == *self => Ok(()),
            Ok(_) => Err(Self::changed(path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Self::changed(path)),
            Err(error) => Err(Error::io(path, "look at the file again", error)),
        }
    }

    /// The error of a changed file.
    pub(super) fn changed(path: &Path) -> Error {
        Error::Changed {
            path: path.to_owned(),
            what: "the file was truncated, modified, replaced or removed while it was in use".into(),
            fix: "leave the files of the model alone during a run; check that they are whole, and start again",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{FileTimes, OpenOptions, metadata, remove_file, rename, write};
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn every_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        let fresh = || {
            write(&path, b"weights").unwrap();
            let long_ago = SystemTime::now() - Duration::from_secs(100);
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_times(FileTimes::new().set_modified(long_ago)).unwrap();
            let stamp = Stamp::of(&metadata(&path).unwrap());
            stamp.check(&path).unwrap();
            stamp
        };
        let demand = |stamp: Stamp, what: &str| {
            let error = stamp.check(&path).expect_err(what);
            assert_eq!(error.exit_code(), 3, "{what}");
            assert!(error.to_string().contains("while it was in use"), "{what}: {error}");
        };
        let stamp = fresh();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(3).unwrap();
        demand(stamp, "cut short");
        let stamp = fresh();
        write(&path, b"changed").unwrap();
        demand(stamp, "written into, same length");
        let stamp = fresh();
        let times = FileTimes::new().set_modified(metadata(&path).unwrap().modified().unwrap());
        let other = dir.path().join("other");
        write(&other, b"changed").unwrap();
        OpenOptions::new().write(true).open(&other).unwrap().set_times(times).unwrap();
        rename(&other, &path).unwrap();
        demand(stamp, "replaced, same length and time");
        let stamp = fresh();
        remove_file(&path).unwrap();
        demand(stamp, "removed");
    }
}
