//! Read-only memory maps: weights are read where the page cache holds them, without a copy.
#![allow(unsafe_code, reason = "mapping a file is the one thing here that the type system cannot check")]

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};

/// A whole file, mapped for reading. Share it with an `Arc`.
///
/// The file must not be changed in place while it is mapped: another program that cuts it short makes the next read fail
/// with SIGBUS, which no check can prevent. Nothing in this crate does so; see [`crate::formats::atomic`].
#[derive(Debug)]
pub struct MappedFile {
    /// `None` for an empty file, which the system refuses to map.
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or mapped; [`Error::Input`] if it is no regular file (a pipe would block).
    pub fn open(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
        if !kind.is_file() {
            return Error::input("FILE", "not a regular file").path(path).fix("name a file").into();
        }
        let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
        Self::map(&file, path)
    }

    /// Maps an open file; `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses.
    pub(super) fn map(file: &File, path: &Path) -> Result<Self> {
        let length = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
        if length == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the map is read-only and private, it holds its own reference to the file, and it is only ever handed out
        // as `&[u8]` borrowed from `self`, so no pointer outlives it. The obligation left is that nobody changes the file
        // meanwhile: this crate replaces files by rename and never writes into one that exists, and the type's
        // documentation asks the same of other programs. If one does not comply, bytes (and `f32`s, for which every bit
        // pattern is valid) change under the reader or the process gets SIGBUS; no bound or pointer is read from the map
        // after the header has been parsed into memory of our own.
        let map = unsafe { memmap2::Mmap::map(file) };
        let map = map.map_err(|e| Error::io(path, "map", e))?;
        Ok(Self { map: Some(map) })
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(MappedFile::open(file.path()).unwrap().bytes().is_empty());
    }

    #[test]
    fn a_map_keeps_its_bytes_when_the_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        std::fs::write(&path, b"old").unwrap();
        let map = MappedFile::open(&path).unwrap();
        crate::formats::atomic::write_file(&path, b"newer").unwrap();
        assert_eq!(map.bytes(), b"old");
        assert_eq!(MappedFile::open(&path).unwrap().bytes(), b"newer");
    }

    #[test]
    fn a_folder_is_refused() {
        assert!(MappedFile::open(std::env::temp_dir().as_path()).is_err());
    }
}
