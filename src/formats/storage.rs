//! The disk operations of writers, as a trait, so that tests can crash between any two of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes the contents of a file.
pub(super) type Fill<'a> = &'a mut dyn FnMut(&mut dyn Write) -> io::Result<()>;

/// Changes to the disk. Implemented by [`Disk`] and by the failing disks of tests.
pub(super) trait Storage {
    /// Creates a folder; its parent exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates a file that does not exist, fills it and waits until its contents are on the disk.
    fn write_new(&self, path: &Path, fill: Fill<'_>) -> io::Result<()>;
    /// Waits until the entries of a folder are on the disk.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Moves a file or folder; replaces a file.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Swaps two files or folders in one step, where the file system can.
    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()>;
    /// Removes a file or a link.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}

/// The disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk;

impl Storage for Disk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn write_new(&self, path: &Path, fill: Fill<'_>) -> io::Result<()> {
        // `create_new` is O_EXCL: it follows no link and opens nothing that exists.
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        fill(&mut writer)?;
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    #[cfg(target_os = "linux")]
    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
    }

    #[cfg(not(target_os = "linux"))]
    fn exchange(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }
}

/// Removes a folder and all that is in it; follows no link, not even at the top.
pub(super) fn remove_tree(storage: &dyn Storage, dir: &Path) -> io::Result<()> {
    if !dir.symlink_metadata()?.is_dir() {
        return storage.remove_file(dir);
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(storage, &entry.path())?;
        } else {
            storage.remove_file(&entry.path())?;
        }
    }
    storage.remove_dir(dir)
}

/// Failing disks, for tests of all writers.
#[cfg(test)]
pub(super) mod failing {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// The failure at the chosen operation.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Failure {
        /// The operation fails, the program goes on (disk full, I/O error).
        Error,
        /// The machine stops before the operation: nothing later reaches the disk.
        CrashBefore,
        /// As before, but half of the file that was being written is there.
        CrashTorn,
    }

    /// A disk that fails at operation `at`, counted from 0.
    #[derive(Debug)]
    pub(crate) struct FailingDisk {
        at: usize,
        failure: Failure,
        can_exchange: bool,
        count: Cell<usize>,
        /// The operations done, in order.
        pub(crate) log: RefCell<Vec<String>>,
    }

    impl FailingDisk {
        pub(crate) fn new(at: usize, failure: Failure) -> Self {
            Self { at, failure, can_exchange: true, count: Cell::new(0), log: RefCell::default() }
        }

        pub(crate) fn without_exchange(mut self) -> Self {
            self.can_exchange = false;
            self
        }

        /// Whether the chosen operation was reached.
        pub(crate) fn failed(&self) -> bool {
            self.count.get() > self.at
        }

        fn step(&self, what: &str, path: &Path) -> io::Result<()> {
            let n = self.count.replace(self.count.get() + 1);
            let dead = match self.failure {
                Failure::Error => n == self.at,
                Failure::CrashBefore | Failure::CrashTorn => n >= self.at,
            };
            if dead {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            self.log.borrow_mut().push(format!("{what} {name}"));
            Ok(())
        }
    }

    impl Storage for FailingDisk {
        fn create_dir(&self, path: &Path) -> io::Result<()> {
            self.step("create_dir", path)?;
            Disk.create_dir(path)
        }
        fn write_new(&self, path: &Path, fill: Fill<'_>) -> io::Result<()> {
            let torn = self.failure != Failure::CrashBefore && self.count.get() == self.at;
            let alive = self.step("write_new", path);
            if alive.is_ok() {
                return Disk.write_new(path, fill);
            }
            if torn {
                let mut bytes = Vec::new();
                fill(&mut bytes)?;
                Disk.write_new(path, &mut |out| out.write_all(&bytes[..bytes.len() / 2]))?;
            }
            alive
        }
        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            self.step("sync_dir", path)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.step("rename", to)?;
            Disk.rename(from, to)
        }
        fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
            if !self.can_exchange {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            self.step("exchange", b)?;
            Disk.exchange(a, b)
        }
        fn remove_file(&self, path: &Path) -> io::Result<()> {
            self.step("remove_file", path)?;
            Disk.remove_file(path)
        }
        fn remove_dir(&self, path: &Path) -> io::Result<()> {
            self.step("remove_dir", path)?;
            Disk.remove_dir(path)
        }
    }
}
