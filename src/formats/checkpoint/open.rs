//! Opening checkpoints: every file is verified before it is read.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::manifest::{Entry, MANIFEST_NAME, Manifest, hex, sha256};
use super::{CODE, list, step_of};
use crate::error::{Error, InputError, Result};

/// Maximum size of a manifest; real ones have a few hundred bytes.
const MAX_MANIFEST: u64 = 16 << 20;

/// A checkpoint whose files were all present and unchanged when it was opened.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
}

/// A folder that is named like a checkpoint but is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The folder.
    pub path: PathBuf,
    /// The fault.
    pub why: String,
}

impl Checkpoint {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Optimizer steps done.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// Names of its files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.manifest.files.iter().map(|file| file.name.as_str())
    }

    /// The bytes of the file `name`, verified once more.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no such file or it has changed, [`Error::Io`] if it cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let Some(entry) = self.manifest.files.iter().find(|file| file.name == name) else {
            let error = Error::input(CODE, "the checkpoint has no such file").path(&self.path).field(name);
            return error.fix("resume from a checkpoint of the same kind of run").into();
        };
        let (path, mut file) = open_entry(&self.path, entry)?;
        let mut bytes = Vec::new();
        file.by_ref()
            .take(entry.size + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io(&path, "read", e))?;
        match bytes.len() as u64 == entry.size && sha256(&bytes) == entry.sha256 {
            true => Ok(bytes),
            false => changed(&path).into(),
        }
    }
}

/// Opens the checkpoint in `dir` and verifies its manifest and the hash of every file.
///
/// # Errors
/// [`Error::Input`] if it is incomplete, damaged, or of another version; [`Error::Io`] if it cannot be read.
pub fn open(dir: &Path) -> Result<Checkpoint> {
    let manifest = manifest(dir)?;
    let named = dir.file_name().and_then(|name| step_of(name.to_str()?));
    if let Some(step) = named.filter(|&step| step != manifest.step) {
        return Error::input(CODE, "the folder's name and its manifest disagree about the step")
            .path(dir)
            .got(step)
            .expected(manifest.step)
            .fix("give the folder its old name")
            .into();
    }
    for entry in &manifest.files {
        verify(dir, entry)?;
    }
    Ok(Checkpoint { path: dir.to_owned(), manifest })
}

/// True if the folder `dir` is a checkpoint and contains nothing else: its manifest is valid and lists every
/// file. Hashes are not verified.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub fn is_ours(dir: &Path) -> Result<bool> {
    if dir.file_name().and_then(|name| step_of(name.to_str()?)).is_none() {
        return Ok(false);
    }
    let manifest = match manifest(dir) {
        Ok(manifest) => manifest,
        Err(error @ Error::Io { .. }) => return Err(error),
        Err(_) => return Ok(false),
    };
    let failed = |e| Error::io(dir, "list the folder", e);
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let known = name == MANIFEST_NAME || manifest.files.iter().any(|file| name == *file.name);
        if !known || !entry.file_type().map_err(failed)?.is_file() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The checkpoint of `output_dir` with the highest step that verifies, and the damaged ones with a higher
/// step.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be listed, or a checkpoint cannot be read: it may be whole, and a run
/// that resumed from an older one would repeat its steps. A missing folder has no checkpoints.
pub fn newest(output_dir: &Path) -> Result<(Option<Checkpoint>, Vec<Skipped>)> {
    let mut skipped = Vec::new();
    for (_, path) in list(output_dir)?.into_iter().rev() {
        match open(&path) {
            Ok(checkpoint) => return Ok((Some(checkpoint), skipped)),
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => skipped.push(Skipped { path, why: error.to_string() }),
        }
    }
    Ok((None, skipped))
}

/// The manifest of the checkpoint in `dir`.
fn manifest(dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST_NAME);
    let mut text = Vec::new();
    let file = match open_file(&path) {
        Err(error) if is_missing(&error) => {
            return Error::input(CODE, "no MANIFEST.json: the checkpoint is incomplete, or not one of ours")
                .path(dir)
                .fix("resume from another checkpoint")
                .into();
        }
        file => file.map_err(|e| Error::io(&path, "read", e))?,
    };
    file.take(MAX_MANIFEST).read_to_end(&mut text).map_err(|e| Error::io(&path, "read", e))?;
    Manifest::parse(&path, &text)
}

/// Checks size and hash of one file, without holding it in memory.
fn verify(dir: &Path, entry: &Entry) -> Result<()> {
    let (path, mut file) = open_entry(dir, entry)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(&path, "read", error)),
        }
    }
    match hex(&hash.finalize()) == entry.sha256 {
        true => Ok(()),
        false => changed(&path).into(),
    }
}

/// Opens a file of a checkpoint, and checks its size.
fn open_entry(dir: &Path, entry: &Entry) -> Result<(PathBuf, File)> {
    let path = dir.join(&entry.name);
    let failed = |e| Error::io(&path, "read", e);
    let file = match open_file(&path) {
        Err(error) if is_missing(&error) => return changed(&path).got("no such file").into(),
        file => file.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() != entry.size {
        return changed(&path).got(format!("{} bytes", metadata.len())).expected(entry.size).into();
    }
    Ok((path, file))
}

/// Opens a file, but follows no link and does not wait at a pipe.
fn open_file(path: &Path) -> std::io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)
}

/// True if the file is missing or a link; other errors do not mean that the checkpoint is damaged.
fn is_missing(error: &std::io::Error) -> bool {
    let is_link = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    error.kind() == std::io::ErrorKind::NotFound || is_link
}

fn changed(path: &Path) -> InputError {
    let error = Error::input(CODE, "the file is not the one that was saved").path(path);
    error.fix("resume from another checkpoint")
}
