//! Ids together with the byte ranges of the text that they represent.
//!
//! Masks are spans of text, so every token needs its position in the original text: before normalizers
//! composed characters, and without the "▁" that a tokenizer adds before a text. The crate's own offsets are
//! nearly that. Their errors are corrected here, from the offsets alone.

use std::ops::Range;

use tokenizers::pre_tokenizer::PreTokenizedString;
use tokenizers::{Encoding, Model, OffsetType, PreTokenizer};

use super::{Tokenizer, guarded};
use crate::data::char_boundary;
use crate::error::Result;

/// The tokens of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The ids.
    pub ids: Vec<u32>,
    /// For each id the bytes of the text it stands for, at character boundaries. Tokens that are pieces of one character all
    /// have the bytes of that character; a token without a source, such as the "▁" before a text, has an empty range.
    pub offsets: Vec<Range<usize>>,
}

impl Tokenizer {
    /// The ids of `text` as returned by [`Tokenizer::encode`], with their positions in `text`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and if the tokenizer drops a character for which it has no token.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Encoded> {
        guarded("encode the text", || {
            let added = self.inner.get_added_vocabulary();
            self.finish(added.extract_and_normalize(self.inner.get_normalizer(), text), text)
        })
    }

    /// Encodes the pieces between added tokens: the steps of the crate after it has found those.
    pub(super) fn finish(&self, mut pieces: PreTokenizedString, text: &str) -> tokenizers::Result<Encoded> {
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        let model = self.inner.get_model();
        pieces.tokenize(|piece| {
            let tokens = model.tokenize(piece.get())?;
            // If a character has no token and there is no unknown token, the crate skips it and gives its
            // position to the next tokens.
            let end = tokens.last().map_or(0, |token| token.offsets.1);
            if end == piece.get().len() {
                return Ok(tokens);
            }
            Err(format!("there is no token for some character of {:?}", piece.get()).into())
        })?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::Byte)?;
        let mut offsets = ranges(&encoding, text);
        empty_prepended(&encoding, &mut offsets);
        divide_byte_runs(&encoding, text, &mut offsets);
        if self.inner.get_normalizer().is_some() {
            take_in_composed(text, &mut offsets);
        }
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets })
    }
}

/// The crate's offsets, within the text and at character boundaries.
fn ranges(encoding: &Encoding, text: &str) -> Vec<Range<usize>> {
    let range = |&(start, end): &(usize, usize)| {
        let start = char_start(text, start);
        start..char_boundary(text, end).max(start)
    };
    encoding.get_offsets().iter().map(range).collect()
}

/// Start of the character that contains byte `at`.
fn char_start(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

/// A "▁" or "Ġ" that was added before a text has the position of the text's first character, as the next
/// token does.
fn empty_prepended(encoding: &Encoding, offsets: &mut [Range<usize>]) {
    for (idx, token) in encoding.get_tokens().iter().enumerate() {
        let only_space = !token.is_empty() && token.chars().all(|c| matches!(c, '▁' | 'Ġ' | ' '));
        let next = offsets.get(idx + 1).map(|next| next.start);
        if only_space && next.is_some_and(|next| next < offsets[idx].end) {
            offsets[idx].end = offsets[idx].start;
        }
    }
}

/// Consecutive characters without a token become one run of byte tokens that all have the range of the whole
/// run; each gets the range of its character.
fn divide_byte_runs(encoding: &Encoding, text: &str, offsets: &mut [Range<usize>]) {
    let byte = |token: &String| {
        let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
        if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
    };
    let tokens = encoding.get_tokens();
    let mut at = 0;
    while at < tokens.len() {
        let run = offsets[at].clone();
        let len = run.len().max(1);
        let same = offsets.get(at..at + len).is_some_and(|o| o.iter().all(|range| *range == run));
        let source = &text.as_bytes()[run.clone()];
        if same
            && !run.is_empty()
            && tokens[at..at + len].iter().map(byte).eq(source.iter().map(|b| Some(*b)))
        {
            for (idx, range) in offsets[at..at + len].iter_mut().enumerate() {
                *range = char_start(text, run.start + idx)..char_boundary(text, run.start + idx + 1);
            }
            at += len;
        } else {
            at += 1;
        }
    }
}

/// Characters that a normalizer joined to the one before (accents, syllables) belong to its token.
fn take_in_composed(text: &str, offsets: &mut [Range<usize>]) {
    for idx in 0..offsets.len() {
        let end = offsets[idx].end;
        let next = offsets.get(idx + 1).map_or(text.len(), |next| next.start);
        let Some(gap) = text.get(end..next) else { continue };
        let len = gap.find(char::is_whitespace).unwrap_or(gap.len());
        // Pieces of one character share its range, so all of them include the gap.
        let start = offsets[idx].start;
        let first = offsets[..=idx].iter().rposition(|range| range.start != start).map_or(0, |last| last + 1);
        for range in offsets[first..=idx].iter_mut().filter(|range| range.end == end && range.start < end) {
            range.end = end + len;
        }
    }
}

#[cfg(test)]
#[path = "offsets_tests.rs"]
mod tests;
