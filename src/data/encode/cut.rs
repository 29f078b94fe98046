//! Conversations that are too long: the oldest text goes first, and what is left still has the template's form.
//!
//! With `truncation_side="left"` transformers cuts tokens from the left, whatever they are. Here the template
//! stays whole and no answer is learned without its question: what goes is the beginning of the oldest
//! question, or the oldest question with its answers, and so on up to the question before the last answer that
//! is learned. Of that question only the beginning goes. System turns stay.

use std::ops::Range;

use super::{Encoder, Truncation, USER};
use crate::data::record::{Conversation, Message};
use crate::error::Result;

/// What was cut of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::data) struct Cut {
    /// Turns that are gone as a whole.
    pub(in crate::data) turns: usize,
    /// Those of them that would have been learned.
    pub(in crate::data) answers: usize,
    /// Whether a question is cut that others follow.
    pub(in crate::data) is_in_older: bool,
    /// Whether the question before the last answer is cut; a pair has no other one.
    pub(in crate::data) is_in_last: bool,
    /// Whether nothing is left of that one.
    pub(in crate::data) last_is_gone: bool,
}

impl Cut {
    /// Whether anything was cut.
    pub(super) fn is_any(&self) -> bool {
        self.turns > 0 || self.is_in_older || self.is_in_last
    }
}

/// A conversation with its first exchanges left out.
struct Shorter {
    conversation: Conversation,
    cut: Cut,
}

impl Encoder<'_> {
    /// What `encode` makes of a conversation, with its length. Where rows are to be cut, the oldest text is cut
    /// until it fits; if that is not enough, the result is that of the shortest conversation.
    pub(super) fn fit_turns<T>(
        &self,
        conversation: &Conversation,
        mut encode: impl FnMut(&Conversation) -> Result<(usize, T)>,
    ) -> Result<(T, Cut)> {
        let limit = self.options.max_seq_length;
        let (len, encoded) = encode(conversation)?;
        if self.options.truncation != Truncation::PromptLeft || len <= limit {
            return Ok((encoded, Cut::default()));
        }
        let learned = self.learned(&conversation.turns);
        let starts = exchanges(&conversation.turns, learned.last().copied());
        if starts.is_empty() {
            return Ok((encoded, Cut::default()));
        }
        let without = |count: usize| shorter(conversation, &starts, count, &learned);
        // Exchanges before the last question can go. Bisection finds the fewest that have to.
        let last = starts.len() - 1;
        let (mut too_few, mut enough) = (0, None);
        let mut next = last;
        while next > too_few {
            let (len, encoded) = encode(&without(next).conversation)?;
            match len <= limit {
                true => enough = Some((next, encoded)),
                false => too_few = next,
            }
            let Some((fewest, _)) = enough else { break };
            next = too_few.midpoint(fewest);
        }
        let Some((fewest, encoded)) = enough else {
            let mut shortest = without(last);
            shortest.cut.is_in_last = true;
            return self.fit_question(shortest, &mut encode).map(|(encoded, cut, _)| (encoded, cut));
        };
        // Of the last question that went, a part may stay.
        let mut longer = without(fewest - 1);
        longer.cut.is_in_older = true;
        match self.fit_question(longer, &mut encode)? {
            (encoded, cut, true) if !cut.last_is_gone => Ok((encoded, cut)),
            _ => Ok((encoded, without(fewest).cut)),
        }
    }

    /// Cuts the first question from its left until the conversation fits; the flag says whether it does.
    fn fit_question<T>(
        &self,
        Shorter { mut conversation, mut cut }: Shorter,
        encode: &mut impl FnMut(&Conversation) -> Result<(usize, T)>,
    ) -> Result<(T, Cut, bool)> {
        let limit = self.options.max_seq_length;
        let question = first_question(&conversation.turns);
        loop {
            let (len, encoded) = encode(&conversation)?;
            let turns = &mut conversation.turns[question.clone()];
            cut.last_is_gone = !turns.is_empty() && turns.iter().all(|turn| turn.content.trim().is_empty());
            let Some(turn) = turns.iter_mut().find(|turn| !turn.content.is_empty()).filter(|_| len > limit)
            else {
                return Ok((encoded, cut, len <= limit));
            };
            turn.content = self.tokenizer()?.cut_left(&turn.content, len - limit)?.to_owned();
        }
    }
}

/// The turns with which a question begins: a turn of the user behind one of somebody else. None behind the
/// answer `last`, which is the last one that is learned.
fn exchanges(turns: &[Message], last: Option<usize>) -> Vec<usize> {
    let end = last.unwrap_or(turns.len());
    let begins = |&i: &usize| turns[i].role == USER && (i == 0 || turns[i - 1].role != USER);
    (0..end).filter(begins).collect()
}

/// The conversation without its first `count` exchanges.
fn shorter(conversation: &Conversation, starts: &[usize], count: usize, learned: &[usize]) -> Shorter {
    let first = starts.first().copied().unwrap_or(0);
    let gone = first..starts.get(count).copied().unwrap_or(first);
    let mut conversation = conversation.clone();
    conversation.turns.drain(gone.clone());
    let answers = learned.iter().filter(|&k| gone.contains(k)).count();
    Shorter { conversation, cut: Cut { turns: gone.len(), answers, ..Cut::default() } }
}

/// The turns of the user that are the first question.
fn first_question(turns: &[Message]) -> Range<usize> {
    let start = turns.iter().position(|turn| turn.role == USER).unwrap_or(turns.len());
    let len = turns[start..].iter().take_while(|turn| turn.role == USER).count();
    start..start + len
}
