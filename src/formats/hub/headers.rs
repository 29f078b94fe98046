//! What the head of an answer says, through allow-lists: nothing of it is used before it has the form it must have.

use std::time::Duration;

use super::hash::ContentId;
use super::names;

/// Status and headers of an answer.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) status: u16,
    /// Names in lower case.
    headers: Vec<(String, Vec<u8>)>,
}

/// A header that breaks its rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Odd {
    pub(super) header: &'static str,
    pub(super) got: String,
}

/// Largest file that is believed in, 16 TiB.
const MAX_SIZE: u64 = 1 << 44;

impl Head {
    /// A head of these parts.
    pub(super) fn new<'a>(status: u16, headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let headers = headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()));
        Self { status, headers: headers.collect() }
    }

    /// The value of a header, if there is one; two that differ are odd.
    pub(super) fn bytes(&self, header: &'static str) -> Result<Option<&[u8]>, Odd> {
        let mut values =
            self.headers.iter().filter(|(name, _)| name == header).map(|(_, value)| value.as_slice());
        let Some(first) = values.next() else { return Ok(None) };
        match values.all(|value| value == first) {
            true => Ok(Some(first)),
            false => Err(Odd { header, got: "two values".to_owned() }),
        }
    }

    /// The value of a header through `read`, which says none for what breaks the rule.
    fn read<T>(&self, header: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Odd> {
        let Some(bytes) = self.bytes(header)? else { return Ok(None) };
        let value = std::str::from_utf8(bytes).ok().and_then(|text| read(text.trim()));
        match value {
            Some(value) => Ok(Some(value)),
            None => {
                let start = &bytes[..bytes.len().min(80)];
                Err(Odd { header, got: format!("{:?}", String::from_utf8_lossy(start)) })
            }
        }
    }

    /// What the file is: the id of the large file that stands behind a pointer, else that of the answer.
    pub(super) fn content_id(&self) -> Result<Option<ContentId>, Odd> {
        match self.read("x-linked-etag", etag)? {
            Some(id) => Ok(Some(id)),
            None => self.read("etag", etag),
        }
    }

    /// Whether the file is stored elsewhere, so that the `ETag` of its address is not its own.
    pub(super) fn is_linked(&self) -> bool {
        matches!(self.bytes("x-linked-etag"), Ok(Some(_)) | Err(_))
    }

    /// The commit that the answer is of.
    pub(super) fn commit(&self) -> Result<Option<String>, Odd> {
        self.read("x-repo-commit", names::commit)
    }

    /// Bytes of the file: of the large file behind a pointer, else of the answer.
    pub(super) fn size(&self) -> Result<Option<u64>, Odd> {
        match self.read("x-linked-size", number)? {
            Some(size) => Ok(Some(size)),
            // The length of a redirect is that of its text.
            None if (200..300).contains(&self.status) => self.content_length(),
            None => Ok(None),
        }
    }

    /// Bytes of the answer.
    pub(super) fn content_length(&self) -> Result<Option<u64>, Odd> {
        self.read("content-length", number)
    }

    /// Which bytes of the file the answer has.
    pub(super) fn content_range(&self) -> Result<Option<ByteRange>, Odd> {
        self.read("content-range", |text| {
            let (range, total) = text.strip_prefix("bytes ")?.trim().split_once('/')?;
            let (first, last) = range.split_once('-')?;
            let total = if total == "*" { None } else { Some(number(total)?) };
            let range = ByteRange { first: number(first)?, last: number(last)?, total };
            (range.first <= range.last && total.is_none_or(|total| range.last < total)).then_some(range)
        })
    }

    /// How long the hub asks to wait. A date is not understood, and is as if there were none.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.read("retry-after", number).ok().flatten().map(Duration::from_secs)
    }

    /// Whether the bytes are packed in a way that nobody asked for.
    pub(super) fn is_encoded(&self) -> bool {
        let is_plain =
            |value: &[u8]| value.trim_ascii().is_empty() || value.eq_ignore_ascii_case(b"identity");
        self.bytes("content-encoding").map_or(true, |value| value.is_some_and(|value| !is_plain(value)))
    }

    /// What the hub says went wrong: its code and its sentence, shortened.
    pub(super) fn explanation(&self) -> Option<String> {
        let text = |header| {
            let bytes = self.bytes(header).ok().flatten()?;
            let text: String =
                String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(150).collect();
            (!text.trim().is_empty()).then(|| text.trim().to_owned())
        };
        match (text("x-error-code"), text("x-error-message")) {
            (Some(code), Some(message)) => Some(format!("{code}: {message}")),
            (code, message) => code.or(message),
        }
    }
}

/// Bytes `first` to `last` of a file of `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ByteRange {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) total: Option<u64>,
}

/// An id in an `ETag`, weak or not.
fn etag(text: &str) -> Option<ContentId> {
    let text = text.strip_prefix("W/").unwrap_or(text);
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    ContentId::parse(text)
}

/// A number of bytes or seconds: digits, and not absurd.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&n| n <= MAX_SIZE)
}

#[cfg(test)]
mod tests {
    use super::super::origin::Url;
    use super::*;

    fn head(headers: &[(&str, &str)]) -> Head {
        Head::new(200, headers.iter().map(|&(name, value)| (name, value.as_bytes())))
    }

    #[test]
    fn ids_are_taken_from_their_quotes_and_nothing_else_is() {
        let (git, sha256) = ("a".repeat(40), "b".repeat(64));
        let id =
            |headers: &[(&str, &str)]| head(headers).content_id().map(|id| id.map(|id| id.hex().to_owned()));
        assert_eq!(id(&[("ETag", &format!("\"{git}\""))]), Ok(Some(git.clone())));
        assert_eq!(id(&[("etag", &format!("W/\"{git}\""))]), Ok(Some(git.clone())));
        assert_eq!(id(&[("ETag", &git), ("X-Linked-Etag", &sha256)]), Ok(Some(sha256)));
        assert_eq!(id(&[]), Ok(None));
        for bad in
            ["", "\"", "\"\"", "../../x", "\"../../../../etc/cron.d/x\"", "abc", "W/", "a/b", "..", "\0"]
        {
            assert!(id(&[("ETag", bad)]).is_err(), "{bad:?}");
            // A bad id of the file behind the pointer is not replaced by that of the pointer.
            assert!(id(&[("ETag", &git), ("X-Linked-Etag", bad)]).is_err(), "{bad:?}");
        }
        assert!(id(&[("ETag", &git), ("ETag", &"c".repeat(40))]).is_err());
    }

    #[test]
    fn numbers_are_digits_within_reason() {
        let size = |value: &str| head(&[("Content-Length", value)]).size();
        assert_eq!(size("12"), Ok(Some(12)));
        for bad in
            ["", "-1", "+1", "0x10", "1e9", "1 2", "12a", "99999999999999999999", "18446744073709551615"]
        {
            assert!(size(bad).is_err(), "{bad:?}");
        }
        let range = |value: &str| head(&[("Content-Range", value)]).content_range();
        assert_eq!(range("bytes 2-4/9"), Ok(Some(ByteRange { first: 2, last: 4, total: Some(9) })));
        assert_eq!(range("bytes 2-4/*"), Ok(Some(ByteRange { first: 2, last: 4, total: None })));
        for bad in [
            "",
            "bytes",
            "bytes */9",
            "bytes 4-2/9",
            "bytes 2-9/9",
            "bits 1-2/3",
            "bytes 1-2",
            "bytes -1-2/3",
        ] {
            assert!(range(bad).is_err(), "{bad:?}");
        }
        assert_eq!(head(&[("Retry-After", "7")]).retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(head(&[("Retry-After", "Wed, 21 Oct 2037 07:28:00 GMT")]).retry_after(), None);
    }

    /// Reads lines of `name: value` and asks for everything that is ever asked: nothing gets through that must not.
    fn check_bytes(bytes: &[u8]) {
        let line = |line: &'_ [u8]| {
            let colon = line.iter().position(|&b| b == b':')?;
            Some((
                String::from_utf8_lossy(&line[..colon]).into_owned(),
                line[colon + 1..].trim_ascii().to_vec(),
            ))
        };
        let lines: Vec<(String, Vec<u8>)> = bytes.split(|&b| b == b'\n').filter_map(line).collect();
        let head = Head::new(200, lines.iter().map(|(name, value)| (name.as_str(), value.as_slice())));
        if let Ok(Some(id)) = head.content_id() {
            assert!(matches!(id.hex().len(), 40 | 64) && id.hex().bytes().all(|b| b.is_ascii_hexdigit()));
        }
        if let Ok(Some(commit)) = head.commit() {
            assert!(commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()));
        }
        if let Ok(Some(range)) = head.content_range() {
            assert!(range.first <= range.last && range.total.is_none_or(|total| range.last < total));
        }
        assert!(head.size().ok().flatten().is_none_or(|size| size <= MAX_SIZE));
        if let Ok(Some(location)) = head.bytes("location")
            && let Ok(hub) = Url::parse("https://hub.co/a")
            && let Ok(target) = hub.redirect(location, &hub.origin)
        {
            assert!(target.origin.is_https && !target.origin.is_loopback());
            assert_eq!(Url::parse(&target.text()).as_ref(), Ok(&target));
        }
        let _ = (head.content_length(), head.retry_after(), head.is_encoded(), head.explanation());
    }

    #[test]
    fn arbitrary_bytes_are_read_without_harm() {
        let pieces: [&[u8]; 16] = [
            b"location: https://",
            b"cdn.net",
            b":44",
            b"/",
            b"@",
            b"//",
            b"http://",
            b"[::1]",
            b"ETag: \"",
            b"x-repo-commit:",
            b"\xff\xfe",
            b"content-range: bytes 0-",
            b"/*\n",
            b"aaaaaaaaaaaaaaaaaaaa",
            b"99999999999",
            b"\r\n",
        ];
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut bytes = Vec::new();
            for _ in 0..8 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                bytes.extend_from_slice(pieces[(state >> 60) as usize]);
            }
            check_bytes(&bytes);
        }
    }
}
