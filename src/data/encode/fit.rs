//! Rows against the length limit: an answer is never shortened, and what goes is the oldest text, if asked
//! to.
//!
//! In a conversation text is cut before the template is applied, so the template stays whole
//! ([`super::cut`]).

use super::cut::Cut;
use super::{Encoder, Labelled, RowNotes, Truncation};
use crate::batch::IGNORE_INDEX;
use crate::data::record::{Conversation, Record};
use crate::error::{Error, Result};

impl Encoder<'_> {
    /// A prompt and each of `answers` to it, as texts of their own with the token that ends them. One that is
    /// too long shortens the prompt of all.
    pub(super) fn fit_plains(
        &self,
        prompt: &[&str],
        answers: &[&str],
        notes: &mut RowNotes,
    ) -> Result<Vec<Labelled>> {
        let bos = self.bos()?;
        let one = |answer: &&str| {
            let mut labelled = Labelled::default();
            labelled.prompt(bos);
            labelled.extend(self, &self.plain(prompt, answer)?)?;
            labelled.learn(self.end.as_ref().map(|end| end.1));
            Ok(labelled)
        };
        let mut all = answers.iter().map(one).collect::<Result<Vec<Labelled>>>()?;
        notes.answers = answers.len();
        notes.empty_answers = answers.iter().filter(|answer| answer.trim().is_empty()).count();
        let longest = all.iter().map(|labelled| labelled.input_ids.len()).max().unwrap_or(0);
        let excess = longest.saturating_sub(self.options.max_seq_length);
        let cut = self.options.truncation == Truncation::PromptLeft && excess > 0;
        for labelled in all.iter_mut().filter(|_| cut) {
            cut_plain(labelled, excess, usize::from(bos.is_some()), &mut notes.cut);
        }
        Ok(all)
    }

    /// As [`Encoder::fit_plains`], for the one answer that a row has.
    pub(super) fn fit_plain(
        &self,
        prompt: &[&str],
        answer: &[&str; 1],
        notes: &mut RowNotes,
    ) -> Result<Labelled> {
        Ok(self.fit_plains(prompt, answer, notes)?.pop().unwrap_or_default())
    }

    /// A conversation with labels.
    pub(super) fn fit_conversation(
        &self,
        conversation: &Conversation,
        notes: &mut RowNotes,
    ) -> Result<Labelled> {
        let fresh = notes.clone();
        let ((labelled, found), cut) = self.fit_turns(conversation, |turns| {
            let mut found = fresh.clone();
            let labelled = self.labelled(turns, &mut found)?;
            Ok((labelled.input_ids.len(), (labelled, found)))
        })?;
        *notes = RowNotes { cut, ..found };
        Ok(labelled)
    }

    /// The tokens of a conversation.
    pub(super) fn labelled(&self, conversation: &Conversation, notes: &mut RowNotes) -> Result<Labelled> {
        let mut labelled = Labelled::default();
        labelled.extend(self, &self.conversation(conversation, notes)?)?;
        Ok(labelled.trimmed())
    }

    /// A tokenised row.
    pub(super) fn fit_tokenised(&self, input_ids: &[u32], labels: &[i64], notes: &mut RowNotes) -> Labelled {
        let mut cut = 0;
        if self.options.truncation == Truncation::PromptLeft {
            let prompt = labels.iter().position(|&label| label != IGNORE_INDEX).unwrap_or(0);
            let needed = input_ids.len().saturating_sub(self.options.max_seq_length);
            // One token has to stay before the first supervised one, or nothing would predict it.
            cut = if needed < prompt { needed } else { 0 };
            notes.cut =
                Cut { is_in_last: cut > 0, last_is_gone: cut > 0 && cut + 1 == prompt, ..Cut::default() };
        }
        Labelled {
            input_ids: input_ids[cut..].to_vec(),
            labels: labels[cut..].to_vec(),
            ..Labelled::default()
        }
    }

    /// The error for rows that are too long: (row, tokens, tokens from the first answer on).
    pub(super) fn rows_too_long(&self, rows: &[(&Record, usize, usize)]) -> Error {
        let listed = rows.iter().take(5).map(|(record, len, answer)| {
            format!(
                "{}:{} has {len} tokens ({answer} from the first answer on)",
                record.file.display(),
                record.line
            )
        });
        let listed: Vec<String> = listed.collect();
        let more = if rows.len() > 5 { format!(" and {} more", rows.len() - 5) } else { String::new() };
        let longest = rows.iter().map(|(_, len, _)| *len).max().unwrap_or(0);
        let positions = self.options.max_position_embeddings.filter(|positions| longest > *positions);
        let raise = match positions {
            // Advice to raise the limit would lead nowhere.
            Some(positions) => format!("shorten them to the {positions} positions of the model"),
            None => format!("--max-seq-length {longest}"),
        };
        let fix = match self.options.truncation {
            Truncation::PromptLeft => {
                format!(
                    "with the shortest prompt that the template allows they do not fit; {raise}, or --truncation skip"
                )
            }
            _ => format!("{raise}, or --truncation prompt-left (cuts the oldest text), or --truncation skip"),
        };
        Error::input(
            "DATA",
            format!(
                "{} of the rows do not fit into {} tokens: {}{more}",
                rows.len(),
                self.options.max_seq_length,
                listed.join("; ")
            ),
        )
        .fix(fix)
        .into()
    }
}

/// Cuts up to `excess` tokens from the beginning of a prompt, behind `kept` tokens at its very start, and
/// notes it. One token always stays: without a token before it the answer's first one could not be predicted.
fn cut_plain(labelled: &mut Labelled, excess: usize, kept: usize, noted: &mut Cut) {
    let Labelled { input_ids, labels, said } = labelled;
    let prompt = labels.iter().position(|&label| label != IGNORE_INDEX).unwrap_or(labels.len());
    let most = prompt.saturating_sub(kept.max(1));
    let cut = excess.min(most);
    input_ids.drain(kept..kept + cut);
    labels.drain(kept..kept + cut);
    *said = said.start.saturating_sub(cut)..said.end.saturating_sub(cut);
    noted.is_in_last |= cut > 0;
    noted.last_is_gone |= cut > 0 && cut == most;
}
