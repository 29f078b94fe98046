//! What is fuzzed: each target takes bytes, and panics if something that must hold does not.
//!
//! The targets use the public parts of tanren alone. `tests/it/fuzzing.rs` includes this folder, so that the same code runs
//! in every test run. An error is a good answer to bad bytes; what is accepted is compared with what somebody else says of
//! the same bytes, or is written and read again.

#![allow(clippy::unwrap_used, reason = "a target fails by a panic")]
#![allow(unreachable_pub, reason = "public in the package for cargo-fuzz")]

mod containers;
mod data;
mod options;
mod plans;
mod settings;

use std::path::Path;

/// A target: its name, which is that of the folder with its seeds, and what runs it.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("safetensors", containers::safetensors),
    ("shard_index", containers::shard_index),
    ("torch_bin", containers::torch_bin),
    ("manifest", containers::manifest),
    #[cfg(feature = "hub")]
    ("hub_headers", containers::hub_headers),
    ("model_config", settings::model_config),
    ("adapter_config", settings::adapter_config),
    ("trainer_state", settings::trainer_state),
    ("train_toml", options::train_toml),
    ("score_toml", options::score_toml),
    ("quantities", options::quantities),
    ("rows", data::rows),
    ("conversations", data::conversations),
    ("chat_template", data::chat_template),
    ("attention_plan", plans::attention_plan),
];

/// Runs the target of this name.
///
/// # Panics
/// If there is none, or if the target fails.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, run) = target.unwrap_or_else(|| panic!("no target {name}"));
    run(bytes);
}

/// The name of the input in messages.
fn name() -> &'static Path {
    Path::new("input")
}

/// Bytes as a source of choices: what is left over when they end is 0.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// Below `limit`, which is 1 to 256.
    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
