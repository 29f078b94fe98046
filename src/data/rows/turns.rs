//! Turns of a conversation, as OpenAI (`role`/`content`) and ShareGPT (`from`/`value`) write them, and which of them are learned.

use serde_json::{Map, Value};

use super::fields::{Row, array, wrong_type};
use crate::data::record::Message;
use crate::error::{Error, Result};

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

/// The turns below `key`, at least one.
pub(super) fn list(row: &mut Row, key: &str) -> Result<Vec<Message>> {
    let turns = array(row, key)?;
    if turns.is_empty() {
        return Error::input("DATA", "the conversation is empty")
            .field(key)
            .fix("give at least a user and an assistant turn, or remove the row")
            .into();
    }
    turns.into_iter().enumerate().map(|(i, turn)| message(turn, &format!("{key}[{i}]"))).collect()
}

/// LLaMA-Factory's `loss_mask`: one number for each turn, 0 for those that are not learned.
pub(super) fn apply_loss_mask(row: &mut Row, turns: &mut [Message]) -> Result<()> {
    if row.get("loss_mask").is_none_or(Value::is_null) {
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
        apply(value, turn, &format!("loss_mask[{i}]"))?;
    }
    Ok(())
}

/// Takes a turn out of the loss where `value` is 0 or false.
fn apply(value: &Value, turn: &mut Message, field: &str) -> Result<()> {
    let learned = value.as_bool().or(match value.as_f64() {
        Some(0.0) => Some(false),
        Some(1.0) => Some(true),
        _ => None,
    });
    match learned {
        Some(true) if turn.role != "assistant" => Error::input("DATA", "only answers can be learned")
            .field(field)
            .got(format!("{value} at a turn of \"{}\"", turn.role))
            .fix("write 0, or leave it out")
            .into(),
        Some(learned) => {
            turn.masked |= !learned;
            Ok(())
        }
        None => wrong_type("wrong value", value, "0 or 1")
            .field(field)
            .fix("a turn is learned (1) or not (0); there is nothing between")
            .into(),
    }
}

fn message(turn: Value, at: &str) -> Result<Message> {
    let Value::Object(mut extra) = turn else {
        return wrong_type("wrong type", &turn, "an object")
            .field(at)
            .fix("write turns like {\"role\": \"user\", \"content\": \"...\"}")
            .into();
    };
    // What is null is not there, but for the content.
    extra.retain(|key, value| {
        !value.is_null() || ["role", "from", "content", "value"].contains(&key.as_str())
    });
    let sharegpt = extra.contains_key("from") && !extra.contains_key("role");
    let mut turn = match sharegpt {
        true => said(&mut extra, at)?,
        false => spoken(&mut extra, at)?,
    };
    if let Some((key, fix)) = REFUSED.iter().find(|(key, _)| extra.contains_key(*key)) {
        return Error::input("DATA", "this key is not supported")
            .field(format!("{at}.{key}"))
            .got(super::short(&extra[*key]))
            .fix(*fix)
            .into();
    }
    for key in ["weight", "train", "loss", "loss_mask"] {
        if let Some(value) = extra.remove(key) {
            apply(&value, &mut turn, &format!("{at}.{key}"))?;
        }
    }
    if let Some(calls) = extra.get("tool_calls")
        && !calls.is_array()
    {
        return wrong_type("wrong type", calls, "an array").field(format!("{at}.tool_calls")).into();
    }
    turn.extra.extend(extra);
    Ok(turn)
}

/// A turn of `role` and `content`.
fn spoken(extra: &mut Map<String, Value>, at: &str) -> Result<Message> {
    let field = format!("{at}.role");
    let role = match extra.remove("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role,
        Some(Value::String(role)) if !role.is_empty() => {
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
            return match meant {
                Some(meant) => error.fix(format!("write \"{meant}\"")).into(),
                None => error.fix("use one of these roles").into(),
            };
        }
        other => {
            return wrong_type(
                "no role",
                &other.unwrap_or_default(),
                "\"user\", \"assistant\" or \"system\"",
            )
            .field(field)
            .fix("say who speaks")
            .into();
        }
    };
    // Turns that only call tools, or only think, have no content in the files of other tools.
    let speechless = ["tool_calls", "reasoning_content", "reasoning", "thinking"];
    let silent = matches!(extra.get("content"), None | Some(Value::Null))
        && speechless.iter().any(|key| extra.contains_key(*key));
    let content = match extra.remove("content") {
        Some(Value::String(content)) => content,
        Some(Value::Array(parts)) if !parts.is_empty() => text_parts(parts, at)?,
        _ if silent => String::new(),
        other => {
            return wrong_type("wrong type", &other.unwrap_or_default(), "a string")
                .field(format!("{at}.content"))
                .fix("write the text of the turn as one string")
                .into();
        }
    };
    Ok(Message::new(role, content))
}

/// Content as a list of parts: the texts one after another, as chat templates for such lists write them.
fn text_parts(parts: Vec<Value>, at: &str) -> Result<String> {
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        let is_text = part.get("type").is_none_or(|kind| kind == "text");
        match part.get("text").and_then(Value::as_str).or(part.as_str()).filter(|_| is_text) {
            Some(part) => text += part,
            None => {
                return wrong_type(
                    "only text can be trained on",
                    part,
                    "{\"type\": \"text\", \"text\": \"...\"}",
                )
                .field(format!("{at}.content[{i}]"))
                .fix("remove the part, or the row")
                .into();
            }
        }
    }
    Ok(text)
}

/// A turn of `from` and `value`.
fn said(extra: &mut Map<String, Value>, at: &str) -> Result<Message> {
    let speaker = match extra.remove("from") {
        Some(Value::String(speaker)) => speaker,
        other => {
            return wrong_type("no speaker", &other.unwrap_or_default(), "\"human\", \"gpt\" or \"system\"")
                .field(format!("{at}.from"))
                .fix("say who speaks")
                .into();
        }
    };
    let Some((_, role)) = SPEAKERS.iter().find(|(name, _)| *name == speaker) else {
        return Error::input("DATA", "nobody knows this speaker")
            .field(format!("{at}.from"))
            .got(format!("{speaker:?}"))
            .expected(SPEAKERS.map(|(name, _)| format!("\"{name}\"")).join(", "))
            .fix("use one of these names")
            .into();
    };
    let value = match extra.remove("value") {
        Some(Value::String(value)) => value,
        other => {
            return wrong_type("wrong type", &other.unwrap_or_default(), "a string")
                .field(format!("{at}.value"))
                .fix("write the text of the turn as one string")
                .into();
        }
    };
    if speaker != CALL {
        return Ok(Message::new(*role, value));
    }
    let call: Value = serde_json::from_str(&value).unwrap_or_default();
    if !call.get("name").is_some_and(Value::is_string) {
        return Error::input("DATA", "not a call of a tool")
            .field(format!("{at}.value"))
            .got(super::short(&Value::String(value)))
            .expected("{\"name\": ..., \"arguments\": {...}} as text")
            .fix("write the call as JSON text")
            .into();
    }
    let call = serde_json::json!([{ "type": "function", "function": call }]);
    let mut turn = Message::new(*role, "");
    turn.extra.insert("tool_calls".into(), call);
    Ok(turn)
}
