//! The hub's listing of a model: its commit and its files.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::hash::ContentId;
use super::{file_names, names};

/// Maximum number of files of a model; the largest have some thousands.
const MAX_FILES: usize = 100_000;

/// A checked list of files: every name is safe to join to a folder.
#[derive(Debug)]
pub(super) struct Listing {
    /// The commit, 40 hexadecimal digits.
    pub(super) commit: String,
    /// The files by name.
    pub(super) files: BTreeMap<String, Listed>,
}

/// An entry of a listing. Mirrors may give fewer fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) size: Option<u64>,
    pub(super) id: Option<ContentId>,
}

#[derive(Deserialize)]
struct Raw {
    sha: String,
    #[serde(default, deserialize_with = "bounded")]
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<RawLarge>,
}

#[derive(Deserialize)]
struct RawLarge {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Parses the hub's listing of a model; the error is a sentence about the fault.
    ///
    /// # Errors
    /// A sentence about bytes that are not JSON, a commit that is none, or a name that leads out of a folder.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.trim_ascii_start().starts_with(b"<") {
            return Err("a web page instead of JSON (a login page or a proxy in between?)".to_owned());
        }
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|error| format!("not the expected JSON: {}", short(&error.to_string())))?;
        let Some(commit) = names::commit(&raw.sha) else {
            return Err(format!("the commit {:?} is not 40 hexadecimal digits", short(&raw.sha)));
        };
        let mut files = BTreeMap::new();
        for file in raw.siblings {
            if let Err(why) = file_names::check_file_name(&file.rfilename) {
                return Err(format!(
                    "the file name {:?} in its list is not safe: {why}",
                    short(&file.rfilename)
                ));
            }
            let (id, size) = match file.lfs {
                Some(large) => (large.sha256, large.size.or(file.size)),
                None => (file.blob_id, file.size),
            };
            let id = match id.map(|id| ContentId::parse(&id).ok_or(id)).transpose() {
                Ok(id) => id,
                Err(id) => return Err(format!("the id {:?} of {:?} is invalid", short(&id), file.rfilename)),
            };
            if files.insert(file.rfilename.clone(), Listed { size, id }).is_some() {
                return Err(format!("the file {:?} is listed twice", file.rfilename));
            }
        }
        Ok(Self { commit, files })
    }
}

/// The start of a text of any length.
fn short(text: &str) -> String {
    text.chars().take(160).collect()
}

/// A list that ends with an error before it fills the memory.
fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RawFile>, D::Error> {
    struct Files;
    impl<'de> Visitor<'de> for Files {
        type Value = Vec<RawFile>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of files")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut files = Vec::new();
            while let Some(file) = seq.next_element()? {
                if files.len() == MAX_FILES {
                    return Err(serde::de::Error::custom(format!("more than {MAX_FILES} files")));
                }
                files.push(file);
            }
            Ok(files)
        }
    }
    deserializer.deserialize_seq(Files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn parse(siblings: serde_json::Value) -> Result<Listing, String> {
        let value = serde_json::json!({"sha": COMMIT, "other": [1], "siblings": siblings});
        Listing::parse(value.to_string().as_bytes())
    }

    #[test]
    fn files_have_the_ids_of_what_is_stored() {
        let listing = parse(serde_json::json!([
            {"rfilename": "config.json", "size": 3, "blobId": "a".repeat(40)},
            {"rfilename": "m.safetensors", "size": 130, "blobId": "b".repeat(40), "lfs": {"sha256": "c".repeat(64), "size": 9}},
            {"rfilename": "bare"},
        ]))
        .unwrap();
        assert_eq!(listing.commit, COMMIT);
        let listed = |name: &str| {
            (listing.files[name].size, listing.files[name].id.clone().map(|id| id.hex().to_owned()))
        };
        assert_eq!(listed("config.json"), (Some(3), Some("a".repeat(40))));
        assert_eq!(listed("m.safetensors"), (Some(9), Some("c".repeat(64))));
        assert_eq!(listed("bare"), (None, None));
    }

    #[test]
    fn hostile_lists_are_refused() {
        for name in
            ["../x", "/etc/passwd", "a/../../b", "a\\b", "C:x", "", "a\nb", ".git/hooks/post-checkout"]
        {
            let error =
                parse(serde_json::json!([{"rfilename": "config.json"}, {"rfilename": name}])).unwrap_err();
            assert!(error.contains("not safe"), "{name:?}: {error}");
        }
        assert!(
            parse(serde_json::json!([{"rfilename": "a"}, {"rfilename": "a"}])).unwrap_err().contains("twice")
        );
        assert!(
            parse(serde_json::json!([{"rfilename": "a", "blobId": "../../x"}]))
                .unwrap_err()
                .contains("is invalid")
        );
        for bytes in [
            &b""[..],
            b"{}",
            b"null",
            b"[]",
            b"\xff",
            br#"{"sha":"main"}"#,
            br#"{"sha":"../../x"}"#,
            br#"{"sha":1}"#,
            b"<!DOCTYPE html><html>",
        ] {
            assert!(Listing::parse(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
        let nest = |key: &str| {
            format!(r#"{{"sha":"{COMMIT}","{key}":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000))
        };
        assert!(Listing::parse(nest("siblings").as_bytes()).is_err());
        // A message does not contain text of any length.
        let error = Listing::parse(
            format!(r#"{{"sha":"{COMMIT}","siblings":"{}"}}"#, "a".repeat(1 << 20)).as_bytes(),
        );
        assert!(error.unwrap_err().len() < 500);
        // Unused values are skipped without recursion.
        assert!(Listing::parse(nest("other").as_bytes()).is_ok());
        let many = format!(
            r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#,
            vec![r#"{"rfilename":"a"}"#; MAX_FILES + 1].join(",")
        );
        assert!(Listing::parse(many.as_bytes()).unwrap_err().contains("more than"));
    }
}
