//! Loads a [`Tokenizer`] from the bytes of its files, checking every limit.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, ModelWrapper};

use super::chat::{NamedTemplate, templates_in};
use super::classes::Class;
use super::limits::{self, Declared, MAX_VOCAB, Outline, check_added};
use super::special::SpecialIndex;
use super::{Tokenizer, guarded};
use crate::data::at;
use crate::error::{Error, InputError, Result};
use crate::formats::model_folder::TokenizerFiles;

/// Maximum size of a file. Published ones have up to 35 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The roles of `tokenizer_config.json` that name one token.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The parsed files, not yet combined.
pub(super) struct Parts {
    json: Vec<u8>,
    json_path: PathBuf,
    config: Map<String, Value>,
    config_path: PathBuf,
    /// Special tokens of `special_tokens_map.json`, ids of `added_tokens.json`.
    legacy: (Map<String, Value>, Map<String, Value>),
    model_type: Option<String>,
    templates: Vec<NamedTemplate>,
}

impl Parts {
    pub(super) fn from_files(files: &TokenizerFiles) -> Result<Self> {
        let Some(json_path) = files.tokenizer_json.clone() else {
            return Error::input("TOKENIZER", "no tokenizer.json")
                .fix("use a model folder with one; a vocab.txt or .model file has to be converted")
                .into();
        };
        let map = |path: &Option<PathBuf>| match path {
            Some(path) => parse_map(&read_text(path)?, path),
            None => Ok(Map::new()),
        };
        let config_path = files.tokenizer_config_json.clone().unwrap_or("tokenizer_config.json".into());
        let config = map(&files.tokenizer_config_json)?;
        // The model's configuration is read elsewhere; here its type is a hint.
        let model = map(&files.config_json).unwrap_or_default();
        let mut templates = Vec::new();
        if let Some(path) = &files.chat_template_jinja {
            templates.push(NamedTemplate::default(read_text(path)?, path.display().to_string()));
        }
        for (name, path) in &files.additional_chat_templates {
            let (source, origin) = (read_text(path)?, path.display().to_string());
            templates.push(NamedTemplate { name: name.clone(), source, origin });
        }
        if templates.is_empty() {
            templates = templates_in(&config, &config_path.display().to_string());
        }
        if let Some(path) = files.chat_template_json.as_ref().filter(|_| templates.is_empty()) {
            templates = templates_in(&map(&files.chat_template_json)?, &path.display().to_string());
        }
        Ok(Self {
            json: read(&json_path)?,
            json_path,
            config,
            config_path,
            legacy: (map(&files.special_tokens_map_json)?, map(&files.added_tokens_json)?),
            model_type: model.get("model_type").and_then(Value::as_str).map(str::to_owned),
            templates,
        })
    }

    pub(super) fn from_memory(json: &[u8], config: &str) -> Result<Self> {
        let config_path = PathBuf::from("tokenizer_config.json");
        let config = if config.is_empty() { Map::new() } else { parse_map(config, &config_path)? };
        Ok(Self {
            json: json.to_vec(),
            json_path: "tokenizer.json".into(),
            templates: templates_in(&config, "tokenizer_config.json"),
            config,
            config_path,
            legacy: Default::default(),
            model_type: None,
        })
    }

    pub(super) fn build(mut self) -> Result<Tokenizer> {
        self.add_legacy();
        let class = Class::of(&self.config, self.model_type.as_deref());
        let outline: Outline =
            serde_json::from_slice(&self.json).map_err(|e| {
                let error = Error::input("TOKENIZER", "not a tokenizer.json").path(&self.json_path).got(e);
                Error::from(error.fix(
                    "use the tokenizer.json of the model; a vocab.txt or .model file has to be converted",
                ))
            })?;
        let here = |e| at(e, |e| e.path(&self.json_path));
        outline.check().map_err(here)?;
        let mut notes = Vec::new();
        let mut inner = limits::load(std::mem::take(&mut self.json)).map_err(here)?;
        if let ModelWrapper::BPE(model) = inner.get_model()
            && let Some(dropout) = model.dropout.filter(|dropout| *dropout != 0.0)
        {
            notes.push(format!(
                "{}: BPE dropout {dropout} is switched off; it would cut the same text differently each time",
                self.json_path.display()
            ));
            let mut model = model.clone();
            model.dropout = None;
            inner.with_model(model);
        }
        self.check_ids(&inner, outline.added_tokens)?;
        let named = self.named_tokens(class);
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
        for token in added {
            normalized |= token.normalized && inner.get_normalizer().is_some();
            tokens.push(token.content);
        }
        let adds_bos = match class.adds_bos(&self.config) {
            Some(adds) => adds,
            None => {
                let empty = guarded("be used", || inner.encode("", true).map(|e| e.get_ids().to_vec()))?;
                let bos = named.get("bos_token").and_then(Value::as_str).and_then(|t| inner.token_to_id(t));
                bos.is_some() && empty.first() == bos.as_ref()
            }
        };
        // What the post-processor adds is known now; it is removed, because it would shift the positions of
        // tokens.
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let inner = limits::try_out(inner).map_err(here)?;
        Ok(Tokenizer {
            inner,
            plain: OnceLock::new(),
            matchers: OnceLock::new(),
            specials: SpecialIndex::new(tokens, normalized),
            named,
            templates: self.templates,
            vocab_size,
            adds_bos,
            notes,
        })
    }

    /// Refuses a vocabulary with a gap: the crate would give an added token another id than the file, and the
    /// model would get wrong tokens.
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
        let contents = declared.iter().map(|(_, token)| token.content.as_str());
        check_added(contents).map_err(|e| at(e, |e| e.path(&self.config_path)))?;
        declared.sort_by_key(|(id, _)| *id);
        let mut tokens: Vec<AddedToken> = declared.iter().map(|(_, token)| token.clone()).collect();
        let known = inner.get_added_tokens_decoder();
        // Tokens with a role are recognised in texts, whichever file declares them.
        let mut added: HashSet<String> =
            known.into_values().chain(tokens.iter().cloned()).map(|token| token.content).collect();
        let lists = named.values().filter_map(Value::as_array).flatten();
        for content in named.values().chain(lists).filter_map(Value::as_str) {
            if inner.token_to_id(content).is_some() && added.insert(content.to_owned()) {
                tokens.push(AddedToken::from(content, true));
            }
        }
        guarded("add the tokens of tokenizer_config.json", || inner.add_tokens(tokens))?;
        let declared = declared.into_iter().map(|(id, token)| Declared { id, content: token.content });
        self.check_ids(inner, declared.collect())
    }

    /// The special tokens that have a role. A token is a string or an object with `content`.
    fn named_tokens(&self, class: Class) -> Map<String, Value> {
        let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(Value::from);
        let mut named = Map::new();
        for role in ROLES {
            if let Some(token) = self.config.get(role).and_then(text) {
                named.insert(role.into(), token);
            }
        }
        for (role, token) in class.default_tokens() {
            if !self.config.contains_key(*role) {
                named.insert((*role).into(), (*token).into());
            }
        }
        // Model-specific roles, such as `image_token`.
        if let Some(Value::Object(more)) = self.config.get("extra_special_tokens") {
            let more = more.iter().filter_map(|(role, token)| Some((role.clone(), text(token)?)));
            named.extend(more);
        }
        let more = self.config.get("additional_special_tokens").and_then(Value::as_array);
        if let Some(more) = more.filter(|more| !more.is_empty()) {
            named.insert("additional_special_tokens".into(), more.iter().filter_map(text).collect());
        }
        named
    }

    /// Merges the files of old folders into the configuration, as `transformers` does if it lists no added
    /// tokens.
    fn add_legacy(&mut self) {
        if self.config.contains_key("added_tokens_decoder") {
            return;
        }
        let (map, ids) = std::mem::take(&mut self.legacy);
        for (role, token) in map {
            match (self.config.get_mut(&role), token) {
                (Some(Value::Array(known)), Value::Array(more)) => {
                    let old: HashSet<String> = known.iter().map(Value::to_string).collect();
                    known.extend(more.into_iter().filter(|token| !old.contains(&token.to_string())));
                }
                (_, token) => drop(self.config.insert(role, token)),
            }
        }
        if ids.is_empty() {
            return;
        }
        let named = self.named_tokens(Class::Other);
        let more = named.get("additional_special_tokens").and_then(Value::as_array).into_iter().flatten();
        let special: HashSet<&str> = named.values().chain(more).filter_map(Value::as_str).collect();
        // A normalized token is one that is not special, the default of the entries too.
        let entry = |(content, id): (String, Value)| {
            let token =
                serde_json::json!({ "content": content, "special": special.contains(content.as_str()) });
            (id.to_string(), token)
        };
        let entries: Map<String, Value> = ids.into_iter().map(entry).collect();
        self.config.insert("added_tokens_decoder".into(), Value::Object(entries));
        self.config_path = self.config_path.with_file_name("added_tokens.json");
    }

    fn wrong(&self, what: impl Into<String>) -> InputError {
        Error::input("TOKENIZER", what).path(&self.json_path)
    }
}

fn parse_map(text: &str, path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|e| {
        let name = path.file_name().unwrap_or_default().display().to_string();
        let error = Error::input("TOKENIZER", format!("not a {name}")).path(path).got(e);
        error.fix(format!("use the {name} of the model")).into()
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
