//! From the name of a model to a folder: a folder as it is, or a Hugging Face id from the cache or the hub.
//!
//! The cache has the layout of the Python library (`models--ORG--NAME/{refs/main, snapshots/COMMIT, blobs}`), so what one
//! has downloaded the other finds. Nothing here prints; whoever wants to show progress passes a function.

mod cache;
#[cfg(feature = "hub")]
mod download;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const CODE: &str = "HUB";

/// What the environment says about the hub.
#[derive(Debug, Clone, Default)]
pub struct HubEnv {
    /// The cache: `$HF_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub` or `~/.cache/huggingface/hub`.
    pub cache_dir: Option<PathBuf>,
    /// Whether `$HF_HUB_OFFLINE` or `$TRANSFORMERS_OFFLINE` forbids downloads.
    pub offline: bool,
    /// `$HF_TOKEN`; without it, the token file beside the cache is used.
    pub token: Option<String>,
    /// `$HF_ENDPOINT`, for mirrors.
    pub endpoint: Option<String>,
}

impl HubEnv {
    /// The environment of this process.
    pub fn from_process() -> Self {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// An environment in which the variable `name` has the value `lookup(name)`.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| lookup(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let text =
            |name: &str| lookup(name).and_then(|v| v.into_string().ok()).filter(|v| !v.trim().is_empty());
        let is_set = |name: &str| {
            text(name).is_some_and(|v| {
                matches!(v.trim().to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true")
            })
        };
        let cache_dir = path("HF_HUB_CACHE")
            .or_else(|| Some(path("HF_HOME")?.join("hub")))
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface/hub")))
            .or_else(|| Some(path("HOME")?.join(".cache/huggingface/hub")));
        Self {
            cache_dir,
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            token: text("HF_TOKEN").map(|token| token.trim().to_owned()),
            endpoint: text("HF_ENDPOINT").map(|url| url.trim().trim_end_matches('/').to_owned()),
        }
    }
}

/// The folder of the model `name`: itself if it is a folder, else the Hugging Face model of that id, downloaded if needed.
///
/// # Errors
/// [`Error::Input`] that says what was tried and what to do.
pub fn resolve_model(name: &str) -> Result<PathBuf> {
    resolve_model_with(name, &HubEnv::from_process(), &|_| {})
}

/// As [`resolve_model`] in a given environment; `progress` is told the name of each file before it is fetched.
///
/// # Errors
/// As [`resolve_model`].
pub fn resolve_model_with(name: &str, env: &HubEnv, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    if Path::new(name).is_dir() {
        return Ok(name.into());
    }
    if Path::new(name).exists() {
        return Error::input(CODE, "the model is a file")
            .path(name)
            .expected("a folder or a Hugging Face id")
            .fix("name the folder that holds config.json and model.safetensors")
            .into();
    }
    if let Err(why) = check_id(name) {
        return Error::input(CODE, "no such folder, and not a Hugging Face id either")
            .got(format!("{name:?} ({why})"))
            .fix("check the path, or write the id as ORG/NAME")
            .into();
    }
    let Some(root) = &env.cache_dir else {
        return Error::input(CODE, "no place for downloads is known").fix("set HF_HOME to a folder").into();
    };
    let cached = cache::find(root, name);
    if let Some(snapshot) = &cached
        && (snapshot.has_tokenizer || env.offline)
    {
        return Ok(snapshot.dir.clone());
    }
    match (fetch(root, name, env, progress), cached) {
        (Ok(dir), _) => Ok(dir),
        // The weights are here and only the tokenizer is missing, which this model may not have.
        (Err(_), Some(snapshot)) => Ok(snapshot.dir),
        (Err(error), None) => Err(error),
    }
}

/// Downloads the model, if that is allowed and built in.
#[cfg(feature = "hub")]
fn fetch(root: &Path, id: &str, env: &HubEnv, progress: &dyn Fn(&str)) -> Result<PathBuf> {
    if env.offline {
        return not_here(root, id, "downloads are off (HF_HUB_OFFLINE)", "unset HF_HUB_OFFLINE");
    }
    download::download(root, id, env, progress)
}

#[cfg(not(feature = "hub"))]
fn fetch(root: &Path, id: &str, _: &HubEnv, _: &dyn Fn(&str)) -> Result<PathBuf> {
    not_here(root, id, "this build cannot download", "build with the feature `hub`")
}

/// The error of a model that is neither a folder nor in the cache.
fn not_here<T>(root: &Path, id: &str, reason: &str, remedy: &str) -> Result<T> {
    Error::input(
        CODE,
        format!("no folder {id:?}, not complete in the cache {}, and {reason}", root.display()),
    )
    .fix(format!("{remedy}, or download the model elsewhere and name its folder"))
    .into()
}

/// The hub's own rules for ids; they leave no way to name a path.
fn check_id(id: &str) -> Result<(), &'static str> {
    let parts: Vec<&str> = id.split('/').collect();
    if parts.len() > 2 {
        return Err("an id has at most one slash");
    }
    for part in parts {
        if part.is_empty() || part.len() > 96 {
            return Err("each part has 1 to 96 characters");
        }
        if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err("only letters, digits, - _ . are allowed");
        }
        if part.starts_with(['-', '.'])
            || part.ends_with(['-', '.'])
            || part.contains("..")
            || part.contains("--")
        {
            return Err("no - or . at an end, no .. or --");
        }
    }
    match id.ends_with(".git") {
        true => Err("an id does not end in .git"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
