//! Conversations: the template renders the prompt of every assistant turn, the answers are encoded apart.
//!
//! The text of turn `k` is the template of the turns before it, asking for an answer. For the next assistant turn that prompt
//! must go on where the last answer ended: then what lies between is template text without labels. A template that
//! rewrites earlier turns (drops their thoughts, say) breaks this, and the row is refused rather than trained on tokens that
//! inference never shows.

use serde_json::{Map, Value};

use super::{Encoder, Labelled};
use crate::data::jsonl::Message;
use crate::data::template::Renderer;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

pub(super) const USER: &str = "user";
pub(super) const ASSISTANT: &str = "assistant";

/// How a template treats the text of an assistant.
#[derive(Debug)]
pub(super) struct TurnStyle {
    /// The special token it puts after the text, and its id.
    pub(super) end: Option<(String, u32)>,
    /// White space it puts between the text and that token.
    space: String,
    /// All it puts after the last text.
    closing: String,
    /// Whether it removes white space around the text.
    trims: bool,
}

impl TurnStyle {
    /// Learns the style from a rendering of a known conversation.
    pub(super) fn probe(
        renderer: &Renderer,
        variables: &Map<String, Value>,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        const PROBE: &str = "Zm9ydHktdHdv";
        let answer = |text: String| [Message::new(USER, "?"), Message::new(ASSISTANT, text)];
        let text = renderer.render(&answer(PROBE.into()), false, variables)?;
        let closing = text.rsplit_once(PROBE).map_or("", |(_, closing)| closing).to_owned();
        let spaced = renderer.render(&answer(format!(" {PROBE} ")), false, variables)?;
        let trims = !spaced.contains(&format!(" {PROBE} "));
        let space = closing[..closing.len() - closing.trim_start().len()].to_owned();
        let end = tokenizer.first_special_in(&closing).filter(|range| range.start == space.len()).and_then(
            |range| {
                let token = closing[range].to_owned();
                tokenizer.token_to_id(&token).map(|id| (token, id))
            },
        );
        let space = if end.is_some() { space } else { String::new() };
        Ok(Self { end, space, closing, trims })
    }
}

impl Encoder<'_> {
    /// The prompt that asks for the turn after `turns`.
    pub(super) fn conversation_prompt_ids(&self, turns: &[Message]) -> Result<Vec<u32>> {
        let escaped = self.escaped(turns)?;
        self.template_ids(&self.render(&escaped.turns, true)?, escaped.mark)
    }

    /// All turns up to the last assistant turn, with labels.
    pub(super) fn conversation(&self, turns: &[Message]) -> Result<Labelled> {
        let escaped = self.escaped(turns)?;
        let (turns, mark) = (&escaped.turns, escaped.mark);
        let mut labelled = Labelled::default();
        // The template's text up to and with the end of the last answer.
        let mut done = String::new();
        for k in (0..turns.len()).filter(|&k| turns[k].role == ASSISTANT) {
            let prompt = self.render(&turns[..k], true)?;
            let Some(between) = prompt.strip_prefix(&done) else {
                return Error::input("DATA", "the chat template changes earlier assistant turns")
                    .field(format!("messages[{k}]"))
                    .fix("give one row per assistant turn, each with the conversation before it")
                    .into();
            };
            labelled.prompt(&self.template_ids(between, mark)?);
            let answer = self.answer_text(turns, k, &prompt)?;
            let mut ids = self.template_ids(&answer, mark)?;
            ids.push(self.end.1);
            labelled.answer(&ids);
            done = prompt
                + &answer
                + self.turn.as_ref().and_then(|turn| turn.end.as_ref()).map_or("", |(token, _)| token);
        }
        Ok(labelled)
    }

    /// What the assistant says in turn `k`, as the template writes it. Calls of tools exist only in the template's notation.
    fn answer_text(&self, turns: &[Message], k: usize, prompt: &str) -> Result<String> {
        let turn = &turns[k];
        let Some(style) = self.turn.as_ref() else { return Ok(turn.content.clone()) };
        if turn.extra.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty()) {
            let full = self.render(&turns[..=k], false)?;
            let answer = full.strip_prefix(prompt).and_then(|rest| rest.strip_suffix(&style.closing));
            return answer.map(|answer| format!("{answer}{}", style.space)).ok_or_else(|| {
                let error = Error::input("DATA", "the chat template does not render this call as an answer");
                error
                    .field(format!("messages[{k}].tool_calls"))
                    .fix("remove the call, or write it as content")
                    .into()
            });
        }
        let content = if style.trims { turn.content.trim() } else { &turn.content };
        Ok(format!("{content}{}", style.space))
    }

    fn render(&self, turns: &[Message], add_generation_prompt: bool) -> Result<String> {
        match self.renderer {
            Some(renderer) => renderer.render(turns, add_generation_prompt, &self.variables),
            None => Error::input("DATA", "a conversation needs a chat template")
                .field("messages")
                .fix("use --format chat, or rows with \"input\" and \"output\"")
                .into(),
        }
    }

    fn template_ids(&self, text: &str, mark: Option<char>) -> Result<Vec<u32>> {
        match mark {
            Some(mark) => self.tokenizer.encode_marked(text, mark),
            None => self.tokenizer.encode(text),
        }
    }

    /// The turns with marks inside special tokens of the data, if those are to be ordinary text and there are any.
    fn escaped(&self, turns: &[Message]) -> Result<Escaped> {
        let special = |turn: &Message| self.tokenizer.first_special_in(&turn.content).is_some();
        if !self.options.escape_special || !turns.iter().any(special) {
            return Ok(Escaped { turns: turns.to_vec(), mark: None });
        }
        // Private use characters; one that the data does not hold.
        let free = |mark: &char| !turns.iter().any(|turn| turn.content.contains(*mark));
        let Some(mark) = ('\u{F8A0}'..='\u{F8FF}').find(free) else {
            return Error::input(
                "DATA",
                "special tokens cannot be escaped in a text with all of U+F8A0 to U+F8FF",
            )
            .fix("remove one of these characters, or leave out --escape-special")
            .into();
        };
        let mut turns = turns.to_vec();
        for turn in &mut turns {
            turn.content = self.tokenizer.mark_special(&turn.content, mark);
        }
        Ok(Escaped { turns, mark: Some(mark) })
    }
}

/// Turns whose special tokens are broken by `mark`, if there is one.
struct Escaped {
    turns: Vec<Message>,
    mark: Option<char>,
}
