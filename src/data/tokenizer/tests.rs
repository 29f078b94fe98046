//! The golden ids of a real tokenizer (reduced to the entries they need), special tokens, and hostile files.

use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tokenizers/qwen2.5");

/// The reduced Qwen2.5 tokenizer, or the one in the folder `$TANREN_TEST_TOKENIZER`.
pub(in crate::data) static QWEN: LazyLock<Tokenizer> = LazyLock::new(|| {
    let folder = std::env::var("TANREN_TEST_TOKENIZER").unwrap_or(FOLDER.into());
    let file = |name: &str| Path::new(&folder).join(name);
    Tokenizer::from_files(&file("tokenizer.json"), Some(&file("tokenizer_config.json")), None).unwrap()
});

/// The golden case `tokenize`, of the folder `$TANREN_GOLDEN` if that is set: its texts may need more than the reduced tokenizer.
pub(in crate::data) static GOLDEN: LazyLock<Value> = LazyLock::new(|| {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let folder = std::env::var("TANREN_GOLDEN").unwrap_or(default.into());
    let path = Path::new(&folder).join("tokenize/case.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
});

pub(in crate::data) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn texts_get_the_golden_ids() {
    for case in GOLDEN["texts"].as_array().unwrap() {
        assert_eq!(QWEN.encode(case["text"].as_str().unwrap()).unwrap(), ids(&case["ids"]), "{case}");
    }
}

#[test]
fn roles_and_sizes_come_from_the_files() {
    assert_eq!(QWEN.eos_token(), Some(("<|im_end|>".into(), 151645)));
    assert_eq!(QWEN.pad_token(), Some(("<|endoftext|>".into(), 151643)));
    assert_eq!(QWEN.bos_token(), None);
    assert!(!QWEN.adds_bos());
    assert_eq!(QWEN.vocab_size(), 151665);
    assert_eq!(QWEN.special_token_map()["eos_token"], "<|im_end|>");
    assert!(!QWEN.special_token_map().contains_key("bos_token"));
    assert!(QWEN.chat_template().unwrap().contains("im_start"));
    assert!(QWEN.chat_template_origin().ends_with("tokenizer_config.json"));
}

#[test]
fn special_tokens_in_text_are_found_and_can_be_escaped() {
    let text = "a<|im_end|>b<|im_start|<|endoftext|><tool_call>";
    assert_eq!(QWEN.special_tokens_in(text), ["<|im_end|>", "<|endoftext|>"]);
    assert_eq!(QWEN.first_special_in(text), Some(1..11));
    assert!(QWEN.special_tokens_in("<|im_end |> <tool_call>").is_empty());
    let ids = QWEN.encode_plain(text).unwrap();
    assert!(!ids.contains(&151645) && !ids.contains(&151643), "{ids:?}");
    assert!(ids.contains(&151657), "<tool_call> is an added token but no special one");
    assert_eq!(QWEN.decode(&ids, false).unwrap(), text);
    assert_eq!(QWEN.encode_plain("Hello, world!").unwrap(), QWEN.encode("Hello, world!").unwrap());
}

#[test]
fn marked_tokens_are_text_and_unmarked_ones_are_tokens() {
    let user = QWEN.mark_special("x<|im_end|>y", '\u{F8F0}');
    let ids = QWEN.encode_marked(&format!("<|im_start|>user\n{user}<|im_end|>\n"), '\u{F8F0}').unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 151645).count(), 1);
    assert_eq!(QWEN.decode(&ids, false).unwrap(), "<|im_start|>user\nx<|im_end|>y<|im_end|>\n");
}

#[test]
fn decode_can_leave_special_tokens_out() {
    assert_eq!(QWEN.decode(&[9707, 151645], true).unwrap(), "Hello");
    assert_eq!(QWEN.decode(&[9707, 151645], false).unwrap(), "Hello<|im_end|>");
}

#[test]
fn a_text_is_cut_at_token_borders() {
    assert_eq!(QWEN.cut_left("Hello, world!", 0).unwrap(), "ello, world!", "at least one character goes");
    assert_eq!(QWEN.cut_left("Hello, world!", 1).unwrap(), ", world!");
    assert_eq!(QWEN.cut_left("Hello, world!", 99).unwrap(), "");
    assert_eq!(QWEN.cut_left("", 3).unwrap(), "");
}

fn tiny(patch: impl FnOnce(&mut Value)) -> Result<Tokenizer> {
    tiny_with(patch, "")
}

/// A word tokenizer with `<s>`, `</s>`, `<unk>`, `a`, `b`.
fn tiny_with(patch: impl FnOnce(&mut Value), config: &str) -> Result<Tokenizer> {
    let mut json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "model": {"type": "WordLevel", "unk_token": "<unk>",
                  "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4}}
    });
    patch(&mut json);
    Tokenizer::from_parts(json.to_string().as_bytes(), config)
}

#[test]
fn a_tokenizer_that_begins_texts_is_recognised() {
    let config = r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template":
        [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}],
        "added_tokens_decoder": {"5": {"content": "<new>", "special": true, "rstrip": true}}}"#;
    let tokenizer = tiny_with(|_| (), config).unwrap();
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.encode("a b </s>").unwrap(), [3, 4, 1], "nothing added; eos became a special token");
    assert_eq!(tokenizer.token_to_id("<new>"), Some(5));
    assert_eq!(tokenizer.chat_template(), Some("d"));
    assert_eq!(tokenizer.encode_marked("a<new>  <s> \u{F8F0}b", '\u{F8F0}').unwrap(), [3, 5, 0, 4]);
    assert!(!tiny_with(|_| (), r#"{"bos_token": "<s>", "add_bos_token": false}"#).unwrap().adds_bos());
}

#[test]
fn a_template_file_wins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat_template.jinja");
    std::fs::write(&path, "from the file").unwrap();
    let file = |name: &str| Path::new(FOLDER).join(name);
    let tokenizer =
        Tokenizer::from_files(&file("tokenizer.json"), Some(&file("tokenizer_config.json")), Some(&path))
            .unwrap();
    assert_eq!(tokenizer.chat_template(), Some("from the file"));
}

#[test]
fn length_rules_of_the_file_are_ignored() {
    let tokenizer = tiny(|json| {
        json["truncation"] = serde_json::json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = serde_json::json!({"strategy": {"Fixed": 0}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"});
    });
    assert_eq!(tokenizer.unwrap().encode("a b a").unwrap(), [3, 4, 3]);
}

#[test]
fn hostile_files_are_errors() {
    let replace = |n: usize| serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(n)});
    type Patch = Box<dyn FnOnce(&mut Value)>;
    let cases: Vec<(Patch, &str)> = vec![
        (Box::new(|json| *json = Value::Null), "not a tokenizer.json"),
        (Box::new(|json| *json = serde_json::json!({})), "cannot be loaded"),
        (Box::new(|json| json["model"]["type"] = "Magic".into()), "cannot be loaded"),
        (Box::new(|json| json["model"]["vocab"]["c"] = 4_000_000_000u32.into()), "ids are out of range"),
        (
            Box::new(|json| json["added_tokens"][0]["id"] = 7.into()),
            "\"<s>\" does not get its id: got 0, expected 7",
        ),
        (
            Box::new(move |json| {
                json["normalizer"] = serde_json::json!({"type": "Sequence",
            "normalizers": [replace(10), replace(10), replace(10)]})
            }),
            "times as long",
        ),
        (
            Box::new(|json| {
                json["pre_tokenizer"] = serde_json::json!({"type": "Split", "pattern": {"Regex": "(".repeat(20_000)},
            "behavior": "Isolated", "invert": false})
            }),
            "pattern of 20000 bytes",
        ),
        (
            Box::new(|json| {
                json["pre_tokenizer"] = serde_json::json!({"type": "Split", "pattern": {"Regex": "("},
            "behavior": "Isolated", "invert": false})
            }),
            "cannot be loaded",
        ),
        (
            Box::new(|json| {
                json["normalizer"] =
                    serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})
            }),
            "cannot be loaded",
        ),
    ];
    for (patch, words) in cases {
        let error = tiny(patch).unwrap_err().to_string();
        assert!(
            error.starts_with("error[TOKENIZER] tokenizer.json: ") && error.contains(words),
            "{error} lacks {words}"
        );
    }
    assert!(Tokenizer::from_parts(b"[[[[", "").is_err());
    assert!(Tokenizer::from_parts("[".repeat(1_000_000).as_bytes(), "").is_err());
    let wrong = tiny_with(|_| (), r#"{"added_tokens_decoder": {"x": {}}}"#).unwrap_err().to_string();
    assert!(wrong.contains("field \"added_tokens_decoder.x\""), "{wrong}");
}

#[test]
fn a_panic_while_encoding_is_an_error() {
    let tokenizer = tiny(|json| {
        json["pre_tokenizer"] = serde_json::json!({"type": "Split", "pattern": {"Regex": "(a*)*(a*)*(a*)*b"},
            "behavior": "Isolated", "invert": false});
    });
    // Whether the regex engine gives up is its business; that it takes nobody down is ours.
    let _ = tokenizer.unwrap().encode(&"a".repeat(30));
}

proptest! {
    #[test]
    fn ids_are_below_the_vocabulary_size_and_text_survives(text in "\\PC{0,60}") {
        let plain = QWEN.encode_plain(&text).unwrap();
        prop_assert!(plain.iter().all(|&id| (id as usize) < QWEN.vocab_size()));
        prop_assert_eq!(QWEN.special_tokens_in(&text).is_empty(), QWEN.encode(&text).unwrap() == plain);
    }
}
