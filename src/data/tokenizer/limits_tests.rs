//! Files that would need unbounded memory or time are refused; features of published models are accepted.

use serde_json::{Value, json};

use super::super::Tokenizer;
use super::*;

/// A tokenizer of letters with this part in it.
fn with(part: &str, value: Value) -> Result<Tokenizer> {
    let mut json = json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": {"<unk>": 0, "a": 1, "b": 2}, "merges": []}});
    json[part] = value;
    Tokenizer::from_parts(json.to_string().as_bytes(), "")
}

fn refusal(part: &str, value: Value) -> String {
    let error = with(part, value).unwrap_err().to_string();
    assert!(error.starts_with("error[TOKENIZER] tokenizer.json: ") && error.contains("; fix: "), "{error}");
    error
}

fn encode_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let value = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digit = |i: usize| {
            if i > chunk.len() { '=' } else { char::from(DIGITS[(value >> (18 - 6 * i)) as usize & 63]) }
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

/// A table of SentencePiece whose trie says it has `trie_bytes`, with these texts.
fn charsmap(trie_bytes: u32, trie: &[u8], texts: &str) -> Value {
    let bytes = [&trie_bytes.to_le_bytes()[..], trie, texts.as_bytes()].concat();
    json!({"type": "Precompiled", "precompiled_charsmap": encode_base64(&bytes)})
}

#[test]
fn base64_is_read_as_it_is_written() {
    for len in 0..20 {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 89 + 7) as u8).collect();
        assert_eq!(decode_base64(&encode_base64(&bytes)), bytes);
    }
}

#[test]
fn tables_of_sentencepiece_are_limited() {
    let trie = [0u8; 1024];
    assert!(with("normalizer", charsmap(1024, &trie, &format!("{}\0a\0", "b".repeat(33)))).is_ok());
    let long = refusal("normalizer", charsmap(1024, &trie, &format!("a\0{}", "b".repeat(200_000))));
    assert!(long.contains("more than 128 times as long"), "{long}");
    // The crate would allocate 8 GiB before it checks the size.
    assert!(refusal("normalizer", charsmap(u32::MAX - 3, &trie, "a\0")).contains("cut off"));
    let pair = json!({"type": "Sequence", "normalizers": [charsmap(1024, &trie, &"b".repeat(33)), charsmap(1024, &trie, &"b".repeat(33))]});
    assert!(refusal("normalizer", pair).contains("times as long"));
}

#[test]
fn rules_are_limited() {
    let nfc = json!({"type": "NFC"});
    let many = |count: usize| json!({"type": "Sequence", "normalizers": vec![&nfc; count]});
    assert!(with("normalizer", many(20)).is_ok());
    assert!(refusal("normalizer", many(2000)).contains("more than 64 rules"));
    let mut nested = json!({"type": "NFC"});
    for _ in 0..30 {
        nested = json!({"type": "Sequence", "normalizers": [nested]});
    }
    assert!(with("normalizer", nested.clone()).is_ok());
    for _ in 0..40 {
        nested = json!({"type": "Sequence", "normalizers": [nested]});
    }
    refusal("normalizer", nested);
    let prepend = json!({"type": "Prepend", "prepend": "a".repeat(1000)});
    assert!(refusal("normalizer", prepend).contains("times as long"));
    let llama = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    assert!(with("normalizer", llama).is_ok());
}

#[test]
fn vocabularies_and_words_are_limited() {
    let model = |merges: usize| json!({"type": "BPE", "vocab": {"a": 0}, "merges": vec![0; merges]});
    assert!(refusal("model", model(MAX_VOCAB + 1)).contains("model.merges has 4194305 entries"));
    let words = json!({"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 1_000_000, "vocab": {"a": 0}});
    assert!(refusal("model", words).contains("max_input_chars_per_word is 1000000"));
}

#[test]
fn added_tokens_are_limited() {
    let token = |id: usize, content: String| {
        json!({"id": id + 3, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": id.is_multiple_of(2)})
    };
    let tokens = |count: usize| (0..count).map(|id| token(id, format!("<{id}>"))).collect::<Value>();
    let many = with("added_tokens", tokens(20_000)).unwrap();
    // Any of them may begin at every position of such a text.
    let text = "<1<1999".repeat(20_000) + "<19998>";
    assert_eq!(many.special_tokens_in(&text), ["<19998>"]);
    assert!(refusal("added_tokens", tokens(MAX_ADDED + 1)).contains("more than 262144 added tokens"));
    assert!(refusal("added_tokens", json!([token(0, "a".repeat(2000))])).contains("has 2000 bytes"));
    let all = (0..9000).map(|id| token(id, format!("{id}{}", "x".repeat(1000)))).collect();
    assert!(refusal("added_tokens", all).contains("more than 8388608 bytes"));
}

#[test]
fn patterns_without_end_are_found_by_trying() {
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    assert!(with("pre_tokenizer", split(r"\p{L}+|\s+(?!\S)|\s+")).is_ok());
    // Few of these texts end the engine's patience at once; all of them take long.
    let slow = within(Duration::from_millis(200), "end", || {
        thread::sleep(Duration::from_secs(5));
        Ok(())
    });
    assert!(slow.unwrap_err().to_string().contains("takes more than 0 seconds to end"));
    let broken =
        within(LOAD, "end", || -> tokenizers::Result<()> { panic!("broken") }).unwrap_err().to_string();
    assert!(broken.contains("cannot end: got broken"), "{broken}");
}

#[test]
fn the_trial_takes_texts_that_nearly_match() {
    let texts = trial_texts();
    assert!(texts.iter().all(|text| (TRIAL_BYTES - 200..TRIAL_BYTES + 200).contains(&text.len())));
    assert!(texts.iter().any(|text| text.starts_with("aaaa") && text.ends_with('~')));
}
