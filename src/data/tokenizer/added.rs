//! Finding added tokens, special or not, in a text: templates end turns with them.

use std::ops::Range;

use super::Tokenizer;

impl Tokenizer {
    /// The first added token of `text`; of several at one position, the longest.
    pub fn first_added_in(&self, text: &str) -> Option<Range<usize>> {
        self.added_in(text)
            .min_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)))
            .map(|found| found.0)
    }

    /// The last added token of `text`, and its id; of several that end at one position, the longest.
    pub fn last_added_in(&self, text: &str) -> Option<(Range<usize>, u32)> {
        let last = |(id, token): (u32, String)| text.rfind(&token).map(|at| (at..at + token.len(), id));
        self.added().filter_map(last).max_by_key(|(range, _)| (range.end, std::cmp::Reverse(range.start)))
    }

    fn added_in(&self, text: &str) -> impl Iterator<Item = (Range<usize>, u32)> {
        self.added().filter_map(move |(id, token)| text.find(&token).map(|at| (at..at + token.len(), id)))
    }

    fn added(&self) -> impl Iterator<Item = (u32, String)> {
        let added = self.inner.get_added_tokens_decoder().into_iter();
        added.map(|(id, token)| (id, token.content)).filter(|(_, content)| !content.is_empty())
    }
}
