//! The targets of `fuzz/`, as bounded tests: seeds, a mutator with a fixed start, and so the same inputs every time.
//!
//! `TANREN_FUZZ_RUNS` sets the number of inputs of each target. libFuzzer finds more, since it sees which code an input reaches;
//! `fuzz/README.md` says how to run it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use crate::source::root;

#[path = "../../fuzz/src/targets/mod.rs"]
mod targets;

/// Maximum length of an input.
const MOST_BYTES: usize = 8192;

/// Time limit of an input in seconds, if `TANREN_FUZZ_RUNS` is set (a run by hand).
const HANG_SECS: u64 = 5;

/// Philox would work too; this generator needs no key, and its quality does not matter.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// The words of `fuzz/words.dict`.
fn words() -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(root().join("fuzz/words.dict")).unwrap();
    text.lines().filter_map(word).collect()
}

/// A line of a dictionary of libFuzzer: a text in quotes, with `\\`, `\"` and `\xHH`.
fn word(line: &str) -> Option<Vec<u8>> {
    let quoted = line.strip_prefix('"')?.strip_suffix('"')?;
    let (mut bytes, mut rest) = (Vec::new(), quoted.as_bytes());
    while let Some((&first, behind)) = rest.split_first() {
        rest = behind;
        match (first, behind) {
            (b'\\', [b'x', high, low, behind @ ..]) => {
                let digits = [*high, *low];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
                rest = behind;
            }
            (b'\\', [next, behind @ ..]) => {
                bytes.push(*next);
                rest = behind;
            }
            _ => bytes.push(first),
        }
    }
    Some(bytes)
}

/// The seeds of a target, by name.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = root().join("fuzz/seeds").join(target);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Makes inputs out of seeds and words.
struct Mutator {
    random: SplitMix,
    seeds: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Mutator {
    /// The next input: a seed with one to eight changes.
    fn input(&mut self) -> Vec<u8> {
        let mut bytes = self.random.pick(&self.seeds).clone();
        for _ in 0..1 + self.random.below(8) {
            self.change(&mut bytes);
        }
        bytes.truncate(MOST_BYTES);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.random.below(bytes.len() + 1);
        let len = 1 + self.random.below(16);
        let end = bytes.len().min(at + len);
        match self.random.below(10) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.random.below(8),
            1 if at < bytes.len() => bytes[at] = self.random.next() as u8,
            2 => drop(bytes.drain(at..end)),
            3 if self.random.below(8) == 0 => bytes.truncate(at),
            4 => {
                let piece = bytes[at..end].to_vec();
                let to = self.random.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            5 => {
                let other = self.random.pick(&self.seeds).clone();
                let from = self.random.below(other.len() + 1);
                let to = other.len().min(from + self.random.below(64));
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            6 | 7 => {
                let word = self.random.pick(&self.words).clone();
                bytes.splice(at..at, word);
            }
            8 => self.replace(bytes, u8::is_ascii_digit),
            _ => self.replace(bytes, |byte| byte.is_ascii_alphanumeric() || *byte == b'_'),
        }
    }

    /// Puts a word in the place of a run of such bytes, such as a number or a name.
    fn replace(&mut self, bytes: &mut Vec<u8>, is_part: fn(&u8) -> bool) {
        let from = self.random.below(bytes.len() + 1);
        let Some(start) = bytes[from..].iter().position(is_part).map(|at| from + at) else { return };
        let end =
            bytes[start..].iter().position(|byte| !is_part(byte)).map_or(bytes.len(), |len| start + len);
        let word = self.random.pick(&self.words).clone();
        bytes.splice(start..end, word);
    }
}

/// Runs a target with its seeds and then with mutated inputs: `usual` of them, or the number in the
/// environment.
fn fuzz(target: &str, usual: usize) {
    let asked = std::env::var("TANREN_FUZZ_RUNS").ok().map(|runs| runs.parse::<usize>().unwrap());
    let start = target.bytes().fold(1, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let mut mutator = Mutator { random: SplitMix(start), seeds: seeds(target), words: words() };
    let first = mutator.seeds.clone();
    let made = (0..asked.unwrap_or(usual)).map(|_| mutator.input());
    for (run, input) in first.into_iter().chain(made).enumerate() {
        let began = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| targets::run(target, &input)));
        let hangs = asked.is_some() && began.elapsed().as_secs() >= HANG_SECS;
        if ended.is_err() || hangs {
            let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{target}-{run}"));
            std::fs::write(&path, &input).unwrap();
            let what = if hangs { "takes too long" } else { "failed (the message is above)" };
            panic!("{target}: run {run} {what}; its input is in {}", path.display());
        }
    }
}

/// One test for each target, and a test that there is one: `name: runs` becomes `fn name() { fuzz("name", runs) }`.
macro_rules! bounded {
    ($($name:ident: $runs:expr),+ $(,)?) => {
        $(#[test] fn $name() { fuzz(stringify!($name), $runs); })+

        #[test]
        fn every_target_is_run_and_has_seeds_and_a_file_for_cargo_fuzz() {
            let known = [$(stringify!($name)),+];
            for (name, _) in targets::TARGETS {
                assert!(known.contains(name) || *name == "hub_headers", "no test runs {name}");
                assert!(!seeds(name).is_empty(), "{name} has no seeds");
                let file = std::fs::read_to_string(root().join(format!("fuzz/fuzz_targets/{name}.rs")));
                assert!(file.unwrap().contains(&format!("{name:?}")), "{name}");
            }
        }
    };
}

bounded! {
    safetensors: 20_000,
    shard_index: 20_000,
    torch_bin: 20_000,
    manifest: 20_000,
    model_config: 10_000,
    adapter_config: 10_000,
    trainer_state: 20_000,
    train_toml: 2_000,
    score_toml: 2_000,
    quantities: 1_000,
    rows: 20_000,
    conversations: 2_000,
    chat_template: 2_000,
    attention_plan: 500,
}

#[cfg(feature = "hub")]
#[test]
fn hub_headers() {
    fuzz("hub_headers", 20_000);
}

#[test]
fn a_target_that_fails_is_seen() {
    assert!(catch_unwind(|| targets::run("no such target", b"")).is_err());
    assert_eq!(word(r#""a\x0a\\\"""#), Some(b"a\n\\\"".to_vec()));
    assert_eq!(word("# a comment"), None);
    let make = || Mutator { random: SplitMix(1), seeds: seeds("rows"), words: words() };
    let (mut one, mut two) = (make(), make());
    let inputs: Vec<Vec<u8>> = (0..100).map(|_| one.input()).collect();
    assert!(inputs.iter().all(|input| *input == two.input()), "the same inputs every time");
    assert!(inputs.iter().collect::<std::collections::BTreeSet<_>>().len() > 90);
}
