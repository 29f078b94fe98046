//! URLs: the endpoint, allowed redirects, and the hosts that may receive the token.
//!
//! A URL is parsed by strict rules and rebuilt from its parts, so that the host that is checked is the host
//! that is contacted.

use std::net::Ipv4Addr;

/// Scheme, host and port: the scope of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Whether it is `https`.
    pub is_https: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// Whether it is this machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.as_str();
        host == "localhost"
            || host.ends_with(".localhost")
            || host == "[::1]"
            || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// True if the connection is encrypted or local.
    pub fn is_private(&self) -> bool {
        self.is_https || self.is_loopback()
    }

    /// `https://host`, with the port if it is not the usual one.
    pub fn text(&self) -> String {
        let (scheme, usual) = if self.is_https { ("https", 443) } else { ("http", 80) };
        match self.port == usual {
            true => format!("{scheme}://{}", self.host),
            false => format!("{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// An address without user, password and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// Scheme, host and port.
    pub origin: Origin,
    /// Path and query; empty, or begins with a slash or a question mark.
    path: String,
}

/// Maximum length of a URL; those of signed downloads have about 1,500 bytes.
const MAX_URL: usize = 8192;

impl Url {
    /// Parses an absolute URL; the error is a sentence about the fault.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_URL {
            return Err("the address is too long");
        }
        if !text.bytes().all(|b| b.is_ascii_graphic() && !b"\\\"<>^`{|}#".contains(&b)) {
            return Err("the address has characters that are not allowed");
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("the address does not begin with https://");
        };
        let is_https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err("the address is neither https nor http"),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = split_port(authority)?;
        let port = port.unwrap_or(if is_https { 443 } else { 80 });
        let path = if path.starts_with('?') { format!("/{path}") } else { path.to_owned() };
        Ok(Self { origin: Origin { is_https, host: host.to_ascii_lowercase(), port }, path })
    }

    /// Parses the URL of a hub.
    pub(super) fn parse_endpoint(text: &str) -> Result<Self, &'static str> {
        let url = Self::parse(text)?;
        if url.path.contains(['?', '%']) || url.path.split('/').any(|part| part == "." || part == "..") {
            return Err("the path of a hub's address is plain");
        }
        Ok(url)
    }

    /// The whole address.
    pub fn text(&self) -> String {
        format!("{}{}", self.origin.text(), self.path)
    }

    /// The address of `path` (which begins with a slash, and may have a query) below this one.
    pub(super) fn join(&self, path: &str) -> Self {
        Self { origin: self.origin.clone(), path: format!("{}{path}", self.path.trim_end_matches('/')) }
    }

    /// The target of a redirect to `location`, if it is allowed: to the same host, or to another host by
    /// https. `endpoint` is the origin of the first request.
    pub fn redirect(&self, location: &[u8], endpoint: &Origin) -> Result<Self, &'static str> {
        let Ok(location) = std::str::from_utf8(location) else { return Err("the target is not text") };
        let target = if location.starts_with('/') && !location.starts_with("//") {
            // Parsed by the rules for whole URLs, like every other target.
            Self::parse(&format!("{}{location}", self.origin.text()))?
        } else if location.contains("://") {
            // A fragment means nothing to a server.
            Self::parse(location.split('#').next().unwrap_or_default())?
        } else {
            return Err("the target is not a whole address");
        };
        if target.origin.is_loopback() && !endpoint.is_loopback() {
            return Err("the target is this machine");
        }
        if !target.origin.is_https && (self.origin.is_https || endpoint.is_https) {
            return Err("the target is http, which can be modified in transit");
        }
        if !target.origin.is_https && target.origin.host != endpoint.host {
            return Err("the target is another host by http");
        }
        Ok(target)
    }
}

/// Host and port of an authority.
fn split_port(authority: &str) -> Result<(&str, Option<u16>), &'static str> {
    if authority.contains('@') {
        return Err("the address has a user name");
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']').ok_or("the address has no ] after [")?;
            if rest[..end].parse::<std::net::Ipv6Addr>().is_err() {
                return Err("the address in brackets is not IPv6");
            }
            authority.split_at(end + 2)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_name = |host: &str| {
        host.len() <= 253
            && host.split('.').all(|part| {
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            })
    };
    if !host.starts_with('[') && !is_name(host) {
        return Err("the address has no proper host name");
    }
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok((host, None)),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse() {
            Ok(port) if port > 0 => Ok((host, Some(port))),
            _ => Err("the port is out of range"),
        },
        _ => Err("the port is not a number"),
    }
}

/// `text` as part of a path: everything but letters, digits, `-._~/` as `%XX`.
pub(super) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            true => encoded.push(byte as char),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_by_narrow_rules() {
        let text = |url: &str| Url::parse(url).map(|url| url.text());
        assert_eq!(text("https://HuggingFace.co"), Ok("https://huggingface.co".into()));
        assert_eq!(text("https://h:443/a?b=%20c"), Ok("https://h/a?b=%20c".into()));
        assert_eq!(text("http://127.0.0.1:80?x"), Ok("http://127.0.0.1/?x".into()));
        assert_eq!(text("http://[::1]:8080/a"), Ok("http://[::1]:8080/a".into()));
        let long = format!("https://h/{}", "a".repeat(MAX_URL));
        for bad in [
            "",
            "h",
            "/a",
            "ftp://h/",
            "file:///etc/passwd",
            "https://",
            "https:///a",
            "https://a@b/",
            "https://a:b@c/",
            "https://h:0/",
            "https://h:65536/",
            "https://h:/",
            "https://h:x/",
            "https://h\\@b/",
            "https://h#b/",
            "https://a b/",
            "https://a\r\nX: y",
            "https://あ/",
            "https://[::1",
            "https://[a]/",
            "https://a..b/",
            "https://h%2f/",
            "https://-/ ",
            &long,
        ] {
            assert!(Url::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Url::parse_endpoint("https://h/artifactory/api/hf").is_ok());
        for bad in ["https://h/../a", "https://h/%2e", "https://h/?q"] {
            assert!(Url::parse_endpoint(bad).is_err(), "{bad:?}");
        }
        let endpoint = Url::parse("https://h/base/").unwrap();
        assert_eq!(endpoint.join("/api/x?y").text(), "https://h/base/api/x?y");
    }

    #[test]
    fn redirects_lead_to_https_or_stay_on_the_host() {
        let go = |from: &str, to: &str, endpoint: &str| {
            let from = Url::parse(from).unwrap();
            from.redirect(to.as_bytes(), &Url::parse(endpoint).unwrap().origin).map(|url| url.text())
        };
        let hub = "https://hub.co";
        assert_eq!(go("https://hub.co/a", "/b?c", hub), Ok("https://hub.co/b?c".into()));
        assert_eq!(go("https://hub.co/a", "https://cdn.net/b#f", hub), Ok("https://cdn.net/b".into()));
        assert_eq!(
            go("http://localhost:1/a", "http://localhost:2/b", "http://localhost:1"),
            Ok("http://localhost:2/b".into())
        );
        assert_eq!(go("http://mirror/a", "https://cdn.net/", "http://mirror"), Ok("https://cdn.net/".into()));
        for (from, to, endpoint) in [
            ("https://hub.co/a", "http://hub.co/a", hub),
            ("https://hub.co/a", "http://cdn.net/a", hub),
            ("https://cdn.net/a", "http://hub.co/a", hub),
            ("https://hub.co/a", "https://127.0.0.1/a", hub),
            ("https://hub.co/a", "https://localhost/a", hub),
            ("https://hub.co/a", "//cdn.net/a", hub),
            ("https://hub.co/a", "b", hub),
            ("https://hub.co/a", "", hub),
            ("https://hub.co/a", "/a\r\nb", hub),
            ("https://hub.co/a", "https://user:pw@cdn.net/", hub),
            ("https://hub.co/a", "file:///etc/passwd", hub),
            ("http://localhost:1/a", "http://other/a", "http://localhost:1"),
            ("https://cdn.net/a", "http://localhost:1/a", "http://localhost:1"),
        ] {
            assert!(go(from, to, endpoint).is_err(), "{from} {to}");
        }
        assert!(
            Url::parse(hub).unwrap().redirect(b"https://\xff/", &Url::parse(hub).unwrap().origin).is_err()
        );
    }

    #[test]
    fn names_become_parts_of_a_path() {
        assert_eq!(percent_encode("a/b c?d#e%2e"), "a/b%20c%3Fd%23e%252e");
        assert_eq!(percent_encode("あ"), "%E3%81%82");
    }
}
