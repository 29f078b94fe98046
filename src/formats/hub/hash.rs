//! Content ids of the hub, and verifying bytes against them.
//!
//! The hub identifies content by its hash: large files by their SHA-256, small ones by the Git blob id, which
//! is the SHA-1 of `blob LENGTH`, a zero byte and the content. The Python library names the files in `blobs`
//! by these ids, so a file can be verified at any time without a network.

use std::fs::File;
use std::io::{self, Read};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::names::is_hex;

/// The id of a file: 64 hexadecimal digits of SHA-256, or 40 of a Git blob id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentId(String);

impl ContentId {
    /// Parses an id. Only 40 or 64 hexadecimal digits are accepted, so an id is always a safe file name.
    pub fn parse(text: &str) -> Option<Self> {
        (matches!(text.len(), 40 | 64) && is_hex(text)).then(|| Self(text.to_ascii_lowercase()))
    }

    /// The digits, in lower case.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The name of the hash, for messages.
    pub fn kind(&self) -> &'static str {
        if self.is_git() { "Git id" } else { "SHA-256" }
    }

    fn is_git(&self) -> bool {
        self.0.len() == 40
    }
}

/// Files up to this size are hashed at every use; larger ones only after the download.
pub(super) const SMALL: u64 = 64 << 20;

/// Incremental hash of content.
pub(super) enum Hasher {
    /// For a small file: the Git blob id, and the plain SHA-1 that some mirrors use.
    Sha1 {
        /// Git's.
        git: Sha1,
        /// The mirrors'.
        plain: Sha1,
    },
    /// For a large file.
    Sha256(Sha256),
}

impl Hasher {
    /// Starts a hash of the kind of `id` over `len` bytes.
    pub(super) fn new(id: &ContentId, len: u64) -> Self {
        match id.is_git() {
            true => Self::Sha1 { git: Sha1::new_with_prefix(format!("blob {len}\0")), plain: Sha1::new() },
            false => Self::Sha256(Sha256::new()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1 { git, plain } => {
                git.update(bytes);
                plain.update(bytes);
            }
            Self::Sha256(hash) => hash.update(bytes),
        }
    }

    /// `id` if the hashed content matches it, else the actual id.
    pub(super) fn finish(self, id: &ContentId) -> ContentId {
        let hex = |bytes: &[u8]| ContentId(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        match self {
            Self::Sha1 { plain, .. } if hex(&plain.clone().finalize()) == *id => id.clone(),
            Self::Sha1 { git, .. } => hex(&git.finalize()),
            Self::Sha256(hash) => hex(&hash.finalize()),
        }
    }
}

/// `id` if the content of `file` matches it, else the actual id. `stop` is polled between reads.
pub(super) fn hash_file(file: &mut File, id: &ContentId, stop: &dyn Fn() -> bool) -> io::Result<ContentId> {
    let mut hasher = Hasher::new(id, file.metadata()?.len());
    hash_rest(file, &mut hasher, stop)?;
    Ok(hasher.finish(id))
}

/// Hashes `file` from its position to its end, and says how many bytes that were.
pub(super) fn hash_rest(file: &mut File, hasher: &mut Hasher, stop: &dyn Fn() -> bool) -> io::Result<u64> {
    let (mut buffer, mut total) = (vec![0; 1 << 20], 0);
    loop {
        if stop() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                total += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(like: &str, bytes: &[u8]) -> String {
        let like = ContentId::parse(like).unwrap();
        let mut hasher = Hasher::new(&like, bytes.len() as u64);
        hasher.update(bytes);
        hasher.finish(&like).hex().to_owned()
    }

    #[test]
    fn ids_are_those_of_git_and_of_sha256sum() {
        // `git hash-object` and `sha256sum` of "hello\n".
        assert_eq!(id(&"0".repeat(40), b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(id(&"0".repeat(64), b"hello\n"), sha256);
        // `sha1sum`, where that is what is asked for.
        let plain = "f572d396fae9206628714fb2ce00f72e94f2258f";
        assert_eq!(id(plain, b"hello\n"), plain);
        // `git hash-object` of an empty file.
        assert_eq!(id(&"0".repeat(40), b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    }

    #[test]
    fn only_digits_are_ids() {
        assert_eq!(ContentId::parse(&"A".repeat(40)).unwrap().hex(), "a".repeat(40));
        let path = format!("../{}", "a".repeat(37));
        for bad in ["", "abc", &"a".repeat(32), &"a".repeat(41), &"g".repeat(40), &path, &"a".repeat(128)] {
            assert_eq!(ContentId::parse(bad), None, "{bad:?}");
        }
    }
}
