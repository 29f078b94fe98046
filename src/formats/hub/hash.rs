//! The ids of the hub's contents, and whether bytes have them.
//!
//! The hub names what it stores by what is in it: large files by their SHA-256, small ones by the id that Git gives a blob, the
//! SHA-1 of `blob LENGTH`, a zero byte and the contents. The Python library names the files of `blobs` so; a file whose
//! name is its hash can be checked at any time, without asking anybody.

use std::fs::File;
use std::io::{self, Read};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::names::is_hex;

/// What a file must be: 64 hexadecimal digits of SHA-256, or 40 of a Git blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentId(String);

impl ContentId {
    /// The id that `text` is; nothing but 40 or 64 hexadecimal digits is one, so that it can be the name of a file.
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

/// Files up to this size are hashed whenever they are met; larger ones when they arrive.
pub(super) const SMALL: u64 = 64 << 20;

/// The hash of contents that arrive in pieces.
pub(super) enum Hasher {
    /// Of a small file: with the length before it, as Git has it, and alone, as some mirrors have it.
    Sha1 {
        /// Git's.
        git: Sha1,
        /// The mirrors'.
        plain: Sha1,
    },
    /// Of a large file.
    Sha256(Sha256),
}

impl Hasher {
    /// A hash of the kind of `id` over `len` bytes to come.
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

    /// `id` if what was hashed has it, else the id that it has.
    pub(super) fn finish(self, id: &ContentId) -> ContentId {
        let hex = |bytes: &[u8]| ContentId(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        match self {
            Self::Sha1 { plain, .. } if hex(&plain.clone().finalize()) == *id => id.clone(),
            Self::Sha1 { git, .. } => hex(&git.finalize()),
            Self::Sha256(hash) => hex(&hash.finalize()),
        }
    }
}

/// `id` if the contents of `file` have it, else the id that they have. `stop` is asked between reads.
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
