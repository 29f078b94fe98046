//! Turns of a conversation, as OpenAI (`role`/`content`) and ShareGPT (`from`/`value`) write them, and which of them are learned.

use serde_json::{Map, Value};

use super::fields::{Row, array, wrong_type};
use crate::data::record::{Message, TurnPlace};
use crate::error::{Error, Result};
use crate::formats::strict_json;

/// Roles that chat templates know; the speaker names of ShareGPT stand for one of these.
const ROLES: [&str; 9] =
    ["system", "user", "assistant", "tool", "developer", "function", "ipython", "context", "documents"];

/// Speakers of ShareGPT, LLaMA-Factory and axolotl, and their roles.
const SPEAKERS: [(&str, &str); 10] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("assistant", "assistant"),
    ("system", "system"),
    ("observation", "tool"),
    ("tool", "tool"),
    ("function_response", "tool"),
    (CALL, "assistant"),
];

/// Keys by which a turn says whether it is learned.
const LEARNED: [&str; 4] = ["weight", "train", "loss", "loss_mask"];

/// Other keys by which tools take text out of the loss.
const MASKS: [&str; 6] = ["train_detail", "training", "train_on", "train_on_turn", "masked", "mask"];

/// The speaker whose text is a call of a tool.
const CALL: &str = "function_call";

/// Keys of a turn that change what is trained, which tanren does not do, with what to do instead.
const REFUSED: [(&str, &str); 14] = [
    ("train_detail", "only whole turns can be taken out of the loss: use \"train\": false"),
    ("training", "write \"train\": false for a turn that is not to be learned"),
    ("train_on", "write \"train\": false for a turn that is not to be learned"),
    ("train_on_turn", "write \"train\": false for a turn that is not to be learned"),
    ("masked", "write \"train\": false for a turn that is not to be learned"),
    ("mask", "write \"train\": false for a turn that is not to be learned"),
    ("label", "write \"train\": false for a turn that is not to be learned"),
    ("refusal", "write what the assistant says as \"content\""),
    ("audio", "only text can be trained on"),
    ("images", "only text can be trained on"),
    ("image", "only text can be trained on"),
    ("videos", "only text can be trained on"),
    ("function_call", "write the call as \"tool_calls\": [{\"type\": \"function\", \"function\": {...}}]"),
    ("prefix", "end the conversation with a whole assistant turn"),
];

/// A turn as it was read.
pub(super) struct Turn {
    message: Message,
    /// The key by which it says whether it is learned, and what it says.
    verdict: Option<(&'static str, bool)>,
}

impl Turn {
    /// Takes the turn out of the loss where `learned` is false. `key` says so, and stands at `field`.
    ///
    /// # Errors
    /// [`Error::Input`] if it cannot be learned, or if another key of it says otherwise.
    fn decide(&mut self, key: &'static str, learned: bool, field: String) -> Result<()> {
        if learned && self.message.role != "assistant" {
            return Error::input("DATA", "only answers can be learned")
                .field(field)
                .got(format!("{learned} at a turn of \"{}\"", self.message.role))
                .fix("write 0, or leave it out")
                .into();
        }
        match self.verdict {
            Some((other, before)) if before != learned => Error::input("DATA", "the turn contradicts itself")
                .field(field)
                .got(format!("{}, and {} by \"{other}\"", says(learned), says(before)))
                .expected("keys that say the same")
                .fix("keep one of the two")
                .into(),
            _ => {
                self.verdict = Some((key, learned));
                self.message.masked |= !learned;
                Ok(())
            }
        }
    }
}

fn says(learned: bool) -> &'static str {
    if learned { "to be learned" } else { "not to be learned" }
}

/// The turns as the encoder takes them.
pub(super) fn messages(turns: Vec<Turn>) -> Vec<Message> {
    turns.into_iter().map(|turn| turn.message).collect()
}

/// The turns of a prompt, none of which is learned.
pub(super) fn prompt(turns: Vec<Turn>) -> Result<Vec<Message>> {
    for Turn { message, verdict } in &turns {
        if let Some((key, true)) = verdict {
            return Error::input("DATA", "turns of the prompt are not learned")
                .field(message.place.field_of(key))
                .got("a turn that is to be learned")
                .fix("move the turn into \"completion\", write the row as \"messages\", or leave the key out")
                .into();
        }
    }
    let masked = |message| Message { masked: true, ..message };
    Ok(messages(turns).into_iter().map(masked).collect())
}

/// The turns below `key`, at least one.
pub(super) fn list(row: &mut Row, key: &'static str) -> Result<Vec<Turn>> {
    let turns = array(row, key)?;
    if turns.is_empty() {
        return Error::input("DATA", "the conversation is empty")
            .field(key)
            .fix("give at least a user and an assistant turn, or remove the row")
            .into();
    }
    turns.into_iter().enumerate().map(|(i, turn)| read(turn, (key, i), &mut row.unread)).collect()
}

/// LLaMA-Factory's `loss_mask`: one number for each turn, 0 for those that are not learned.
pub(super) fn apply_loss_mask(row: &mut Row, turns: &mut [Turn]) -> Result<()> {
    if !row.says("loss_mask") {
        return Ok(());
    }
    let mask = array(row, "loss_mask")?;
    if mask.len() != turns.len() {
        return Error::input("DATA", "wrong length")
            .field("loss_mask")
            .got(format!("{} numbers", mask.len()))
            .expected(format!("{}, one per turn", turns.len()))
            .fix("give 1 for each turn that is learned and 0 for the others")
            .into();
    }
    for (i, (value, turn)) in mask.iter().zip(turns).enumerate() {
        let field = format!("loss_mask[{i}]");
        turn.decide("loss_mask", learned(value, &field)?, field)?;
    }
    Ok(())
}

/// Whether `value` says that a turn is learned.
fn learned(value: &Value, field: &str) -> Result<bool> {
    let number = match value.as_f64() {
        Some(0.0) => Some(false),
        Some(1.0) => Some(true),
        _ => None,
    };
    value.as_bool().or(number).ok_or_else(|| {
        let error = wrong_type("wrong value", value, "0 or 1").field(field);
        error.fix("a turn is learned (1) or not (0); there is nothing between").into()
    })
}

/// Reads element `i` of the list `key`. Keys of its parts that nobody reads are added to `unread`.
fn read(turn: Value, (key, i): (&'static str, usize), unread: &mut Vec<String>) -> Result<Turn> {
    let Value::Object(mut extra) = turn else {
        return wrong_type("wrong type", &turn, "an object")
            .field(format!("{key}[{i}]"))
            .fix("write turns like {\"role\": \"user\", \"content\": \"...\"}")
            .into();
    };
    // What is null is not there.
    extra.retain(|_, value| !value.is_null());
    // Tools mix the words of OpenAI and of ShareGPT. What is said is the same, as long as it is said once.
    let text =
        if extra.contains_key("content") || !extra.contains_key("value") { "content" } else { "value" };
    let text = if text == "content" && is_of_sharegpt(&extra, key) { "value" } else { text };
    let place = TurnPlace::element(key, i, text);
    let (role, calls) = speaker(&mut extra, place)?;
    let content = content(&mut extra, place, unread)?;
    let message = match calls {
        true => call(role, &content, place)?,
        false => Message::new(role, content).at(place),
    };
    if let Some((key, fix)) = REFUSED.iter().find(|(key, _)| extra.contains_key(*key)) {
        return Error::input("DATA", "this key is not supported")
            .field(place.field_of(key))
            .got(super::short(&extra[*key]))
            .fix(*fix)
            .into();
    }
    let mut turn = Turn { message, verdict: None };
    for key in LEARNED {
        if let Some(value) = extra.remove(key) {
            let field = place.field_of(key);
            turn.decide(key, learned(&value, &field)?, field)?;
        }
    }
    if let Some(calls) = extra.remove("tool_calls") {
        extra.insert("tool_calls".into(), list_of_calls(calls, place)?);
    }
    turn.message.extra.extend(extra);
    Ok(turn)
}

/// Whether a turn without a text is one of ShareGPT, whose text would be its `value`.
fn is_of_sharegpt(extra: &Map<String, Value>, key: &str) -> bool {
    !extra.contains_key("content")
        && (extra.contains_key("from") || key == "conversations" && !extra.contains_key("role"))
}

/// Calls of tools: a list, or a list as JSON text.
fn list_of_calls(calls: Value, place: TurnPlace) -> Result<Value> {
    let parsed = calls.as_str().and_then(|text| strict_json::parse(text).ok());
    match parsed.unwrap_or_else(|| calls.clone()) {
        Value::Array(calls) => Ok(Value::Array(calls)),
        _ => wrong_type("wrong type", &calls, "an array")
            .field(place.field_of("tool_calls"))
            .fix("write \"tool_calls\": [{\"type\": \"function\", \"function\": {\"name\": ..., \"arguments\": {...}}}]")
            .into(),
    }
}

/// The role of a turn, by `role` or `from`, and whether its text is a call of a tool.
fn speaker(extra: &mut Map<String, Value>, place: TurnPlace) -> Result<(String, bool)> {
    let by_role = extra.remove("role").map(|role| role_of(role, place)).transpose()?;
    let by_name = extra.remove("from").map(|speaker| role_of_speaker(speaker, place)).transpose()?;
    match (by_role, by_name) {
        (Some(role), Some((other, _))) if role != other => {
            Error::input("DATA", "the turn contradicts itself")
                .field(place.field_of("from"))
                .got(format!("a turn of \"{other}\", and \"role\" says \"{role}\""))
                .fix("keep one of the two")
                .into()
        }
        (_, Some((role, calls))) => Ok((role.to_owned(), calls)),
        (Some(role), None) => Ok((role, false)),
        (None, None) => {
            let (what, key, names) = match is_of_sharegpt(extra, place.list()) || extra.contains_key("value")
            {
                true => ("no speaker", "from", "\"human\", \"gpt\" or \"system\""),
                false => ("no role", "role", "\"user\", \"assistant\" or \"system\""),
            };
            Error::input("DATA", what).field(place.field_of(key)).expected(names).fix("say who speaks").into()
        }
    }
}

/// A role as chat templates know it.
fn role_of(role: Value, place: TurnPlace) -> Result<String> {
    let field = place.field_of("role");
    match role {
        Value::String(role) if ROLES.contains(&role.as_str()) => Ok(role),
        Value::String(role) if !role.is_empty() => {
            let error = Error::input("DATA", "nobody knows this role")
                .field(field)
                .got(format!("{role:?}"))
                .expected(ROLES.map(|role| format!("\"{role}\"")).join(", "));
            let lower = role.to_ascii_lowercase();
            let meant = match lower.as_str() {
                "model" | "gpt" | "bot" | "ai" => Some("assistant"),
                "human" => Some("user"),
                _ => ROLES.into_iter().find(|known| strsim::damerau_levenshtein(known, &lower) <= 2),
            };
            match meant {
                Some(meant) => error.fix(format!("write \"{meant}\"")).into(),
                None => error.fix("use one of these roles").into(),
            }
        }
        other => wrong_type("no role", &other, "\"user\", \"assistant\" or \"system\"")
            .field(field)
            .fix("say who speaks")
            .into(),
    }
}

/// The role of a speaker, and whether the text is a call of a tool.
fn role_of_speaker(speaker: Value, place: TurnPlace) -> Result<(&'static str, bool)> {
    let Value::String(speaker) = speaker else {
        return wrong_type("no speaker", &speaker, "\"human\", \"gpt\" or \"system\"")
            .field(place.field_of("from"))
            .fix("say who speaks")
            .into();
    };
    match SPEAKERS.iter().find(|(name, _)| *name == speaker) {
        Some((_, role)) => Ok((role, speaker == CALL)),
        None => Error::input("DATA", "nobody knows this speaker")
            .field(place.field_of("from"))
            .got(format!("{speaker:?}"))
            .expected(SPEAKERS.map(|(name, _)| format!("\"{name}\"")).join(", "))
            .fix("use one of these names")
            .into(),
    }
}

/// The text of a turn, by `content` or `value`.
fn content(extra: &mut Map<String, Value>, place: TurnPlace, unread: &mut Vec<String>) -> Result<String> {
    let (text, other) = match place.text_key() == "content" {
        true => ("content", "value"),
        false => ("value", "content"),
    };
    let found = extra.remove(text);
    // Something that is no text may be called `value` as well.
    if let Some(second) = extra.get(other).filter(|second| second.is_string() && found.is_some()) {
        if Some(second) != found.as_ref() {
            return Error::input("DATA", "the turn contradicts itself")
                .field(place.field_of(other))
                .got(format!("another text than \"{text}\": {}", super::short(second)))
                .fix("keep one of the two")
                .into();
        }
        extra.remove(other);
    }
    // Turns that only call tools, or only think, have no content in the files of other tools.
    let speechless = ["tool_calls", "reasoning_content", "reasoning", "thinking"];
    match found {
        Some(Value::String(content)) => Ok(content),
        Some(Value::Array(parts)) if !parts.is_empty() => text_parts(parts, place, unread),
        None if speechless.iter().any(|key| extra.contains_key(*key)) => Ok(String::new()),
        other => wrong_type("wrong type", &other.unwrap_or_default(), "a string")
            .field(place.text_field())
            .fix("write the text of the turn as one string")
            .into(),
    }
}

/// Content as a list of parts: the texts one after another, as chat templates for such lists write them.
/// Other keys of a part are added to `unread`.
fn text_parts(parts: Vec<Value>, place: TurnPlace, unread: &mut Vec<String>) -> Result<String> {
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        let field = format!("{}[{i}]", place.text_field());
        let is_text = part.get("type").is_none_or(|kind| kind == "text");
        match part.get("text").and_then(Value::as_str).or(part.as_str()).filter(|_| is_text) {
            Some(part) => text += part,
            None => {
                return wrong_type(
                    "only text can be trained on",
                    part,
                    "{\"type\": \"text\", \"text\": \"...\"}",
                )
                .field(field)
                .fix("remove the part, or the row")
                .into();
            }
        }
        for (key, value) in part.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            if LEARNED.iter().chain(&MASKS).any(|mask| mask == key) {
                return Error::input("DATA", "only whole turns can be taken out of the loss")
                    .field(format!("{field}.{key}"))
                    .got(super::short(value))
                    .fix("put the key into the turn, or leave it out")
                    .into();
            }
            let name = format!("{}[].{}[].{key}", place.list(), place.text_key());
            if !["type", "text"].contains(&key.as_str()) && !unread.contains(&name) {
                unread.push(name);
            }
        }
    }
    Ok(text)
}

/// A turn whose text is a call of a tool.
fn call(role: String, text: &str, place: TurnPlace) -> Result<Message> {
    let call: Value = serde_json::from_str(text).unwrap_or_default();
    if !call.get("name").is_some_and(Value::is_string) {
        return Error::input("DATA", "not a call of a tool")
            .field(place.text_field())
            .got(super::short(&Value::from(text)))
            .expected("{\"name\": ..., \"arguments\": {...}} as text")
            .fix("write the call as JSON text")
            .into();
    }
    let call = serde_json::json!([{ "type": "function", "function": call }]);
    let mut turn = Message::new(role, "").at(place.with_calls_in_text());
    turn.extra.insert("tool_calls".into(), call);
    Ok(turn)
}
