//! Writing into the Hugging Face cache: `models--ORG--NAME/{blobs, refs, snapshots}`.
//!
//! Every path consists of checked names below a root that belongs to the user, and every folder on the way
//! must not be a link: the cache may be shared, and a link in it could point to any file of the user. A blob
//! gets its name only when it is complete and verified.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::hash::{ContentId, SMALL, hash_file};
use super::http::{Client, Failure};
use super::names::ModelName;
use super::{CODE, Progress};
use crate::error::{Error, Result};
use crate::formats::atomic::{temporary_name, write_file};
use crate::formats::folder::is_shared_blob;
use crate::formats::storage::{Disk, Storage};

/// The folders of one model at one commit.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    folder: String,
    commit: String,
    /// False in tests of file systems without links.
    pub(super) can_link: bool,
}

/// A requested file.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) id: ContentId,
    /// Size in bytes; unknown if the hub sends in chunks.
    pub(super) size: Option<u64>,
    /// Whether the id is the `ETag` that the endpoint itself sends with the file.
    pub(super) is_own_etag: bool,
}

/// Exclusive right to write one blob, until it is dropped or the process ends in any way.
#[derive(Debug)]
pub(super) struct BlobLock {
    _file: File,
}

impl Store {
    /// Makes the folders below `root`, which is created if it is missing.
    pub(super) fn create(root: &Path, model: &ModelName<'_>, commit: &str) -> Result<Self> {
        std::fs::create_dir_all(root).map_err(|e| Error::io(root, "create the folder", e))?;
        // The root itself may be a link, since the user names it.
        let root = root.canonicalize().map_err(|e| Error::io(root, "open the folder", e))?;
        let store = Self { root, folder: model.folder(), commit: commit.to_owned(), can_link: true };
        for parts in [
            &[store.folder.as_str()][..],
            &[&store.folder, "blobs"],
            &[&store.folder, "snapshots"],
            &[&store.folder, "snapshots", commit],
            &[&store.folder, "refs"],
            &[".locks"],
            &[".locks", &store.folder],
        ] {
            make_dir(&parts.iter().fold(store.root.clone(), |path, part| path.join(part)))?;
        }
        Ok(store)
    }

    /// The folder that holds the files of the commit.
    pub(super) fn snapshot(&self) -> PathBuf {
        self.root.join(&self.folder).join("snapshots").join(&self.commit)
    }

    /// The cache.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn blobs(&self) -> PathBuf {
        self.root.join(&self.folder).join("blobs")
    }

    /// Path of the complete content.
    pub(super) fn blob(&self, id: &ContentId) -> PathBuf {
        self.blobs().join(id.hex())
    }

    /// Path of incomplete content.
    pub(super) fn incomplete(&self, id: &ContentId) -> PathBuf {
        self.blobs().join(format!("{}.incomplete", id.hex()))
    }

    /// Waits until no other process writes the blob. The lock is compatible with the Python library.
    pub(super) fn lock(&self, id: &ContentId, client: &Client<'_>) -> Result<BlobLock, Failure> {
        let path = self.root.join(".locks").join(&self.folder).join(format!("{}.lock", id.hex()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(nofollow());
        let file = options.open(&path).map_err(|e| Failure::Local(Error::io(&path, "open the lock", e)))?;
        let incomplete = self.incomplete(id);
        let len = || incomplete.symlink_metadata().map_or(0, |data| data.len());
        let (mut seen, mut since, mut told) = (len(), Instant::now(), false);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(BlobLock { _file: file }),
                // Some network disks have no locks. Two downloads into one file give a wrong hash, which is
                // detected, so no harm is done.
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                    return Ok(BlobLock { _file: file });
                }
                Err(TryLockError::Error(e)) => return Err(Failure::Local(Error::io(&path, "lock", e))),
                Err(TryLockError::WouldBlock) => {}
            }
            if !told {
                let text =
                    format!("another process downloads this file; waiting for it ({})", path.display());
                (client.watch.tell)(Progress::Note(&text));
                told = true;
            }
            if len() != seen {
                (seen, since) = (len(), Instant::now());
            }
            if since.elapsed() > client.limits.lock {
                let error =
                    Error::input(CODE, "another process holds the lock of a download and makes no progress");
                return Err(Failure::Local(error.path(&path).fix("end that process").as_io().into()));
            }
            client.pause(std::time::Duration::from_millis(100))?;
        }
    }

    /// True if the content is present, by a quick check; a damaged blob is removed.
    pub(super) fn has_blob(&self, file: &Wanted, client: &Client<'_>) -> Result<bool, Failure> {
        let path = self.blob(&file.id);
        let failed = |action| move |e| Failure::Local(Error::io(self.blob(&file.id), action, e));
        let data = match path.symlink_metadata() {
            Ok(data) => data,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(failed("read")(e)),
        };
        let shared = if data.is_symlink() { self.shared_blob(&path) } else { None };
        let data = shared.as_ref().map_or(data, |(_, shared)| shared.clone());
        let contents = shared.as_ref().map_or(path.as_path(), |(target, _)| target);
        let damage = if !data.is_file() {
            // Removing a link removes the link.
            "it is not a regular file"
        } else if file.size.is_some_and(|size| size != data.len()) {
            "its size is not that of the hub"
        } else if data.len() <= SMALL && !self.is_whole(contents, &file.id, client)? {
            "its content does not match its hash"
        } else {
            return Ok(true);
        };
        (client.watch.tell)(Progress::Note(&format!(
            "{} is damaged ({damage}); downloading it again",
            path.display()
        )));
        std::fs::remove_file(&path).map_err(failed("remove"))?;
        Ok(false)
    }

    /// The file that a blob is a link to, if that is in the store that the models of a cache share.
    fn shared_blob(&self, blob: &Path) -> Option<(PathBuf, Metadata)> {
        let target = blob.canonicalize().ok()?;
        let data = target.symlink_metadata().ok().filter(Metadata::is_file)?;
        is_shared_blob(&self.root.join(&self.folder), &target).then_some((target, data))
    }

    fn is_whole(&self, path: &Path, id: &ContentId, client: &Client<'_>) -> Result<bool, Failure> {
        let hash = open_existing(path).and_then(|mut file| hash_file(&mut file, id, client.watch.stop));
        match hash {
            Ok(found) => Ok(found == *id),
            Err(_) if (client.watch.stop)() => Err(Failure::Stopped),
            Err(e) => Err(Failure::Local(Error::io(path, "read", e))),
        }
    }

    /// Whether the snapshot holds the file itself, as it does where there are no links.
    pub(super) fn has_copy(&self, file: &Wanted, client: &Client<'_>) -> Result<bool, Failure> {
        let path = self.snapshot().join(&file.name);
        match path.symlink_metadata() {
            Ok(data) if data.is_file() && file.size == Some(data.len()) => {
                Ok(data.len() > SMALL || self.is_whole(&path, &file.id, client)?)
            }
            _ => Ok(false),
        }
    }

    /// Renames verified content to its final name.
    pub(super) fn publish(&self, id: &ContentId) -> Result<()> {
        let blob = self.blob(id);
        let moved = std::fs::rename(self.incomplete(id), &blob).and_then(|()| Disk.sync_dir(&self.blobs()));
        moved.map_err(|e| Error::io(&blob, "write", e))
    }

    /// Makes the file visible in the snapshot: a link to the blob, or the blob itself where there are no links.
    pub(super) fn link(&self, file: &Wanted) -> Result<()> {
        let (snapshot, blob) = (self.snapshot(), self.blob(&file.id));
        let path = snapshot.join(&file.name);
        let target = Path::new("../../blobs").join(file.id.hex());
        if path.read_link().is_ok_and(|found| found == target) {
            return Ok(());
        }
        let temporary = snapshot.join(temporary_name(&file.name));
        let linked = match self.can_link {
            true => symlink(&target, &temporary).and_then(|()| std::fs::rename(&temporary, &path)),
            false => Err(io::ErrorKind::Unsupported.into()),
        };
        let placed = match linked {
            Ok(()) => Ok(()),
            // The blob is itself a relative link, which a move would break.
            Err(e) if blob.is_symlink() => Err(e),
            Err(_) => {
                let _ = std::fs::remove_file(&temporary);
                std::fs::rename(&blob, &path)
            }
        };
        placed.and_then(|()| Disk.sync_dir(&snapshot)).map_err(|e| Error::io(&path, "write", e))
    }

    /// Makes the name `revision` refer to the commit.
    pub(super) fn write_ref(&self, revision: &str) -> Result<()> {
        if revision == self.commit {
            return Ok(());
        }
        let mut path = self.root.join(&self.folder).join("refs");
        let (folders, name) = revision.rsplit_once('/').unwrap_or(("", revision));
        for part in folders.split('/').filter(|part| !part.is_empty()) {
            path.push(part);
            make_dir(&path)?;
        }
        write_file(&path.join(name), self.commit.as_bytes())
    }

    /// Free bytes on the disk of the cache, if the system reports them.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.root).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }
}

/// The flag that makes opening a link fail.
fn nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits() as i32
}

/// Opens an existing file that is not a link.
fn open_existing(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nofollow()).open(path)
}

/// Opens the file of incomplete content, keeping the bytes of an earlier try.
pub(super) fn open_incomplete(path: &Path) -> Result<File> {
    let failed = |action: &'static str| move |e| Error::io(path, action, e);
    match path.symlink_metadata() {
        // A link, or a hard link to another file: that file must not be written.
        Ok(data) if !data.is_file() || data.nlink() != 1 => {
            std::fs::remove_file(path).map_err(failed("remove"))?;
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("read")(e)),
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(nofollow());
    options.open(path).map_err(failed("open"))
}

/// Creates a folder, or accepts an existing one that is not a link.
fn make_dir(path: &Path) -> Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let data = path.symlink_metadata().map_err(|e| Error::io(path, "read", e))?;
            match data.is_dir() {
                true => Ok(()),
                false => Error::input(CODE, "an entry of the cache is not a folder")
                    .path(path)
                    .got(if data.is_symlink() { "a link, which could lead anywhere" } else { "a file" })
                    .fix("remove it; the cache as a whole may be a link, or another folder by HF_HOME")
                    .into(),
            }
        }
        Err(e) => Err(Error::io(path, "create the folder", e)),
    }
}
