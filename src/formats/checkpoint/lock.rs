//! One run per folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::CODE;
use crate::error::{Error, Result};
use crate::formats::atomic::create_output_dir;

/// Name of the lock file. It stays when the run ends: removing it would let two runs lock two files of one name.
const LOCK_NAME: &str = ".lock";

/// The right to write into a folder, until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Locks `output_dir`, which is created if it is missing.
    ///
    /// # Errors
    /// [`Error::Input`] that names the other run if there is one; [`Error::Io`] if the file system cannot lock.
    pub fn acquire(output_dir: &Path) -> Result<Self> {
        create_output_dir(output_dir)?;
        let path = output_dir.join(LOCK_NAME);
        let failed = |action: &'static str| move |e| Error::io(output_dir.join(LOCK_NAME), action, e);
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
                // The owner may be writing its name just now; then the message does without it.
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
        Ok(Self { _file: file })
    }
}

/// What this machine calls itself.
fn host_name() -> String {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    name.map_or_else(|| "an unnamed host".to_owned(), |name| name.trim().to_owned())
}
