//! House rules that rustfmt and clippy do not check: layers, places of unsafe and similar code, sizes, first
//! lines, lists.
//!
//! Every check is a function from sources to faults, so that a test can show that it detects its kind of
//! fault. A fault names file and line.

// The one note of this file, about large files, is meant for the reader of the test output.
#![allow(clippy::print_stderr)]

use crate::source::{Source, files, has_word, is_name, read, root, sources};

/// Maximum lines of a file.
const HARD_LIMIT: usize = 600;

/// Lines above which a file should be divided soon.
const SOFT_LIMIT: usize = 400;

/// The rooms of the crate and their levels: a room imports lower levels only. Level 0 is one family.
const LEVELS: [(&str, u8); 16] = [
    ("error", 0),
    ("tensor", 0),
    ("batch", 0),
    ("kinds", 0),
    ("rng", 0),
    ("config", 1),
    ("device", 1),
    ("formats", 1),
    ("data", 2),
    ("ops", 2),
    ("model", 3),
    ("optim", 4),
    ("session", 4),
    ("train", 5),
    ("score", 5),
    ("cli", 6),
];

/// Imports that the levels would allow, and why they are refused: models and updates know batches, not rows; settings know
/// nothing but errors.
const REFUSED: [(&str, &str); 5] =
    [("model", "data"), ("optim", "data"), ("config", "tensor"), ("config", "batch"), ("config", "rng")];

/// Words that are allowed in some places only: the words, the places, and the message. The last two rules
/// apply to tests too.
const PLACES: [(&[&str], &[&str], &str); 4] = [
    (&["clap"], &["src/cli/", "src/main.rs"], "the command line belongs to src/cli/"),
    (
        &["println!", "print!", "eprintln!", "eprint!", "stdout()", "stderr()"],
        &["src/cli/", "src/main.rs", "build.rs", "build/"],
        "printing belongs to src/cli/",
    ),
    (&["cudarc"], &["src/device/cuda.rs"], "the driver belongs to src/device/cuda.rs"),
    (
        &["unsafe"],
        &["src/device/", "src/ops/*/gpu.rs", "src/ops/gemm.rs"],
        "unsafe code belongs to src/device/, src/ops/*/gpu.rs and src/ops/gemm.rs",
    ),
];

/// Calls that panic, which shipped code must not contain.
const PANICS: [&str; 6] =
    [".unwrap()", ".expect(", ".unwrap_err()", ".expect_err(", "todo!", "unimplemented!"];

/// Fails with all faults, one per line.
pub(crate) fn demand(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// The sources of the library, the binary and the build script with its parts.
fn shipped() -> Vec<Source> {
    let mut all = sources("src");
    all.push(Source::new("build.rs", &read("build.rs")));
    all.extend(sources("build"));
    all
}

/// All Rust files of the repository.
fn everything() -> Vec<Source> {
    let folders = ["tests", "benches", "examples", "fuzz"];
    shipped().into_iter().chain(folders.into_iter().flat_map(sources)).collect()
}

#[test]
fn every_file_says_what_it_is_for() {
    demand(everything().iter().filter_map(first_line).collect());
    assert!(first_line(&Source::new("src/a.rs", "//! Good.\n")).is_none());
    assert!(first_line(&Source::new("src/a.rs", "use b;\n//! Late.\n")).is_some());
}

fn first_line(source: &Source) -> Option<String> {
    let good = source.text.lines().next().is_some_and(|line| line.starts_with("//! ") && line.len() > 8);
    (!good)
        .then(|| format!("{}:1: the first line must be a `//!` that says what the file is for", source.path))
}

#[test]
fn no_file_is_too_long() {
    let all = everything();
    for source in &all {
        let lines = source.text.lines().count();
        if lines > SOFT_LIMIT {
            eprintln!("note: {}: {lines} lines, more than {SOFT_LIMIT}", source.path);
        }
    }
    demand(all.iter().filter_map(length).collect());
    assert!(length(&Source::new("src/a.rs", &"\n".repeat(HARD_LIMIT))).is_none());
    assert!(length(&Source::new("src/a.rs", &"\n".repeat(HARD_LIMIT + 1))).is_some());
}

pub(crate) fn length(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    (lines > HARD_LIMIT).then(|| format!("{}:{lines}: more than {HARD_LIMIT} lines; divide it", source.path))
}

#[test]
fn rooms_import_lower_rooms_only() {
    demand(sources("src").iter().flat_map(layers).collect());
    let faults = |path: &str, text: &str| layers(&Source::new(path, text)).join("\n");
    assert_eq!(faults("src/train/a.rs", "use crate::model::B;\nuse crate::{error::C, data};"), "");
    assert_eq!(faults("src/ops/rope/cpu.rs", "use super::A; use crate::ops::B;"), "");
    assert_eq!(faults("src/ops/a.rs", "// crate::train\n#[cfg(test)]\nmod t { use crate::train::B; }"), "");
    for (path, text, line) in [
        ("src/ops/a.rs", "\nuse crate::model::B;", 2),
        ("src/ops/a.rs", "use crate::{error::{A, B},\n  data};", 2),
        ("src/config/model.rs", "fn a() -> crate::device::B {}", 1),
        ("src/config.rs", "use crate::tensor::DType;", 1),
        ("src/model/a.rs", "use crate::data::B;", 1),
        ("src/model/a.rs", "use crate::optim::B;", 1),
        ("src/optim/a.rs", "use crate::data::B;", 1),
        ("src/train/a.rs", "use crate::score::B;", 1),
        ("src/ops/a.rs", "use crate::attic::B;", 1),
        ("src/attic/a.rs", "use crate::error::B;", 1),
    ] {
        assert!(faults(path, text).starts_with(&format!("{path}:{line}: ")), "{path}: {text}");
    }
}

fn layers(source: &Source) -> Vec<String> {
    let level = |room: &str| LEVELS.iter().find(|(name, _)| *name == room).map(|(_, level)| *level);
    let inside = source.path.trim_start_matches("src/");
    let room = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    if room == "lib" || room == "main" {
        return Vec::new();
    }
    let Some(own) = level(room) else {
        return vec![format!("{}:1: the room `{room}` has no level in tests/it/tidy.rs", source.path)];
    };
    let mut faults = Vec::new();
    for (line, other) in imports(&source.shipped, "crate::") {
        let good = other == room
            || level(&other).is_some_and(|other| other < own || (own, other) == (0, 0))
                && !REFUSED.contains(&(room, other.as_str()));
        if !good {
            faults.push(format!("{}:{line}: `{room}` must not import `{other}`", source.path));
        }
    }
    faults
}

/// The modules named below `prefix` (`crate::`), as `crate::room` and `crate::{room, ...}`, with their lines. Macros and items are
/// none.
pub(crate) fn imports(code: &str, prefix: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (start, path) in code.match_indices(prefix) {
        if code[..start].chars().next_back().is_some_and(is_name) {
            continue;
        }
        let rest = &code[start + path.len()..];
        let mut add = |offset: usize| {
            let name: String = rest[offset..].chars().take_while(|c| is_name(*c)).collect();
            let is_macro = rest[offset + name.len()..].starts_with('!');
            if name.starts_with(|c: char| c.is_lowercase()) && !is_macro {
                let line = 1 + code[..start + path.len() + offset].matches('\n').count();
                found.push((line, name));
            }
        };
        if !rest.starts_with('{') {
            add(0);
            continue;
        }
        let (mut depth, mut expects) = (0, false);
        for (offset, c) in rest.char_indices() {
            match c {
                '{' => (depth, expects) = (depth + 1, depth == 0),
                '}' => depth -= 1,
                ',' => expects = depth == 1,
                c if is_name(c) && expects => {
                    expects = false;
                    add(offset);
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

#[test]
fn dangerous_things_stay_in_their_places() {
    demand(shipped().iter().flat_map(places).collect());
    for (path, text) in [
        ("src/ops/a.rs", "use clap::Parser;"),
        ("src/train/a.rs", "println!();"),
        ("src/data/a.rs", "let out = std::io::stdout();"),
        ("src/device/cpu.rs", "use cudarc::driver;"),
        ("src/ops/rope/cpu.rs", "unsafe {}"),
        ("src/formats/safetensors.rs", "#[cfg(test)]\nmod tests { fn a() { unsafe {} } }"),
    ] {
        assert_eq!(places(&Source::new(path, text)).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("src/cli/a.rs", "use clap::Parser; println!();"),
        ("src/device/cuda.rs", "use cudarc::driver; unsafe {}"),
        ("src/ops/rope/gpu.rs", "unsafe {}"),
        ("src/data/a.rs", "command.stdout(Stdio::piped()); // unsafe println!"),
    ] {
        assert!(places(&Source::new(path, text)).is_empty(), "{path}: {text}");
    }
}

fn places(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    for (index, (words, allowed, reason)) in PLACES.into_iter().enumerate() {
        if allowed.iter().any(|place| is_place(&source.path, place)) {
            continue;
        }
        // clippy sees to printing in tests, and a test may read the output of a child.
        let code = if index < 2 { &source.shipped } else { &source.code };
        for (index, line) in code.lines().enumerate() {
            for word in words.iter().filter(|word| has_word(line, word)) {
                faults.push(format!("{}:{}: `{word}`: {reason}", source.path, index + 1));
            }
        }
    }
    faults
}

/// Whether a path is a place: a folder (ending in `/`), a file, or a file with one `*` for a folder.
fn is_place(path: &str, place: &str) -> bool {
    match place.split_once('*') {
        Some((before, after)) => path
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after))
            .is_some_and(|middle| !middle.contains('/')),
        None => path == place || place.ends_with('/') && path.starts_with(place),
    }
}

#[test]
fn code_for_users_does_not_panic_by_design() {
    demand(shipped().iter().flat_map(panics).collect());
    for text in ["a.unwrap();", "a.expect( );", "a\n  .unwrap()", "todo!()"] {
        assert_eq!(panics(&Source::new("src/a.rs", text)).len(), 1, "{text}");
    }
    assert!(panics(&Source::new("src/a.rs", "a.unwrap_or(b); // .unwrap()\n")).is_empty());
    assert!(
        panics(&Source::new("src/a.rs", "#[cfg(test)]\nmod tests { fn a() { b.unwrap(); } }")).is_empty()
    );
}

fn panics(source: &Source) -> Vec<String> {
    let lines = source.shipped.lines().enumerate();
    lines
        .flat_map(|(index, line)| {
            let found = PANICS.iter().filter(move |word| has_word(line, word));
            found.map(move |word| (index, word))
        })
        .map(|(index, word)| format!("{}:{}: `{word}`: return an error instead", source.path, index + 1))
        .collect()
}

#[test]
fn every_file_is_a_module_somewhere() {
    let all: Vec<Source> = sources("src").into_iter().chain(sources("tests/it")).collect();
    demand(orphans(&all));
    let lost = Source::new("src/data/csv.rs", "//! A.");
    let list = |text: &str| Source::new("src/data/mod.rs", text);
    let crate_root = || Source::new("src/lib.rs", "pub mod data;");
    assert!(orphans(&[crate_root(), list("pub mod csv;"), lost]).is_empty());
    let lost = || Source::new("src/data/csv.rs", "//! A.");
    assert_eq!(orphans(&[crate_root(), list("// pub mod csv;"), lost()]).len(), 1);
    assert_eq!(orphans(&[Source::new("src/lib.rs", ""), list("pub mod csv;"), lost()]).len(), 1);
}

/// Files that no `mod` line names. Cargo would ignore them in silence, tests included.
fn orphans(all: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in all {
        let (folder, name) = match source.name() {
            "lib.rs" | "main.rs" => continue,
            // A folder is a module of the folder above.
            "mod.rs" => match source.folder().rsplit_once('/') {
                Some(parts) => parts,
                None => continue,
            },
            _ => (source.folder(), source.stem()),
        };
        let parents = ["mod.rs", "lib.rs", "main.rs"].map(|file| format!("{folder}/{file}"));
        let declares = |parent: &Source| {
            let owner = parents.contains(&parent.path) || parent.path == format!("{folder}.rs");
            let by_path = parent.folder() == folder
                && parent.text.contains(&format!("#[path = \"{}\"]", source.name()));
            owner && has_word(&parent.code, &format!("mod {name};")) || by_path
        };
        if !all.iter().any(declares) {
            faults.push(format!("{}:1: no `mod {name};` names this file", source.path));
        }
    }
    faults
}

#[test]
fn text_is_clean() {
    let endings = [".rs", ".toml", ".cu", ".cuh", ".hpp", ".cpp", ".sh", ".py", ".md"];
    let folders = ["src", "build", "tests", "benches", "examples", "fuzz", "docs", "scripts", "kernels"];
    let mut paths: Vec<String> = folders.iter().flat_map(|folder| files(folder, &endings)).collect();
    let top = ["build.rs", "Cargo.toml", "README.md", "CHANGELOG.md"];
    paths.extend(top.iter().filter(|name| root().join(name).exists()).map(|name| (*name).to_owned()));
    demand(paths.iter().flat_map(|path| clean(path, &read(path))).collect());
    assert_eq!(clean("a", "a \n\tb\nc").len(), 3);
    assert!(clean("a", "a\nb\n").is_empty());
}

fn clean(path: &str, text: &str) -> Vec<String> {
    // Spelled apart, so that this file passes its own check.
    let unfinished = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut fault = |what: &str| faults.push(format!("{path}:{}: {what}", index + 1));
        if line.ends_with([' ', '\t', '\r']) {
            fault("white space at the end of the line");
        }
        if line.contains('\t') {
            fault("a tab; use spaces");
        }
        if unfinished.iter().any(|word| has_word(line, word)) {
            fault("unfinished work; finish it or write it down elsewhere");
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        faults.push(format!("{path}:{}: no newline at the end", text.lines().count()));
    }
    faults
}

#[test]
fn every_dependency_says_why_it_is_there() {
    demand(uncommented(&read("Cargo.toml")));
    assert_eq!(uncommented("[dependencies]\n# Why.\na = \"1\"\nb = \"2\"\n[features]\nc = []\n").len(), 1);
}

fn uncommented(manifest: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut in_dependencies, mut previous) = (false, "");
    for (index, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies");
        } else if in_dependencies && line.starts_with(is_name) && !previous.starts_with('#') {
            faults.push(format!("Cargo.toml:{}: say in a comment above why this is needed", index + 1));
        }
        previous = line;
    }
    faults
}

#[test]
fn changes_are_written_down() {
    let version = env!("CARGO_PKG_VERSION");
    demand(faults_of_changes(&read("CHANGELOG.md"), version));
    let good = "# Changelog\n\n## Unreleased\n\n### Fixed\n\n- A row.\n  It was wrong.\n";
    assert!(faults_of_changes(good, version).is_empty());
    for (bad, what) in [
        ("# Changelog\n", "no section"),
        ("## Unreleased\n\n### Fixed\n", "says nothing"),
        ("## Unreleased\n\n- A row.\n", "below one of"),
        ("## Unreleased\n\n### Other\n\n- A row.\n", "below one of"),
        ("## Unreleased\n\n### Added\n\n- A row\n", "a full stop"),
    ] {
        let faults = faults_of_changes(bad, version);
        assert!(faults.iter().any(|fault| fault.contains(what)), "{bad:?}: {faults:?}");
    }
}

/// What is wrong with the list of changes: the first section is for what is not released yet or for this version, its items are
/// sentences below one of the six kinds of keepachangelog.com.
fn faults_of_changes(text: &str, version: &str) -> Vec<String> {
    const KINDS: [&str; 6] = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
    let at = |index: usize, what: &str| format!("CHANGELOG.md:{}: {what}", index + 1);
    let lines: Vec<&str> = text.lines().collect();
    let Some(start) = lines.iter().position(|line| line.starts_with("## ")) else {
        return vec![at(0, "no section")];
    };
    let mut faults = Vec::new();
    let title = &lines[start][3..];
    if title != "Unreleased" && !title.starts_with(version) {
        faults.push(at(start, "the first section must be \"Unreleased\" or this version"));
    }
    let end = (start + 1..lines.len()).find(|&i| lines[i].starts_with("## ")).unwrap_or(lines.len());
    let (mut kind, mut items) = (None, 0);
    for i in start + 1..end {
        if let Some(name) = lines[i].strip_prefix("### ") {
            kind = KINDS.contains(&name).then_some(name);
        }
        if !lines[i].starts_with("- ") {
            continue;
        }
        items += 1;
        if kind.is_none() {
            faults.push(at(
                i,
                "an item stands below one of Added, Changed, Deprecated, Removed, Fixed, Security",
            ));
        }
        let last = (i + 1..end).take_while(|&j| lines[j].starts_with("  ")).last().unwrap_or(i);
        if !lines[last].ends_with('.') {
            faults.push(at(last, "an item is a sentence, with a full stop"));
        }
    }
    if items == 0 {
        faults.push(at(start, "the section says nothing"));
    }
    faults
}
