//! Limits for a `tokenizer.json`: an untrusted file must not exhaust memory or run for hours.
//!
//! The parts that determine the cost of encoding are checked before the `tokenizers` crate loads them. The
//! cost of a pattern cannot be derived from it, so the tokenizer is also tried on texts that are hard for bad
//! patterns, with a time limit. All limits are far above published models; each constant documents the
//! margin.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::guarded;
use crate::error::{Error, Result};

/// Maximum of the largest id + 1, and of the entries of a list. Published vocabularies have up to 0.3
/// million.
pub(super) const MAX_VOCAB: usize = 4 << 20;

/// Maximum number of added tokens. Published speech models have 0.1 million.
const MAX_ADDED: usize = 256 << 10;

/// Maximum length of an added token. Published ones have up to 100 bytes.
const MAX_ADDED_BYTES: usize = 1 << 10;

/// Maximum total bytes of all added tokens. Published ones have up to 1 MiB.
const MAX_ADDED_TOTAL: usize = 8 << 20;

/// Maximum number of normalizers, pre-tokenizers and decoders of each kind. Published tokenizers have up to
/// 8.
const MAX_RULES: usize = 64;

/// Maximum factor by which all rules together may lengthen a text. A table of SentencePiece makes one
/// character of 3 bytes 33 bytes, and spaces become 3 bytes.
const MAX_GROWTH: usize = 128;

/// Maximum length of a pattern. Published ones have up to 1 KiB.
const MAX_PATTERN_BYTES: usize = 16 << 10;

/// Maximum length of a word for WordPiece, which takes quadratic time. Published models have 100.
const MAX_WORD_CHARS: u64 = 1 << 10;

/// Time limit for loading a tokenizer. The largest published ones take 2 seconds.
const LOAD: Duration = Duration::from_secs(120);

/// Time limit for the trial texts, which normally take a hundredth of a second.
const TRIAL: Duration = Duration::from_secs(20);

/// Bytes of each trial text.
const TRIAL_BYTES: usize = 2000;

/// The parts of `tokenizer.json` that are checked before the crate sees them.
#[derive(Deserialize)]
pub(super) struct Outline {
    #[serde(default)]
    pub(super) added_tokens: Vec<Declared>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    model: Model,
}

/// A token as a file declares it.
#[derive(Deserialize)]
pub(super) struct Declared {
    pub(super) id: u32,
    pub(super) content: String,
}

#[derive(Deserialize, Default)]
struct Model {
    #[serde(default)]
    vocab: Entries,
    #[serde(default)]
    merges: Entries,
    #[serde(default)]
    max_input_chars_per_word: Value,
}

/// Number of entries of a list or an object.
#[derive(Default)]
struct Entries(usize);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Counter;
        impl<'de> Visitor<'de> for Counter {
            type Value = usize;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list or an object")
            }
            fn visit_unit<E>(self) -> std::result::Result<usize, E> {
                Ok(0)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<usize, A::Error> {
                let mut count = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(count)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<usize, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(count)
            }
        }
        deserializer.deserialize_any(Counter).map(Self)
    }
}

impl Outline {
    /// Refuses a file beyond the limits.
    pub(super) fn check(&self) -> Result<()> {
        check_added(self.added_tokens.iter().map(|token| token.content.as_str()))?;
        for (name, entries) in [("vocab", &self.model.vocab), ("merges", &self.model.merges)] {
            if entries.0 > MAX_VOCAB {
                return refuse(format!("model.{name} has {} entries, the limit is {MAX_VOCAB}", entries.0));
            }
        }
        if let Some(chars) = self.model.max_input_chars_per_word.as_u64().filter(|n| *n > MAX_WORD_CHARS) {
            return refuse(format!(
                "model.max_input_chars_per_word is {chars}, the limit is {MAX_WORD_CHARS}"
            ));
        }
        for part in [&self.normalizer, &self.pre_tokenizer, &self.decoder] {
            Rules { count: 0, growth: 1 }.check(part)?;
        }
        Ok(())
    }
}

/// Refuses too many or too long added tokens.
pub(super) fn check_added<'t>(contents: impl Iterator<Item = &'t str>) -> Result<()> {
    let (mut count, mut total) = (0, 0);
    for content in contents {
        count += 1;
        total += content.len();
        if total > MAX_ADDED_TOTAL {
            return refuse(format!("the added tokens have more than {MAX_ADDED_TOTAL} bytes"));
        }
        if count > MAX_ADDED {
            return refuse(format!("there are more than {MAX_ADDED} added tokens"));
        }
        if content.len() > MAX_ADDED_BYTES {
            let len = content.len();
            return refuse(format!("an added token has {len} bytes, the limit is {MAX_ADDED_BYTES}"));
        }
    }
    Ok(())
}

/// Totals over the rules of one part.
struct Rules {
    count: usize,
    growth: usize,
}

impl Rules {
    fn check(&mut self, rule: &Value) -> Result<()> {
        match rule {
            Value::String(text) if text.len() > MAX_PATTERN_BYTES => {
                refuse(format!("a rule has a text of {} bytes, the limit is {MAX_PATTERN_BYTES}", text.len()))
            }
            Value::Array(items) => items.iter().try_for_each(|item| self.check(item)),
            Value::Object(fields) => {
                let text = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default();
                let kind = text("type");
                if !kind.is_empty() {
                    self.count += 1;
                }
                if self.count > MAX_RULES {
                    return refuse(format!("there are more than {MAX_RULES} rules"));
                }
                let growth = match kind {
                    "Replace" => text("content").len(),
                    "Prepend" => text("prepend").len(),
                    "Precompiled" => charsmap_growth(text("precompiled_charsmap"))?,
                    _ => 1,
                };
                self.growth = self.growth.saturating_mul(growth.max(1));
                if self.growth > MAX_GROWTH {
                    return refuse(format!("the rules may make a text more than {MAX_GROWTH} times as long"));
                }
                // The table is one long string.
                let mut others = fields.iter().filter(|(key, _)| *key != "precompiled_charsmap");
                others.try_for_each(|(_, value)| self.check(value))
            }
            _ => Ok(()),
        }
    }
}

/// The longest replacement text in a SentencePiece table. The table contains, in base64, the size of a trie
/// in bytes, the trie, and the texts, each followed by a 0.
fn charsmap_growth(base64: &str) -> Result<usize> {
    let bytes = decode_base64(base64);
    let texts = bytes.split_first_chunk().and_then(|(len, rest)| {
        // The crate allocates this many bytes.
        rest.get(usize::try_from(u32::from_le_bytes(*len)).ok()?..)
    });
    match texts {
        Some(texts) => Ok(texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0)),
        None => refuse("the table of a Precompiled rule is cut off".into()),
    }
}

/// The decoded bytes of `text`, up to the first character that is not base64; the crate checks the rest.
fn decode_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut value, mut bits) = (0u32, 0);
    for digit in text.bytes().map_while(digit) {
        value = (value << 6 | u32::from(digit)) & 0xFFFF;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((value >> bits) as u8);
        }
    }
    bytes
}

fn refuse<T>(what: String) -> Result<T> {
    Error::input("TOKENIZER", what)
        .fix("use the tokenizer.json of the model; this one is not safe to run")
        .into()
}

/// The crate's tokenizer of a file, within a time limit.
pub(super) fn load(json: Vec<u8>) -> Result<tokenizers::Tokenizer> {
    within(LOAD, "be loaded", move || {
        let mut inner = tokenizers::Tokenizer::from_bytes(&json)?;
        // Truncation and padding of the file are not used, and some settings panic.
        inner.with_padding(None);
        inner.with_truncation(None)?;
        Ok(inner)
    })
}

/// Encodes texts that are slow for bad patterns, within a time limit. Errors are ignored here; they are
/// reported if a row has such text.
pub(super) fn try_out(inner: tokenizers::Tokenizer) -> Result<tokenizers::Tokenizer> {
    within(TRIAL, "encode texts of 2000 bytes", move || {
        for text in trial_texts() {
            let _ = guarded("encode the text", || inner.encode_fast(text.as_str(), false).map(drop));
        }
        Ok(inner)
    })
}

fn trial_texts() -> Vec<String> {
    const PROSE: &str =
        "The quick brown fox, aged 42, doesn't jump over \"lazy\" dogs; it walks (slowly) to 日本.\r\n\t";
    let runs = ["a", " ", "A", "0", "\n", "-", "=", "あ", "é", "a ", "a1", ".,", "\r\n"];
    let repeat = |piece: &str| piece.repeat(TRIAL_BYTES / piece.len());
    let mut texts: Vec<String> = runs.iter().copied().chain([PROSE]).map(repeat).collect();
    // Patterns that nearly match fail at the character after the run; and the engine first checks whether a
    // text contains the characters that a pattern requires.
    let all: String = ('!'..='~').collect();
    texts.extend(runs.map(|piece| repeat(piece) + "!\u{1F600}" + &all));
    texts
}

/// Runs `run` in a thread and gives up after `limit`. The thread continues until the process ends, which
/// happens soon.
fn within<T: Send + 'static>(
    limit: Duration,
    action: &'static str,
    run: impl FnOnce() -> tokenizers::Result<T> + Send + 'static,
) -> Result<T> {
    let (done, result) = channel();
    let work = move || drop(done.send(guarded(action, run)));
    let thread = thread::Builder::new().name("tokenizer".into()).stack_size(8 << 20);
    thread.spawn(work).map_err(|e| Error::io("tokenizer.json", "start a thread to load it", e))?;
    match result.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            refuse(format!("the tokenizer takes more than {} seconds to {action}", limit.as_secs()))
        }
        Err(RecvTimeoutError::Disconnected) => refuse(format!("the tokenizer cannot {action}")),
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
