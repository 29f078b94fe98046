//! The tokenizer and the chat template of a model folder, opened once, and the encoder made of them.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;

use super::encode::{EncodeOptions, Encoder};
use super::record::{Body, Record};
use super::template::sandbox::{HelperCommand, SandboxedTemplate};
use super::template::{ChatTemplate, Renderer};
use super::tokenizer::Tokenizer;
use super::tokenizer::chat::NamedTemplate;
use crate::config::{Format, unsupported};
use crate::error::Result;
use crate::formats::model_folder::tokenizer_files;

/// What a model folder says about text.
#[derive(Debug)]
pub struct Texts {
    /// None if the folder has no `tokenizer.json`; then every row has to be tokenised already.
    pub tokenizer: Option<Tokenizer>,
    /// How a row becomes one text: plain or chat.
    pub format: Format,
    renderer: Option<Renderer>,
    /// That of conversations with tools, where the model has one of its own; made when a row first needs it.
    tool_renderer: OnceLock<Renderer>,
    helper: Option<HelperCommand>,
}

impl Texts {
    /// Opens the tokenizer of the model folder `dir`, and its chat template if the format needs one. `chat_rows` says whether
    /// some row is a conversation or an instruction, by which [`Format::Auto`] chooses.
    ///
    /// With a `helper` the template runs in a child process that cannot harm this one; without, in this process, where a
    /// hostile template can exhaust the memory.
    ///
    /// # Errors
    /// An input error that names the file and what is wrong with it, or a format that is not supported.
    pub fn open(dir: &Path, format: Format, chat_rows: bool, helper: Option<&HelperCommand>) -> Result<Self> {
        let files = tokenizer_files(dir)?;
        if files.tokenizer_json.is_none() {
            let format = choose(format, chat_rows, false)?;
            let tool_renderer = OnceLock::new();
            return Ok(Self { tokenizer: None, format, renderer: None, tool_renderer, helper: None });
        }
        let tokenizer = Tokenizer::from_files(&files)?;
        let format = choose(format, chat_rows, !tokenizer.templates().is_empty())?;
        let mut renderer = None;
        if format == Format::Chat {
            tokenizer.check_templates()?;
            let source = tokenizer.chat_template();
            renderer =
                source.map(|source| open(helper, source, tokenizer.chat_template_origin())).transpose()?;
        }
        let helper = helper.cloned();
        Ok(Self { tokenizer: Some(tokenizer), format, renderer, tool_renderer: OnceLock::new(), helper })
    }

    /// The encoder for `records` with these options.
    ///
    /// # Errors
    /// An input error if there is no tokenizer and some row is text, or as [`Encoder::new`].
    pub fn encoder(&self, options: EncodeOptions, records: &[Record]) -> Result<Encoder<'_>> {
        // Rows of ids need neither a template nor an end token.
        let all_ids =
            records.iter().all(|r| matches!(r.body, Body::Tokenised { .. } | Body::Labelled { .. }));
        match &self.tokenizer {
            Some(tokenizer) if !all_ids => {
                let encoder = Encoder::new(tokenizer, self.renderer.as_ref(), options)?;
                let own = tokenizer.tool_template().filter(|_| self.format == Format::Chat);
                match own.zip(records.iter().find_map(tools)) {
                    Some((template, tools)) => {
                        encoder.with_tool_template(self.tool_renderer(template)?, tools)
                    }
                    None => Ok(encoder),
                }
            }
            _ => Ok(Encoder::tokenised_only(options)),
        }
    }

    fn tool_renderer(&self, template: &NamedTemplate) -> Result<&Renderer> {
        if let Some(renderer) = self.tool_renderer.get() {
            return Ok(renderer);
        }
        let renderer = open(self.helper.as_ref(), &template.source, &template.origin)?;
        Ok(self.tool_renderer.get_or_init(|| renderer))
    }
}

/// Starts a template, in a process of its own if there is a helper for that.
fn open(helper: Option<&HelperCommand>, source: &str, origin: &str) -> Result<Renderer> {
    Ok(match helper {
        Some(helper) => Renderer::Sandboxed(SandboxedTemplate::spawn(helper, source, origin)?),
        None => Renderer::InProcess(ChatTemplate::compile(source, origin)?),
    })
}

fn tools(record: &Record) -> Option<&Value> {
    match &record.body {
        Body::Messages(conversation) => conversation.tools(),
        _ => None,
    }
}

/// The format for rows of which some are written for a chat model or none is, with a model that has a template or not.
fn choose(format: Format, chat_rows: bool, has_template: bool) -> Result<Format> {
    match format {
        Format::Auto if chat_rows && has_template => Ok(Format::Chat),
        Format::Auto | Format::Plain => Ok(Format::Plain),
        Format::Chat => Ok(Format::Chat),
        Format::Template => unsupported("format", format),
    }
}

/// Whether some row has tools.
pub fn any_tools(records: &[Record]) -> bool {
    records.iter().any(|record| tools(record).is_some())
}

/// Whether some row is a conversation or an instruction.
pub fn any_chat<'r>(records: impl IntoIterator<Item = &'r Record>) -> bool {
    records.into_iter().any(|record| record.body.is_chat())
}
