//! Looking up a model in the Hugging Face cache.

use std::path::{Path, PathBuf};

use crate::formats::shard_index::{INDEX_NAME, ShardIndex};

/// A model whose configuration and weights are in the cache.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) dir: PathBuf,
    pub(super) has_tokenizer: bool,
}

/// The snapshot that `refs/main` of the model `id` points to, if its weights are complete.
pub(super) fn find(root: &Path, id: &str) -> Option<Snapshot> {
    let repo = root.join(format!("models--{}", id.replace('/', "--")));
    let commit = std::fs::read_to_string(repo.join("refs/main")).ok()?;
    let commit = commit.trim();
    if !is_commit(commit) {
        return None;
    }
    let dir = repo.join("snapshots").join(commit);
    let has = |name: &str| dir.join(name).is_file();
    let complete = has("config.json") && (has("model.safetensors") || shards_are_there(&dir));
    let has_tokenizer = has("tokenizer.json");
    complete.then_some(Snapshot { dir, has_tokenizer })
}

/// A Git commit id: it becomes the name of a folder.
pub(super) fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn shards_are_there(dir: &Path) -> bool {
    let path = dir.join(INDEX_NAME);
    let Ok(text) = std::fs::read_to_string(&path) else { return false };
    ShardIndex::parse(&path, &text)
        .is_ok_and(|index| index.shards().iter().all(|shard| dir.join(shard).is_file()))
}
