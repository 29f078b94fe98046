//! `tanren inspect tokenizer`: special tokens, the chat template on a sample, and texts as tokens.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::console::Console;
use crate::cli::inspect::open_model;
use crate::cli::options::TokenizerArgs;
use crate::cli::units::{count, harmless};
use crate::cli::{table, template};
use crate::config::Format;
use crate::data::record::Message;
use crate::data::template::Scene;
use crate::data::template::sandbox::SandboxedTemplate;
use crate::data::texts::Texts;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Maximum length of a text from standard input, in bytes.
const MAX_STDIN: u64 = 16 << 20;

/// Shows the tokenizer of a model, and the tokens of texts.
///
/// # Errors
/// If there is no tokenizer, or it or its chat template fails.
pub(super) fn show(args: &TokenizerArgs, console: &Console) -> Result<()> {
    let dir = folder(args.model.model(), console)?;
    // The template is rendered below, in a process of its own.
    let Some(tokenizer) = Texts::open(&dir, Format::Plain, false, None)?.tokenizer else {
        return Error::input("TOKENIZER", "the folder has no tokenizer.json")
            .path(&dir)
            .fix("copy the tokenizer.json of the model into it")
            .into();
    };
    console.line(dir.display());
    tokenizer.notes().iter().for_each(|note| console.note(format_args!("note: {note}")));
    console.lines(table::pairs(&facts(&tokenizer)));
    if let Some(source) = tokenizer.chat_template() {
        console.heading("the chat template on a sample");
        console.line(sample(&tokenizer, source)?);
    }
    for text in args.texts() {
        let text = if text == "-" { stdin()? } else { text.to_owned() };
        encode(&tokenizer, &text, console)?;
    }
    Ok(())
}

/// The model folder; a folder with only a tokenizer needs no weights.
fn folder(name: &str, console: &Console) -> Result<PathBuf> {
    if Path::new(name).is_dir() {
        return Ok(PathBuf::from(name));
    }
    let model = open_model(name, console)?;
    Ok(model.folder.dir().to_owned())
}

fn facts(tokenizer: &Tokenizer) -> Vec<(&'static str, String)> {
    let mut rows = vec![("ids", count(tokenizer.vocab_size() as u64))];
    let tokens = [
        ("BOS token", tokenizer.bos_token()),
        ("EOS token", tokenizer.eos_token()),
        ("pad token", tokenizer.pad_token()),
    ];
    for (name, token) in tokens {
        rows.push((name, token.map_or_else(|| "none".to_owned(), |(token, id)| format!("{token} ({id})"))));
    }
    if let Some(Value::Array(more)) = tokenizer.special_token_map().get("additional_special_tokens") {
        let named = more.iter().filter_map(Value::as_str).map(|token| match tokenizer.token_to_id(token) {
            Some(id) => format!("{token} ({id})"),
            None => token.to_owned(),
        });
        rows.push(("other specials", named.collect::<Vec<_>>().join(" ")));
    }
    rows.push(("adds BOS", if tokenizer.adds_bos() { "yes" } else { "no" }.to_owned()));
    rows.push((
        "chat template",
        match tokenizer.chat_template() {
            Some(source) => {
                format!("{} ({} bytes)", tokenizer.chat_template_origin(), count(source.len() as u64))
            }
            None => "none".to_owned(),
        },
    ));
    let named: Vec<&str> = tokenizer.templates().iter().map(|template| template.name.as_str()).collect();
    if named.len() > 1 || named.first().is_some_and(|_| tokenizer.chat_template().is_none()) {
        rows.push(("templates", named.join(", ")));
    }
    rows.into_iter().map(|(name, value)| (name, harmless(&value, false))).collect()
}

/// A short conversation rendered by the template.
fn sample(tokenizer: &Tokenizer, source: &str) -> Result<String> {
    let template = SandboxedTemplate::spawn(&template::helper()?, source, tokenizer.chat_template_origin())?;
    let turns = [Message::new("user", "What is 2 + 2?"), Message::new("assistant", "4")];
    let variables = tokenizer.special_token_map();
    template.render(&Scene { messages: &turns, add_generation_prompt: false, variables })
}

fn stdin() -> Result<String> {
    let mut bytes = Vec::new();
    let limited = std::io::stdin().lock().take(MAX_STDIN + 1).read_to_end(&mut bytes);
    limited.map_err(|e| Error::io("-", "read standard input", e))?;
    if bytes.len() as u64 > MAX_STDIN {
        return Error::input("DATA", "the text is too long")
            .path("-")
            .expected("at most 16 MiB")
            .fix("give a part of it")
            .into();
    }
    String::from_utf8(bytes).map_err(|_| {
        let error = Error::input("DATA", "the text is not UTF-8").path("-").expected("UTF-8");
        error.fix("convert it, for example with iconv -f CP932 -t UTF-8").into()
    })
}

fn encode(tokenizer: &Tokenizer, text: &str, console: &Console) -> Result<()> {
    let ids = tokenizer.encode(text)?;
    console.heading(format_args!("tokens: {}, bytes: {}", count(ids.len() as u64), count(text.len() as u64)));
    let row = |&id: &u32| Ok(vec![id.to_string(), format!("{:?}", tokenizer.decode(&[id], false)?)]);
    let rows = ids.iter().map(row).collect::<Result<Vec<_>>>()?;
    console.lines(table::columns(&[">id", "text"], &rows));
    Ok(())
}
