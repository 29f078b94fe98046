//! Positions of tokens, compared with the text of the tokens; and special tokens as text, compared with
//! tokenizers that do not know them.

use super::super::escape::without_marks;
use super::super::tests::QWEN;
use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::LazyLock;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tokenizers");
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny_tokenizer/tokenizer.json");
const MARK: char = '\u{F8F0}';

fn patched(path: &str, patch: impl FnOnce(&mut Value)) -> Tokenizer {
    let mut json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    patch(&mut json);
    Tokenizer::from_parts(json.to_string().as_bytes(), r#"{"eos_token": "</s>"}"#).unwrap()
}

fn pieces(name: &str) -> Tokenizer {
    patched(&format!("{FOLDER}/{name}/tokenizer.json"), |_| ())
}

static FIRST: LazyLock<Tokenizer> = LazyLock::new(|| pieces("first"));
static LEGACY: LazyLock<Tokenizer> = LazyLock::new(|| pieces("legacy"));
static TINY_MODEL: LazyLock<Tokenizer> = LazyLock::new(|| patched(TINY, |_| ()));

/// The first tokenizer with pieces by score and byte fallback.
static UNIGRAM: LazyLock<Tokenizer> = LazyLock::new(|| {
    patched(&format!("{FOLDER}/first/tokenizer.json"), |json| {
        let vocab = json["model"]["vocab"].as_object().unwrap();
        let mut tokens: Vec<_> = vocab.iter().map(|(token, id)| (id.as_u64(), token)).collect();
        tokens.sort();
        let scored: Vec<Value> =
            tokens.iter().map(|(id, token)| json!([token, -(id.unwrap() as f64)])).collect();
        json["model"] = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": scored});
    })
});

/// Each token with the part of `text` it stands for.
fn shown(tokenizer: &Tokenizer, text: &str) -> Vec<(String, String)> {
    let encoded = tokenizer.encode_with_offsets(text).unwrap();
    assert_eq!(encoded.ids, tokenizer.encode(text).unwrap(), "{text:?}");
    let parts = encoded.ids.iter().zip(&encoded.offsets);
    parts.map(|(id, range)| (tokenizer.id_to_token(*id).unwrap(), text[range.clone()].to_owned())).collect()
}

fn check_shown(tokenizer: &Tokenizer, text: &str, expected: &[(&str, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    assert_eq!(shown(tokenizer, text), expected, "{text:?}");
}

#[test]
fn a_space_before_the_text_has_no_source() {
    check_shown(&FIRST, "</s>?", &[("</s>", "</s>"), ("?", "?")]);
    check_shown(&LEGACY, "</s>?", &[("</s>", "</s>"), ("▁", ""), ("?", "?")]);
    check_shown(&FIRST, "?", &[("▁", ""), ("?", "?")]);
    check_shown(&FIRST, " ?", &[("▁", " "), ("?", "?")]);
    check_shown(&LEGACY, " ?", &[("▁", ""), ("▁", " "), ("?", "?")]);
    check_shown(&FIRST, "four", &[("▁four", "four")]);
    let bytes = ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"];
    let smile: Vec<_> = bytes.iter().map(|byte| (*byte, "😀")).collect();
    check_shown(&LEGACY, "😀", &[&[("▁", "")][..], &smile].concat());
    assert_eq!(FIRST.encode_with_offsets("").unwrap(), Encoded::default());
}

#[test]
fn pieces_of_one_character_have_its_place() {
    for tokenizer in [&*FIRST, &*LEGACY, &*UNIGRAM, &*TINY_MODEL] {
        let text = "😀𠀋";
        for (token, part) in shown(tokenizer, text).iter().filter(|(token, _)| *token != "▁") {
            assert!(part == "😀" || part == "𠀋", "{token} {part}");
        }
    }
}

#[test]
fn composed_characters_belong_to_one_token() {
    let text = "e\u{301}a\u{323}\u{302}o";
    let encoded = TINY_MODEL.encode_with_offsets(text).unwrap();
    assert_eq!(encoded.ids, TINY_MODEL.encode("\u{e9}\u{1ead}o").unwrap());
    let ends: Vec<_> = encoded.offsets.iter().map(|range| range.end).collect();
    for (idx, end) in ends.iter().enumerate() {
        assert!([3, 8, 9].contains(end), "{:?}", encoded.offsets[idx]);
    }
    // Hangul syllables of single letters.
    let text = "\u{1112}\u{1161}\u{11ab}a";
    let encoded = TINY_MODEL.encode_with_offsets(text).unwrap();
    assert!(
        encoded.offsets.iter().all(|range| *range == (0..9) || *range == (9..10)),
        "{:?}",
        encoded.offsets
    );
}

#[test]
fn stripped_space_belongs_to_its_token() {
    let tokenizer = patched(TINY, |json| {
        json["added_tokens"]
            .as_array_mut()
            .unwrap()
            .push(json!({"id": 4096, "content": "<mask>", "special": true,
            "single_word": false, "lstrip": true, "rstrip": true, "normalized": false}));
    });
    check_shown(&tokenizer, "a \n<mask>  b", &[("a", "a"), ("<mask>", " \n<mask>  "), ("b", "b")]);
}

#[test]
fn a_dropped_character_is_an_error() {
    let tokenizer = patched(&format!("{FOLDER}/first/tokenizer.json"), |json| {
        json["model"]["byte_fallback"] = false.into();
        json["model"]["unk_token"] = Value::Null;
    });
    let error = tokenizer.encode_with_offsets("four😀 five").unwrap_err().to_string();
    assert!(error.contains("there is no token for some character of \"▁four😀▁five\""), "{error}");
}

/// `text` with a mark in each `special` token that is followed by `follow`.
fn marked(text: &str, special: &str, follow: &str) -> String {
    let first = special.chars().next().unwrap().len_utf8();
    let (head, tail) = special.split_at(first);
    text.replace(&format!("{special}{follow}"), &format!("{head}{MARK}{tail}{follow}"))
}

#[test]
fn marked_tokens_are_text_for_every_tokenizer() {
    // The reference is a tokenizer that does not know `<|im_end|>`.
    let text = "<|im_start|>u\nfour<|im_end|> five</s><|im_end|>\n <|im_start|><|im_end|>";
    for path in
        [format!("{FOLDER}/first/tokenizer.json"), format!("{FOLDER}/legacy/tokenizer.json"), TINY.into()]
    {
        let whole = patched(&path, |_| ());
        let judge = patched(&path, |json| {
            json["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != "<|im_end|>");
        });
        let (plain, marks) = without_marks(&marked(text, "<|im_end|>", ""), MARK);
        assert_eq!((plain.as_str(), marks.len()), (text, 3), "{path}");
        let got = whole.encode_escaped(text, &marks).unwrap();
        let expected = judge.encode_with_offsets(text).unwrap();
        assert_eq!(got, expected, "{path}");
        assert_ne!(got.ids, whole.encode(text).unwrap(), "{path}");
        assert_eq!(whole.encode_marked(&marked(text, "<|im_end|>", ""), MARK).unwrap(), expected.ids);
        // All marked is the same as all special tokens being text.
        assert_eq!(
            whole.encode_marked(&whole.mark_special(text, MARK), MARK).unwrap(),
            whole.encode_plain(text).unwrap()
        );
    }
}

#[test]
fn one_of_two_equal_tokens_is_marked() {
    let text = "four<|im_end|>x<|im_end|>";
    let end = FIRST.token_to_id("<|im_end|>").unwrap();
    let got = FIRST.encode_marked(&marked(text, "<|im_end|>", "x"), MARK).unwrap();
    assert_eq!(got.iter().filter(|id| **id == end).count(), 1);
    assert_eq!(got.last(), Some(&end));
    assert_eq!(FIRST.decode(&got, false).unwrap(), text);
}

#[test]
fn tokens_in_whole_words_cannot_be_escaped_around() {
    let tokenizer = patched(TINY, |json| {
        json["added_tokens"][0]["single_word"] = true.into();
    });
    let error = tokenizer.encode_escaped("a<|im_end|>", &[2]).unwrap_err().to_string();
    assert!(error.contains("has single_word; fix: "), "{error}");
}

fn texts() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "\\PC{0,8}",
        "[ a-z\n]{0,8}",
        Just("</s>".to_owned()),
        Just("<|im_end|>".to_owned()),
        Just("▁".to_owned()),
        Just("e\u{301}".to_owned()),
        Just("四つです".to_owned()),
    ];
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn places_are_in_order_and_cover_the_text(text in texts()) {
        for tokenizer in [&*FIRST, &*LEGACY, &*UNIGRAM, &*TINY_MODEL] {
            let encoded = tokenizer.encode_with_offsets(&text).unwrap();
            prop_assert_eq!(&encoded.ids, &tokenizer.encode(&text).unwrap());
            let mut end = 0;
            for range in &encoded.offsets {
                prop_assert!(text.get(range.clone()).is_some(), "{:?} {:?}", text, range);
                prop_assert!(range.start <= end, "a gap before {:?} of {:?}", range, text);
                end = end.max(range.end);
            }
            prop_assert_eq!(end, text.len());
        }
    }

    #[test]
    fn decoding_up_to_a_token_gives_the_text_up_to_its_place(text in "[a-z <>|\n🙂あ四é]{0,40}") {
        for tokenizer in [&*QWEN, &*TINY_MODEL] {
            let encoded = tokenizer.encode_with_offsets(&text).unwrap_or_default();
            for (idx, range) in encoded.offsets.iter().enumerate() {
                let before = encoded.offsets[..idx].last().map_or(0, |range| range.end);
                if before <= range.start {
                    prop_assert_eq!(tokenizer.decode(&encoded.ids[..idx], false).unwrap(), &text[..range.start]);
                }
            }
        }
    }
}
