//! How the rows of a training became text, written beside its adapter, so that scoring makes the same text of them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Notice, TextOptions};
use crate::config::{Format, Truncation};
use crate::data::record::Record;
use crate::data::texts::{Texts, any_tools};
use crate::error::{Error, Result};
use crate::formats::adapter::read_text;

/// The file in the folder of the adapter.
pub const NAME: &str = "text_settings.json";

/// Largest accepted file.
const MAX_BYTES: u64 = 64 << 10;

/// How rows become text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextSettings {
    /// `plain` or `chat`.
    pub format: Format,
    /// SHA-256 of the chat template, in hex; none in the plain format.
    pub chat_template_sha256: Option<String>,
    /// That of the template for rows with tools, which may be another one; none if there are no such rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_template_sha256: Option<String>,
    /// Longest row in tokens.
    pub max_seq_length: usize,
    /// What happens to longer rows.
    pub truncation: Truncation,
    /// Whether special tokens in rows stay text.
    pub escape_special: bool,
    /// Whether the last answer of a conversation is learned alone.
    pub mask_history: bool,
}

impl TextSettings {
    /// What `texts` does with `records` under these options.
    pub(super) fn of(texts: &Texts, options: &TextOptions, records: &[Record]) -> Self {
        let tokenizer = texts.tokenizer.as_ref().filter(|_| texts.format == Format::Chat);
        let hex = |source: &str| Sha256::digest(source).iter().map(|byte| format!("{byte:02x}")).collect();
        let of_chat = tokenizer.and_then(|tokenizer| tokenizer.chat_template());
        let of_tools = tokenizer.and_then(|tokenizer| tokenizer.tool_template());
        let of_tools = of_tools.map(|template| template.source.as_str()).or(of_chat);
        Self {
            format: texts.format,
            chat_template_sha256: of_chat.map(hex),
            tool_template_sha256: of_tools.filter(|_| any_tools(records)).map(hex),
            max_seq_length: options.max_seq_length,
            truncation: options.truncation,
            escape_special: options.escape_special,
            mask_history: options.mask_history,
        }
    }

    /// The bytes of the file.
    pub fn to_json(&self) -> Vec<u8> {
        let json = serde_json::to_string_pretty(self).unwrap_or_default();
        (json + "\n").into_bytes()
    }

    /// Reads the file of the adapter folder `dir`; none if there is none, as in folders of other tools.
    ///
    /// # Errors
    /// An I/O error, or an input error for a file that is something else.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let Some(text) = read_text(dir, NAME, MAX_BYTES)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|e| {
            let path = dir.join(NAME);
            let error = Error::input("ADAPTER", "not the text settings of a training").path(path).got(e);
            error.fix("restore the file from the training, or remove it and pass --format").into()
        })
    }

    /// Puts what the adapter was trained with in the place of `usual` options; what was chosen otherwise stays, with a warning.
    pub fn apply(&self, options: &mut TextOptions, usual: &TextOptions, notify: &mut dyn FnMut(Notice)) {
        take(("format", self.format), &mut options.format, usual.format, notify);
        let longest = ("max-seq-length", self.max_seq_length);
        take(longest, &mut options.max_seq_length, usual.max_seq_length, notify);
        take(("truncation", self.truncation), &mut options.truncation, usual.truncation, notify);
        let escape = ("escape-special", self.escape_special);
        take(escape, &mut options.escape_special, usual.escape_special, notify);
        take(("mask-history", self.mask_history), &mut options.mask_history, usual.mask_history, notify);
    }

    /// Says if the chat template is another one than that of the training.
    pub fn check_template(&self, now: &Self, notify: &mut dyn FnMut(Notice)) {
        let both = self.format == Format::Chat && now.format == Format::Chat;
        if both && self.chat_template_sha256 != now.chat_template_sha256 {
            notify(Notice::Warning(
                "the chat template of the model is another one than the adapter was trained with".into(),
            ));
        }
        let of_tools = self.tool_template_sha256.as_ref().zip(now.tool_template_sha256.as_ref());
        if both && of_tools.is_some_and(|(trained, now)| trained != now) {
            notify(Notice::Warning(
                "the chat template of rows with tools is another one than the adapter was trained with"
                    .into(),
            ));
        }
    }
}

/// Takes the trained value of the option `name` unless another one than the usual was chosen.
fn take<T: Copy + PartialEq + ToString>(
    (name, trained): (&str, T),
    chosen: &mut T,
    usual: T,
    notify: &mut dyn FnMut(Notice),
) {
    if *chosen == usual {
        *chosen = trained;
    } else if *chosen != trained {
        let (trained, chosen) = (trained.to_string(), chosen.to_string());
        notify(Notice::Warning(format!(
            "the adapter was trained with --{name} {trained} and is scored with --{name} {chosen}"
        )));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(format: Format, max_seq_length: usize) -> TextOptions {
        TextOptions {
            format,
            max_seq_length,
            truncation: Truncation::Error,
            escape_special: false,
            skip_empty: false,
            mask_history: false,
        }
    }

    #[test]
    fn what_was_trained_is_taken_and_what_was_chosen_is_said() {
        let trained = TextSettings {
            format: Format::Chat,
            chat_template_sha256: Some("ab".into()),
            tool_template_sha256: None,
            max_seq_length: 64,
            truncation: Truncation::PromptLeft,
            escape_special: true,
            mask_history: false,
        };
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(TextSettings::read(folder.path()).unwrap(), None);
        std::fs::write(folder.path().join(NAME), trained.to_json()).unwrap();
        assert_eq!(TextSettings::read(folder.path()).unwrap().as_ref(), Some(&trained));
        let usual = options(Format::Auto, 2048);
        let mut warnings = Vec::new();
        let mut chosen = options(Format::Plain, 2048);
        trained.apply(&mut chosen, &usual, &mut |notice| warnings.push(notice));
        assert_eq!((chosen.format, chosen.max_seq_length), (Format::Plain, 64));
        assert_eq!((chosen.truncation, chosen.escape_special), (Truncation::PromptLeft, true));
        let expected = "the adapter was trained with --format chat and is scored with --format plain";
        assert_eq!(warnings, [Notice::Warning(expected.into())]);
        let other = TextSettings { chat_template_sha256: Some("cd".into()), ..trained.clone() };
        trained.check_template(&other, &mut |notice| warnings.push(notice));
        assert_eq!(warnings.len(), 2);
        let of_tools =
            |hash: &str| TextSettings { tool_template_sha256: Some(hash.into()), ..trained.clone() };
        of_tools("ef").check_template(&trained, &mut |notice| warnings.push(notice));
        of_tools("ef").check_template(&of_tools("ef"), &mut |notice| warnings.push(notice));
        assert_eq!(warnings.len(), 2, "rows without tools do not ask for it");
        of_tools("ef").check_template(&of_tools("01"), &mut |notice| warnings.push(notice));
        assert!(
            matches!(&warnings[2..], [Notice::Warning(text)] if text.contains("with tools")),
            "{warnings:?}"
        );
        // Written before there was such a key.
        let old: TextSettings = serde_json::from_slice(&trained.to_json()).unwrap();
        assert!(!String::from_utf8(old.to_json()).unwrap().contains("tool_template"));
        std::fs::write(folder.path().join(NAME), "{}").unwrap();
        assert_eq!(TextSettings::read(folder.path()).unwrap_err().exit_code(), 2);
    }
}
