//! `model.safetensors.index.json`: which file of a large model holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::folder::is_single_component;
use super::strict_json::UniqueMap;
use crate::error::{Error, Result};

/// Name of the index in a model folder.
pub(super) const INDEX_NAME: &str = "model.safetensors.index.json";

/// Most shards of one model; each stays open.
const MAX_SHARDS: usize = 4096;

/// A checked index: every shard name is safe to join to the folder.
#[derive(Debug)]
pub struct ShardIndex {
    /// Tensor name to shard name.
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads the text of an index; `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Input`] for other JSON, a name that is not a plain file name, or too many shards.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        // Other keys (`metadata`) say nothing that the shards do not say themselves.
        #[derive(Deserialize)]
        struct Raw {
            weight_map: UniqueMap<String>,
        }
        let fix = "download the index again";
        let raw: Raw = match serde_json::from_str(text) {
            Ok(raw) => raw,
            Err(error) => {
                return Error::input("MODEL", format!("invalid index: {error}")).path(path).fix(fix).into();
            }
        };
        let index = Self { weight_map: raw.weight_map.0 };
        for (tensor, shard) in &index.weight_map {
            if !is_shard_name(shard) {
                return Error::input("MODEL", "unsafe shard name")
                    .path(path)
                    .field(tensor)
                    .got(format!("{shard:?}"))
                    .expected("a plain file name that ends in .safetensors")
                    .fix("do not use this model: a name like this is an attack or a broken export")
                    .into();
            }
        }
        match index.shards().len() {
            1..=MAX_SHARDS => Ok(index),
            count => Error::input("MODEL", "number of shards out of range")
                .path(path)
                .got(count)
                .expected(format!("1 to {MAX_SHARDS}"))
                .fix(fix)
                .into(),
        }
    }

    /// The shard names, sorted.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// A single visible component that ends in `.safetensors`.
fn is_shard_name(name: &str) -> bool {
    is_single_component(name) && !name.starts_with('.') && name.ends_with(".safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(shard: &str) -> Result<ShardIndex> {
        let text = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": {"a": shard}}).to_string();
        ShardIndex::parse(Path::new("index.json"), &text)
    }

    #[test]
    fn usual_names_are_accepted() {
        for name in ["model-00001-of-00002.safetensors", "model.safetensors", "模型 1.safetensors"] {
            assert_eq!(parse(name).unwrap().shards().len(), 1, "{name}");
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = format!("{}.safetensors", "a".repeat(300));
        let names = [
            "",
            ".",
            "..",
            "/",
            "/etc/passwd",
            "/etc/a.safetensors",
            "../a.safetensors",
            "../../../../etc/a.safetensors",
            "a/../../b.safetensors",
            "sub/a.safetensors",
            "./a.safetensors",
            "a.safetensors/",
            "a.safetensors/.",
            "..\\a.safetensors",
            "C:\\a.safetensors",
            "C:a.safetensors",
            "\\\\host\\share\\a.safetensors",
            "//host/a.safetensors",
            "a.safetensors\0",
            "a\0.safetensors",
            "a\n.safetensors",
            "a\u{7f}.safetensors",
            "a\u{85}.safetensors",
            "a.bin",
            "a.safetensors.bin",
            "a.SAFETENSORS",
            "safetensors",
            ".safetensors",
            ".hidden.safetensors",
            "...safetensors",
            "a.safetensors ",
            "file:///etc/a.safetensors",
            "http://host/a.safetensors",
            "~/a.safetensors",
            "$HOME/a.safetensors",
            "a.safetensors:stream",
            "/proc/self/fd/0.safetensors",
            "a//b.safetensors",
            "%2e%2e/a.safetensors",
            &long,
        ];
        for name in names {
            let error = parse(name).expect_err(name).to_string();
            assert!(error.contains("shard name") && error.contains("fix:"), "{name}: {error}");
        }
    }

    #[test]
    fn duplicates_and_empty_maps_are_refused() {
        let parse = |text: &str| ShardIndex::parse(Path::new("i"), text).map(|_| ());
        assert!(parse(r#"{"weight_map":{"a":"a.safetensors","a":"b.safetensors"}}"#).is_err());
        assert!(parse(r#"{"weight_map":{}}"#).is_err());
        assert!(parse(r#"{"weight_map":{"a":1}}"#).is_err());
        assert!(parse(r#"{}"#).is_err());
        assert!(parse("").is_err());
    }
}
