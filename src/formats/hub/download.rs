//! Downloading a model into the Hugging Face cache.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::{CODE, HubEnv, cache};
use crate::error::{Error, Result};
use crate::formats::model_folder::{pickle_fix, pickled};
use crate::formats::shard_index::{INDEX_NAME, ShardIndex};

/// Small files, wanted where the model has them.
const SMALL_FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

const WEIGHTS_NAME: &str = "model.safetensors";

/// Tries again this many times when a connection breaks; what has arrived is kept.
const RETRIES: usize = 3;

/// Downloads the newest commit of the model `id` and returns its snapshot.
pub(super) fn download(root: &Path, id: &str, env: &HubEnv, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    let failed = |what: &str, error: &ApiError| explain(id, root, what, error);
    let cache = Cache::new(root.to_owned());
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_progress(false).with_retries(RETRIES);
    if env.token.is_some() {
        builder = builder.with_token(env.token.clone());
    }
    if let Some(endpoint) = &env.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let api = builder.build().map_err(|e| failed("the connection", &e))?;
    let info = api.model(id.to_owned()).info().map_err(|e| failed("the list of files", &e))?;
    if !cache::is_commit(&info.sha) {
        return Error::input(CODE, "the hub answered with an odd commit id").got(&info.sha).into();
    }
    let listed: BTreeSet<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    // Files of one commit only, even if the model is updated meanwhile.
    let repo = api.repo(Repo::with_revision(id.to_owned(), RepoType::Model, info.sha.clone()));
    let fetch = |name: &str| fetch_file(&repo, name, progress).map_err(|e| failed(name, &e));

    if !listed.contains("config.json") {
        return Error::input(CODE, "the model has no config.json")
            .got(id)
            .fix("choose a transformers model")
            .into();
    }
    for name in SMALL_FILES.into_iter().filter(|name| listed.contains(name)) {
        fetch(name)?;
    }
    if listed.contains(WEIGHTS_NAME) {
        fetch(WEIGHTS_NAME)?;
    } else if listed.contains(INDEX_NAME) {
        let path = fetch(INDEX_NAME)?;
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        for shard in ShardIndex::parse(&path, &text)?.shards() {
            fetch(shard)?;
        }
    } else {
        let names: Vec<String> = listed.iter().map(|&name| name.to_owned()).collect();
        let error = Error::input(CODE, "the model has no safetensors weights").got(id);
        return match pickled(&names) {
            Some(name) => error.fix(pickle_fix(&name)).into(),
            None => error.fix("choose a model with model.safetensors").into(),
        };
    }
    // The name `main` points to the commit only now that all of it is here.
    let repo = cache.repo(Repo::model(id.to_owned()));
    repo.create_ref(&info.sha).map_err(|e| Error::io(root, "write to the cache", e))?;
    Ok(repo.pointer_path(&info.sha))
}

/// The file `name` from the cache, else from the hub.
fn fetch_file(repo: &ApiRepo, name: &str, progress: &dyn Fn(&str)) -> Result<PathBuf, ApiError> {
    progress(name);
    repo.get(name)
}

/// What went wrong in words that help.
fn explain(id: &str, root: &Path, what: &str, error: &ApiError) -> Error {
    let text = error.to_string();
    let fix = if text.contains("401") || text.contains("403") {
        "check the id; for a private or gated model accept its terms on the web page and set HF_TOKEN"
    } else if text.contains("404") {
        "check the spelling of the id, or the path if you meant a folder"
    } else {
        "check the network (HF_ENDPOINT names a mirror), or download the model elsewhere and name its folder"
    };
    let tried = format!(
        "no folder {id:?}, not complete in the cache {}, and downloading {what} failed",
        root.display()
    );
    Error::input(CODE, tried).got(text).fix(fix).into()
}
