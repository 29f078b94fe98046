//! Resolves the name of a model to a folder: a local folder, or a Hugging Face id from the cache or the hub.
//!
//! The cache has the layout of the Python library (`models--ORG--NAME/{refs/main, snapshots/COMMIT, blobs}`),
//! so both find each other's downloads. Data from a hub or a mirror is not trusted: names, commits and hashes
//! are checked by strict rules before they are used in paths, and content is counted and hashed before it
//! gets its final name. Nothing here prints; a caller that shows progress passes a [`Watch`].

mod cache;
mod env;
mod hash;
mod names;
mod verify;

#[cfg(feature = "hub")]
mod blob;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod file_names;
#[cfg(feature = "hub")]
mod headers;
#[cfg(feature = "hub")]
mod http;
#[cfg(feature = "hub")]
mod listing;
#[cfg(feature = "hub")]
mod origin;
#[cfg(feature = "hub")]
mod store;

pub use env::{HubEnv, Token};
pub use hash::ContentId;
#[cfg(feature = "hub")]
pub use headers::{ByteRange, Head, Odd};
#[cfg(feature = "hub")]
pub use origin::{Origin, Url};
pub use verify::verify;

use std::path::{Path, PathBuf};

use names::ModelName;

use crate::error::{Error, Result};

const CODE: &str = "HUB";

/// Callbacks during lookup and download: progress events, and a request to stop.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Called with every event.
    pub tell: &'a dyn Fn(Progress<'_>),
    /// Polled several times per second: true if the download should end. Downloaded bytes are kept for the
    /// next time.
    pub stop: &'a dyn Fn() -> bool,
}

impl Watch<'static> {
    /// No callbacks.
    pub const NOBODY: Self = Self { tell: &|_| {}, stop: &|| false };
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// An event of lookup and download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A note for the user.
    Note(&'a str),
    /// A warning for the user.
    Warning(&'a str),
    /// Progress of a file, in bytes.
    File {
        /// The file.
        name: &'a str,
        /// Bytes on disk, including those of earlier downloads.
        done: u64,
        /// Total bytes.
        total: u64,
    },
}

/// The folder of the model `name`: itself if it is a folder, else the Hugging Face model of that id (`ORG/NAME` or
/// `ORG/NAME@REVISION`), downloaded if needed.
///
/// # Errors
/// [`Error::Input`] that lists what was tried and what to do.
pub fn resolve_model(name: &str) -> Result<PathBuf> {
    resolve_model_with(name, &HubEnv::from_process(), &Watch::NOBODY)
}

/// As [`resolve_model`] in a given environment, with callbacks `watch`.
///
/// # Errors
/// As [`resolve_model`]; [`Error::Stopped`] if `watch` says so.
pub fn resolve_model_with(name: &str, env: &HubEnv, watch: &Watch<'_>) -> Result<PathBuf> {
    resolve(name, env, watch, &|root, model, urgency| fetch(root, model, env, watch, urgency))
}

/// Whether a model can be used if its download fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "hub"), allow(dead_code))]
enum Urgency {
    /// It cannot.
    Needed,
    /// It can, so there is only one try.
    Wanted,
}

/// How a model is downloaded.
type Fetch<'a> = &'a dyn Fn(&Path, &ModelName<'_>, Urgency) -> Result<PathBuf>;

fn resolve(name: &str, env: &HubEnv, watch: &Watch<'_>, fetch: Fetch<'_>) -> Result<PathBuf> {
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
    let model = match ModelName::parse(name) {
        Ok(model) => model,
        Err(why) => {
            return Error::input(CODE, "no such folder, and not a Hugging Face id either")
                .got(format!("{name:?} ({why})"))
                .fix("check the path, or write the id as ORG/NAME or ORG/NAME@REVISION")
                .into();
        }
    };
    let Some(root) = &env.cache_dir else {
        return Error::input(CODE, "no folder for downloads is known").fix("set HF_HOME to a folder").into();
    };
    match cache::find(root, &model) {
        Ok(snapshot) => {
            // Without a tokenizer the model may be partly downloaded, or may not have one.
            let newer = match snapshot.has_tokenizer || env.offline {
                true => None,
                false => Some(fetch(root, &model, Urgency::Wanted)),
            };
            match newer {
                Some(Ok(dir)) => return Ok(dir),
                Some(Err(stopped @ Error::Stopped { .. })) => return Err(stopped),
                Some(Err(_)) | None => {}
            }
            if let Some(note) = &snapshot.note {
                (watch.tell)(Progress::Note(note));
            }
            Ok(snapshot.dir)
        }
        Err(lack) if env.offline => {
            not_here(root, &model, &lack, "downloads are off (HF_HUB_OFFLINE)", "unset HF_HUB_OFFLINE")
        }
        Err(lack) if cfg!(not(feature = "hub")) => {
            not_here(root, &model, &lack, "this build cannot download", "build with the feature `hub`")
        }
        Err(lack) => {
            if lack.is_damaged {
                (watch.tell)(Progress::Warning(&lack.what));
            }
            fetch(root, &model, Urgency::Needed)
        }
    }
}

/// Downloads the model, if this build supports downloads.
#[cfg(feature = "hub")]
fn fetch(
    root: &Path,
    model: &ModelName<'_>,
    env: &HubEnv,
    watch: &Watch<'_>,
    urgency: Urgency,
) -> Result<PathBuf> {
    let mut limits = http::Limits::default();
    if urgency == Urgency::Wanted {
        limits.retries = 0;
    }
    download::download(root, model, env, watch, &limits)
}

#[cfg(not(feature = "hub"))]
fn fetch(root: &Path, model: &ModelName<'_>, _: &HubEnv, _: &Watch<'_>, _: Urgency) -> Result<PathBuf> {
    let lack = cache::Lack { what: "it has no tokenizer".to_owned(), fix: None, is_damaged: false };
    not_here(root, model, &lack, "this build cannot download", "build with the feature `hub`")
}

/// The error of a model that is neither a folder nor in the cache.
fn not_here<T>(
    root: &Path,
    model: &ModelName<'_>,
    lack: &cache::Lack,
    reason: &str,
    remedy: &str,
) -> Result<T> {
    let what = format!(
        "no folder {:?}, not complete in the cache {} ({}), and {reason}",
        model.text(),
        root.display(),
        lack.what
    );
    let download = format!("{remedy}, or download the model elsewhere and name its folder");
    let fix = match &lack.fix {
        Some(fix) if lack.is_damaged => format!("{fix}; then {download}"),
        Some(fix) => fix.clone(),
        None => download,
    };
    let error = Error::input(CODE, what).fix(fix);
    if lack.is_damaged { error.as_io().into() } else { error.into() }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
#[cfg(feature = "hub")]
mod hostile_tests;
#[cfg(test)]
#[cfg(feature = "hub")]
mod resume_tests;
#[cfg(test)]
#[cfg(feature = "hub")]
mod testing;
