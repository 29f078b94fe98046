//! Finds special tokens in text, in one pass: user text that holds one can change where a turn ends.

use std::ops::Range;

/// One special token.
#[derive(Debug)]
pub(super) struct SpecialToken {
    pub(super) content: String,
    /// White space before it belongs to it.
    pub(super) lstrip: bool,
    /// White space after it belongs to it.
    pub(super) rstrip: bool,
}

/// All special tokens, by their first byte, longest first.
#[derive(Debug, Default)]
pub(super) struct SpecialIndex {
    by_first: Vec<Vec<SpecialToken>>,
    /// Whether one is matched after normalisation, so that the raw text does not tell.
    normalized: bool,
}

/// A special token at its place.
#[derive(Debug)]
pub(super) struct Found<'i> {
    pub(super) range: Range<usize>,
    token: &'i SpecialToken,
}

impl SpecialIndex {
    pub(super) fn new(tokens: Vec<SpecialToken>, normalized: bool) -> Self {
        let mut by_first: Vec<Vec<SpecialToken>> = (0..256).map(|_| Vec::new()).collect();
        for token in tokens {
            if let Some(&first) = token.content.as_bytes().first() {
                by_first[usize::from(first)].push(token);
            }
        }
        for group in &mut by_first {
            group.sort_by(|a, b| {
                b.content.len().cmp(&a.content.len()).then_with(|| a.content.cmp(&b.content))
            });
        }
        Self { by_first, normalized }
    }

    /// False only if no special token can be recognised in `text`.
    pub(super) fn may_occur_in(&self, text: &str) -> bool {
        self.normalized || self.find(text).next().is_some()
    }

    /// Leftmost, then longest; without overlap.
    pub(super) fn find<'i>(&'i self, text: &'i str) -> impl Iterator<Item = Found<'i>> + 'i {
        let bytes = text.as_bytes();
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < bytes.len() {
                let group = self.by_first.get(usize::from(bytes[at])).map_or(&[][..], Vec::as_slice);
                let token = group.iter().find(|token| bytes[at..].starts_with(token.content.as_bytes()));
                if let Some(token) = token {
                    let range = at..at + token.content.len();
                    at = range.end;
                    return Some(Found { range, token });
                }
                at += 1;
            }
            None
        })
    }
}

impl Found<'_> {
    /// Its place with the white space it takes along, from `start` on.
    pub(super) fn with_stripped_space(&self, text: &str, start: usize) -> Range<usize> {
        let mut range = self.range.clone();
        // After white space that the token before took, this one may start in it.
        let start = start.min(range.start);
        if self.token.lstrip {
            range.start = start + text[start..range.start].trim_end().len();
        }
        if self.token.rstrip {
            range.end = text.len() - text[range.end..].trim_start().len();
        }
        range
    }
}
