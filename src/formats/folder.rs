//! Reading files of an untrusted (downloaded) folder: nothing outside it is opened.
//!
//! A name must be a single component. A link may stay inside the folder; in the Hugging Face cache, where every file of
//! `models--ORG--NAME/snapshots/COMMIT` is a link into `blobs`, it may stay inside `models--ORG--NAME` or lead to the store that
//! all models of the cache share, `blobs/XX/HASH` beside them.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A folder and the boundary that its links must not leave.
#[derive(Debug)]
pub(super) struct Folder {
    code: &'static str,
    dir: PathBuf,
    canonical: PathBuf,
    boundary: PathBuf,
}

impl Folder {
    /// Opens `dir`; `code` is the class of its errors.
    pub(super) fn open(code: &'static str, dir: &Path) -> Result<Self> {
        let canonical = dir.canonicalize().map_err(|e| Error::io(dir, "open the folder", e))?;
        if !canonical.is_dir() {
            return Error::input(code, "not a folder")
                .path(dir)
                .fix("name the folder that holds the files")
                .into();
        }
        let boundary = cache_boundary(&canonical).unwrap_or(&canonical).to_owned();
        Ok(Self { code, dir: dir.to_owned(), canonical, boundary })
    }

    /// The folder, as the user wrote it.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of the file `name`, for messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether `name` is a link to something outside the boundary.
    pub(super) fn leads_out(&self, name: &str) -> bool {
        self.canonical.join(name).canonicalize().is_ok_and(|target| !target.starts_with(&self.boundary))
    }

    /// Opens the file `name`; `None` if there is none.
    pub(super) fn file(&self, name: &str) -> Result<Option<File>> {
        let path = self.path(name);
        let bad = |what: &str| Error::input(self.code, what).path(&path);
        if !is_single_component(name) {
            return bad("not a plain file name").fix("name a file directly in the folder").into();
        }
        let here = self.canonical.join(name);
        match here.symlink_metadata() {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, "read", error)),
        }
        let target = here.canonicalize().map_err(|e| Error::io(&path, "follow the link", e))?;
        if !target.starts_with(&self.boundary) && !is_shared_blob(&self.boundary, &target) {
            return bad("a link that leads out of the folder")
                .got(target.display())
                .expected(format!("a file below {}", self.boundary.display()))
                .fix("put the file itself into the folder")
                .into();
        }
        let kind = target.symlink_metadata().map_err(|e| Error::io(&path, "read", e))?;
        if !kind.is_file() {
            return bad("not a regular file").fix("put a regular file there").into();
        }
        // The resolved path has no links; should one appear now, the open fails instead of following it.
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(nofollow).open(&target);
        file.map(Some).map_err(|e| Error::io(&path, "read", e))
    }

    /// The folder `name` in this one, with the same boundary; `None` if there is none.
    pub(super) fn folder(&self, name: &str) -> Result<Option<Self>> {
        let dir = self.path(name);
        if !self.canonical.join(name).is_dir() {
            return Ok(None);
        }
        let mut folder = Self::open(self.code, &dir)?;
        folder.boundary.clone_from(&self.boundary);
        if !folder.canonical.starts_with(&self.boundary) {
            return Error::input(self.code, "a link that leads out of the folder")
                .path(dir)
                .got(folder.canonical.display())
                .expected(format!("a folder below {}", self.boundary.display()))
                .fix("put the folder itself there")
                .into();
        }
        Ok(Some(folder))
    }

    /// The text of the file `name`, at most `limit` bytes; `None` if there is none.
    pub(super) fn text(&self, name: &str, limit: u64) -> Result<Option<String>> {
        let Some(file) = self.file(name)? else { return Ok(None) };
        let path = self.path(name);
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(&path, "read", e))?;
        if bytes.len() as u64 > limit {
            let error = Error::input(self.code, "the file is too large").path(&path);
            return error
                .expected(format!("at most {limit} bytes"))
                .fix("check that it is the right file")
                .into();
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => {
                Error::input(self.code, "not UTF-8 text").path(&path).fix("save the file as UTF-8").into()
            }
        }
    }

    /// Names of the files in the folder, sorted.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let failed = |e| Error::io(&self.dir, "list the folder", e);
        let mut names = Vec::new();
        for entry in self.canonical.read_dir().map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

/// True if `name` is a plain name of an entry directly in the folder, on every system.
pub(super) fn is_single_component(name: &str) -> bool {
    let odd = |c: char| c.is_control() || matches!(c, '/' | '\\' | ':');
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(odd)
}

/// Whether `target` is in the store that the models of a cache share, beside the model `repo`: `blobs/XX/HASH`, where `HASH` has
/// 64 hexadecimal digits and begins with `XX`. `huggingface_hub` keeps large files there since its version 2.
pub(super) fn is_shared_blob(repo: &Path, target: &Path) -> bool {
    let is_repo = repo.file_name().and_then(|name| name.to_str()).is_some_and(|n| n.starts_with("models--"));
    let (Some(cache), true) = (repo.parent(), is_repo) else { return false };
    let Ok(rest) = target.strip_prefix(cache.join("blobs")) else { return false };
    let parts: Vec<&str> = rest.iter().filter_map(|part| part.to_str()).collect();
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    matches!(parts[..], [prefix, hash] if prefix.len() == 2 && hash.len() == 64 && is_hex(hash) && hash.starts_with(prefix))
}

/// `models--ORG--NAME` if `dir` is one of its snapshots.
fn cache_boundary(dir: &Path) -> Option<&Path> {
    let snapshots = dir.parent().filter(|p| p.file_name().is_some_and(|n| n == "snapshots"))?;
    let repo = snapshots.parent()?;
    repo.file_name()?.to_str()?.starts_with("models--").then_some(repo)
}
