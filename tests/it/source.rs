//! Source files as the tidy checks see them: text, and code without comments, literals and test parts.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A source file of the repository.
pub(crate) struct Source {
    /// Path from the root of the repository, with `/`.
    pub(crate) path: String,
    /// The text.
    pub(crate) text: String,
    /// The text with comments, strings and characters blanked out; lines stay where they are.
    pub(crate) code: String,
    /// `code` without the parts for tests; empty for files of tests.
    pub(crate) shipped: String,
}

impl Source {
    /// A file with the given text.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let shipped = if is_test(path) { String::new() } else { without_tests(&code) };
        Self { path: path.to_owned(), text: text.to_owned(), code, shipped }
    }

    /// Last part of the path, without `.rs`.
    pub(crate) fn stem(&self) -> &str {
        self.name().trim_end_matches(".rs")
    }

    /// Last part of the path.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// The folder, or nothing at the root.
    pub(crate) fn folder(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }
}

/// The root of the repository: from cargo when the tests run, or else when they were built. So a binary
/// copied to another machine finds its files there.
pub(crate) fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let now = std::env::var_os("CARGO_MANIFEST_DIR");
        now.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
    });
    &ROOT
}

/// All files below `folder` whose name ends in one of `endings`, as paths from the root, sorted.
pub(crate) fn files(folder: &str, endings: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    collect(&root().join(folder), endings, &mut found);
    let prefix = root();
    let mut paths: Vec<String> = found
        .iter()
        .filter_map(|path| path.strip_prefix(prefix).ok())
        .map(|path| path.to_string_lossy().replace('\\', "/"))
        .collect();
    paths.sort();
    paths
}

/// The Rust files below `folder`.
pub(crate) fn sources(folder: &str) -> Vec<Source> {
    files(folder, &[".rs"]).iter().map(|path| Source::new(path, &read(path))).collect()
}

/// The text of a file.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// True if `line` contains `word` as a whole word, not as a part of a longer name.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back().is_some_and(is_name);
        let after = line[start + word.len()..].chars().next().is_some_and(is_name);
        let part_of_a_name = before && word.starts_with(is_name) || after && word.ends_with(is_name);
        !part_of_a_name
    })
}

/// Whether a character may be part of a Rust name.
pub(crate) fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn collect(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            collect(&path, endings, found);
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

/// Whether a whole file is for tests.
fn is_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let by_name = ["tests.rs", "testing.rs"].contains(&name) || name.ends_with("_tests.rs");
    by_name || !path.starts_with("src/") && !path.starts_with("build/") && path != "build.rs"
}

/// Blanks out comments, strings and characters.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        for c in &chars[at..end] {
            code.push(if *c == '\n' { '\n' } else { ' ' });
        }
        if end == at {
            code.push(chars[at]);
            at += 1;
        } else {
            at = end;
        }
    }
    code
}

/// Where the comment, string or character that starts at `at` ends; `at` if none starts.
fn literal_end(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let find = |from: usize, stop: &dyn Fn(usize) -> bool| {
        (from..rest.len()).find(|index| stop(*index)).map_or(chars.len(), |index| at + index)
    };
    match rest {
        ['/', '/', ..] => find(2, &|index| rest[index] == '\n'),
        ['/', '*', ..] => {
            let (mut depth, mut index) = (1, 2);
            while depth > 0 && index < rest.len() {
                match &rest[index..] {
                    ['/', '*', ..] => (depth, index) = (depth + 1, index + 2),
                    ['*', '/', ..] => (depth, index) = (depth - 1, index + 2),
                    _ => index += 1,
                }
            }
            at + index
        }
        ['r', ..] if at == 0 || !is_name(chars[at - 1]) || chars[at - 1] == 'b' => {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            if rest.get(1 + hashes) != Some(&'"') {
                return at;
            }
            let closes = |index: usize| {
                rest[index] == '"'
                    && rest[index + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
            };
            (find(2 + hashes, &closes) + 1 + hashes).min(chars.len())
        }
        ['"', ..] => {
            let mut index = 1;
            while index < rest.len() && rest[index] != '"' {
                index += if rest[index] == '\\' { 2 } else { 1 };
            }
            (at + index + 1).min(chars.len())
        }
        ['\'', '\\', ..] => (find(3, &|index| rest[index] == '\'') + 1).min(chars.len()),
        // Anything else after a quote is a lifetime.
        ['\'', _, '\'', ..] => at + 3,
        _ => at,
    }
}

/// Blanks out every item under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut rest = code;
    let mut kept = String::with_capacity(code.len());
    while let Some(start) = rest.find("#[cfg(test)]") {
        kept.push_str(&rest[..start]);
        let mut depth = 0;
        let end = rest[start..].char_indices().find(|(_, c)| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth == 0 && (*c == '}' || *c == ';')
        });
        let end = end.map_or(rest.len(), |(offset, _)| start + offset + 1);
        kept.extend(rest[start..end].chars().filter(|c| *c == '\n'));
        rest = &rest[end..];
    }
    kept.push_str(rest);
    kept
}

#[test]
fn literals_and_comments_are_no_code() {
    let source = Source::new(
        "src/a.rs",
        "//! x unsafe\nlet a = \"un\\\"safe\"; /* unsafe /* */ unsafe */ b('\\'', 'u', r#\"un\"safe\"#); fn c<'a>() {}\n",
    );
    assert!(!has_word(&source.code, "unsafe"), "{}", source.code);
    assert!(source.code.contains("let a =") && source.code.contains("fn c<'a>() {}"), "{}", source.code);
    assert_eq!(source.code.lines().count(), 2);
}

#[test]
fn test_parts_are_not_shipped() {
    let text = "fn a() {}\n#[cfg(test)]\n#[path = \"x.rs\"]\nmod x;\nfn b() {}\n#[cfg(test)]\nmod tests {\n fn c() { d(); }\n}\nfn e() {}\n";
    let source = Source::new("src/a.rs", text);
    for (name, there) in [("a", true), ("b", true), ("c", false), ("d", false), ("e", true), ("x", false)] {
        assert_eq!(has_word(&source.shipped, name), there, "{name}: {}", source.shipped);
    }
    assert_eq!(source.shipped.lines().count(), text.lines().count());
    assert!(Source::new("src/ops/rope/tests.rs", text).shipped.is_empty());
    assert!(Source::new("benches/x.rs", text).shipped.is_empty());
}

#[test]
fn words_end_where_names_end() {
    assert!(has_word("a unsafe {", "unsafe") && !has_word("unsafe_code", "unsafe"));
    assert!(has_word("x.unwrap()", ".unwrap()") && !has_word("x.unwrap_or()", ".unwrap()"));
    assert!(has_word("println!(", "println!") && !has_word("eprintln!(", "println!"));
}
