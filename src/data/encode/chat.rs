//! Conversations: the template renders the whole once, that text is encoded once, and the answers are found in it.
//!
//! An answer begins where the prompt that asks for it ends (the same turns and options before it, with
//! `add_generation_prompt`), and ends with the token that the template writes behind it. A row is refused if the prompt is not
//! what the whole begins with, or if the template leaves out something that is to be learned: such a mask would train on
//! tokens that inference never shows.

use serde_json::{Map, Value};

use super::spans::{Answer, Marked};
use super::style::{End, Style};
use super::{ASSISTANT, Encoder, RowNotes, Template};
use crate::data::record::{Conversation, Message, PairForm};
use crate::data::template::Scene;
use crate::error::{Error, Result};

/// Keys of a turn that hold thoughts.
const THOUGHTS: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// Keys of a turn that say nothing to the model, whether a template reads them or not.
const SILENT: [&str; 4] = ["id", "tool_call_id", "name", "timestamp"];

impl Encoder<'_> {
    /// The text that asks for the turn after `turns`, with marks as in [`Encoder::conversation`].
    pub(super) fn conversation_prompt(&self, conversation: &Conversation) -> Result<Marked> {
        let escaped = self.escaped(&conversation.turns)?;
        let variables = self.variables_of(conversation);
        let text = self.template(conversation)?.render(&[Scene {
            messages: &escaped.turns,
            add_generation_prompt: true,
            variables: &variables,
        }])?;
        let text = text.into_iter().next().unwrap_or_default();
        Ok(Marked { text, answers: Vec::new(), mark: escaped.mark })
    }

    /// The whole conversation, and the answers in it that are learned.
    pub(super) fn conversation(&self, conversation: &Conversation, notes: &mut RowNotes) -> Result<Marked> {
        let escaped = self.escaped(&conversation.turns)?;
        self.answers(conversation, &escaped, &self.learned(&escaped.turns), notes)
    }

    /// The same for the turns that are to be learned.
    fn answers(
        &self,
        conversation: &Conversation,
        escaped: &Escaped,
        learned: &[usize],
        notes: &mut RowNotes,
    ) -> Result<Marked> {
        let (turns, mark) = (&escaped.turns, escaped.mark);
        let variables = self.variables_of(conversation);
        let scene = |count: usize, add_generation_prompt| Scene {
            messages: &turns[..count],
            add_generation_prompt,
            variables: &variables,
        };
        let scenes: Vec<Scene<'_>> =
            [scene(turns.len(), false)].into_iter().chain(learned.iter().map(|&k| scene(k, true))).collect();
        let template = self.template(conversation)?;
        let mut texts = match template.render(&scenes) {
            Err(_) if learned.first() == Some(&0) && template.render(&scenes[..1]).is_ok() => {
                let what = "the chat template cannot ask for an answer at the start of a conversation";
                let error = Error::input("DATA", what).field(turns[0].place.field());
                return error.fix("begin with a turn of the user, or give this turn \"train\": false").into();
            }
            texts => texts?,
        };
        let prompts = texts.split_off(1);
        let text = texts.pop().unwrap_or_default();
        let style = &template.style;
        let mut answers: Vec<Answer> = Vec::with_capacity(learned.len());
        for (&k, prompt) in learned.iter().zip(&prompts) {
            // Advice has to help: it is tried before it is given.
            let last_alone = || {
                let last = last_answer(turns);
                learned.len() > 1
                    && !last.is_empty()
                    && self.answers(conversation, escaped, &last, &mut RowNotes::default()).is_ok()
            };
            let asked = Asked { turns, k, text: &text, prompt, style, last_alone: &last_alone };
            let start = match asked.start() {
                Some(start) => start,
                None => {
                    let before = template.render(&[scene(k, false)])?.pop().unwrap_or_default();
                    asked.start_beside_prompt(&before)?
                }
            };
            let whole = |turn: &Message| turn.extra.get("tool_calls").is_none();
            // Behind calls of tools other text may follow; the conversation up to here shows where the turn ends.
            let bound = match whole(&turns[k]) {
                true => text.len(),
                false => {
                    let up_to = template.render(&[scene(k + 1, false)])?.pop().unwrap_or_default();
                    if text.starts_with(&up_to) { up_to.len() } else { text.len() }
                }
            };
            let answer = asked.answer(start, bound, notes)?;
            if answers.last().is_some_and(|before| before.learned.end > answer.learned.start) {
                return Err(asked.refuse(
                    "the chat template does not keep the turns in their order",
                    "use another template, or write one row for each answer",
                ));
            }
            answers.push(answer);
        }
        self.check_kept(conversation, turns, &text)?;
        self.note_unread(conversation, notes);
        let last = learned.last().map_or(0, |&k| k + 1);
        notes.turns_left_out = if learned.is_empty() { 0 } else { turns.len() - last };
        Ok(Marked { text, answers, mark })
    }

    /// The turns that are learned.
    pub(super) fn learned(&self, turns: &[Message]) -> Vec<usize> {
        match self.options.mask_history {
            true => last_answer(turns),
            false => answers_of(turns).filter(|&k| !turns[k].masked).collect(),
        }
    }

    fn variables_of(&self, conversation: &Conversation) -> Map<String, Value> {
        let mut variables = self.variables.clone();
        variables.extend(conversation.variables.clone());
        variables
    }

    /// The template of a conversation, as `transformers` chooses it.
    fn template(&self, conversation: &Conversation) -> Result<&Template<'_>> {
        let of_tools = self.tool_template.as_ref().filter(|_| conversation.tools().is_some());
        of_tools.or(self.template.as_ref()).ok_or_else(|| no_template(conversation))
    }

    /// What others than the assistant say, and the tools, must be in the text.
    fn check_kept(&self, conversation: &Conversation, turns: &[Message], text: &str) -> Result<()> {
        for turn in turns.iter().filter(|turn| turn.role != ASSISTANT) {
            let content = turn.content.trim();
            // Some templates write what a tool gives as a JSON text.
            let shown = text.contains(content) || text.contains(json_text(content).trim_matches('"'));
            if !shown {
                return Error::input(
                    "DATA",
                    format!("the chat template leaves this turn of \"{}\" out", turn.role),
                )
                .field(turn.place.text_field())
                .fix("remove the turn from the row, or use a template that shows it")
                .into();
            }
        }
        let tools = conversation.variables.get("tools").and_then(Value::as_array);
        for (i, tool) in tools.into_iter().flatten().enumerate() {
            let name = tool.get("function").unwrap_or(tool).get("name").and_then(Value::as_str);
            if name.is_some_and(|name| !text.contains(name)) {
                return Error::input("DATA", "the chat template does not show the tools of the row")
                    .field(format!("tools[{i}]"))
                    .fix("remove \"tools\" from the row, or use a template that knows tools")
                    .into();
            }
        }
        Ok(())
    }

    /// Notes keys of turns and options that the template does not name.
    fn note_unread(&self, conversation: &Conversation, notes: &mut RowNotes) {
        let source = self.tokenizer.and_then(|tokenizer| {
            let of_tools = tokenizer.tool_template().filter(|_| conversation.tools().is_some());
            of_tools.map(|template| template.source.as_str()).or_else(|| tokenizer.chat_template())
        });
        let source = source.unwrap_or_default();
        let of_turns = conversation.turns.iter().flat_map(|turn| turn.extra.keys());
        let keys = of_turns.chain(conversation.variables.keys());
        for key in keys.filter(|key| !SILENT.contains(&key.as_str()) && !source.contains(key.as_str())) {
            if !notes.unread.contains(key) {
                notes.unread.push(key.clone());
            }
        }
    }

    /// The turns with marks inside special tokens of the data, if those are to be ordinary text and there are any.
    fn escaped(&self, turns: &[Message]) -> Result<Escaped> {
        let tokenizer = self.tokenizer()?;
        let special = |turn: &Message| tokenizer.first_special_in(&turn.content).is_some();
        if !self.options.escape_special || !turns.iter().any(special) {
            return Ok(Escaped { turns: turns.to_vec(), mark: None });
        }
        let mark = self.free_mark(&|mark| turns.iter().any(|turn| turn.content.contains(mark)))?;
        let mut turns = turns.to_vec();
        for turn in &mut turns {
            turn.content = tokenizer.mark_special(&turn.content, mark);
        }
        Ok(Escaped { turns, mark: Some(mark) })
    }

    /// A character of private use that the data does not hold.
    pub(super) fn free_mark(&self, used: &dyn Fn(char) -> bool) -> Result<char> {
        ('\u{F8A0}'..='\u{F8FF}').find(|mark| !used(*mark)).ok_or_else(|| {
            let what = "special tokens cannot be escaped in a text with all of U+F8A0 to U+F8FF";
            let error = Error::input("DATA", what);
            error.fix("remove one of these characters, or leave out --escape-special").into()
        })
    }
}

impl Template<'_> {
    fn render(&self, scenes: &[Scene<'_>]) -> Result<Vec<String>> {
        self.renderer.render_all(scenes).into_iter().collect()
    }
}

/// The turns that answer.
fn answers_of(turns: &[Message]) -> impl DoubleEndedIterator<Item = usize> + '_ {
    (0..turns.len()).filter(|&k| turns[k].role == ASSISTANT)
}

/// The last answer, unless the row takes it out of the loss: all that `--mask-history` learns.
fn last_answer(turns: &[Message]) -> Vec<usize> {
    answers_of(turns).next_back().filter(|&k| !turns[k].masked).into_iter().collect()
}

/// A question and its answer as a conversation.
pub(super) fn pair(form: PairForm, input: &str, output: &str) -> Conversation {
    Conversation::new(form.turns(input, output).to_vec())
}

fn no_template(conversation: &Conversation) -> Error {
    let place = conversation.turns.last().map(|turn| turn.place).unwrap_or_default();
    Error::input("DATA", "a conversation needs a chat template")
        .field(place.list())
        .fix("use --format chat, or rows with \"input\" and \"output\"")
        .into()
}

fn json_text(text: &str) -> String {
    Value::from(text).to_string()
}

/// Turns whose special tokens are broken by `mark`, if there is one.
struct Escaped {
    turns: Vec<Message>,
    mark: Option<char>,
}

/// One answer of a rendered conversation, still to be found.
struct Asked<'a> {
    turns: &'a [Message],
    /// Which turn it is.
    k: usize,
    /// The whole conversation.
    text: &'a str,
    /// The text that asks for it.
    prompt: &'a str,
    style: &'a Style,
    /// Whether the last answer could be learned without the others.
    last_alone: &'a dyn Fn() -> bool,
}

impl Asked<'_> {
    fn turn(&self) -> &Message {
        &self.turns[self.k]
    }

    fn refuse(&self, what: &str, fix: &str) -> Error {
        Error::input("DATA", what).field(self.turn().place.field()).fix(fix).into()
    }

    /// Where the answer begins, if the prompt is what the whole begins with.
    fn start(&self) -> Option<usize> {
        let rest = self.text.strip_prefix(self.prompt)?;
        rest.starts_with(&self.style.unprompted_header)
            .then(|| self.prompt.len() + self.style.unprompted_header.len())
    }

    /// The same where the generation prompt goes on in another way than the answer. `before` is the text before both.
    fn start_beside_prompt(&self, before: &str) -> Result<usize> {
        let header = &self.style.role_header;
        let (asked, answered) = match (self.prompt.strip_prefix(before), self.text.strip_prefix(before)) {
            (Some(asked), Some(answered)) if !header.is_empty() => (asked, answered),
            _ => return Err(self.refuse("the chat template changes earlier turns", self.advice())),
        };
        let (Some(extra), true) =
            (asked.strip_prefix(header.as_str()), answered.starts_with(header.as_str()))
        else {
            return Err(
                self.refuse("the answer does not begin as the chat template asks for it", self.advice())
            );
        };
        // A thought that is over before the answer begins may be missing: templates leave it out of earlier turns.
        let over = extra.rfind("</").is_some_and(|end| extra[end..].find('>').is_some());
        if !over && !extra.trim().is_empty() && !extra.contains('<') {
            return Err(Error::input("DATA", "the answer does not begin as the chat template asks for it")
                .field(self.turn().place.field())
                .got(format!("a prompt that ends with {extra:?}"))
                .fix("use a template whose generation prompt is what it writes before an answer")
                .into());
        }
        if !over && !extra.trim().is_empty() {
            return Err(Error::input("DATA", "the prompt opens a thought that this answer does not go on with")
                .field(self.turn().place.field())
                .got(format!("a prompt that ends with {:?}", extra))
                .fix(format!(
                    "begin the answer with the thought ({:?}, then the thought), or put \"chat_template_kwargs\": \
                     {{\"enable_thinking\": false}} into the row if the template knows it",
                    extra.trim()
                ))
                .into());
        }
        Ok(before.len() + header.len())
    }

    /// Advice that holds for this turn.
    fn advice(&self) -> &'static str {
        match (self.last_alone)() {
            true => "pass --mask-history to learn the last answer only",
            false => {
                "use a template that keeps what the row says, or change the row to what the template shows"
            }
        }
    }

    /// The answer from `start` on; the turn ends before `bound`.
    fn answer(&self, start: usize, bound: usize, notes: &mut RowNotes) -> Result<Answer> {
        let (text, turn) = (self.text, self.turn());
        let pieces = pieces(turn);
        // Behind all that the turn says.
        let mut behind = start;
        for whole in &pieces {
            let piece = whole.trim();
            let Some(at) = text[behind..bound].find(piece) else {
                return Err(Error::input("DATA", "the chat template leaves out a part of this turn")
                    .field(self.turn().place.field())
                    .got(format!("{:?}", shorten(piece)))
                    .fix(self.advice())
                    .into());
            };
            behind += at + piece.len();
            // White space at its end, if the template keeps it.
            let space = &whole[whole.trim_end().len()..];
            behind += if text[behind..bound].starts_with(space) { space.len() } else { 0 };
        }
        if let Some(name) = called(turn).find(|name| !text[start..bound].contains(*name)) {
            return Err(Error::input("DATA", "the chat template leaves out a call of this turn")
                .field(turn.place.calls_field())
                .got(format!("{name:?}"))
                .fix("remove the call, write it as content, or use a template that knows calls")
                .into());
        }
        let calls = called(turn).next().is_some();
        // From where the answer itself is over, to where its end is.
        let (over, end) =
            match if self.k + 1 == self.turns.len() { &self.style.last } else { &self.style.middle } {
                End::Tokens(tokens) => match text[behind..bound].find(tokens.as_str()) {
                    Some(at) => (behind + at, behind + at + tokens.len()),
                    None => self.other_end(behind, bound).map_or((behind, behind), |end| (end, end)),
                },
                End::Text(end) if calls => {
                    let over = bound - if text[..bound].ends_with(end.as_str()) { end.len() } else { 0 };
                    (over, bound)
                }
                End::Text(end) if text[behind..].starts_with(end.as_str()) => (behind, behind + end.len()),
                End::Text(_) => (behind, behind),
            };
        notes.answers += 1;
        notes.empty_answers += usize::from(pieces.is_empty() && !calls);
        notes.without_end |= over == end && !pieces.is_empty();
        let said = text[start..over].trim_end();
        let last = pieces.last().map(|piece| piece.trim());
        let last = last.filter(|piece| said.ends_with(piece)).map_or(0, str::len);
        let said = start + said.len() - last..start + said.len();
        Ok(Answer { learned: start..end, said })
    }

    /// The end of a turn that has a token of its own, as calls of tools do.
    fn other_end(&self, behind: usize, bound: usize) -> Option<usize> {
        if !self.turn().extra.contains_key("tool_calls") || bound == self.text.len() {
            return None;
        }
        let rest = &self.text[behind..bound];
        let token = rest.rfind('<').filter(|&at| rest[at..].contains('>'))?;
        Some(behind + token + rest[token..].find('>')? + 1)
    }
}

/// The names of the tools that a turn calls.
fn called(turn: &Message) -> impl Iterator<Item = &str> {
    let calls = turn.extra.get("tool_calls").and_then(Value::as_array);
    calls.into_iter().flatten().filter_map(|call| call.get("function").unwrap_or(call).get("name")?.as_str())
}

/// What a turn says, in the pieces that a template may move apart: thoughts in keys of their own, thoughts in the content, and the
/// rest of it.
fn pieces(turn: &Message) -> Vec<&str> {
    let thoughts = THOUGHTS.iter().filter_map(|key| turn.extra.get(*key)?.as_str());
    let content = turn.content.split("<think>").flat_map(|part| part.split("</think>"));
    thoughts.chain(content).filter(|piece| !piece.trim().is_empty()).collect()
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}
