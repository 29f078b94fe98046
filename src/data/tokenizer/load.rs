//! From the bytes of the files to a [`Tokenizer`], with every limit checked on the way.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::special::{SpecialIndex, SpecialToken};
use super::{Tokenizer, guarded};
use crate::data::at;
use crate::error::{Error, InputError, Result};

/// Largest accepted file. Published ones have up to 35 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Largest accepted id + 1. Published vocabularies have up to 0.3 million entries.
const MAX_VOCAB: usize = 4 << 20;

/// How much longer the replacement rules together may make a text.
const MAX_GROWTH: usize = 64;

/// Longest pattern of a rule.
const MAX_PATTERN_BYTES: usize = 16 << 10;

/// The roles of `tokenizer_config.json` that name one token.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the files say, not yet put together.
pub(super) struct Parts {
    json: Vec<u8>,
    json_path: PathBuf,
    config: Map<String, Value>,
    config_path: PathBuf,
    template: Option<(String, PathBuf)>,
}

/// The parts of `tokenizer.json` that are checked before the crate sees them.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    added_tokens: Vec<Declared>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

/// A token as a file declares it.
#[derive(Deserialize)]
struct Declared {
    id: u32,
    content: String,
}

impl Parts {
    pub(super) fn from_files(json: &Path, config: Option<&Path>, template: Option<&Path>) -> Result<Self> {
        let config_text = config.map(read_text).transpose()?;
        let config_path = config.unwrap_or(Path::new("tokenizer_config.json")).to_owned();
        Ok(Self {
            json: read(json)?,
            json_path: json.to_owned(),
            config: config_text.map_or(Ok(Map::new()), |text| parse_config(&text, &config_path))?,
            config_path,
            template: template.map(|path| Ok::<_, Error>((read_text(path)?, path.to_owned()))).transpose()?,
        })
    }

    pub(super) fn from_memory(json: &[u8], config: &str) -> Result<Self> {
        let config_path = PathBuf::from("tokenizer_config.json");
        let config = if config.is_empty() { Map::new() } else { parse_config(config, &config_path)? };
        Ok(Self {
            json: json.to_vec(),
            json_path: "tokenizer.json".into(),
            config,
            config_path,
            template: None,
        })
    }

    pub(super) fn build(self) -> Result<Tokenizer> {
        let outline: Outline =
            serde_json::from_slice(&self.json).map_err(|e| {
                let error = Error::input("TOKENIZER", "not a tokenizer.json").path(&self.json_path).got(e);
                Error::from(error.fix(
                    "use the tokenizer.json of the model; a vocab.txt or .model file has to be converted",
                ))
            })?;
        for part in [&outline.normalizer, &outline.pre_tokenizer, &outline.decoder] {
            let mut growth = 1;
            check_rules(part, &mut growth).map_err(|e| at(e, |e| e.path(&self.json_path)))?;
        }
        let mut inner = guarded("be loaded", || tokenizers::Tokenizer::from_bytes(&self.json))
            .map_err(|e| at(e, |e| e.path(&self.json_path)))?;
        // Length rules of the file are not ours, and some of them panic.
        inner.with_padding(None);
        guarded("be loaded", || inner.with_truncation(None).map(drop))?;
        self.check_ids(&inner, outline.added_tokens)?;
        let named = self.named_tokens();
        self.add_tokens(&mut inner, &named)?;

        let ids = inner.get_vocab(true).into_values().max();
        let vocab_size = ids.map_or(0, |id| id as usize + 1);
        if !(1..=MAX_VOCAB).contains(&vocab_size) {
            return self
                .wrong("the ids are out of range")
                .got(format!("largest id + 1 = {vocab_size}"))
                .expected(format!("1 to {MAX_VOCAB}"))
                .fix("use the tokenizer.json of the model")
                .into();
        }
        let added = inner.get_added_tokens_decoder().into_values().filter(|token| token.special);
        let (mut tokens, mut normalized) = (Vec::new(), false);
        for AddedToken { content, lstrip, rstrip, normalized: late, .. } in added {
            normalized |= late && inner.get_normalizer().is_some();
            tokens.push(SpecialToken { content, lstrip, rstrip });
        }
        let (chat_template, chat_template_origin) = self.chat_template();
        let adds_bos = match self.config.get("add_bos_token").and_then(Value::as_bool) {
            Some(configured) => configured,
            None => {
                let empty = guarded("be used", || inner.encode("", true).map(|e| e.get_ids().to_vec()))?;
                let bos = named.get("bos_token").and_then(Value::as_str).and_then(|t| inner.token_to_id(t));
                bos.is_some() && empty.first() == bos.as_ref()
            }
        };
        Ok(Tokenizer {
            inner,
            plain: OnceLock::new(),
            matchers: OnceLock::new(),
            specials: SpecialIndex::new(tokens, normalized),
            named,
            chat_template,
            chat_template_origin,
            vocab_size,
            adds_bos,
        })
    }

    /// The crate gives an added token another id than the file if the vocabulary has a hole; the model would see wrong tokens.
    fn check_ids(&self, inner: &tokenizers::Tokenizer, added: Vec<Declared>) -> Result<()> {
        for Declared { id, content } in added {
            if inner.token_to_id(&content) != Some(id) {
                return self
                    .wrong(format!("the added token {content:?} does not get its id"))
                    .got(inner.token_to_id(&content).map_or("no id".into(), |id| id.to_string()))
                    .expected(id)
                    .fix("use the tokenizer.json of the model, unchanged")
                    .into();
            }
        }
        Ok(())
    }

    /// Adds what `tokenizer_config.json` declares beyond `tokenizer.json`, as `transformers` does.
    fn add_tokens(&self, inner: &mut tokenizers::Tokenizer, named: &Map<String, Value>) -> Result<()> {
        let mut declared = Vec::new();
        for (id, token) in
            self.config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten()
        {
            let flag = |key: &str, default: bool| token.get(key).and_then(Value::as_bool).unwrap_or(default);
            let (Ok(id), Some(content)) = (id.parse::<u32>(), token.get("content").and_then(Value::as_str))
            else {
                return Error::input("TOKENIZER", "an entry is not understood")
                    .path(&self.config_path)
                    .field(format!("added_tokens_decoder.{id}"))
                    .got(token)
                    .expected("{\"content\": \"...\", \"special\": true, ...} under a number")
                    .fix("use the tokenizer_config.json of the model")
                    .into();
            };
            let special = flag("special", false);
            let token = AddedToken::from(content, special)
                .lstrip(flag("lstrip", false))
                .rstrip(flag("rstrip", false))
                .single_word(flag("single_word", false))
                .normalized(flag("normalized", !special));
            declared.push((id, token));
        }
        declared.sort_by_key(|(id, _)| *id);
        let mut tokens: Vec<AddedToken> = declared.iter().map(|(_, token)| token.clone()).collect();
        let known = inner.get_added_tokens_decoder();
        for content in ROLES.iter().filter_map(|role| named.get(*role)?.as_str()) {
            let added = known.values().chain(&tokens).any(|token| token.content == content);
            if !added && inner.token_to_id(content).is_some() {
                tokens.push(AddedToken::from(content, true));
            }
        }
        guarded("add the tokens of tokenizer_config.json", || inner.add_tokens(tokens))?;
        let declared = declared.into_iter().map(|(id, token)| Declared { id, content: token.content });
        self.check_ids(inner, declared.collect())
    }

    /// The special tokens that have a role. A token is a string or an object with `content`.
    fn named_tokens(&self) -> Map<String, Value> {
        let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(Value::from);
        let mut named = Map::new();
        for role in ROLES {
            if let Some(token) = self.config.get(role).and_then(text) {
                named.insert(role.into(), token);
            }
        }
        if let Some(Value::Array(more)) = self.config.get("additional_special_tokens") {
            named.insert("additional_special_tokens".into(), more.iter().filter_map(text).collect());
        }
        named
    }

    fn chat_template(&self) -> (Option<String>, String) {
        if let Some((template, path)) = &self.template {
            return (Some(template.clone()), path.display().to_string());
        }
        let template = match self.config.get("chat_template") {
            Some(Value::Array(named)) => {
                let default =
                    named.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
                let only = if named.len() == 1 { named.first() } else { None };
                default.or(only).and_then(|entry| entry.get("template")?.as_str())
            }
            Some(value) => value.as_str(),
            None => None,
        };
        (template.map(str::to_owned), self.config_path.display().to_string())
    }

    fn wrong(&self, what: impl Into<String>) -> InputError {
        Error::input("TOKENIZER", what).path(&self.json_path)
    }
}

/// Refuses rules that make a text much longer or whose patterns are huge: neither occurs in published tokenizers, and
/// chained replacements can exhaust the memory later, in the middle of a run.
fn check_rules(rule: &Value, growth: &mut usize) -> Result<()> {
    let refuse = |what: String| -> Result<()> {
        Error::input("TOKENIZER", what)
            .fix("use the tokenizer.json of the model; this one is not safe to run")
            .into()
    };
    match rule {
        Value::String(text) if text.len() > MAX_PATTERN_BYTES => {
            // `Precompiled` holds a character table as one long string.
            refuse(format!("a rule has a pattern of {} bytes, the limit is {MAX_PATTERN_BYTES}", text.len()))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_rules(item, growth)),
        Value::Object(fields) => {
            let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default();
            if kind == "Precompiled" {
                return Ok(());
            }
            let content =
                if kind == "Replace" { fields.get("content").and_then(Value::as_str) } else { None };
            *growth = growth.saturating_mul(content.map_or(1, str::len).max(1));
            if *growth > MAX_GROWTH {
                return refuse(format!(
                    "the replacement rules make a text more than {MAX_GROWTH} times as long"
                ));
            }
            fields.values().try_for_each(|value| check_rules(value, growth))
        }
        _ => Ok(()),
    }
}

fn parse_config(text: &str, path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|e| {
        let error = Error::input("TOKENIZER", "not a tokenizer_config.json").path(path).got(e);
        error.fix("use the tokenizer_config.json of the model").into()
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Error::input("TOKENIZER", format!("the file has more than {MAX_FILE_BYTES} bytes"))
            .path(path)
            .fix("use the file of the model")
            .into();
    }
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|e| {
        let error = Error::input("TOKENIZER", "the file is not UTF-8").path(path).got(e.utf8_error());
        error.fix("use the file of the model").into()
    })
}
