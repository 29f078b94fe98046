//! The tokenizer and the chat template of a model folder, opened once, and the encoder made of them.

use std::path::Path;

use super::encode::{EncodeOptions, Encoder, Format};
use super::jsonl::{Body, Record};
use super::template::sandbox::{HelperCommand, SandboxedTemplate};
use super::template::{ChatTemplate, Renderer};
use super::tokenizer::Tokenizer;
use crate::config;
use crate::error::{Error, Result};
use crate::formats::model_folder::tokenizer_files;

/// What a model folder says about text.
#[derive(Debug)]
pub struct Texts {
    /// None if the folder has no `tokenizer.json`; then every row has to be tokenised already.
    pub tokenizer: Option<Tokenizer>,
    renderer: Option<Renderer>,
}

impl Texts {
    /// Opens the tokenizer of the model folder `dir`, and its chat template if `format` needs one.
    ///
    /// With a `helper` the template runs in a child process that cannot harm this one; without, in this process, where a
    /// hostile template can exhaust the memory.
    ///
    /// # Errors
    /// An input error that names the file and what is wrong with it.
    pub fn open(dir: &Path, format: config::Format, helper: Option<&HelperCommand>) -> Result<Self> {
        let files = tokenizer_files(dir);
        let Some(tokenizer_json) = files.tokenizer_json else {
            return Ok(Self { tokenizer: None, renderer: None });
        };
        let tokenizer = Tokenizer::from_files(
            &tokenizer_json,
            files.tokenizer_config_json.as_deref(),
            files.chat_template_jinja.as_deref(),
        )?;
        let renderer = match (tokenizer.chat_template(), format) {
            (Some(source), config::Format::Chat) => {
                let origin = tokenizer.chat_template_origin();
                Some(match helper {
                    Some(helper) => Renderer::Sandboxed(SandboxedTemplate::spawn(helper, source, origin)?),
                    None => Renderer::InProcess(ChatTemplate::compile(source, origin)?),
                })
            }
            _ => None,
        };
        Ok(Self { tokenizer: Some(tokenizer), renderer })
    }

    /// The encoder for `records` with these options.
    ///
    /// # Errors
    /// An input error if there is no tokenizer and some row is text, or as [`Encoder::new`].
    pub fn encoder(&self, options: EncodeOptions, records: &[Record]) -> Result<Encoder<'_>> {
        // Rows of ids need neither a template nor an end token.
        let all_ids = records.iter().all(|r| matches!(r.body, Body::Tokenised { .. }));
        match &self.tokenizer {
            Some(tokenizer) if !all_ids => Encoder::new(tokenizer, self.renderer.as_ref(), options),
            _ => Ok(Encoder::tokenised_only(options)),
        }
    }
}

/// The format of [`EncodeOptions`] for a configured one.
///
/// # Errors
/// An input error for `template`, which has columns and not conversations.
pub fn text_format(format: config::Format) -> Result<Format> {
    match format {
        config::Format::Plain => Ok(Format::Plain),
        config::Format::Chat => Ok(Format::Chat),
        config::Format::Template => Error::input("CONFIG", "not supported by this build")
            .field("format")
            .got(format)
            .expected("plain or chat")
            .fix("choose one of them")
            .into(),
    }
}
