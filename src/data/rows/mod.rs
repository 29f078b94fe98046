//! One JSON object becomes one row, in the forms that training tools have; the caller adds file and line to the errors.
//!
//! Forms by their keys: `input`/`output`; Alpaca's `instruction`/`input`/`output` with `system` and `history`; `messages` of
//! OpenAI; `conversations` of ShareGPT; `prompt`/`completion` of TRL; `text`; `input_ids`/`labels`; `input_ids`/`label`. A key that says what is to
//! be trained on is used or refused by its name. Any other key is meta data, and its name is listed after reading.

mod fields;
mod tokenised;
mod turns;

use serde_json::{Map, Value};

use super::record::{Body, Conversation, Message, PairForm, TurnPlace};
use crate::error::{Error, Result};
use crate::formats::strict_json;
use fields::{Row, string, wrong_type};

/// What a row says.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) body: Body,
    pub(super) meta: Map<String, Value>,
    /// Columns without a meaning of their own, and keys inside turns that nobody reads.
    pub(super) columns: Vec<String>,
    /// Keys whose list or object was written as JSON text.
    pub(super) json_texts: Vec<String>,
}

/// The forms, each with the keys that only it has.
const FORMS: [(Form, &[&str]); 6] = [
    (Form::Messages, &["messages"]),
    (Form::Conversations, &["conversations"]),
    (Form::Prompt, &["prompt", "completion"]),
    (Form::Text, &["text"]),
    (Form::Tokenised, &["input_ids"]),
    (Form::Pair, &["instruction", "input", "output"]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Messages,
    Conversations,
    Prompt,
    Text,
    Tokenised,
    Pair,
}

/// Keys of other tools that change what is trained, which tanren does not do, with what to do instead.
const REFUSED: [(&str, &str); 20] = [
    ("weight", "rows have no weights: leave the row out, or repeat it"),
    ("sample_weight", "rows have no weights: leave the row out, or repeat it"),
    ("loss_weight", "rows have no weights: leave the row out, or repeat it"),
    ("chosen", "preference data cannot be trained on: write the wanted answer as \"messages\""),
    ("rejected", "preference data cannot be trained on: write the wanted answer as \"messages\""),
    ("images", "only text can be trained on: remove the pictures and the row's mention of them"),
    ("image", "only text can be trained on: remove the pictures and the row's mention of them"),
    ("videos", "only text can be trained on: remove the videos and the row's mention of them"),
    ("video", "only text can be trained on: remove the videos and the row's mention of them"),
    ("audios", "only text can be trained on: remove the sounds and the row's mention of them"),
    ("audio", "only text can be trained on: remove the sounds and the row's mention of them"),
    ("functions", "write the functions as \"tools\": [{\"type\": \"function\", \"function\": {...}}]"),
    ("function_call", "write the call as \"tool_calls\" of an assistant turn"),
    ("position_ids", "positions are counted by tanren: leave the key out"),
    ("token_type_ids", "only sequences with a \"label\" have token types: leave the key out"),
    ("assistant_masks", "write -100 into \"labels\" where the mask is 0"),
    ("completion_mask", "write -100 into \"labels\" where the mask is 0"),
    ("add_generation_prompt", "the prompt is asked for by tanren where it is needed: leave the key out"),
    ("continue_final_message", "end the conversation with a whole assistant turn: leave the key out"),
    ("seq_lens", "one row is one sequence: write each sequence as a row of its own"),
];

/// Reads one row.
pub(super) fn parse(value: Value) -> Result<Parsed> {
    let mut row = object(value)?;
    let there = |keys: &[&str]| keys.iter().any(|key| row.get(*key).is_some_and(|value| !value.is_null()));
    let forms: Vec<Form> = FORMS.iter().filter(|(_, keys)| there(keys)).map(|(form, _)| *form).collect();
    if forms.len() > 1 {
        return Error::input("DATA", "the row mixes two forms")
            .got(format!("keys {}", fields::keys(&row)))
            .expected("\"input\" and \"output\", or \"messages\", or \"input_ids\" and \"labels\"")
            .fix("keep the keys of one form")
            .into();
    }
    let body = match forms.first() {
        Some(Form::Messages) => conversation(&mut row, "messages")?,
        Some(Form::Conversations) => conversation(&mut row, "conversations")?,
        Some(Form::Prompt) => prompt(&mut row)?,
        Some(Form::Text) => Body::Text(string(&mut row, "text")?),
        Some(Form::Tokenised) => tokenised::body(&mut row)?,
        Some(Form::Pair) | None => pair(&mut row)?,
    };
    // A null says that there is nothing.
    row.retain(|key, value| !value.is_null() || !means_something(key));
    refuse_leftovers(&row, &body)?;
    meta(row, body)
}

fn object(value: Value) -> Result<Row> {
    let fix = match &value {
        Value::Object(_) => "",
        Value::Array(_) => "write each object on its own line (jq -c '.[]' file.json)",
        _ => "write rows like {\"input\": \"2+2?\", \"output\": \"4\"}",
    };
    match value {
        Value::Object(row) if row.is_empty() => Error::input("DATA", "the row is empty")
            .got("{}")
            .fix("remove the line, or write a row like {\"input\": \"2+2?\", \"output\": \"4\"}")
            .into(),
        Value::Object(row) => Ok(Row::new(row)),
        other => wrong_type("a row must be an object", &other, "an object").fix(fix).into(),
    }
}

/// Keys that belong to some form, so that one that is left over says something that this row cannot.
const OPTIONS: [&str; 8] = [
    "system",
    "history",
    "tools",
    "documents",
    "chat_template_kwargs",
    "enable_thinking",
    "loss_mask",
    "attention_mask",
];

fn means_something(key: &str) -> bool {
    OPTIONS.contains(&key)
        || REFUSED.iter().any(|(refused, _)| *refused == key)
        || FORMS.iter().any(|(_, keys)| keys.contains(&key))
        || key == "labels"
        || key == "meta"
}

/// Keys by which other tools say that a row is not learned, or not all of it. As a column of something else they may hold what is no
/// such word.
const MASKS: [&str; 3] = ["train", "loss", "mask"];

fn is_mask(value: &Value) -> bool {
    let word = value.as_str().map(str::to_ascii_lowercase);
    matches!(value, Value::Bool(_) | Value::Array(_))
        || value.as_f64().is_some_and(|number| number == 0.0 || number == 1.0)
        || matches!(word.as_deref(), Some("true" | "false" | "0" | "1"))
}

fn refuse_leftovers(row: &Row, body: &Body) -> Result<()> {
    if let Some(key) = MASKS.iter().find(|key| row.get(**key).is_some_and(is_mask)) {
        return Error::input("DATA", "a row cannot be taken out of the loss by this key")
            .field(*key)
            .got(short(&row[*key]))
            .fix("leave the row out of the file, or put the key into the turns that it is meant for; if it means something else, rename it")
            .into();
    }
    if let Some((key, fix)) = REFUSED.iter().find(|(key, _)| row.contains_key(*key)) {
        let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty) || value == "";
        if row.get(*key).is_some_and(|value| !empty(value)) {
            return Error::input("DATA", "this key is not supported")
                .field(*key)
                .got(short(&row[*key]))
                .fix(*fix)
                .into();
        }
    }
    let form = match body {
        Body::InputOutput { .. } => "a row of input and output",
        Body::Messages(_) => "a conversation",
        Body::Text(_) => "a row of text",
        Body::Tokenised { .. } | Body::Labelled { .. } => "a row of token ids",
    };
    match OPTIONS.iter().chain(&["labels"]).find(|key| row.contains_key(**key)) {
        None => Ok(()),
        Some(key) => Error::input("DATA", format!("{form} has no such key"))
            .field(*key)
            .got(short(&row[*key]))
            .fix("write the row in the form that the key belongs to, or leave it out")
            .into(),
    }
}

/// A value in a few words.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The row with what is left of it: single values, lists and objects as text.
fn meta(mut row: Row, body: Body) -> Result<Parsed> {
    let fix = "write \"meta\": {\"id\": ...}, rename the key, or leave it out";
    let own = fields::object(&mut row, "meta", fix)?.unwrap_or_default();
    let mut columns: Vec<String> = row.keys().filter(|key| *key != "id").cloned().collect();
    columns.append(&mut row.unread);
    columns.sort_unstable();
    columns.dedup();
    let json_texts = std::mem::take(&mut row.json_texts);
    let flat = |value: Value| match value {
        Value::Array(_) | Value::Object(_) => Value::String(value.to_string()),
        single => single,
    };
    let mut meta: Map<String, Value> = own.into_iter().map(|(key, value)| (key, flat(value))).collect();
    for (key, value) in row.into_values() {
        meta.entry(key).or_insert_with(|| flat(value));
    }
    Ok(Parsed { body, meta, columns, json_texts })
}

fn conversation(row: &mut Row, key: &'static str) -> Result<Body> {
    let mut turns = turns::list(row, key)?;
    turns::apply_loss_mask(row, &mut turns)?;
    let mut turns = turns::messages(turns);
    if let Some(system) = text_option(row, "system")? {
        if turns.iter().any(|turn| turn.role == "system") {
            return Error::input("DATA", "two system prompts")
                .field("system")
                .got(format!("a system turn in \"{key}\" as well"))
                .fix("keep one of the two")
                .into();
        }
        turns.insert(0, Message::new("system", system).at(TurnPlace::key("system")));
    }
    let variables = variables(row, &mut turns)?;
    Ok(Body::Messages(Conversation { turns, variables }))
}

/// `input`/`output`, and Alpaca's keys.
fn pair(row: &mut Row) -> Result<Body> {
    let instruction = text_option(row, "instruction")?;
    let input = match &instruction {
        Some(_) => text_option(row, "input")?.unwrap_or_default(),
        None => string(row, "input")?,
    };
    let output = string(row, "output")?;
    let (form, input) = match instruction {
        None => (PairForm::InputOutput, input),
        Some(instruction) if input.is_empty() => (PairForm::Instruction, instruction),
        Some(instruction) => (PairForm::Instruction, format!("{instruction}\n{input}")),
    };
    let system = text_option(row, "system")?;
    let system = system.map(|text| Message::new("system", text).at(TurnPlace::key("system")));
    let mut turns: Vec<Message> = system.into_iter().collect();
    turns.extend(history(row)?);
    let before = turns.len();
    turns.extend(form.turns(&input, &output));
    let variables = variables(row, &mut turns)?;
    if before == 0 && variables.is_empty() {
        return Ok(Body::InputOutput { input, output, form });
    }
    Ok(Body::Messages(Conversation { turns, variables }))
}

/// `history`: pairs of a question and its answer.
fn history(row: &mut Row) -> Result<Vec<Message>> {
    if !row.says("history") {
        return Ok(Vec::new());
    }
    let mut turns = Vec::new();
    for (i, pair) in fields::array(row, "history")?.into_iter().enumerate() {
        let texts = pair.as_array().map(|pair| pair.iter().map(Value::as_str).collect::<Vec<_>>());
        match texts.as_deref() {
            Some([Some(question), Some(answer)]) => {
                let place = TurnPlace::element("history", i, "");
                turns.extend(
                    [Message::new("user", *question), Message::new("assistant", *answer)]
                        .map(|turn| turn.at(place)),
                );
            }
            _ => {
                return wrong_type("wrong type", &pair, "[question, answer], two strings")
                    .field(format!("history[{i}]"))
                    .fix("write earlier turns as pairs, or the row as \"messages\"")
                    .into();
            }
        }
    }
    Ok(turns)
}

/// `prompt`/`completion`: strings, or lists of turns, of which the completion is learned.
fn prompt(row: &mut Row) -> Result<Body> {
    let of_turns = |key: &str| matches!(row.get(key), Some(Value::Array(_)));
    if of_turns("prompt") || of_turns("completion") {
        let mut turns = turns::prompt(turns::list(row, "prompt")?)?;
        turns.extend(turns::messages(turns::list(row, "completion")?));
        let variables = variables(row, &mut turns)?;
        return Ok(Body::Messages(Conversation { turns, variables }));
    }
    let (input, output) = (string(row, "prompt")?, string(row, "completion")?);
    let mut turns = PairForm::PromptCompletion.turns(&input, &output).to_vec();
    let variables = variables(row, &mut turns)?;
    if variables.is_empty() {
        return Ok(Body::InputOutput { input, output, form: PairForm::PromptCompletion });
    }
    Ok(Body::Messages(Conversation { turns, variables }))
}

/// Names that the template gets from elsewhere.
const RESERVED: [&str; 3] = ["messages", "add_generation_prompt", "tools"];

/// What the chat template is to know besides the turns: tools, documents, and options such as `enable_thinking`.
fn variables(row: &mut Row, turns: &mut [Message]) -> Result<Map<String, Value>> {
    let mut variables = Map::new();
    if let Some(tools) = tools(row, turns)? {
        variables.insert("tools".into(), tools);
    }
    if row.says("documents") {
        variables.insert("documents".into(), Value::Array(fields::array(row, "documents")?));
    }
    match row.says("enable_thinking").then(|| row.remove("enable_thinking")).flatten() {
        None | Some(Value::Null) => {}
        Some(value) => match truth(&value) {
            Some(value) => drop(variables.insert("enable_thinking".into(), value.into())),
            None => {
                let error = wrong_type("wrong type", &value, "true or false").field("enable_thinking");
                return error.fix("write true or false, without quotes").into();
            }
        },
    }
    let fix = "write \"chat_template_kwargs\": {\"enable_thinking\": false}";
    let options = fields::object(row, "chat_template_kwargs", fix)?;
    for (name, value) in options.unwrap_or_default() {
        let at = format!("chat_template_kwargs.{name}");
        let reserved = RESERVED.contains(&name.as_str());
        if reserved || variables.get(&name).is_some_and(|other| *other != value) {
            let what =
                if reserved { "this is no option of a template" } else { "the row contradicts itself" };
            return Error::input("DATA", what).field(at).got(short(&value)).fix("leave it out").into();
        }
        variables.insert(name, value);
    }
    Ok(variables)
}

/// The tools of the row, or of one of its turns; a list, or a list as JSON text.
fn tools(row: &mut Row, turns: &mut [Message]) -> Result<Option<Value>> {
    let mut found: Vec<(String, Value)> = Vec::new();
    found.extend(row.remove("tools").map(|value| ("tools".to_owned(), value)));
    for turn in turns.iter_mut() {
        found.extend(turn.extra.remove("tools").map(|value| (turn.place.field_of("tools"), value)));
    }
    let empty = |value: &Value| value.is_null() || value == "" || value.as_array().is_some_and(Vec::is_empty);
    found.retain(|(_, value)| !empty(value));
    if let [(first, _), (second, _), ..] = found.as_slice() {
        return Error::input("DATA", "the row has two lists of tools")
            .field(second)
            .got(format!("\"{first}\" as well"))
            .fix("keep one of them")
            .into();
    }
    let Some((field, value)) = found.pop() else { return Ok(None) };
    let list = match &value {
        Value::String(text) => match strict_json::parse(text) {
            Ok(list) => list,
            Err(flaw) => {
                return Error::input("DATA", format!("the tools are no JSON text: {}", flaw.what))
                    .field(field)
                    .got(short(&value))
                    .expected("a list of objects")
                    .fix("write \"tools\": [{\"type\": \"function\", \"function\": {...}}]")
                    .into();
            }
        },
        _ => value.clone(),
    };
    match list {
        Value::Array(tools) if tools.iter().all(Value::is_object) => Ok(Some(Value::Array(tools))),
        _ => wrong_type("wrong type", &value, "a list of objects")
            .field(field)
            .fix("write \"tools\": [{\"type\": \"function\", \"function\": {...}}]")
            .into(),
    }
}

/// A truth value; a table can only write it as a text.
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// A text that may be missing; an empty one is none.
fn text_option(row: &mut Row, key: &str) -> Result<Option<String>> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => Ok(Some(string(row, key)?).filter(|text| !text.is_empty())),
    }
}

#[cfg(test)]
mod tests;
