//! Looking up a model in the Hugging Face cache, and saying what is missing or damaged.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::hash::{ContentId, SMALL, hash_file};
use super::names::{self, MAIN, ModelName};
use crate::formats::folder::is_shared_blob;
use crate::formats::shard_index::ShardIndex;
use crate::formats::weight_files::{WeightFiles, WeightFormat};

/// Small files, wanted where the model has them. No code, and nothing that is not read.
pub(super) const SMALL_FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// A model whose configuration and weights are in the cache.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) dir: PathBuf,
    pub(super) has_tokenizer: bool,
    /// What the user may want to know about it.
    pub(super) note: Option<String>,
}

/// Why a model of the cache cannot be used.
#[derive(Debug)]
pub(super) struct Lack {
    /// What is missing.
    pub(super) what: String,
    /// What to do, if it is not to download the model.
    pub(super) fix: Option<String>,
    /// Whether something is there and is not what it must be.
    pub(super) is_damaged: bool,
}

impl Lack {
    fn missing(what: impl Into<String>) -> Self {
        Self { what: what.into(), fix: None, is_damaged: false }
    }

    fn damaged(path: &Path, why: &str) -> Self {
        let what = format!("{} is damaged: {why}", path.display());
        Self { what, fix: Some(format!("remove {}", blob_of(path).display())), is_damaged: true }
    }
}

/// What to remove if the file `path` of a snapshot is damaged: the blob it is a link to, unless that is nothing of the cache's.
pub(super) fn blob_of(path: &Path) -> PathBuf {
    let blob = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let snapshot = path.parent().and_then(|dir| dir.canonicalize().ok());
    match snapshot.as_ref().and_then(|dir| dir.parent()?.parent()) {
        Some(repo) if blob.starts_with(repo.join("blobs")) || is_shared_blob(repo, &blob) => blob,
        _ => path.to_owned(),
    }
}

/// The snapshot of the model, if all that is needed of it is there and whole.
pub(super) fn find(root: &Path, model: &ModelName<'_>) -> Result<Snapshot, Lack> {
    let repo = root.join(model.folder());
    if !repo.is_dir() {
        return Err(not_there(root, model));
    }
    let (dir, note) = snapshot(&repo, model)?;
    check(&dir)?;
    Ok(Snapshot { has_tokenizer: dir.join("tokenizer.json").is_file(), dir, note })
}

/// The lack of a model that the cache does not have, unless it has it by nearly that name.
fn not_there(root: &Path, model: &ModelName<'_>) -> Lack {
    let folder = model.folder();
    let entries = root.read_dir().into_iter().flatten().flatten();
    let near = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .find(|name| name.eq_ignore_ascii_case(&folder))
        .and_then(|name| Some(name.strip_prefix("models--")?.replacen("--", "/", 1)));
    match near {
        Some(id) => Lack {
            what: format!("it is not there, but {id} is"),
            fix: Some(format!("write {id}: upper and lower case differ")),
            is_damaged: false,
        },
        None => Lack::missing("it is not there"),
    }
}

/// The folder of the commit that the revision stands for, and a note if that is a guess.
fn snapshot(repo: &Path, model: &ModelName<'_>) -> Result<(PathBuf, Option<String>), Lack> {
    let snapshots = repo.join("snapshots");
    if let Some(commit) = names::commit(model.revision) {
        return existing(snapshots.join(commit)).map(|dir| (dir, None));
    }
    let name = format!("refs/{}", model.revision);
    if let Some(text) = read_text(&repo.join(&name), 200) {
        return match names::commit(text.trim()) {
            Some(commit) => existing(snapshots.join(commit)).map(|dir| (dir, None)),
            None => Err(Lack::missing(format!("{name} does not hold the id of a commit"))),
        };
    }
    let is_commit = |name: &str| names::commit(name).is_some();
    let mut all = snapshots
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    // The only one must be what was meant if no revision is named; of several any could be.
    match (all.find(|name| is_commit(name)), all.any(|name| is_commit(&name))) {
        (Some(commit), false) if model.revision == MAIN => {
            let note =
                format!("the cache has no {name} for {}; its only snapshot is used ({commit:.7})", model.id);
            Ok((snapshots.join(commit), Some(note)))
        }
        _ => Err(Lack::missing(format!("{name} is missing"))),
    }
}

fn existing(dir: PathBuf) -> Result<PathBuf, Lack> {
    match dir.is_dir() {
        true => Ok(dir),
        false => Err(Lack::missing(format!("{} is missing", dir.display()))),
    }
}

/// Fails for the first file that is missing or damaged.
fn check(dir: &Path) -> Result<(), Lack> {
    let weights = weights(dir);
    for name in SMALL_FILES {
        let path = dir.join(name);
        match path.is_file() {
            true => check_small(&path)?,
            false if name == "config.json" => return Err(missing(&path, name)),
            false => {}
        }
    }
    for name in weights? {
        let path = dir.join(&name);
        match path.is_file() {
            true => check_weights(&path)?,
            false => return Err(missing(&path, &name)),
        }
    }
    Ok(())
}

fn missing(path: &Path, name: &str) -> Lack {
    match path.symlink_metadata() {
        Ok(_) => Lack::missing(format!("{name} is a link to nothing")),
        Err(_) => Lack::missing(format!("{name} is missing")),
    }
}

/// The names of the files that hold the weights.
fn weights(dir: &Path) -> Result<Vec<String>, Lack> {
    let Some(files) = WeightFiles::find(|name| dir.join(name).is_file()) else {
        return Ok(vec![WeightFormat::Safetensors.single().to_owned()]);
    };
    let path = dir.join(files.name());
    if !files.sharded {
        return Ok(vec![files.name().to_owned()]);
    }
    check_small(&path)?;
    match ShardIndex::read(&path, files.format) {
        Ok(index) => Ok(index.shards().into_iter().map(str::to_owned).collect()),
        Err(error) => Err(Lack::damaged(&path, &error.to_string())),
    }
}

fn read_text(path: &Path, limit: u64) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(limit).read_to_string(&mut text).ok()?;
    Some(text)
}

/// A small file is hashed: the name of the blob that it is a link to is its hash.
fn check_small(path: &Path) -> Result<(), Lack> {
    let Ok(mut file) = File::open(path) else { return Ok(()) };
    let len = file.metadata().map_or(0, |data| data.len());
    let blob = path.read_link().ok();
    let Some(id) = blob.and_then(|blob| ContentId::parse(blob.file_name()?.to_str()?)) else {
        return if len == 0 { Err(Lack::damaged(path, "it is empty")) } else { Ok(()) };
    };
    if len > SMALL {
        return Ok(());
    }
    match hash_file(&mut file, &id, &|| false) {
        Ok(found) if found != id && len == 0 => Err(Lack::damaged(path, "it is empty")),
        Ok(found) if found != id => {
            Err(Lack::damaged(path, &format!("its contents do not have its {}", id.kind())))
        }
        // What cannot be read is for the reader to say.
        _ => Ok(()),
    }
}

/// Weights are too large to be hashed each time; that they are cut off is seen in their header.
fn check_weights(path: &Path) -> Result<(), Lack> {
    let Ok(mut file) = File::open(path) else { return Ok(()) };
    let len = file.metadata().map_or(0, |data| data.len());
    if len == 0 {
        return Err(Lack::damaged(path, "it is empty"));
    }
    match needed(&mut file) {
        Some(needed) if len < needed => {
            Err(Lack::damaged(path, &format!("it is cut off: {len} bytes of {needed}")))
        }
        _ => Ok(()),
    }
}

/// Bytes that a safetensors file must have by its header; none if it has no header that could be read. What else may be wrong
/// with it is for its reader to say.
fn needed(file: &mut File) -> Option<u64> {
    /// Largest header, as the format has it.
    const MAX_HEADER: u64 = 100_000_000;
    #[derive(serde::Deserialize)]
    struct Entry {
        data_offsets: Option<(u64, u64)>,
    }
    let mut start = [0; 8];
    file.read_exact(&mut start).ok()?;
    let header_len = u64::from_le_bytes(start);
    if header_len > MAX_HEADER {
        return None;
    }
    let mut header = Vec::new();
    file.take(header_len).read_to_end(&mut header).ok()?;
    if (header.len() as u64) < header_len {
        return Some(8 + header_len);
    }
    let entries: std::collections::HashMap<String, Entry> = serde_json::from_slice(&header).ok()?;
    let ends = entries.values().filter_map(|entry| Some(entry.data_offsets?.1));
    ends.max().unwrap_or(0).checked_add(8 + header_len)
}
