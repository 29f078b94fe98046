//! The tokenizer and the chat template of a model folder, opened once, and the encoder made of them.

use std::path::Path;

use super::encode::{EncodeOptions, Encoder, Format};
use super::record::{Body, Record};
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
    /// How a row becomes one text.
    pub format: Format,
    renderer: Option<Renderer>,
}

impl Texts {
    /// Opens the tokenizer of the model folder `dir`, and its chat template if the format needs one. `chat_rows` says whether
    /// some row is a conversation or an instruction, by which [`config::Format::Auto`] chooses.
    ///
    /// With a `helper` the template runs in a child process that cannot harm this one; without, in this process, where a
    /// hostile template can exhaust the memory.
    ///
    /// # Errors
    /// An input error that names the file and what is wrong with it, or a format that is not supported.
    pub fn open(
        dir: &Path,
        format: config::Format,
        chat_rows: bool,
        helper: Option<&HelperCommand>,
    ) -> Result<Self> {
        let files = tokenizer_files(dir);
        let Some(tokenizer_json) = files.tokenizer_json else {
            return Ok(Self { tokenizer: None, format: choose(format, chat_rows, false)?, renderer: None });
        };
        let tokenizer = Tokenizer::from_files(
            &tokenizer_json,
            files.tokenizer_config_json.as_deref(),
            files.chat_template_jinja.as_deref(),
        )?;
        let format = choose(format, chat_rows, tokenizer.chat_template().is_some())?;
        let renderer = match (tokenizer.chat_template(), format) {
            (Some(source), Format::Chat) => {
                let origin = tokenizer.chat_template_origin();
                Some(match helper {
                    Some(helper) => Renderer::Sandboxed(SandboxedTemplate::spawn(helper, source, origin)?),
                    None => Renderer::InProcess(ChatTemplate::compile(source, origin)?),
                })
            }
            _ => None,
        };
        Ok(Self { tokenizer: Some(tokenizer), format, renderer })
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

/// The format for rows of which some are written for a chat model or none is, with a model that has a template or not.
fn choose(format: config::Format, chat_rows: bool, has_template: bool) -> Result<Format> {
    match format {
        config::Format::Auto if chat_rows && has_template => Ok(Format::Chat),
        config::Format::Auto | config::Format::Plain => Ok(Format::Plain),
        config::Format::Chat => Ok(Format::Chat),
        config::Format::Template => Error::input("CONFIG", "not supported by this build")
            .field("format")
            .got(format)
            .expected("auto, plain or chat")
            .fix("choose one of them")
            .into(),
    }
}

/// Whether some row is a conversation or an instruction.
pub fn any_chat<'r>(records: impl IntoIterator<Item = &'r Record>) -> bool {
    records.into_iter().any(|record| record.body.is_chat())
}
