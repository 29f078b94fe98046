//! `model.safetensors.index.json`, or `pytorch_model.bin.index.json`: which file of a large model holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::folder::is_single_component;
use super::strict_json::UniqueMap;
use super::weight_files::WeightFormat;
use crate::error::{Error, Result};

/// Most bytes of an index; that of a 400B model has 100 kB.
pub(super) const MAX_INDEX: u64 = 100_000_000;

/// Most shards of one model; each stays open.
const MAX_SHARDS: usize = 4096;

/// A checked index: every shard name is safe to join to the folder.
#[derive(Debug)]
pub struct ShardIndex {
    /// Tensor name to shard name.
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads the index of shards of this format in the file `path`.
    ///
    /// # Errors
    /// An I/O error, an input error for more than [`MAX_INDEX`] bytes, or as [`ShardIndex::parse`].
    pub(super) fn read(path: &Path, format: WeightFormat) -> Result<Self> {
        let failed = |e| Error::io(path, "read", e);
        let mut bytes = Vec::new();
        File::open(path).map_err(failed)?.take(MAX_INDEX + 1).read_to_end(&mut bytes).map_err(failed)?;
        let refuse = |what: &str| Error::input("MODEL", what).path(path).fix("download the index again");
        if bytes.len() as u64 > MAX_INDEX {
            return refuse("the index is too large").expected(format!("at most {MAX_INDEX} bytes")).into();
        }
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(path, format, &text),
            Err(_) => refuse("the index is no UTF-8 text").into(),
        }
    }

    /// Reads the text of an index of shards of this format; `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Input`] for other JSON, a name that is not a plain file name, or too many shards.
    pub fn parse(path: &Path, format: WeightFormat, text: &str) -> Result<Self> {
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
            if !is_shard_name(shard, format.ending()) {
                return Error::input("MODEL", "unsafe shard name")
                    .path(path)
                    .field(tensor)
                    .got(format!("{shard:?}"))
                    .expected(format!("a plain file name that ends in {}", format.ending()))
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

/// A single visible component that ends so.
fn is_shard_name(name: &str, ending: &str) -> bool {
    is_single_component(name) && !name.starts_with('.') && name.ends_with(ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(shard: &str) -> Result<ShardIndex> {
        let text = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": {"a": shard}}).to_string();
        ShardIndex::parse(Path::new("index.json"), WeightFormat::Safetensors, &text)
    }

    #[test]
    fn usual_names_are_accepted() {
        for name in ["model-00001-of-00002.safetensors", "model.safetensors", "模型 1.safetensors"] {
            assert_eq!(parse(name).unwrap().shards().len(), 1, "{name}");
        }
        let pickled = |shard: &str| {
            let text = serde_json::json!({"weight_map": {"a": shard}}).to_string();
            ShardIndex::parse(Path::new("index.json"), WeightFormat::Pickled, &text)
        };
        assert_eq!(pickled("pytorch_model-00001-of-00002.bin").unwrap().shards().len(), 1);
        assert!(pickled("model.safetensors").is_err() && pickled("../a.bin").is_err());
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
    fn an_index_of_any_length_is_read_no_further_than_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(WeightFormat::Safetensors.index());
        let refused = || ShardIndex::read(&path, WeightFormat::Safetensors).map(|_| ()).unwrap_err();
        assert_eq!(refused().exit_code(), 3);
        std::fs::write(&path, r#"{"weight_map":{"a":"a.safetensors"}}"#).unwrap();
        assert_eq!(ShardIndex::read(&path, WeightFormat::Safetensors).unwrap().shards().len(), 1);
        // More than any memory holds, in a file that takes no room.
        File::options().write(true).open(&path).unwrap().set_len(1 << 36).unwrap();
        let error = refused();
        assert!(error.exit_code() == 2 && error.to_string().contains("too large"), "{error}");
        std::fs::write(&path, b"\xFF").unwrap();
        assert!(refused().to_string().contains("no UTF-8"));
    }

    #[test]
    fn duplicates_and_empty_maps_are_refused() {
        let parse =
            |text: &str| ShardIndex::parse(Path::new("i"), WeightFormat::Safetensors, text).map(|_| ());
        assert!(parse(r#"{"weight_map":{"a":"a.safetensors","a":"b.safetensors"}}"#).is_err());
        assert!(parse(r#"{"weight_map":{}}"#).is_err());
        assert!(parse(r#"{"weight_map":{"a":1}}"#).is_err());
        assert!(parse(r#"{}"#).is_err());
        assert!(parse("").is_err());
    }
}
