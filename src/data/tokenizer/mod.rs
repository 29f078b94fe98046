//! The tokenizer of a model folder: `tokenizer.json` for the ids, `tokenizer_config.json` for the roles of special tokens.
//!
//! The ids are those of `transformers` with `add_special_tokens=False`. Files are untrusted: sizes are
//! limited, the parser runs behind `catch_unwind`, and features that are known to fail later are refused when
//! loading.

pub mod chat;
pub mod escape;
pub mod offsets;

mod added;
mod classes;
mod limits;
mod load;
mod special;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::char_boundary;
use crate::error::{Error, Result};
use crate::formats::model_folder::TokenizerFiles;
use chat::NamedTemplate;
use escape::Matchers;
use load::Parts;
use special::SpecialIndex;

/// A loaded tokenizer. Cheap to share between threads, expensive to load.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// A copy that treats special tokens as ordinary text; created when first needed.
    plain: OnceLock<tokenizers::Tokenizer>,
    specials: SpecialIndex,
    /// All added tokens; created when first needed.
    matchers: OnceLock<Matchers>,
    named: Map<String, Value>,
    templates: Vec<NamedTemplate>,
    vocab_size: usize,
    adds_bos: bool,
    notes: Vec<String>,
}

impl Tokenizer {
    /// Loads from the files of a model folder, as `AutoTokenizer` does. The chat template is `chat_template.jinja`, or else that
    /// of `tokenizer_config.json`, or else that of `chat_template.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read; [`Error::Input`] of class TOKENIZER if one is too large (64 MiB, 4 Mi ids), is
    /// not understood, or contradicts the other, or if there is no `tokenizer.json`.
    pub fn from_files(files: &TokenizerFiles) -> Result<Self> {
        Parts::from_files(files)?.build()
    }

    /// Loads from memory, for a tokenizer inside the binary. An empty `tokenizer_config` stands for none.
    ///
    /// # Errors
    /// As [`Tokenizer::from_files`].
    pub fn from_parts(tokenizer_json: &[u8], tokenizer_config: &str) -> Result<Self> {
        Parts::from_memory(tokenizer_json, tokenizer_config)?.build()
    }

    /// The ids of `text`, without added BOS or EOS. Special tokens written in the text are recognised, as in
    /// `transformers`.
    ///
    /// # Errors
    /// [`Error::Input`] of class TOKENIZER if the tokenizer fails on this text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        guarded("encode the text", || self.inner.encode_fast(text, false).map(|e| e.get_ids().to_vec()))
    }

    /// The ids of `text` with special tokens in it encoded as ordinary text, as `split_special_tokens=True`
    /// does. Added tokens that are not special (such as `<think>`) stay tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        if !self.specials.may_occur_in(text) {
            return self.encode(text);
        }
        let plain = self.plain.get_or_init(|| {
            let mut plain = self.inner.clone();
            plain.set_encode_special_tokens(true);
            plain
        });
        guarded("encode the text", || plain.encode_fast(text, false).map(|e| e.get_ids().to_vec()))
    }

    /// `text` with `mark` after the first character of every special token in it.
    pub fn mark_special(&self, text: &str, mark: char) -> String {
        let mut marked = String::with_capacity(text.len());
        let mut end = 0;
        for found in self.specials.find(text) {
            let first = text[found.start..].chars().next().map_or(0, char::len_utf8);
            marked.push_str(&text[end..found.start + first]);
            marked.push(mark);
            end = found.start + first;
        }
        marked.push_str(&text[end..]);
        marked
    }

    /// `text` without its first `tokens` tokens, and at least one character shorter.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn cut_left<'t>(&self, text: &'t str, tokens: usize) -> Result<&'t str> {
        let offsets: Vec<(usize, usize)> =
            guarded("encode the text", || self.inner.encode(text, false).map(|e| e.get_offsets().to_vec()))?;
        let first = text.chars().next().map_or(0, char::len_utf8);
        let at = offsets.get(tokens).map_or(text.len(), |&(start, _)| start.clamp(first, text.len()));
        Ok(&text[char_boundary(text, at)..])
    }

    /// The text of `ids`; `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded("decode the ids", || self.inner.decode(ids, skip_special))
    }

    /// The token that ends a text, and its id.
    pub fn eos_token(&self) -> Option<(String, u32)> {
        self.named_token("eos_token")
    }

    /// The padding token, and its id.
    pub fn pad_token(&self) -> Option<(String, u32)> {
        self.named_token("pad_token")
    }

    /// The token that begins a text, and its id.
    pub fn bos_token(&self) -> Option<(String, u32)> {
        self.named_token("bos_token")
    }

    /// Whether `transformers` puts the BOS token before a plain text with this tokenizer.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Notes for the user about changes made when loading.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The added tokens, with their ids, for which a model with `vocab_size` rows has no row; sorted by id.
    pub fn tokens_beyond(&self, vocab_size: usize) -> Vec<(String, u32)> {
        let added = self.inner.get_added_tokens_decoder().into_iter();
        let mut beyond: Vec<_> = added
            .filter(|(id, _)| *id as usize >= vocab_size)
            .map(|(id, token)| (token.content, id))
            .collect();
        beyond.sort_by_key(|(_, id)| *id);
        beyond
    }

    /// Largest id + 1. A model may have more rows (padding of the embedding) but never fewer.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token, exactly as it is written in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, exactly as it is written in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The special tokens that occur in `text`, in order, with repetitions.
    pub fn special_tokens_in(&self, text: &str) -> Vec<String> {
        self.specials.find(text).map(|found| text[found].to_owned()).collect()
    }

    /// The range of the first special token of `text`.
    pub fn first_special_in(&self, text: &str) -> Option<Range<usize>> {
        self.specials.find(text).next()
    }

    /// The special-token variables of templates that are set: `bos_token`, `eos_token`,
    /// `additional_special_tokens` and so on.
    pub fn special_token_map(&self) -> &Map<String, Value> {
        &self.named
    }

    fn named_token(&self, role: &str) -> Option<(String, u32)> {
        let token = self.named.get(role)?.as_str()?;
        Some((token.to_owned(), self.token_to_id(token)?))
    }
}

/// Runs code of the `tokenizers` crate, which panics on some files and texts, and turns every failure into an error.
fn guarded<T>(action: &str, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let what = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
        }
    };
    Error::input("TOKENIZER", format!("the tokenizer cannot {action}"))
        .got(what)
        .fix("use the tokenizer.json that belongs to the model, or remove this text")
        .into()
}

#[cfg(test)]
#[path = "tests.rs"]
pub(in crate::data) mod tests;
