//! Rows of data files, and conversations from their template to their labels.

use std::ops::Range;
use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Map, Value};
use tanren::batch::IGNORE_INDEX;
use tanren::data::encode::{EncodeOptions, Encoder, Format};
use tanren::data::files::read_bytes;
use tanren::data::record::{Body, Conversation, Message, Record};
use tanren::data::template::{ChatTemplate, Renderer, Scene};
use tanren::data::tokenizer::Tokenizer;

use super::Choices;

/// Keys that a row may have and that mean something, apart from those that are refused.
const KNOWN: [&str; 22] = [
    "id",
    "meta",
    "messages",
    "conversations",
    "prompt",
    "completion",
    "text",
    "input_ids",
    "labels",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "tools",
    "documents",
    "chat_template_kwargs",
    "enable_thinking",
    "loss_mask",
    "attention_mask",
    "add_generation_prompt",
    "continue_final_message",
];

/// Keys that change what is trained elsewhere: no row that says something by one is accepted.
const REFUSED: [&str; 20] = [
    "weight",
    "sample_weight",
    "loss_weight",
    "chosen",
    "rejected",
    "images",
    "image",
    "videos",
    "video",
    "audios",
    "audio",
    "functions",
    "function_call",
    "position_ids",
    "token_type_ids",
    "assistant_masks",
    "completion_mask",
    "seq_lens",
    "add_generation_prompt",
    "continue_final_message",
];

/// The first byte says what the file is called; the rest is the file.
pub(super) fn rows(input: &[u8]) {
    let (kind, bytes) = input.split_first().unwrap_or((&0, &[]));
    let name = ["a.jsonl", "a.json", "a.csv", "a.tsv"][usize::from(*kind) % 4];
    let Ok(records) = read_bytes(Path::new(name), bytes) else { return };
    assert!(!records.is_empty());
    assert!(records.windows(2).all(|pair| pair[0].line <= pair[1].line), "lines are out of order");
    for record in &records {
        if let Body::Tokenised { input_ids, labels } = &record.body {
            assert_eq!(input_ids.len(), labels.len());
            assert!(labels.iter().all(|&label| label == IGNORE_INDEX || u32::try_from(label).is_ok()));
        }
    }
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let is_array = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if name.ends_with("sv") || is_array {
        return;
    }
    let lines: Vec<&str> = std::str::from_utf8(text).unwrap().split('\n').collect();
    let full = lines.iter().filter(|line| line.bytes().any(|byte| !byte.is_ascii_whitespace())).count();
    assert_eq!(records.len(), full, "rows are lost or made up");
    for record in &records {
        let row: Map<String, Value> = serde_json::from_str(lines[record.line - 1]).unwrap();
        check_keys(&row, record);
    }
}

/// Every key of a row means something, or is listed as one that does not.
fn check_keys(row: &Map<String, Value>, record: &Record) {
    for (key, value) in row.iter().filter(|(_, value)| !value.is_null()) {
        let says = value != "" && value.as_array().is_none_or(|list| !list.is_empty());
        assert!(!(says && REFUSED.contains(&key.as_str())), "{key:?} is passed over");
        let is_listed = record.columns.contains(key);
        assert!(KNOWN.contains(&key.as_str()) || is_listed, "{key:?} is neither used nor listed");
    }
}

/// A tokenizer with a template, and how the template writes a turn.
struct Chat {
    tokenizer: Tokenizer,
    renderer: Renderer,
    /// Before and behind what a turn says, by role.
    frame: fn(&str) -> (&'static str, &'static str),
    /// What stands before the first turn.
    start: &'static str,
}

/// Turns of ChatML, with the tokens of their own that the tokenizers have for them.
const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}\
                      {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Instruction brackets, which are ordinary text, and the end-of-text token behind an answer.
const BRACKETS: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}\
                        {% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}\
                        {% else %}{{ '<<SYS>>' + m.content + '<</SYS>>' }}{% endif %}{% endfor %}";

static CHATS: LazyLock<Vec<Chat>> = LazyLock::new(|| {
    let first = include_bytes!("../../../tests/data/tokenizers/first/tokenizer.json").as_slice();
    let legacy = include_bytes!("../../../tests/data/tokenizers/legacy/tokenizer.json").as_slice();
    let chat = |json: &[u8], source: &str, start, frame| {
        let config = r#"{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}"#;
        let renderer = Renderer::InProcess(ChatTemplate::compile(source, "template").unwrap());
        Chat { tokenizer: Tokenizer::from_parts(json, config).unwrap(), renderer, frame, start }
    };
    let chatml: fn(&str) -> _ = |role| match role {
        "system" => ("<|im_start|>system\n", "<|im_end|>\n"),
        "user" => ("<|im_start|>user\n", "<|im_end|>\n"),
        _ => ("<|im_start|>assistant\n", "<|im_end|>\n"),
    };
    let brackets: fn(&str) -> _ = |role| match role {
        "system" => ("<<SYS>>", "<</SYS>>"),
        "user" => ("[INST] ", " [/INST]"),
        _ => (" ", "</s>"),
    };
    let of = |json| [chat(json, CHATML, "", chatml), chat(json, BRACKETS, "<s>", brackets)];
    [first, legacy].into_iter().flat_map(of).collect()
});

/// Turns out of the bytes: their text is rendered and encoded as a whole, apart from the encoder, and the labels are compared with
/// the places that the turns have in it.
pub(super) fn conversations(input: &[u8]) {
    let mut choices = Choices(input);
    let chat = &CHATS[choices.below(CHATS.len())];
    let turns = turns(&mut choices);
    let (text, answers) = written(chat, &turns);
    let mut options = EncodeOptions::new(Format::Chat, 1 << 20);
    options.mask_history = turns.len() % 5 == 4;
    let last_only = options.mask_history;
    let encoder = Encoder::new(&chat.tokenizer, Some(&chat.renderer), options).unwrap();
    let simple =
        |turn: &Message| turn.content.bytes().all(|b| b.is_ascii_alphanumeric()) && !turn.content.is_empty();
    let is_simple = turns.iter().all(simple);
    let body = Body::Messages(Conversation::new(turns));
    let record = Record {
        file: Path::new("a.jsonl").into(),
        line: 1,
        body,
        meta: Map::new(),
        columns: [].into(),
        json_texts: [].into(),
    };
    let (examples, _) = match encoder.encode_all(&[record], &|_| Ok(())) {
        Ok(done) => done,
        Err(error) => {
            return assert!(answers.is_empty() || !is_simple, "a plain conversation is refused: {error}");
        }
    };
    let example = &examples[0];
    let joint = chat.tokenizer.encode_with_offsets(&text).unwrap();
    assert!(joint.ids.starts_with(&example.input_ids), "the ids are not those of the whole text {text:?}");
    let wanted = if last_only { &answers[answers.len() - 1..] } else { &answers[..] };
    let touches =
        |token: &Range<usize>, part: &Range<usize>| token.start < part.end && part.start < token.end;
    for (i, place) in joint.offsets.iter().enumerate() {
        let label = example.labels.get(i).copied().unwrap_or(IGNORE_INDEX);
        assert!(label == IGNORE_INDEX || label == i64::from(joint.ids[i]), "label {label} at token {i}");
        let is_answer = wanted.iter().any(|answer| touches(place, answer));
        let is_learned = label != IGNORE_INDEX;
        // A token without text, and white space beside an answer, may go either way.
        if !text[place.clone()].trim().is_empty() {
            assert_eq!(
                is_learned,
                is_answer,
                "token {i} {:?} at {place:?} of {text:?}",
                &text[place.clone()]
            );
        }
    }
}

/// Up to eight turns; their texts are taken from the bytes.
fn turns(choices: &mut Choices<'_>) -> Vec<Message> {
    const PIECES: [&str; 32] = [
        "a",
        "b",
        "hello",
        "world",
        " ",
        "  ",
        "\n",
        "\n\n",
        "7",
        "1234567890",
        "é",
        "e\u{301}",
        "日本",
        "語",
        "🙂",
        "\u{200d}",
        "[INST]",
        "[/INST]",
        "<s>",
        "</s>",
        "<|im_end|>",
        "<|im_start|>",
        "assistant",
        "user",
        "<<SYS>>",
        "\u{2581}",
        ".",
        "\"",
        "{{ x }}",
        "\t",
        "<|im_start|>assistant\n",
        "\u{a0}",
    ];
    let mut turns = Vec::new();
    let count = 1 + choices.below(8);
    let has_system = choices.below(4) == 0;
    for i in 0..count {
        let role = match i {
            0 if has_system => "system",
            _ if (i + usize::from(has_system)) % 2 == 0 => "user",
            _ => "assistant",
        };
        let is_plain = choices.below(2) == 0;
        let text: String = (0..choices.below(6) + usize::from(is_plain))
            .map(|_| PIECES[choices.below(if is_plain { 4 } else { PIECES.len() })])
            .collect();
        turns.push(Message::new(role, text));
    }
    turns
}

/// The text of the turns, and where the answers stand in it, each with the token that ends it.
fn written(chat: &Chat, turns: &[Message]) -> (String, Vec<Range<usize>>) {
    let mut text = chat.start.to_owned();
    let mut answers = Vec::new();
    for turn in turns {
        let (before, behind) = (chat.frame)(&turn.role);
        text.push_str(before);
        let start = text.len();
        text.push_str(&turn.content);
        text.push_str(behind);
        if turn.role == "assistant" {
            answers.push(start..text.trim_end().len());
        }
    }
    let variables = chat.tokenizer.special_token_map();
    let scene = Scene { messages: turns, add_generation_prompt: false, variables };
    let rendered = chat.renderer.render_all(&[scene]).remove(0).unwrap();
    assert_eq!(rendered, text, "the template does not write the turns");
    (text, answers)
}

/// The text of a template, which renders a conversation. What a hostile one may do to the memory of its process is a
/// known limit (others run in one of their own), so templates that could make texts grow without end are only compiled.
pub(super) fn chat_template(input: &[u8]) {
    let Ok(source) = std::str::from_utf8(input) else { return };
    let Ok(template) = ChatTemplate::compile(source, "template") else { return };
    let grows = ["*", "range", "namespace", "replace", "indent", "center", "ljust", "rjust", "format", "%"];
    let inside = source.replace("{%", "").replace("%}", "");
    if grows.iter().any(|word| inside.contains(word)) || source.matches("set").count() > 8 {
        return;
    }
    let turn = |role: &str, text: &str| Message::new(role, text);
    let messages = [turn("system", "s"), turn("user", "u\n"), turn("assistant", "é"), turn("user", "")];
    let mut variables = Map::new();
    variables.insert("bos_token".into(), "<s>".into());
    variables.insert("eos_token".into(), "</s>".into());
    for add_generation_prompt in [false, true] {
        let scene = Scene { messages: &messages, add_generation_prompt, variables: &variables };
        let first = template.render(&scene).map_err(|error| error.to_string());
        let second = template.render(&scene).map_err(|error| error.to_string());
        assert_eq!(first, second, "a template renders to one text");
    }
}
