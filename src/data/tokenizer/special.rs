//! Finds special tokens in text, in one pass: user text that contains one can change where a turn ends.

use std::ops::Range;

/// All special tokens, sorted.
#[derive(Debug, Default)]
pub(super) struct SpecialIndex {
    tokens: Vec<String>,
    /// True if a token is matched after normalization, so that the raw text is not sufficient.
    normalized: bool,
}

impl SpecialIndex {
    pub(super) fn new(mut tokens: Vec<String>, normalized: bool) -> Self {
        tokens.retain(|token| !token.is_empty());
        tokens.sort();
        Self { tokens, normalized }
    }

    /// False only if no special token can be recognised in `text`.
    pub(super) fn may_occur_in(&self, text: &str) -> bool {
        self.normalized || self.find(text).next().is_some()
    }

    /// Leftmost, then longest; without overlap.
    pub(super) fn find<'i>(&'i self, text: &'i str) -> impl Iterator<Item = Range<usize>> + 'i {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < text.len() {
                if let Some(len) = self.longest(&text.as_bytes()[at..]) {
                    at += len;
                    return Some(at - len..at);
                }
                at += 1;
            }
            None
        })
    }

    /// The length of the longest token that `text` begins with. A model may have 100,000 tokens that begin alike, so they are
    /// not tried one after the other.
    fn longest(&self, text: &[u8]) -> Option<usize> {
        let (mut tokens, mut depth, mut found) = (&self.tokens[..], 0, None);
        // All of `tokens` begin with the first `depth` bytes of the text.
        while let (Some(first), Some(last)) = (tokens.first(), tokens.last()) {
            let (first, last) = (first.as_bytes(), last.as_bytes());
            let common = first[depth..].iter().zip(&last[depth..]).take_while(|(a, b)| a == b).count();
            let end = depth + common;
            if text.get(depth..end) != Some(&first[depth..end]) {
                return found;
            }
            depth = end;
            if first.len() == depth {
                found = Some(depth);
                tokens = &tokens[1..];
                continue;
            }
            let Some(&next) = text.get(depth) else { return found };
            let start = tokens.partition_point(|token| token.as_bytes()[depth] < next);
            let len = tokens[start..].partition_point(|token| token.as_bytes()[depth] == next);
            tokens = &tokens[start..start + len];
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leftmost_and_longest_token_is_found() {
        let index =
            |tokens: &[&str]| SpecialIndex::new(tokens.iter().map(|t| (*t).to_owned()).collect(), false);
        let find = |tokens: &[&str], text: &str| {
            index(tokens).find(text).map(|r| text[r].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            find(&["<a>", "<a><b>", "<b>", "", "é"], "x<a><a><b><bé<b>"),
            ["<a>", "<a><b>", "é", "<b>"]
        );
        assert_eq!(find(&["ab", "abcd"], "abcabcdab"), ["ab", "abcd", "ab"]);
        assert_eq!(find(&["a", "a"], "aa"), ["a", "a"]);
        assert_eq!(find(&["abc"], "ab"), [""; 0]);
        assert_eq!(find(&[], "ab"), [""; 0]);
        assert_eq!(find(&["a", "abc"], "ab"), ["a"]);
    }

    #[test]
    fn it_is_what_trying_every_token_finds() {
        let mut state = 1u32;
        let mut word = |longest: u32| -> String {
            let mut letter = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 24
            };
            (0..letter() % longest).map(|_| if letter() % 2 == 0 { 'a' } else { 'b' }).collect()
        };
        for _ in 0..300 {
            let tokens: Vec<String> = (0..6).map(|_| word(5)).collect();
            let text = word(40);
            let (mut at, mut expected) = (0, Vec::new());
            while at < text.len() {
                let fits = tokens.iter().filter(|t| !t.is_empty() && text[at..].starts_with(t.as_str()));
                let longest = fits.map(String::len).max();
                expected.extend(longest.map(|len| at..at + len));
                at += longest.unwrap_or(1);
            }
            let found: Vec<_> = SpecialIndex::new(tokens.clone(), false).find(&text).collect();
            assert_eq!(found, expected, "{tokens:?} in {text}");
        }
    }
}
