//! Ids of models, revisions and commits, checked before they are used in paths.

/// A model of the hub and its revision, `ORG/NAME` or `ORG/NAME@REVISION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ModelName<'a> {
    pub(super) id: &'a str,
    pub(super) revision: &'a str,
}

/// The default revision.
pub(super) const MAIN: &str = "main";

impl<'a> ModelName<'a> {
    /// Parses a name; the error is a sentence about the fault.
    pub(super) fn parse(name: &'a str) -> Result<Self, &'static str> {
        let (id, revision) = name.split_once('@').unwrap_or((name, MAIN));
        check_id(id)?;
        check_revision(revision)?;
        Ok(Self { id, revision })
    }

    /// The folder of the model in the cache.
    pub(super) fn folder(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
    }

    /// The name as the user would write it.
    pub(super) fn text(&self) -> String {
        match self.revision {
            MAIN => self.id.to_owned(),
            revision => format!("{}@{revision}", self.id),
        }
    }
}

/// The hub's own rules for ids; they exclude absolute paths and `..`.
pub(super) fn check_id(id: &str) -> Result<(), &'static str> {
    let parts: Vec<&str> = id.split('/').collect();
    if parts.len() > 2 {
        return Err("an id has at most one slash");
    }
    for part in parts {
        if part.is_empty() || part.len() > 96 {
            return Err("each part has 1 to 96 characters");
        }
        if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err("only letters, digits, - _ . are allowed");
        }
        if part.starts_with(['-', '.'])
            || part.ends_with(['-', '.'])
            || part.contains("..")
            || part.contains("--")
        {
            return Err("no - or . at an end, no .. or --");
        }
    }
    match id.ends_with(".git") {
        true => Err("an id does not end in .git"),
        false => Ok(()),
    }
}

/// Branches, tags, commits and `refs/pr/N`: Git's rules, without the characters that a path or an address could misread.
pub(super) fn check_revision(revision: &str) -> Result<(), &'static str> {
    if revision.is_empty() || revision.len() > 200 {
        return Err("a revision has 1 to 200 characters");
    }
    if !revision.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./+".contains(&b)) {
        return Err("a revision has only letters, digits, - _ . / +");
    }
    let is_odd = |part: &str| {
        part.is_empty()
            || part.starts_with(['.', '-'])
            || part.ends_with('.')
            || part.ends_with(".lock")
            || part.contains("..")
    };
    match revision.split('/').any(is_odd) {
        true => Err("no part of a revision is empty, begins with . or -, or ends in . or .lock"),
        false => Ok(()),
    }
}

/// Parses a commit id: exactly 40 hexadecimal digits; returned in lower case.
pub(super) fn commit(text: &str) -> Option<String> {
    (text.len() == 40 && is_hex(text)).then(|| text.to_ascii_lowercase())
}

/// Whether `text` has hexadecimal digits only.
pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_follow_an_id() {
        let parse = |name| ModelName::parse(name).map(|name| (name.id, name.revision, name.text()));
        assert_eq!(parse("a/b"), Ok(("a/b", "main", "a/b".to_owned())));
        assert_eq!(parse("a/b@v1.0"), Ok(("a/b", "v1.0", "a/b@v1.0".to_owned())));
        assert_eq!(parse("a/b@refs/pr/3").map(|found| found.1), Ok("refs/pr/3"));
        let long = "a".repeat(201);
        for bad in [
            "", "..", "../x", "a/../b", "/a", "a/", "a//b", ".a", "-a", "a.", "a.lock", "a b", "a\\b", "a\0",
            "a@b", "a:b", "a?b", "a#b", "a%2fb", "あ", "a\n", &long,
        ] {
            assert!(check_revision(bad).is_err(), "{bad:?}");
            assert!(ModelName::parse(&format!("a/b@{bad}")).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn commits_are_forty_digits() {
        assert_eq!(commit(&"aB".repeat(20)), Some("ab".repeat(20)));
        let hostile = format!("../{}", "a".repeat(37));
        for bad in
            ["", "main", "abc", &"a".repeat(39), &"a".repeat(41), &"a".repeat(64), &"g".repeat(40), &hostile]
        {
            assert_eq!(commit(bad), None, "{bad:?}");
        }
    }
}
