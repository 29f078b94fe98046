//! Chat templates: the Jinja text that turns a conversation into the one string a model was trained on.
//!
//! A template comes with the model, so it is untrusted code. [`ChatTemplate`] runs it in this process with
//! limits on steps and output, but memory and stack can still be exhausted (a few doublings of a string abort
//! any process). [`sandbox::SandboxedTemplate`] runs it in a child process, which a hostile template can only
//! kill; [`Renderer`] is either of the two.

pub mod sandbox;

mod python;
mod rewrite;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};

use super::record::Message;
use crate::error::{Error, Result};
use sandbox::SandboxedTemplate;

/// Maximum length of a template. The longest published ones have about 30 KB.
pub const MAX_SOURCE_BYTES: usize = 1 << 20;

/// Maximum instructions of one rendering. Published templates need about 50 per turn.
const FUEL: u64 = 1_000_000;

/// Maximum nesting of blocks, macros and loops. Published templates need about 10.
const RECURSION_LIMIT: usize = 100;

/// A compiled template that runs in this process: for templates you trust.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Box<Environment<'static>>,
    origin: String,
}

/// A template, either trusted or in its own process.
#[derive(Debug)]
pub enum Renderer {
    /// Runs in this process.
    InProcess(ChatTemplate),
    /// Runs in a child process.
    Sandboxed(SandboxedTemplate),
}

/// The input of one rendering.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The turns.
    pub messages: &'a [Message],
    /// True if the text should end where the next answer begins.
    pub add_generation_prompt: bool,
    /// Further variables of the template: special tokens, tools, options.
    pub variables: &'a Map<String, Value>,
}

impl Renderer {
    /// The text of each scene. See [`ChatTemplate::render`].
    ///
    /// # Errors
    /// For each scene, [`Error::Input`] of class TEMPLATE that names the origin of the template.
    pub fn render_all(&self, scenes: &[Scene<'_>]) -> Vec<Result<String>> {
        match self {
            Self::InProcess(template) => scenes.iter().map(|scene| template.render(scene)).collect(),
            Self::Sandboxed(template) => template.render_all(scenes),
        }
    }
}

impl ChatTemplate {
    /// Compiles `source` as `transformers` does (`trim_blocks`, `lstrip_blocks`, loop controls, Python's methods).
    /// `origin` names it in errors, usually the path of its file.
    ///
    /// # Errors
    /// [`Error::Input`] of class TEMPLATE with the line of the syntax error.
    pub fn compile(source: &str, origin: &str) -> Result<Self> {
        compile_raw(source)
            .map(|environment| Self { environment, origin: origin.to_owned() })
            .map_err(|failure| failure.into_error(origin))
    }

    /// The text of a conversation. The template sees `messages`, `add_generation_prompt`, `tools` and
    /// `documents` (both none unless given), and `variables`: the special tokens (`bos_token`, ...) and
    /// options such as `enable_thinking`. `strftime_now` does not read a clock: it uses the date of the
    /// variable `today` (`YYYY-MM-DD`), by default 2024-07-26.
    ///
    /// Steps, recursion and output (16 times the input plus 1 MiB) are limited. Memory is not: a hostile
    /// template can abort the process. Use [`SandboxedTemplate`] for untrusted templates.
    ///
    /// # Errors
    /// [`Error::Input`] of class TEMPLATE with the template's line, or with the message of its `raise_exception`.
    pub fn render(&self, scene: &Scene<'_>) -> Result<String> {
        render_raw(&self.environment, &context(scene)).map_err(|failure| failure.into_error(&self.origin))
    }
}

/// Name of the only template of an environment. It has no extension, so nothing is escaped.
const NAME: &str = "chat";

/// Why a template failed, in the form sent across the process boundary.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Failure {
    what: String,
    line: Option<usize>,
}

impl Failure {
    fn new(error: &minijinja::Error) -> Self {
        let what = match error.kind() {
            ErrorKind::OutOfFuel => format!("the template takes more than {FUEL} steps"),
            ErrorKind::WriteFailure => "the output of the template is too long".to_owned(),
            kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
        };
        Self { what, line: error.line() }
    }

    fn into_error(self, origin: &str) -> Error {
        let place = self.line.map_or(String::new(), |line| format!(" line {line}"));
        Error::input("TEMPLATE", format!("chat template{place}: {}", self.what))
            .path(origin)
            .fix("check that the conversation suits this template, or leave it out")
            .into()
    }
}

/// The whole context of the template, as one JSON object.
fn context(scene: &Scene<'_>) -> Value {
    let Scene { messages, add_generation_prompt, variables } = *scene;
    let mut context = Map::new();
    context.insert("tools".into(), Value::Null);
    context.insert("documents".into(), Value::Null);
    context.extend(variables.clone());
    context.insert("messages".into(), messages.iter().map(turn).collect());
    context.insert("add_generation_prompt".into(), add_generation_prompt.into());
    Value::Object(context)
}

fn turn(message: &Message) -> Value {
    let mut turn = Map::new();
    turn.insert("role".into(), message.role.as_str().into());
    turn.insert("content".into(), message.content.as_str().into());
    turn.extend(message.extra.clone());
    Value::Object(turn)
}

/// Runs the template engine; a panic in it is reported as a failure of the template.
fn guarded<T>(run: impl FnOnce() -> std::result::Result<T, Failure>) -> std::result::Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(Failure { what: "the template engine panicked".into(), line: None }))
}

fn compile_raw(source: &str) -> std::result::Result<Box<Environment<'static>>, Failure> {
    guarded(|| compile_unguarded(source))
}

fn render_raw(environment: &Environment<'static>, context: &Value) -> std::result::Result<String, Failure> {
    guarded(|| render_unguarded(environment, context))
}

fn compile_unguarded(source: &str) -> std::result::Result<Box<Environment<'static>>, Failure> {
    if source.len() > MAX_SOURCE_BYTES {
        let what = format!("the template has {} bytes, the limit is {MAX_SOURCE_BYTES}", source.len());
        return Err(Failure { what, line: None });
    }
    let mut environment = Box::new(Environment::new());
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| Failure::new(&e))?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_debug(false);
    python::install(&mut environment);
    let source = rewrite::rewrite(&without_generation_tags(source))?;
    environment.add_template_owned(NAME, source).map_err(|e| Failure::new(&e))?;
    Ok(environment)
}

fn render_unguarded(
    environment: &Environment<'static>,
    context: &Value,
) -> std::result::Result<String, Failure> {
    let limit = output_limit(text_bytes(context));
    let mut output = Capped { text: Vec::new(), limit };
    let template = environment.get_template(NAME).map_err(|e| Failure::new(&e))?;
    let rendered = template.render_captured_to(Serde(context), &mut output);
    rendered.map(drop).map_err(|e| Failure::new(&e))?;
    String::from_utf8(output.text)
        .map_err(|_| Failure { what: "the template writes text that is not UTF-8".into(), line: None })
}

/// Maximum output bytes of a template for `input` bytes of conversation.
fn output_limit(input: usize) -> usize {
    input.saturating_mul(16).saturating_add(1 << 20)
}

/// Bytes of all strings in `value`; depth is bounded by the JSON parser (128).
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + text_bytes(value)).sum(),
        _ => 8,
    }
}

/// A writer with a limit.
struct Capped {
    text: Vec<u8>,
    limit: usize,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.limit {
            return Err(io::Error::other("output limit"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `{% generation %}` marks the assistant's text for `transformers`, which computes masks from it. Our masks come from the
/// token spans we emit, so the tags become blocks that always run; their white space control is kept.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open + 2);
        result.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let keyword = tag[..end].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let replacement = match keyword {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        result.push_str(&tag[..end].replace(keyword, replacement));
        rest = &tag[end..];
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests;
