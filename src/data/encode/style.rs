//! How a chat template frames an answer, derived once from renderings of known conversations.

use super::{ASSISTANT, USER};
use crate::data::record::Message;
use crate::data::template::{Renderer, Scene};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

use serde_json::{Map, Value};

/// The text around the answers of a template.
#[derive(Debug)]
pub(super) struct Style {
    /// The role header that the template writes before an answer, if there is no generation prompt; not
    /// supervised. Empty if there is a generation prompt, or if the header is only white space, which nothing
    /// else would produce.
    pub(super) unprompted_header: String,
    /// The common prefix of the generation prompt and a rendered answer: the role header.
    pub(super) role_header: String,
    /// The end of the last turn.
    pub(super) last: End,
    /// The end of an answer that is followed by another turn.
    pub(super) middle: End,
}

/// The text or tokens with which a template ends an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// These tokens of the vocabulary, maybe after white space.
    Tokens(String),
    /// This text, possibly empty.
    Text(String),
}

impl Style {
    /// Derives the style of a template.
    ///
    /// # Errors
    /// [`Error::Input`] if the template fails on a question with an answer, or its output lacks the answer.
    pub(super) fn probe(
        renderer: &Renderer,
        variables: &Map<String, Value>,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        // Words that no template contains.
        const ANSWER: &str = "Zm9ydHktdHdv";
        const AGAIN: &str = "c2V2ZW50eQ";
        let turns = [
            Message::new(USER, "?"),
            Message::new(ASSISTANT, ANSWER),
            Message::new(USER, AGAIN),
            Message::new(ASSISTANT, "?"),
        ];
        let scene = |turns: usize, add_generation_prompt| (turns, add_generation_prompt);
        let scenes = [scene(2, false), scene(1, true), scene(1, false), scene(4, false)];
        let scenes = scenes.map(|(count, add_generation_prompt)| Scene {
            messages: &turns[..count],
            add_generation_prompt,
            variables,
        });
        let mut texts = renderer.render_all(&scenes).into_iter();
        let mut next = || texts.next().unwrap_or_else(|| Ok(String::new()));
        let (full, prompt) = (next()?, next()?);
        // A template may require an answer to every question, or support only one turn.
        let (question, longer) = (next(), next());
        let Some((before, behind)) = full.split_once(ANSWER) else {
            return Error::input("TEMPLATE", "the output of the chat template lacks the assistant's answer")
                .field("chat_template")
                .fix("use the template of the model, or --format plain")
                .into();
        };
        let question = question.unwrap_or_else(|_| prompt.clone());
        let unprompted = prompt == question && full.starts_with(&prompt);
        let header = before.get(prompt.len()..).filter(|header| unprompted && !header.trim().is_empty());
        let role_header = match (prompt.strip_prefix(&question), before.strip_prefix(&question)) {
            (Some(asked), Some(answered)) => asked[..common_prefix(asked, answered)].to_owned(),
            _ => String::new(),
        };
        let middle = longer.ok().and_then(|longer| {
            let (_, behind) = longer.split_once(ANSWER)?;
            behind.split_once(AGAIN).map(|(between, _)| between.to_owned())
        });
        let common = middle.as_ref().map_or(behind, |middle| &behind[..common_prefix(behind, middle)]);
        let tokens = |text: &str| leading_tokens(text, tokenizer).map(End::Tokens);
        let (last, middle) = match tokens(common) {
            Some(end) => (end.clone(), end),
            // Only the last turn has an end, or no turn has.
            None => (tokens(behind).unwrap_or(End::Text(common.to_owned())), End::Text(common.to_owned())),
        };
        let unprompted_header = header.unwrap_or_default().to_owned();
        Ok(Self { unprompted_header, role_header, last, middle })
    }
}

/// The tokens of the vocabulary that follow one another at the start of `text`, after white space.
fn leading_tokens(text: &str, tokenizer: &Tokenizer) -> Option<String> {
    let text = text.trim_start();
    let mut end = 0;
    // A line end may be an added token too, but it does not end a turn.
    let ends = |rest: &str, token: &std::ops::Range<usize>| {
        token.start == 0 && !rest[token.clone()].trim().is_empty()
    };
    while let Some(token) = tokenizer.first_added_in(&text[end..]).filter(|token| ends(&text[end..], token)) {
        end += token.end;
    }
    (end > 0).then(|| text[..end].to_owned())
}

/// Bytes that both texts begin with, up to a character boundary.
pub(super) fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}
