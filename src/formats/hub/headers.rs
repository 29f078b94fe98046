//! Status and headers of an answer, parsed with allow-lists: no value is used before its form is checked.

use std::time::Duration;

use super::hash::ContentId;
use super::names;

/// Status and headers of an answer.
#[derive(Debug, Clone)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// Names in lower case.
    headers: Vec<(String, Vec<u8>)>,
}

/// A header that breaks its rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Odd {
    /// Its name.
    pub header: &'static str,
    /// Its value, shortened.
    pub got: String,
}

/// Maximum plausible file size, 16 TiB.
const MAX_SIZE: u64 = 1 << 44;

impl Head {
    /// A head of these parts.
    pub fn new<'a>(status: u16, headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let headers = headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()));
        Self { status, headers: headers.collect() }
    }

    /// The value of a header, if there is one; two different values are an error.
    pub fn bytes(&self, header: &'static str) -> Result<Option<&[u8]>, Odd> {
        let mut values =
            self.headers.iter().filter(|(name, _)| name == header).map(|(_, value)| value.as_slice());
        let Some(first) = values.next() else { return Ok(None) };
        match values.all(|value| value == first) {
            true => Ok(Some(first)),
            false => Err(Odd { header, got: "two values".to_owned() }),
        }
    }

    /// The value of a header parsed by `read`, which returns `None` for an invalid value.
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

    /// The id of the file: that of the large file behind a pointer, else that of the answer.
    pub fn content_id(&self) -> Result<Option<ContentId>, Odd> {
        match self.read("x-linked-etag", etag)? {
            Some(id) => Ok(Some(id)),
            None => self.read("etag", etag),
        }
    }

    /// Whether the file is stored elsewhere, so that the `ETag` of its address is not its own.
    pub fn is_linked(&self) -> bool {
        matches!(self.bytes("x-linked-etag"), Ok(Some(_)) | Err(_))
    }

    /// The commit of the answer.
    pub fn commit(&self) -> Result<Option<String>, Odd> {
        self.read("x-repo-commit", names::commit)
    }

    /// Bytes of the file: of the large file behind a pointer, else of the answer.
    pub fn size(&self) -> Result<Option<u64>, Odd> {
        match self.read("x-linked-size", number)? {
            Some(size) => Ok(Some(size)),
            // The length of a redirect is that of its text.
            None if (200..300).contains(&self.status) => self.content_length(),
            None => Ok(None),
        }
    }

    /// Bytes of the answer.
    pub fn content_length(&self) -> Result<Option<u64>, Odd> {
        self.read("content-length", number)
    }

    /// The range of the file that the answer contains.
    pub fn content_range(&self) -> Result<Option<ByteRange>, Odd> {
        self.read("content-range", |text| {
            let (range, total) = text.strip_prefix("bytes ")?.trim().split_once('/')?;
            let (first, last) = range.split_once('-')?;
            let total = if total == "*" { None } else { Some(number(total)?) };
            let range = ByteRange { first: number(first)?, last: number(last)?, total };
            (range.first <= range.last && total.is_none_or(|total| range.last < total)).then_some(range)
        })
    }

    /// The wait that the hub requests. A date is not supported and ignored.
    pub fn retry_after(&self) -> Option<Duration> {
        self.read("retry-after", number).ok().flatten().map(Duration::from_secs)
    }

    /// True if the content is compressed although that was not requested.
    pub fn is_encoded(&self) -> bool {
        let is_plain =
            |value: &[u8]| value.trim_ascii().is_empty() || value.eq_ignore_ascii_case(b"identity");
        self.bytes("content-encoding").map_or(true, |value| value.is_some_and(|value| !is_plain(value)))
    }

    /// The hub's error: its code and message, shortened.
    pub fn explanation(&self) -> Option<String> {
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
pub struct ByteRange {
    /// The first byte.
    pub first: u64,
    /// The last byte.
    pub last: u64,
    /// Bytes of the file, if they are known.
    pub total: Option<u64>,
}

/// An id in an `ETag`, weak or not.
fn etag(text: &str) -> Option<ContentId> {
    let text = text.strip_prefix("W/").unwrap_or(text);
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    ContentId::parse(text)
}

/// A number of bytes or seconds: digits only, within a plausible range.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&n| n <= MAX_SIZE)
}

#[cfg(test)]
mod tests {
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
}
