//! Rows against the length limit: an answer is never shortened, a prompt only from its beginning, and only if asked to.
//!
//! In a conversation the text of the user is cut before the template is applied, so the template stays whole.

use super::{Encoder, Format, Labelled, Truncation, chat};
use crate::batch::IGNORE_INDEX;
use crate::data::jsonl::{Message, Record};
use crate::error::{Error, Result};

impl Encoder<'_> {
    /// Input and output with labels, and whether the input was cut.
    pub(super) fn input_output(&self, input: &str, output: &str) -> Result<(Labelled, bool)> {
        let answer = self.encode_answer(output)?;
        let mut prompt = self.prompt_ids(input)?;
        let mut truncated = false;
        if self.options.truncation == Truncation::PromptLeft {
            let limit = self.options.max_seq_length.saturating_sub(answer.len());
            let before = prompt.len();
            match self.options.format {
                Format::Plain => cut_plain(&mut prompt, limit, usize::from(self.tokenizer.adds_bos())),
                Format::Chat => {
                    let mut turns = vec![Message::new(chat::USER, input)];
                    while prompt.len() > limit && self.cut_first_user(&mut turns, prompt.len() - limit)? {
                        prompt = self.conversation_prompt_ids(&turns)?;
                    }
                }
            }
            truncated = prompt.len() != before;
        }
        let mut labelled = Labelled::default();
        labelled.prompt(&prompt);
        labelled.answer(&answer);
        Ok((labelled, truncated))
    }

    /// A conversation with labels, and whether a user turn was cut.
    pub(super) fn messages(&self, turns: &[Message]) -> Result<(Labelled, bool)> {
        let mut labelled = self.conversation(turns)?;
        let mut truncated = false;
        if self.options.truncation == Truncation::PromptLeft
            && labelled.labels.iter().any(|&l| l != IGNORE_INDEX)
        {
            let mut turns = turns.to_vec();
            while labelled.input_ids.len() > self.options.max_seq_length
                && self.cut_first_user(&mut turns, labelled.input_ids.len() - self.options.max_seq_length)?
            {
                labelled = self.conversation(&turns)?;
                truncated = true;
            }
        }
        Ok((labelled, truncated))
    }

    /// Cuts `tokens` tokens from the left of the first user turn that has any text left; false if none has.
    fn cut_first_user(&self, turns: &mut [Message], tokens: usize) -> Result<bool> {
        match turns.iter_mut().find(|turn| turn.role == chat::USER && !turn.content.is_empty()) {
            Some(turn) => {
                turn.content = self.tokenizer.cut_left(&turn.content, tokens)?.to_owned();
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// A tokenised row, checked against the vocabulary, and whether its beginning was cut.
    pub(super) fn tokenised(
        &self,
        record: &Record,
        input_ids: &[u32],
        labels: &[i64],
    ) -> Result<(Labelled, bool)> {
        let vocab_size = self.options.vocab_size.unwrap_or(self.tokenizer.vocab_size());
        let out_of_range =
            |id: i64| id != IGNORE_INDEX && usize::try_from(id).is_ok_and(|id| id >= vocab_size);
        let id = input_ids.iter().map(|&id| i64::from(id)).position(out_of_range).map(|i| ("input_ids", i));
        if let Some((field, i)) =
            id.or_else(|| labels.iter().copied().position(out_of_range).map(|i| ("labels", i)))
        {
            return record
                .error("the id is beyond the vocabulary")
                .field(format!("{field}[{i}]"))
                .expected(format!("below {vocab_size}"))
                .fix("tokenise the rows with the tokenizer of this model")
                .into();
        }
        let mut cut = 0;
        if self.options.truncation == Truncation::PromptLeft {
            let prompt = labels.iter().position(|&label| label != IGNORE_INDEX).unwrap_or(0);
            let needed = input_ids.len().saturating_sub(self.options.max_seq_length);
            // One token has to stay before the first supervised one, or nothing would predict it.
            cut = if needed < prompt { needed } else { 0 };
        }
        let labelled = Labelled { input_ids: input_ids[cut..].to_vec(), labels: labels[cut..].to_vec() };
        Ok((labelled, cut > 0))
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
        let fix = match self.options.truncation {
            Truncation::PromptLeft => format!(
                "even without the prompt they do not fit; --max-seq-length {longest} or --truncation skip"
            ),
            _ => format!(
                "--max-seq-length {longest}, or --truncation prompt-left (cuts the beginning of the prompt), or --truncation skip"
            ),
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

/// Cuts the beginning of a prompt to `limit` tokens, keeping `kept` tokens at its very start. One token always stays: without
/// a token before it the answer's first one could not be predicted.
fn cut_plain(prompt: &mut Vec<u32>, limit: usize, kept: usize) {
    let limit = limit.max(kept.max(1));
    if prompt.len() > limit {
        prompt.drain(kept..kept + prompt.len() - limit);
    }
}
