//! The golden ids of a real tokenizer (reduced to the entries they need), special tokens, and hostile files.

use super::*;
use crate::formats::model_folder::tokenizer_files;
use proptest::prelude::*;
use std::path::Path;
use std::sync::LazyLock;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tokenizers/qwen2.5");

/// The reduced Qwen2.5 tokenizer, or the one in the folder `$TANREN_TEST_TOKENIZER`.
pub(in crate::data) static QWEN: LazyLock<Tokenizer> = LazyLock::new(|| {
    let folder = std::env::var("TANREN_TEST_TOKENIZER").unwrap_or(FOLDER.into());
    Tokenizer::from_files(&tokenizer_files(Path::new(&folder)).unwrap()).unwrap()
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
    Tokenizer::from_parts(tiny_json(patch).as_bytes(), config)
}

fn tiny_json(patch: impl FnOnce(&mut Value)) -> String {
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
    json.to_string()
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
}

#[test]
fn a_template_file_wins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat_template.jinja");
    std::fs::write(&path, "from the file").unwrap();
    let files =
        TokenizerFiles { chat_template_jinja: Some(path), ..tokenizer_files(Path::new(FOLDER)).unwrap() };
    let tokenizer = Tokenizer::from_files(&files).unwrap();
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
            "text of 20000 bytes",
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
            "cut off",
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
    // The regex engine may give up, but it must not take down the process.
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

/// A folder with the word tokenizer and these files.
fn folder(patch: impl FnOnce(&mut Value), files: &[(&str, &str)]) -> Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tiny_json(patch)).unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    Tokenizer::from_files(&tokenizer_files(folder.path()).unwrap())
}

#[test]
fn add_bos_token_counts_where_the_class_heeds_it() {
    // What AutoTokenizer of transformers 4.57.6 does: class, add_bos_token, with and without the post-processor's BOS.
    let cases = [
        ("LlamaTokenizer", None, [true, true]),
        ("LlamaTokenizerFast", Some(true), [true, true]),
        ("CodeLlamaTokenizer", Some(false), [false, false]),
        ("GemmaTokenizerFast", None, [true, true]),
        ("CohereTokenizerFast", Some(false), [false, false]),
        ("GPTNeoXTokenizerFast", None, [false, false]),
        ("GPTNeoXTokenizer", Some(true), [true, true]),
        ("GPT2Tokenizer", Some(true), [true, false]),
        ("Qwen2Tokenizer", Some(true), [true, false]),
        ("Qwen2TokenizerFast", Some(false), [true, false]),
        ("PreTrainedTokenizerFast", Some(false), [true, false]),
        ("PreTrainedTokenizerFast", Some(true), [true, false]),
    ];
    for (class, add, expected) in cases {
        let config = serde_json::json!({"bos_token": "<s>", "tokenizer_class": class, "add_bos_token": add})
            .to_string();
        let with = tiny_with(|_| (), &config).unwrap().adds_bos();
        let without = tiny_with(|json| json["post_processor"] = Value::Null, &config).unwrap().adds_bos();
        assert_eq!([with, without], expected, "{class} {add:?}");
    }
    let by_model = folder(
        |_| (),
        &[
            ("tokenizer_config.json", r#"{"add_bos_token": false}"#),
            ("config.json", r#"{"model_type": "mistral"}"#),
        ],
    );
    let by_model = by_model.unwrap();
    assert!(!by_model.adds_bos());
    assert_eq!(by_model.eos_token(), Some(("</s>".into(), 1)), "the default of the class");
}

#[test]
fn old_folders_have_their_tokens_in_two_more_files() {
    let map = (
        "special_tokens_map.json",
        r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "additional_special_tokens": ["<x>"]}"#,
    );
    let added = ("added_tokens.json", r#"{"<x>": 5, "<y>": 6}"#);
    let old = folder(|_| (), &[map, added]).unwrap();
    assert_eq!(old.eos_token(), Some(("</s>".into(), 1)));
    assert_eq!(old.encode("a<x>b<y>").unwrap(), [3, 5, 4, 6]);
    assert_eq!(old.special_tokens_in("<x><y></s>"), ["<x>", "</s>"]);
    assert_eq!(old.tokens_beyond(6), [("<y>".to_owned(), 6)]);
    // A folder that lists its added tokens has the new format.
    let config =
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"5": {"content": "<z>", "special": true}}}"#);
    let new = folder(|_| (), &[map, added, config]).unwrap();
    assert_eq!((new.eos_token(), new.token_to_id("<x>"), new.token_to_id("<z>")), (None, None, Some(5)));
}

#[test]
fn templates_are_found_where_transformers_finds_them() {
    let json = ("chat_template.json", r#"{"chat_template": "processor"}"#);
    let config = (
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#,
    );
    let only_rag = ("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#);
    let jinja = ("chat_template.jinja", "file");
    let tools = ("additional_chat_templates/tool_use.jinja", "tools");
    let source = |files: &[(&str, &str)]| {
        let tokenizer = folder(|_| (), files).unwrap();
        let tool = tokenizer.tool_template().map(|template| template.source.clone());
        (tokenizer.chat_template().map(str::to_owned), tool, tokenizer.check_templates().is_ok())
    };
    let is = |default: &str, tool: Option<&str>| (Some(default.to_owned()), tool.map(str::to_owned), true);
    assert_eq!(source(&[]), (None, None, true));
    assert_eq!(source(&[json]), is("processor", None));
    assert_eq!(source(&[json, config]), is("d", Some("t")));
    assert_eq!(source(&[json, config, jinja]), is("file", None));
    assert_eq!(source(&[json, config, jinja, tools]), is("file", Some("tools")));
    let error = folder(|_| (), &[only_rag]).unwrap().check_templates().unwrap_err().to_string();
    assert!(
        error.contains("none is the default: got rag, expected a template named \"default\"; fix: "),
        "{error}"
    );
}

#[test]
fn dropout_is_switched_off_with_a_note() {
    let bpe = |dropout: Value| {
        tiny(|json| {
            json["model"] = serde_json::json!({"type": "BPE", "dropout": dropout, "unk_token": "<unk>",
                "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4, "ab": 5}, "merges": ["a b"]});
        })
        .unwrap()
    };
    let tokenizer = bpe(1.0.into());
    assert!((0..20).all(|_| tokenizer.encode("ab").unwrap() == [5]));
    assert!(tokenizer.notes()[0].contains("BPE dropout 1 is switched off"), "{:?}", tokenizer.notes());
    assert!(bpe(Value::Null).notes().is_empty() && bpe(0.0.into()).notes().is_empty());
}

#[test]
fn roles_that_a_model_has_of_its_own_are_known_to_templates_and_found_in_texts() {
    let config = r#"{"eos_token": "</s>", "extra_special_tokens": {"image_token": "b", "other": {"content": "<new>"}},
        "additional_special_tokens": ["a"]}"#;
    let tokenizer = tiny_with(|_| (), config).unwrap();
    let named = tokenizer.special_token_map();
    assert_eq!((&named["image_token"], &named["other"]), (&"b".into(), &"<new>".into()));
    assert_eq!(tokenizer.encode("xb").unwrap(), [2, 4]);
    assert_eq!(tokenizer.token_to_id("<new>"), None, "what the vocabulary lacks is no token");
    assert_eq!(tokenizer.special_tokens_in("</s>ba"), ["</s>", "b", "a"]);
}
