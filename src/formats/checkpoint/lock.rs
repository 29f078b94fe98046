//! The lock of an output folder: one run per folder, and the folder must not be replaced during the run.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::CODE;
use crate::error::{Error, Result};
use crate::formats::atomic::create_output_dir;

/// Exclusive right to write into a folder, until it is dropped or the process ends in any way.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
    /// The folder, kept open so that no other folder can get its inode.
    dir: File,
    path: PathBuf,
}

impl RunLock {
    /// Name of the lock file. It stays when the run ends: removing it would let two runs lock two files of one name.
    pub const NAME: &str = ".lock";

    /// Locks `output_dir`, which is created if it is missing.
    ///
    /// # Errors
    /// [`Error::Input`] that names the other run if there is one; [`Error::Io`] if the file system cannot lock.
    pub fn acquire(output_dir: &Path) -> Result<Self> {
        create_output_dir(output_dir)?;
        let path = output_dir.join(Self::NAME);
        let failed = |action: &'static str| move |e| Error::io(output_dir.join(Self::NAME), action, e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // A link could name any file of the user, which would then be overwritten.
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        let mut file = options.open(&path).map_err(failed("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(failed("lock")(error)),
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // The owner may be writing its name at this moment; then the message omits it.
                let _ = file.take(1000).read_to_string(&mut owner);
                return Error::input(CODE, "another run is writing into this folder")
                    .path(output_dir)
                    .got(owner.trim())
                    .fix("wait for it, stop it, or choose another --output-dir")
                    .into();
            }
        }
        let owner = format!("pid {} on {}\n", std::process::id(), host_name());
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(owner.as_bytes()));
        written.map_err(failed("write"))?;
        let dir = File::open(output_dir).map_err(|e| Error::io(output_dir, "open the folder", e))?;
        Ok(Self { _file: file, dir, path: output_dir.to_owned() })
    }

    /// Fails if the folder was removed or replaced: files written now would be lost, or end up in a folder of
    /// another owner.
    ///
    /// # Errors
    /// [`Error::Changed`], or [`Error::Io`] if the folder cannot be read.
    pub fn check(&self) -> Result<()> {
        let failed = |e| Error::io(&self.path, "look at the folder", e);
        let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let now = match std::fs::metadata(&self.path) {
            Ok(metadata) => Some(id(metadata)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            Err(error) => return Err(failed(error)),
        };
        if now == Some(id(self.dir.metadata().map_err(failed)?)) {
            return Ok(());
        }
        Err(Error::Changed {
            path: self.path.clone(),
            what: "the output folder was removed, moved or replaced during the run".into(),
            fix: "leave the folder alone during a run; if it was moved, go on there with --resume auto",
        })
    }
}

/// The host name.
fn host_name() -> String {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    name.map_or_else(|| "an unnamed host".to_owned(), |name| name.trim().to_owned())
}
