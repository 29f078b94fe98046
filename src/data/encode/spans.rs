//! Which part of a text is learned, and which tokens that makes: a token that overlaps such a part, and be it by one
//! character, is learned.

use std::ops::Range;

use super::Encoder;
use crate::batch::IGNORE_INDEX;
use crate::data::tokenizer::escape::without_marks;
use crate::data::tokenizer::offsets::Encoded;
use crate::error::Result;

/// A text with the parts of it that are answers.
#[derive(Debug, Default)]
pub(super) struct Marked {
    /// The whole text.
    pub(super) text: String,
    /// Its answers that are learned, in order, without overlap.
    pub(super) answers: Vec<Answer>,
    /// A character that stands inside special tokens of the data, which are ordinary text.
    pub(super) mark: Option<char>,
}

impl Marked {
    /// The same without the marks, and where they were.
    fn without(&self, mark: char) -> (Self, Vec<usize>) {
        let (text, marks) = without_marks(&self.text, mark);
        let moved = |at: usize| at - self.text[..at].matches(mark).count() * mark.len_utf8();
        let part = |part: &Range<usize>| moved(part.start)..moved(part.end);
        let answer = |Answer { learned, said }: &Answer| Answer { learned: part(learned), said: part(said) };
        (Self { text, answers: self.answers.iter().map(answer).collect(), mark: None }, marks)
    }
}

/// Where an answer stands in a text, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// All that is learned: from behind the prompt to the end of the end-of-turn token.
    pub(super) learned: Range<usize>,
    /// What the row itself says, without white space at the ends.
    pub(super) said: Range<usize>,
}

/// Tokens and labels of one row, of whatever length.
#[derive(Debug, Default, Clone)]
pub(super) struct Labelled {
    pub(super) input_ids: Vec<u32>,
    pub(super) labels: Vec<i64>,
    /// The tokens of what the last answer says.
    pub(super) said: Range<usize>,
}

impl Labelled {
    /// Adds a token that is not learned.
    pub(super) fn prompt(&mut self, id: Option<u32>) {
        self.input_ids.extend(id);
        self.labels.resize(self.input_ids.len(), IGNORE_INDEX);
    }

    /// Adds a token that is learned.
    pub(super) fn learn(&mut self, id: Option<u32>) {
        self.input_ids.extend(id);
        self.labels.extend(id.map(i64::from));
    }

    /// Without the tokens behind the last label: nothing is learned from them.
    pub(super) fn trimmed(mut self) -> Self {
        let used = self.labels.iter().rposition(|&label| label != IGNORE_INDEX).map_or(0, |last| last + 1);
        if used > 0 {
            self.input_ids.truncate(used);
            self.labels.truncate(used);
        }
        self
    }

    /// Adds the tokens of `marked`.
    pub(super) fn extend(&mut self, encoder: &Encoder<'_>, marked: &Marked) -> Result<()> {
        let tokenizer = encoder.tokenizer()?;
        let unmarked = marked.mark.map(|mark| marked.without(mark));
        let Marked { text, answers, .. } = unmarked.as_ref().map_or(marked, |(marked, _)| marked);
        let Encoded { ids, offsets } = match &unmarked {
            Some((_, marks)) => tokenizer.encode_escaped(text, marks)?,
            None => tokenizer.encode_with_offsets(text)?,
        };
        let first = self.input_ids.len();
        let places = places(text, &offsets);
        let last = answers.last();
        let mut answers = answers.iter().peekable();
        for (id, place) in ids.iter().copied().zip(&places) {
            while answers.peek().is_some_and(|answer| answer.learned.end <= place.start) {
                answers.next();
            }
            match answers.peek() {
                Some(answer) if overlap(place, &answer.learned) => self.learn(Some(id)),
                _ => self.prompt(Some(id)),
            }
        }
        if let Some(answer) = last {
            let said = |i: usize| overlap(&places[i], &answer.said);
            let start = (0..places.len()).find(|&i| said(i)).unwrap_or(places.len());
            let end = (start..places.len()).rfind(|&i| said(i)).map_or(start, |last| last + 1);
            self.said = first + start..first + end;
        }
        Ok(())
    }
}

/// Whether a token at `place` belongs to `part`. A token without text of its own belongs to what follows it.
fn overlap(place: &Range<usize>, part: &Range<usize>) -> bool {
    place.start < part.end && (place.end > part.start || place.is_empty() && place.start == part.start)
}

/// The places of tokens, with the white space that some tokenizers leave out of them: it belongs to the token behind it.
fn places(text: &str, ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut done = 0;
    let place = |range: &Range<usize>| {
        let gap = text.get(done..range.start).is_some_and(|gap| gap.chars().all(char::is_whitespace));
        let start = if gap { done } else { range.start };
        done = done.max(range.end);
        start..range.end
    };
    ranges.iter().map(place).collect()
}
