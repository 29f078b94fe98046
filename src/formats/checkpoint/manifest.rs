//! `MANIFEST.json`: the files of a checkpoint, with sizes and hashes to verify them.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::CODE;
use crate::error::{Error, Result};
use crate::formats::folder::is_single_component;

/// Name of the manifest.
pub(super) const MANIFEST_NAME: &str = "MANIFEST.json";

/// Version of the format; raised when older readers would misread the files.
const FORMAT_VERSION: u32 = 1;

/// The files of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format_version: u32,
    /// Optimizer steps done.
    pub(super) step: u64,
    /// The files, sorted by name.
    pub(super) files: Vec<Entry>,
    /// SHA-256 of all fields above, so that damage of the manifest is detected too.
    digest: String,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) size: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub(super) sha256: String,
}

impl Manifest {
    /// The manifest of these files.
    ///
    /// # Errors
    /// [`Error::Input`] if a name is not a plain, visible file name, or appears twice.
    pub(super) fn of(step: u64, files: &[(String, Vec<u8>)]) -> Result<Self> {
        let mut entries: Vec<Entry> = files
            .iter()
            .map(|(name, bytes)| Entry {
                name: name.clone(),
                size: bytes.len() as u64,
                sha256: sha256(bytes),
            })
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(name) = bad_name(&entries) {
            return Error::input(CODE, "not a name for a file of a checkpoint")
                .got(format!("{name:?}"))
                .expected("different plain file names")
                .fix("this is a mistake of the program; please report it")
                .into();
        }
        let digest = digest(step, &entries);
        Ok(Self { format_version: FORMAT_VERSION, step, files: entries, digest })
    }

    /// Reads the text of a manifest; `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Input`] if it is damaged, of another version, or names a file outside the folder.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let bad = |what: String| Error::input(CODE, what).path(path).fix("resume from another checkpoint");
        let manifest: Self = match serde_json::from_slice(text) {
            Ok(manifest) => manifest,
            Err(error) => return bad(format!("damaged manifest: {error}")).into(),
        };
        if manifest.format_version != FORMAT_VERSION {
            let error = bad("another version of the format".to_owned());
            return error.got(manifest.format_version).expected(FORMAT_VERSION).into();
        }
        if manifest.digest != digest(manifest.step, &manifest.files) {
            return bad("damaged manifest: its hash does not fit".to_owned()).into();
        }
        match bad_name(&manifest.files) {
            Some(name) => bad("unsafe file name".to_owned()).got(format!("{name:?}")).into(),
            None => Ok(manifest),
        }
    }

    /// The text of the file.
    pub(super) fn to_text(&self) -> Vec<u8> {
        let text = serde_json::to_vec_pretty(self);
        debug_assert!(text.is_ok(), "numbers and strings can be written as JSON");
        text.unwrap_or_default()
    }
}

/// The hash of `bytes` in lower-case hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// `bytes` in lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The first invalid name.
fn bad_name(files: &[Entry]) -> Option<&str> {
    let mut seen = BTreeSet::new();
    let is_bad = |name: &str| !is_single_component(name) || name.starts_with('.') || name == MANIFEST_NAME;
    files.iter().map(|file| file.name.as_str()).find(|name| is_bad(name) || !seen.insert(*name))
}

fn digest(step: u64, files: &[Entry]) -> String {
    // Names have no control characters, so the lines cannot be confused.
    let lines: String = files.iter().map(|f| format!("{}\n{}\n{}\n", f.name, f.size, f.sha256)).collect();
    sha256(format!("{step}\n{lines}").as_bytes())
}
