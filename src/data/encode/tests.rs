//! The golden rows, masks of conversations, and that no limit ever takes a part of an answer silently.

use super::*;
use crate::data::audit::{Quantiles, masked_preview};
use crate::data::files::read_rows;
use crate::data::rows;
use crate::data::template::sandbox::{SandboxedTemplate, tests::helper_command};
use crate::data::template::{ChatTemplate, Scene};
use crate::data::tokenizer::tests::{GOLDEN, QWEN, ids};
use proptest::prelude::*;
use std::path::Path;
use std::sync::LazyLock;

const IM_END: u32 = 151645;

fn renderer(source: &str) -> Renderer {
    Renderer::InProcess(ChatTemplate::compile(source, "test/chat_template.jinja").unwrap())
}

static QWEN_CHAT: LazyLock<Renderer> = LazyLock::new(|| renderer(QWEN.chat_template().unwrap()));

fn plain(max: usize) -> Encoder<'static> {
    Encoder::new(&QWEN, None, EncodeOptions::new(Format::Plain, max)).unwrap()
}

pub(super) fn chat(max: usize) -> Encoder<'static> {
    Encoder::new(&QWEN, Some(&QWEN_CHAT), EncodeOptions::new(Format::Chat, max)).unwrap()
}

pub(super) fn with(encoder: Encoder<'static>, change: impl FnOnce(&mut EncodeOptions)) -> Encoder<'static> {
    let mut options = encoder.options.clone();
    change(&mut options);
    Encoder::new(&QWEN, encoder.template.as_ref().map(|template| template.renderer), options).unwrap()
}

pub(super) fn records(rows: &[Value]) -> Vec<Record> {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    read_rows(Path::new("rows.jsonl"), text.as_bytes()).unwrap()
}

pub(super) fn one(encoder: &Encoder<'_>, row: Value) -> Result<Example> {
    encoder.encode_all(&records(&[row]), &|_| Ok(())).map(|(mut examples, _)| examples.remove(0))
}

pub(super) fn pair(input: &str, output: &str) -> Value {
    serde_json::json!({ "input": input, "output": output })
}

/// The text of an example.
pub(super) fn decode(example: &Example) -> String {
    QWEN.decode(&example.input_ids, false).unwrap()
}

/// The supervised pieces of an example as text.
pub(super) fn taught(example: &Example) -> Vec<String> {
    let pieces = masked_preview(example, &QWEN).unwrap();
    pieces.into_iter().filter(|(_, supervised)| *supervised).map(|(text, _)| text).collect()
}

#[test]
fn golden_rows_get_their_ids_and_labels_in_both_formats() {
    for (format, encoder) in [("plain", plain(512)), ("chat", chat(512))] {
        for case in GOLDEN["records"].as_array().unwrap() {
            let example = one(&encoder, case["record"].clone()).unwrap();
            assert_eq!(example.input_ids, ids(&case[format]["joint_ids"]), "{format} {case}");
            // Of the tokens, those that hold a byte of the output are learned, and the one that ends it.
            let output = case["record"]["output"].as_str().unwrap();
            let learned: String = taught(&example).concat();
            let output = QWEN.decode(&QWEN.encode(output).unwrap(), false).unwrap();
            assert!(learned.ends_with(&format!("{output}<|im_end|>")), "{format} {learned:?} {case}");
            let apart = case[format]["ids"] == case[format]["joint_ids"];
            let labels: Vec<i64> = case[format]["labels"]
                .as_array()
                .unwrap()
                .iter()
                .map(|label| label.as_i64().unwrap())
                .collect();
            assert_eq!(example.labels == labels, apart, "{format} {case}");
            let prompt = encoder.encode_prompt(&records(&[case["record"].clone()])[0]).unwrap();
            assert_eq!(prompt == example.input_ids[..example.prompt_len], apart, "{format} {case}");
        }
    }
}

#[test]
fn golden_conversations_get_their_text_and_ids() {
    for case in GOLDEN["chats"].as_array().unwrap() {
        let Body::Messages(conversation) =
            rows::parse(serde_json::json!({ "messages": case["messages"] })).unwrap().body
        else {
            panic!()
        };
        let scene = Scene {
            messages: &conversation.turns,
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            variables: QWEN.special_token_map(),
        };
        let text = QWEN_CHAT.render_all(&[scene]).remove(0).unwrap();
        assert_eq!(text, case["rendered"].as_str().unwrap());
        assert_eq!(QWEN.encode(&text).unwrap(), ids(&case["ids"]), "{case}");
    }
}

pub(super) fn turns(texts: &[(&str, &str)]) -> Value {
    let turns: Vec<Value> =
        texts.iter().map(|(role, content)| serde_json::json!({ "role": role, "content": content })).collect();
    serde_json::json!({ "messages": turns })
}

#[test]
fn every_assistant_turn_is_taught_with_its_end() {
    let row =
        turns(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", " d\n"), ("user", "e")]);
    let example = one(&chat(512), row).unwrap();
    assert_eq!(taught(&example), ["b<|im_end|>", " d\n<|im_end|>"]);
    let text = QWEN.decode(&example.input_ids, false).unwrap();
    assert!(text.ends_with("<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n d\n<|im_end|>"), "{text}");
    // One turn is the same as input and output.
    let single = one(&chat(512), turns(&[("user", "2+2?"), ("assistant", "4")])).unwrap();
    assert_eq!(single, one(&chat(512), pair("2+2?", "4")).unwrap());
}

#[test]
fn a_call_of_a_tool_is_taught_in_the_notation_of_the_template() {
    let row = serde_json::json!({ "messages": [
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": "", "tool_calls": [{ "name": "f", "arguments": { "q": 1 } }] },
        { "role": "tool", "content": "7" },
        { "role": "assistant", "content": "b" },
    ]});
    let example = one(&chat(512), row).unwrap();
    // The generation prompt ends with the line end that the template writes before the call.
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"q\": 1}}\n</tool_call><|im_end|>";
    assert_eq!(taught(&example), [call, "b<|im_end|>"]);
}

#[test]
fn a_template_that_rewrites_history_is_refused() {
    let source = "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last else '...' }}<|im_end|>{% endfor %}{{ 'assistant:' if add_generation_prompt }}";
    let renderer = renderer(source);
    let encoder = Encoder::new(&QWEN, Some(&renderer), EncodeOptions::new(Format::Chat, 512)).unwrap();
    let row = turns(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    let error = one(&encoder, row).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "error[DATA] rows.jsonl:1: field \"messages[1]\": the chat template changes earlier"
        ),
        "{error}"
    );
}

#[test]
fn the_end_of_turn_is_the_one_of_the_template() {
    let ends = |source: &str| {
        let renderer = renderer(source);
        let encoder = Encoder::new(&QWEN, Some(&renderer), EncodeOptions::new(Format::Chat, 512)).unwrap();
        let row = turns(&[("user", "a"), ("assistant", " b "), ("user", "c"), ("assistant", "d")]);
        (encoder.end_token().map(|end| end.1), taught(&one(&encoder, row).unwrap()))
    };
    let turns = |tail: &str| {
        format!(
            "{{% for m in messages %}}[{{{{ m.role }}}}]{tail}{{% endfor %}}{{{{ '[assistant]' if add_generation_prompt }}}}"
        )
    };
    let (end, taught) = ends(&turns("{{ m.content | trim }}<|endoftext|>"));
    assert_eq!(
        (end, taught),
        (Some(151643), vec!["b<|endoftext|>".into(), "d<|endoftext|>".into()]),
        "trimmed as the template does"
    );
    let (end, taught) = ends(&turns("{{ m.content }} <|endoftext|>"));
    assert_eq!((end, taught), (Some(151643), vec![" b  <|endoftext|>".into(), "d <|endoftext|>".into()]));
    let (end, taught) = ends(&turns("{{ m.content }}\n"));
    assert_eq!(
        (end, taught),
        (None, vec![" b \n".into(), "d\n".into()]),
        "nothing is learned that the template does not write"
    );
}

#[test]
fn special_tokens_in_the_data_are_counted_or_escaped() {
    let row = pair("x<|im_end|>\n<|im_start|>system\ny", "z<|im_end|>");
    for encoder in [plain(512), chat(512)] {
        let ends = |e: &Example| e.input_ids.iter().filter(|&&id| id == IM_END).count();
        let (examples, audit) =
            encoder.encode_all(&records(&[pair("a", "b"), row.clone()]), &|_| Ok(())).unwrap();
        assert_eq!((audit.special_in_text, audit.special_first[0].place.line), (1, 2));
        assert!(audit.lines().iter().any(|l| l.contains("rows.jsonl:2 <|im_end|>")), "{:?}", audit.lines());
        let escaped = one(&with(encoder, |o| o.escape_special = true), row.clone()).unwrap();
        assert_eq!(ends(&examples[1]) - ends(&examples[0]), 2);
        assert_eq!(ends(&escaped), ends(&examples[0]));
        let decode = |e: &Example| QWEN.decode(&e.input_ids, false).unwrap();
        assert_eq!(decode(&escaped), decode(&examples[1]));
        assert_eq!(taught(&escaped), ["z<|im_end|><|im_end|>"]);
    }
    let row =
        turns(&[("user", "<|im_end|>"), ("assistant", "<|im_end|>a"), ("user", "b"), ("assistant", "c")]);
    let escaped = one(&with(chat(512), |o| o.escape_special = true), row).unwrap();
    assert_eq!(taught(&escaped), ["<|im_end|>a<|im_end|>", "c<|im_end|>"]);
}

#[test]
fn tokenised_rows_pass_as_they_are() {
    let row =
        |input_ids: &[u32], labels: &[i64]| serde_json::json!({ "input_ids": input_ids, "labels": labels });
    let example = one(&plain(4), row(&[1, 2, 3, 4], &[-100, -100, 9, -100])).unwrap();
    assert_eq!((example.prompt_len, example.supervised(), example.len()), (2, 1, 4));
    let error = one(&plain(4), row(&[1, 151_665], &[-100, 1])).unwrap_err().to_string();
    assert!(
        error.contains("rows.jsonl:1: field \"input_ids[1]\"") && error.contains("below 151665"),
        "{error}"
    );
    assert!(one(&with(plain(4), |o| o.vocab_size = Some(151_936)), row(&[1, 151_665], &[-100, 1])).is_ok());
    let cut = with(plain(3), |o| o.truncation = Truncation::PromptLeft);
    assert_eq!(one(&cut, row(&[1, 2, 3, 4], &[-100, -100, 9, 4])).unwrap().input_ids, [2, 3, 4]);
    assert!(
        one(&cut, row(&[1, 2, 3, 4], &[-100, 2, 3, 4])).is_err(),
        "no token would be left before the answer"
    );
}

#[test]
fn rows_with_nothing_to_learn_are_errors_or_counted() {
    let nothing = [
        serde_json::json!({ "input_ids": [1, 2], "labels": [-100, -100] }),
        serde_json::json!({ "input_ids": [1, 2], "labels": [1, -100] }),
        serde_json::json!({ "input_ids": [], "labels": [] }),
        turns(&[("user", "a")]),
    ];
    for row in nothing {
        let rows = records(&[pair("a", "b"), row]);
        let error = chat(512).encode_all(&rows, &|_| Ok(())).unwrap_err().to_string();
        assert!(error.starts_with("error[DATA] rows.jsonl:2: the row has nothing to learn"), "{error}");
        let (examples, audit) =
            with(chat(512), |o| o.skip_empty = true).encode_all(&rows, &|_| Ok(())).unwrap();
        assert_eq!((examples.len(), audit.skipped_empty), (1, 1));
    }
}

#[test]
fn rows_that_are_too_long_are_listed() {
    let rows: Vec<Value> =
        (0..8).map(|i| pair(&"a b ".repeat(if i == 0 { 1 } else { 10 + i }), "c")).collect();
    let error = plain(20).encode_all(&records(&rows), &|_| Ok(())).unwrap_err().to_string();
    for words in [
        "7 of the rows do not fit into 20 tokens",
        "rows.jsonl:2 has ",
        "rows.jsonl:6",
        "and 2 more",
        "prompt-left",
    ] {
        assert!(error.contains(words), "{error} lacks {words}");
    }
    assert!(!error.contains("rows.jsonl:7"), "{error}");
    let (examples, audit) = with(plain(20), |o| o.truncation = Truncation::Skip)
        .encode_all(&records(&rows), &|_| Ok(()))
        .unwrap();
    assert_eq!((examples.len(), audit.skipped_long), (1, 7));
    assert!(
        with(plain(2), |o| o.truncation = Truncation::Skip).encode_all(&records(&rows), &|_| Ok(())).is_err()
    );
}

#[test]
fn errors_of_template_and_row_name_the_first_bad_row() {
    let renderer = renderer(
        "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}{{ messages[1].content if messages[1] }}",
    );
    let encoder = Encoder::new(&QWEN, Some(&renderer), EncodeOptions::new(Format::Chat, 512)).unwrap();
    let rows: Vec<Value> = (0..200).map(|i| pair(if i % 50 == 49 { "bad" } else { "good" }, "b")).collect();
    let error = encoder.encode_all(&records(&rows), &|_| Ok(())).unwrap_err().to_string();
    assert!(
        error.starts_with("error[DATA] rows.jsonl:50: test/chat_template.jinja: chat template line 1: no"),
        "{error}"
    );
    let error = one(&plain(512), turns(&[("user", "a"), ("assistant", "b")])).unwrap_err().to_string();
    assert!(
        error.contains("a conversation needs a chat template") && error.contains("--format chat"),
        "{error}"
    );
    let error = Encoder::new(&QWEN, None, EncodeOptions::new(Format::Chat, 9)).unwrap_err().to_string();
    assert!(error.contains("the model has no chat template"), "{error}");
}

#[test]
fn a_sandboxed_template_gives_the_same_examples() {
    let sandboxed =
        SandboxedTemplate::spawn(&helper_command(), QWEN.chat_template().unwrap(), "qwen").unwrap();
    let sandboxed = Renderer::Sandboxed(sandboxed);
    let encoder = Encoder::new(&QWEN, Some(&sandboxed), EncodeOptions::new(Format::Chat, 512)).unwrap();
    let rows = records(&(0..40).map(|i| pair(&format!("{i}+1?"), "4")).collect::<Vec<_>>());
    assert_eq!(
        encoder.encode_all(&rows, &|_| Ok(())).unwrap(),
        chat(512).encode_all(&rows, &|_| Ok(())).unwrap()
    );
}

#[test]
fn progress_counts_every_row_and_the_audit_adds_up() {
    let done = std::sync::atomic::AtomicUsize::new(0);
    let rows = records(&[pair("a", "b"), pair("aa aa aa", "b"), pair("a a a a a a a", "b")]);
    let (examples, audit) = plain(64)
        .encode_all(&rows, &|n| {
            done.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
    assert_eq!(done.into_inner(), 3);
    assert_eq!(audit.rows, 3);
    assert_eq!(audit.tokens, examples.iter().map(Example::len).sum::<usize>());
    assert_eq!(audit.supervised_tokens, 6);
    assert_eq!(audit.longest.as_ref().unwrap().line, 3);
    assert_eq!(audit.lines().len(), 3, "{:?}", audit.lines());
    assert_eq!(serde_json::to_value(&audit).unwrap()["lengths"]["max"], audit.lengths.max);
    assert_eq!(Quantiles::of((1..=100).collect()), Quantiles { min: 1, p50: 50, p90: 90, p99: 99, max: 100 });
    let preview = masked_preview(&examples[0], &QWEN).unwrap();
    assert_eq!(preview, [("a\n".into(), false), ("b<|im_end|>".into(), true)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn an_answer_survives_whole_or_its_row_is_reported(
        input in "[a-z ,\nあ法]{0,90}",
        output in "[a-z ,\nあ法]{0,90}",
        max in 1usize..60,
        in_chat: bool,
    ) {
        let encoder = with(if in_chat { chat(max) } else { plain(max) }, |o| o.truncation = Truncation::PromptLeft);
        let full = one(&if in_chat { chat(4096) } else { plain(4096) }, pair(&input, &output)).unwrap();
        let answer = &full.input_ids[full.prompt_len..];
        match one(&encoder, pair(&input, &output)) {
            Ok(example) => {
                prop_assert!(example.len() <= max);
                prop_assert_eq!(&example.input_ids[example.prompt_len..], answer);
                // White space of input, line end and answer may be one token, which is learned.
                prop_assert!(example.prompt_len > 0 || input.trim().is_empty());
                prop_assert_eq!(example.truncated, full.len() > max);
                if in_chat {
                    let text = QWEN.decode(&example.input_ids[..example.prompt_len], false).unwrap();
                    prop_assert!(text.starts_with("<|im_start|>system\nYou are Qwen"), "{}", text);
                    let space = &output[..output.len() - output.trim_start().len()];
                    // A line end at the start of an answer is one token with that of the header.
                    let header = text.trim_end().ends_with("<|im_end|>\n<|im_start|>assistant");
                    prop_assert!(header && (text.ends_with('\n') || space.contains('\n')), "{}", text);
                } else {
                    prop_assert!(full.input_ids.ends_with(&example.input_ids));
                }
            }
            Err(error) => {
                prop_assert!(error.to_string().contains("rows.jsonl:1 has "), "{}", error);
                let frame = if in_chat { one(&chat(4096), pair("", "")).unwrap().len() - 1 } else { 1 };
                prop_assert!(answer.len() + frame > max, "it would have fitted");
            }
        }
    }

    #[test]
    fn conversations_teach_exactly_the_assistant_texts(
        texts in proptest::collection::vec("[a-z \nあ法]{0,20}", 1..7),
        max in 20usize..120,
    ) {
        let said: Vec<(&str, &str)> = texts
            .iter()
            .enumerate()
            .map(|(i, text)| (if i % 2 == 0 { "user" } else { "assistant" }, text.as_str()))
            .collect();
        let answers: Vec<String> = said.iter().filter(|(role, _)| *role == "assistant").map(|(_, text)| format!("{text}<|im_end|>")).collect();
        let encoder = with(chat(max), |o| (o.truncation, o.skip_empty) = (Truncation::PromptLeft, true));
        match one(&encoder, turns(&said)) {
            Ok(example) => {
                prop_assert!(example.len() <= max);
                let texts = |pieces: &[String]| pieces.iter().map(|piece| piece.trim_start().to_owned()).collect::<Vec<_>>();
                // The oldest of them may be gone, with their questions.
                let (taught, answers) = (texts(&taught(&example)), texts(&answers));
                prop_assert!(answers.ends_with(&taught), "{:?} {:?}", taught, answers);
                prop_assert!(example.truncated || taught.len() == answers.len());
            }
            Err(error) => {
                let error = error.to_string();
                // What is left of the answers ends with the last one.
                let silent = said.iter().rfind(|(role, _)| *role != "user").is_none_or(|(_, text)| text.trim().is_empty());
                let left_out = silent && error.contains("no row is left");
                prop_assert!(left_out || error.contains("rows.jsonl:1 has "), "{}", error);
            }
        }
    }
}

#[test]
fn rows_with_tools_have_a_template_of_their_own() {
    let of_tools = renderer(
        "{% for t in tools %}[{{ t.name }}]{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n\
         {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    );
    let tools = serde_json::json!([{"name": "look_up"}]);
    let turns =
        serde_json::json!([{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]);
    let bare = serde_json::json!({"messages": turns});
    let row = serde_json::json!({"messages": turns, "tools": tools});
    let encoder = chat(512).with_tool_template(&of_tools, &tools).unwrap();
    let text = |example: &Example| QWEN.decode(&example.input_ids, false).unwrap();
    assert_eq!(one(&encoder, bare.clone()).unwrap(), one(&chat(512), bare).unwrap());
    let example = one(&encoder, row).unwrap();
    assert!(text(&example).starts_with("[look_up]<|im_start|>user\n2 + 2<|im_end|>"), "{}", text(&example));
    assert_eq!(taught(&example).concat(), "4<|im_end|>");
}

#[test]
fn a_line_end_that_is_an_added_token_ends_no_turn() {
    let token = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false})
    };
    let json = serde_json::json!({"version": "1.0", "added_tokens": [token(1, "<end>"), token(2, "\n")],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "<end>": 1, "\n": 2, "four": 3}}});
    let tokenizer = Tokenizer::from_parts(json.to_string().as_bytes(), "").unwrap();
    let template = renderer(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>\n{% endfor %}\
         {% if add_generation_prompt %}assistant: {% endif %}",
    );
    let encoder = Encoder::new(&tokenizer, Some(&template), EncodeOptions::new(Format::Chat, 512)).unwrap();
    assert_eq!(encoder.end_token(), Some(("<end>", 1)));
    let turns =
        serde_json::json!([{"role": "user", "content": "?"}, {"role": "assistant", "content": "four"}]);
    let example = one(&encoder, serde_json::json!({"messages": turns})).unwrap();
    let learned: Vec<i64> = example.labels.into_iter().filter(|&label| label != IGNORE_INDEX).collect();
    assert_eq!(learned, [3, 1]);
}

#[test]
fn errors_of_turns_name_the_keys_that_the_row_has() {
    // Shows turns of user and assistant, and no calls.
    let source = "{%- for m in messages %}{%- if m.role in ['user', 'assistant', 'system'] %}{{- '<|im_start|>' + m.role + '\\n' \
                  + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}\
                  {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
    let template = renderer(source);
    let encoder = Encoder::new(&QWEN, Some(&template), EncodeOptions::new(Format::Chat, 99)).unwrap();
    let call =
        serde_json::json!({"from": "function_call", "value": "{\"name\": \"look_up\", \"arguments\": {}}"});
    let human = serde_json::json!({"from": "human", "value": "a"});
    let result = serde_json::json!({"from": "observation", "value": "not shown"});
    let answer = serde_json::json!({"from": "gpt", "value": "b"});
    let openai =
        serde_json::json!([{"role": "user", "content": "a"}, {"role": "tool", "content": "not shown"}]);
    for (row, field) in [
        (serde_json::json!({"conversations": [human, call]}), "conversations[1].value"),
        (
            serde_json::json!({"conversations": [human, result, answer], "system": "s"}),
            "conversations[1].value",
        ),
        (serde_json::json!({"messages": openai, "system": "s"}), "messages[1].content"),
        (serde_json::json!({"prompt": openai, "completion": [answer]}), "prompt[1].content"),
    ] {
        let error = one(&encoder, row.clone()).unwrap_err().to_string();
        assert!(error.contains(&format!("field \"{field}\"")), "{row}: {error}");
    }
    // Without a template at all.
    for (row, field) in [
        (serde_json::json!({"conversations": [human, answer]}), "conversations"),
        (serde_json::json!({"prompt": [human], "completion": [answer]}), "completion"),
    ] {
        let error = one(&plain(99), row).unwrap_err().to_string();
        assert!(error.contains(&format!("field \"{field}\"")), "{error}");
    }
}

#[test]
fn choices_that_are_the_same_tokens_and_masked_answers_are_refused() {
    let source = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>\\n' }}{%- endfor %}\
                  {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
    let trims = Renderer::InProcess(ChatTemplate::compile(source, "test/chat_template.jinja").unwrap());
    let encoder = Encoder::new(&QWEN, Some(&trims), EncodeOptions::new(Format::Chat, 99)).unwrap();
    let choose = |row: Value, choices: [&str; 2]| {
        encoder.encode_choices(&records(&[row]), &choices.map(str::to_owned), &|_| Ok(()))
    };
    assert!(choose(pair("a", "b"), ["x", "y"]).is_ok());
    let error = choose(pair("a", "b"), [" x", "x"]).unwrap_err().to_string();
    assert!(error.contains("two choices are the same tokens") && error.contains("choice 2"), "{error}");
    let turns = serde_json::json!([
        { "role": "user", "content": "a" }, { "role": "assistant", "content": "x", "weight": 0 }
    ]);
    let error = choose(serde_json::json!({ "messages": turns }), ["x", "y"]).unwrap_err().to_string();
    assert!(error.contains("not to be learned"), "{error}");
}

#[test]
fn an_answer_that_begins_a_conversation_needs_a_template_that_can_ask_for_it() {
    let source = "{{- messages[0].role }}{%- for m in messages %}{{- m.role + ':' + m.content + '<|im_end|>' }}{%- endfor %}\
                  {%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}";
    let looks = Renderer::InProcess(ChatTemplate::compile(source, "test/chat_template.jinja").unwrap());
    let encoder = Encoder::new(&QWEN, Some(&looks), EncodeOptions::new(Format::Chat, 99)).unwrap();
    let turns =
        serde_json::json!([{ "role": "assistant", "content": "x" }, { "role": "user", "content": "a" }]);
    let error = one(&encoder, serde_json::json!({ "messages": turns })).unwrap_err().to_string();
    assert!(error.contains("messages[0]") && error.contains("at the start of a conversation"), "{error}");
}
