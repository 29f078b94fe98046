//! Encoding a text in which some special tokens are ordinary text: those from the data, not from the
//! template.
//!
//! The text is encoded as a whole. Cutting it at the special tokens and encoding the parts would give other
//! ids wherever a tokenizer treats the beginning of a text in its own way (`prepend_scheme: first`), or
//! merges across the cut.

use std::collections::HashMap;

use tokenizers::normalizer::Range::Normalized;
use tokenizers::pre_tokenizer::PreTokenizedString;
use tokenizers::{AddedToken, NormalizedString, Normalizer, Token};

use super::offsets::Encoded;
use super::{Tokenizer, guarded};
use crate::error::{Error, Result};

impl Tokenizer {
    /// The ids of a text in which `mark` was inserted into some special tokens (see
    /// [`Tokenizer::mark_special`]): these are encoded as ordinary text, the others are recognised, and the
    /// marks are removed.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_escaped`].
    pub fn encode_marked(&self, text: &str, mark: char) -> Result<Vec<u32>> {
        let (text, marks) = without_marks(text, mark);
        if marks.is_empty() { self.encode(&text) } else { Ok(self.encode_escaped(&text, &marks)?.ids) }
    }

    /// The ids of `text`, and their positions in it, with the marked special tokens encoded as ordinary text
    /// and all others recognised. They equal the ids of a tokenizer that does not know the marked tokens. A
    /// mark is the byte position after the first character of such a token, as returned by [`without_marks`];
    /// marks are sorted.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_with_offsets`], and if an added token has `single_word`.
    pub fn encode_escaped(&self, text: &str, marks: &[usize]) -> Result<Encoded> {
        if marks.is_empty() {
            return self.encode_with_offsets(text);
        }
        let matchers =
            guarded("be prepared", || Ok(self.matchers.get_or_init(|| Matchers::new(&self.inner))))?;
        if let Some(token) = &matchers.single_word {
            return Error::input("TOKENIZER", "special tokens in the data cannot be taken as text")
                .got(format!("the added token {token:?} has single_word"))
                .fix("remove the special tokens from the data")
                .into();
        }
        guarded("encode the text", || {
            let mut pieces = PreTokenizedString::from(text);
            pieces.split(|_, piece| matchers.raw.split(piece, marks))?;
            let normalizer = self.inner.get_normalizer();
            pieces.split(|_, mut piece| {
                if let Some(normalizer) = normalizer {
                    normalizer.normalize(&mut piece)?;
                }
                matchers.normalized.split(piece, marks)
            })?;
            self.finish(pieces, text)
        })
    }
}

/// `text` without `mark`, and the position of each mark in the result.
pub fn without_marks(text: &str, mark: char) -> (String, Vec<usize>) {
    let mut plain = String::with_capacity(text.len());
    let mut marks = Vec::new();
    for part in text.split(mark) {
        plain.push_str(part);
        marks.push(plain.len());
    }
    // The last part has no mark after it.
    marks.pop();
    (plain, marks)
}

/// The added tokens in the two groups of the crate: matched before normalization, and after it.
#[derive(Debug)]
pub(super) struct Matchers {
    raw: Matcher,
    normalized: Matcher,
    /// A token with `single_word`, which is not supported here.
    single_word: Option<String>,
}

impl Matchers {
    fn new(inner: &tokenizers::Tokenizer) -> Self {
        let (mut raw, mut normalized) = (Matcher::default(), Matcher::default());
        let mut single_word = None;
        for (id, token) in inner.get_added_tokens_decoder() {
            if token.single_word {
                single_word = Some(token.content.clone());
            }
            let mut pattern = NormalizedString::from(token.content.as_str());
            if token.normalized {
                // If the normalizer fails, the token is unchanged, as in the crate.
                let _ = inner.get_normalizer().map(|normalizer| normalizer.normalize(&mut pattern));
            }
            let matcher = if token.normalized { &mut normalized } else { &mut raw };
            matcher.insert(pattern.get().as_bytes(), id, token);
        }
        Self { raw, normalized, single_word }
    }
}

/// A trie of added tokens.
#[derive(Debug, Default)]
struct Matcher {
    /// The node after a node and a byte; node 0 is the root.
    next: HashMap<(u32, u8), u32>,
    /// The tokens that end at a node.
    ends: HashMap<u32, (u32, AddedToken)>,
}

impl Matcher {
    fn insert(&mut self, pattern: &[u8], id: u32, token: AddedToken) {
        let mut node = 0;
        for &byte in pattern {
            let new = self.next.len() as u32 + 1;
            node = *self.next.entry((node, byte)).or_insert(new);
        }
        if node != 0 {
            self.ends.insert(node, (id, token));
        }
    }

    /// The longest token at the beginning of `text`: its length, id and properties.
    fn longest(&self, text: &[u8]) -> Option<(usize, u32, &AddedToken)> {
        let (mut node, mut found) = (0, None);
        for (idx, &byte) in text.iter().enumerate() {
            let Some(&next) = self.next.get(&(node, byte)) else { break };
            node = next;
            if let Some((id, token)) = self.ends.get(&node) {
                found = Some((idx + 1, *id, token));
            }
        }
        found
    }

    /// Cuts `piece` at the added tokens in it. Marked special tokens stay text, and as in the crate no other
    /// token is searched inside them.
    fn split(
        &self,
        piece: NormalizedString,
        marks: &[usize],
    ) -> tokenizers::Result<Vec<(NormalizedString, Option<Vec<Token>>)>> {
        let text = piece.get();
        let mut parts = Vec::new();
        let (mut at, mut done) = (0, 0);
        let slice = |start: usize, end: usize| {
            piece.slice(Normalized(start..end)).ok_or("an added token is not at a character boundary")
        };
        while at < text.len() {
            let Some((len, id, token)) = self.longest(&text.as_bytes()[at..]) else {
                at += 1;
                continue;
            };
            let (mut start, mut end) = (at, at + len);
            at = end;
            if token.special && is_marked(&piece, start, end, marks) {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                parts.push((slice(done, start)?, None));
            }
            // White space taken by the previous token is not taken twice.
            let part = slice(start, end)?;
            let value = part.get().to_owned();
            let len = value.len();
            parts.push((part, Some(vec![Token::new(id, value, (0, len))])));
            done = end;
        }
        if done < text.len() {
            parts.push((slice(done, text.len())?, None));
        }
        Ok(parts)
    }
}

/// True if there is a mark after the first character of the range `start..end` of `piece`.
fn is_marked(piece: &NormalizedString, start: usize, end: usize, marks: &[usize]) -> bool {
    let shift = piece.offsets_original().0;
    let Some(range) = piece.convert_offsets(Normalized(start..end)) else { return false };
    let first = marks.partition_point(|&mark| mark <= shift + range.start);
    marks.get(first).is_some_and(|&mark| mark <= shift + range.end)
}
