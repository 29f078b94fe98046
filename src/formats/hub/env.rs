//! Hub settings from environment variables: cache, token, endpoint.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::CODE;
use crate::error::{Error, Result};

/// Hub settings from environment variables.
#[derive(Debug, Clone, Default)]
pub struct HubEnv {
    /// The cache: `$HF_HUB_CACHE` (or its old name `$HUGGINGFACE_HUB_CACHE`), `$HF_HOME/hub`,
    /// `$XDG_CACHE_HOME/huggingface/hub` or `~/.cache/huggingface/hub`.
    pub cache_dir: Option<PathBuf>,
    /// Whether `$HF_HUB_OFFLINE` or `$TRANSFORMERS_OFFLINE` forbids downloads.
    pub offline: bool,
    /// `$HF_TOKEN`, or its old name `$HUGGING_FACE_HUB_TOKEN`.
    pub token: Option<Token>,
    /// File of the token if `token` is `None`: `$HF_TOKEN_PATH`, or `token` beside the cache folder.
    pub token_file: Option<PathBuf>,
    /// `$HF_ENDPOINT`, for mirrors.
    pub endpoint: Option<String>,
    /// Certificates to trust instead of Mozilla's: `$SSL_CERT_FILE` or `$REQUESTS_CA_BUNDLE`.
    pub ca_file: Option<PathBuf>,
}

impl HubEnv {
    /// Reads the environment of this process.
    pub fn from_process() -> Self {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// An environment in which the variable `name` has the value `lookup(name)`.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| {
            let path = PathBuf::from(lookup(name).filter(|v| !v.is_empty())?);
            // Expands `~`, which no shell has done for variables set in a file.
            match (path.strip_prefix("~"), lookup("HOME").filter(|v| !v.is_empty())) {
                (Ok(rest), Some(home)) => Some(PathBuf::from(home).join(rest)),
                _ => Some(path),
            }
        };
        let text =
            |name: &str| lookup(name).and_then(|v| v.into_string().ok()).filter(|v| !v.trim().is_empty());
        let is_set = |name: &str| {
            text(name).is_some_and(|v| {
                matches!(v.trim().to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true")
            })
        };
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(path("HOME")?.join(".cache/huggingface")));
        let sends_token = !is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")));
        Self {
            cache_dir: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .or_else(|| Some(home.as_ref()?.join("hub"))),
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            token: text("HF_TOKEN")
                .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
                .filter(|_| sends_token)
                .map(|token| Token::new(&token)),
            token_file: token_file.filter(|_| sends_token),
            endpoint: text("HF_ENDPOINT").map(|url| url.trim().trim_end_matches('/').to_owned()),
            ca_file: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
        }
    }

    /// The token to send, from the variable or the file; `None` if there is neither.
    ///
    /// # Errors
    /// [`Error::Input`] for a text that cannot be a token; it is not repeated in the message.
    pub fn find_token(&self) -> Result<Option<Token>> {
        if let Some(token) = &self.token {
            return token.check(None).map(Some);
        }
        let Some(path) = &self.token_file else { return Ok(None) };
        let mut text = String::new();
        let read =
            std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN_FILE).read_to_string(&mut text));
        match read {
            Ok(_) if text.trim().is_empty() => Ok(None),
            Ok(_) => Token::new(&text).check(Some(path)).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path, "read the token", error)),
        }
    }
}

/// Maximum bytes read from a token file.
const MAX_TOKEN_FILE: u64 = 4096;

/// A secret of the user: it is sent to the endpoint and never printed in a message.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token; white space around it is dropped.
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The text, for the one header that needs it.
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    pub(super) fn secret(&self) -> &str {
        &self.0
    }

    /// `text` with the token removed, in case a peer sent it back.
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    pub(super) fn scrub(&self, text: &str) -> String {
        text.replace(&self.0, "***")
    }

    /// The token, if it is valid in a header.
    fn check(&self, path: Option<&Path>) -> Result<Self> {
        if (1..=1024).contains(&self.0.len()) && self.0.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(self.clone());
        }
        let error = Error::input(CODE, "the token has invalid characters");
        match path {
            Some(path) => error.path(path).fix("write the token alone into the file").into(),
            None => error.field("HF_TOKEN").fix("set HF_TOKEN to the token alone").into(),
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> HubEnv {
        let pairs: Vec<(String, String)> = pairs.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        HubEnv::from_lookup(move |name| Some(pairs.iter().find(|(k, _)| k == name)?.1.clone().into()))
    }

    #[test]
    fn the_environment_has_the_order_of_the_python_library() {
        let cache = |pairs: &[(&str, &str)]| {
            env(pairs).cache_dir.map(|p| p.display().to_string()).unwrap_or_default()
        };
        let all = [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/d")];
        assert_eq!(cache(&all), "/a");
        assert_eq!(cache(&all[1..]), "/b/hub");
        assert_eq!(cache(&all[2..]), "/c/huggingface/hub");
        assert_eq!(cache(&all[3..]), "/d/.cache/huggingface/hub");
        assert_eq!(cache(&[("HF_HOME", ""), ("HOME", "/d")]), "/d/.cache/huggingface/hub");
        assert_eq!(cache(&[]), "");
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/e"), ("HF_HOME", "/b")]), "/e");
        assert_eq!(cache(&[("HF_HOME", "~/f"), ("HOME", "/d")]), "/d/f/hub");
        assert_eq!(cache(&[("HF_HOME", "~other/f"), ("HOME", "/d")]), "~other/f/hub");
        assert!(env(&[("HF_HUB_OFFLINE", "1")]).offline && env(&[("TRANSFORMERS_OFFLINE", "YES")]).offline);
        assert!(!env(&[("HF_HUB_OFFLINE", "0")]).offline && !env(&[]).offline);
        assert_eq!(env(&[("HF_ENDPOINT", "http://m/")]).endpoint.as_deref(), Some("http://m"));
        let file = |pairs: &[(&str, &str)]| env(pairs).token_file.map(|p| p.display().to_string());
        assert_eq!(file(&[("HF_TOKEN_PATH", "/t"), ("HF_HOME", "/b")]).as_deref(), Some("/t"));
        assert_eq!(file(&[("HF_HOME", "/b")]).as_deref(), Some("/b/token"));
        assert_eq!(file(&[("HF_HOME", "/b"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[test]
    fn tokens_are_found_and_never_shown() {
        let secret = env(&[("HF_TOKEN", " hf_secret\n")]);
        assert_eq!(secret.find_token().unwrap().unwrap().secret(), "hf_secret");
        assert!(!format!("{secret:?}").contains("secret"));
        let both = [("HUGGING_FACE_HUB_TOKEN", "hf_old"), ("HF_TOKEN", "hf_new")];
        assert_eq!(env(&both).find_token().unwrap().unwrap().secret(), "hf_new");
        assert_eq!(env(&both[..1]).find_token().unwrap().unwrap().secret(), "hf_old");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let from_file = || env(&[("HF_HOME", dir.path().to_str().unwrap())]).find_token();
        assert_eq!(from_file().unwrap(), None);
        std::fs::write(&path, "hf_filed\n").unwrap();
        assert_eq!(from_file().unwrap(), Some(Token::new("hf_filed")));
        std::fs::write(&path, " \n").unwrap();
        assert_eq!(from_file().unwrap(), None);
        std::fs::write(&path, "hf_one\r\nX-Evil: hf_two").unwrap();
        let error = from_file().unwrap_err().to_string();
        assert!(!error.contains("hf_") && error.contains("token"), "{error}");
        let error = env(&[("HF_TOKEN", "hf a")]).find_token().unwrap_err().to_string();
        assert!(!error.contains("hf a") && error.contains("HF_TOKEN"), "{error}");
    }
}
