//! The supervised spans of a text, and the supervised tokens: every token that overlaps a span, even by one
//! character.

use std::ops::Range;

use super::Encoder;
use crate::batch::IGNORE_INDEX;
use crate::data::tokenizer::escape::without_marks;
use crate::data::tokenizer::offsets::Encoded;
use crate::error::Result;

/// A text with its supervised spans.
#[derive(Debug, Default)]
pub(super) struct Marked {
    /// The whole text.
    pub(super) text: String,
    /// The supervised answers, in order, without overlap.
    pub(super) answers: Vec<Answer>,
    /// A marker character inserted into special tokens that come from the data, which are encoded as ordinary
    /// text.
    pub(super) mark: Option<char>,
}

impl Marked {
    /// The text without the marks, and their positions.
    fn without(&self, mark: char) -> (Self, Vec<usize>) {
        let (text, marks) = without_marks(&self.text, mark);
        let moved = |at: usize| at - self.text[..at].matches(mark).count() * mark.len_utf8();
        let part = |part: &Range<usize>| moved(part.start)..moved(part.end);
        let answer = |Answer { learned, said }: &Answer| Answer { learned: part(learned), said: part(said) };
        (Self { text, answers: self.answers.iter().map(answer).collect(), mark: None }, marks)
    }
}

/// The position of an answer in a text, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// The supervised span: from the end of the prompt to the end of the end-of-turn token.
    pub(super) learned: Range<usize>,
    /// The text of the row itself, without white space at the ends.
    pub(super) said: Range<usize>,
}

/// Tokens and labels of one row, of any length.
#[derive(Debug, Default, Clone)]
pub(super) struct Labelled {
    pub(super) input_ids: Vec<u32>,
    pub(super) labels: Vec<i64>,
    /// The tokens of the text of the last answer.
    pub(super) said: Range<usize>,
}

impl Labelled {
    /// Adds an unsupervised token.
    pub(super) fn prompt(&mut self, id: Option<u32>) {
        self.input_ids.extend(id);
        self.labels.resize(self.input_ids.len(), IGNORE_INDEX);
    }

    /// Adds a supervised token.
    pub(super) fn learn(&mut self, id: Option<u32>) {
        self.input_ids.extend(id);
        self.labels.extend(id.map(i64::from));
    }

    /// Removes the tokens after the last supervised one; they have no effect on the loss.
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

/// True if a token at `place` belongs to `part`. A token without text of its own belongs to the text that
/// follows it.
fn overlap(place: &Range<usize>, part: &Range<usize>) -> bool {
    place.start < part.end && (place.end > part.start || place.is_empty() && place.start == part.start)
}

/// The positions of tokens, extended by white space that some tokenizers leave out: it belongs to the next
/// token.
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
