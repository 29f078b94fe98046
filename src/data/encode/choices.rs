//! One question with several answers to choose from: every answer is encoded in its place, as training would see it.
//!
//! What all of them begin with is the prompt. A tokenizer may join the end of a question with the beginning of an answer, so
//! an answer is not encoded alone; and its score counts the tokens of what it says, without the token that ends it and
//! without what the template writes before it.

use std::ops::Range;

use super::{ASSISTANT, Encoder, Format, Labelled, Outcome, RowNotes, at_row, chat};
use crate::data::audit::Audit;
use crate::data::record::{Body, Conversation, Message, Record, TurnPlace};
use crate::error::{Error, Result};

/// A question with its answers as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Index of its row among the records.
    pub record: usize,
    /// The tokens that all answers follow; at least one.
    pub prompt: Vec<u32>,
    /// Each answer as what follows the prompt.
    pub answers: Vec<Continuation>,
}

/// Tokens behind a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Those of them that are scored; they reach to the end.
    pub scored: Range<usize>,
}

impl Encoder<'_> {
    /// Encodes every row with each of `choices` as its answer. The audit is that of the longest of them.
    ///
    /// # Errors
    /// As [`Encoder::encode_all`], and for rows that have no text.
    pub fn encode_choices(
        &self,
        records: &[Record],
        choices: &[String],
        progress: &(dyn Fn(usize) -> Result<()> + Sync),
    ) -> Result<(Vec<Asked>, Audit)> {
        let encode = |i: usize, record: &Record| self.choices_of(i, record, choices);
        let (rows, audit) = self.collect(records, progress, encode)?;
        Ok((rows.into_iter().map(|(_, asked)| asked).collect(), audit))
    }

    fn choices_of(&self, index: usize, record: &Record, choices: &[String]) -> Result<Outcome<Asked>> {
        // What the row itself answers plays no part.
        let mut notes = self.notes(record);
        let answers: Vec<&str> = choices.iter().map(String::as_str).collect();
        let mut all = match &record.body {
            Body::InputOutput { input, form, .. } => match self.options.format {
                Format::Chat => self.fit_answers(&chat::pair(*form, input, ""), &answers, &mut notes),
                _ => self.fit_plains(&[input, form.separator()], &answers, &mut notes),
            },
            Body::Messages(conversation) if answer_is_masked(conversation) => {
                return record
                    .error("the answer of the row is not to be learned, so it cannot be scored")
                    .fix("leave the row out, or the mask of its last turn")
                    .into();
            }
            Body::Messages(conversation) => self.fit_answers(conversation, &answers, &mut notes),
            Body::Text(_) | Body::Tokenised { .. } | Body::Labelled { .. } => {
                return record
                    .error("choices need a question with an answer")
                    .expected("\"input\" and \"output\", or \"messages\"")
                    .fix("use --mode logprob for rows of text or token ids")
                    .into();
            }
        }
        .map_err(|e| at_row(record, e))?;
        all.iter().try_for_each(|labelled| self.check_ids(record, labelled))?;
        let asked = asked(index, &all).map_err(|e| at_row(record, e))?;
        let longest = (0..all.len()).rev().max_by_key(|&i| all[i].input_ids.len()).unwrap_or(0);
        (notes.answers, notes.empty_answers) = (0, 0);
        Ok(self.outcome(index, all.swap_remove(longest), notes, asked))
    }

    /// A conversation with each of `answers` as its last turn.
    fn fit_answers(
        &self,
        conversation: &Conversation,
        answers: &[&str],
        notes: &mut RowNotes,
    ) -> Result<Vec<Labelled>> {
        let mut asked = conversation.clone();
        asked.turns.pop_if(|turn| turn.role == ASSISTANT);
        // Earlier answers are not scored, so how they are rendered is the template's business.
        asked.turns.iter_mut().for_each(|turn| turn.masked = true);
        let fresh = notes.clone();
        let ((all, found), cut) = self.fit_turns(&asked, |asked| {
            let mut found = fresh.clone();
            let one = |answer: &&str| {
                let mut answered = asked.clone();
                answered.turns.push(Message::new(ASSISTANT, *answer).at(TurnPlace::key("choices")));
                self.labelled(&answered, &mut found)
            };
            let all = answers.iter().map(one).collect::<Result<Vec<Labelled>>>()?;
            Ok((all.iter().map(|labelled| labelled.input_ids.len()).max().unwrap_or(0), (all, found)))
        })?;
        *notes = RowNotes { cut, ..found };
        Ok(all)
    }
}

/// Whether the last turn is an answer that the row takes out of the loss.
fn answer_is_masked(conversation: &Conversation) -> bool {
    conversation.turns.last().is_some_and(|turn| turn.role == ASSISTANT && turn.masked)
}

/// Takes what all begin with as the prompt.
fn asked(record: usize, all: &[Labelled]) -> Result<Asked> {
    if let Some(i) = all.iter().position(|labelled| labelled.said.is_empty()) {
        return Error::input("CONFIG", "a choice has no tokens")
            .field("choices")
            .got(format!("choice {}", i + 1))
            .fix("choose among answers that the tokenizer knows")
            .into();
    }
    let equal = (1..all.len()).find(|&i| all[..i].iter().any(|other| other.input_ids == all[i].input_ids));
    if let Some(i) = equal {
        return Error::input("CONFIG", "two choices are the same tokens")
            .field("choices")
            .got(format!("choice {} and one before it", i + 1))
            .fix("remove one of them; templates may cut white space off")
            .into();
    }
    let first = all.first().map_or(&[][..], |labelled| &labelled.input_ids);
    let common = |ids: &[u32]| first.iter().zip(ids).take_while(|(a, b)| a == b).count();
    let shared = all.iter().map(|labelled| common(&labelled.input_ids).min(labelled.said.start)).min();
    let shared = shared.unwrap_or(0);
    if shared == 0 {
        return Error::input("DATA", "the prompt has no tokens").fix("give the row an input").into();
    }
    let continuation = |labelled: &Labelled| Continuation {
        ids: labelled.input_ids[shared..labelled.said.end].to_vec(),
        scored: labelled.said.start - shared..labelled.said.end - shared,
    };
    Ok(Asked { record, prompt: first[..shared].to_vec(), answers: all.iter().map(continuation).collect() })
}

impl Asked {
    /// Rows that the question and its answers take in a batch: the prompt, and all tokens of an answer but its last one.
    pub fn num_rows(&self) -> usize {
        let rows = |answer: &Continuation| answer.ids.len().saturating_sub(1);
        self.prompt.len() + self.answers.iter().map(rows).sum::<usize>()
    }
}
