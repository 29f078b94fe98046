//! The public surface: classes of errors and public modules. Documents must match the code.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use tanren::config::{Family, supported};
use tanren::error::Error;

use crate::source::{Source, files, read, sources};
use crate::tidy::demand;

/// The rows of the table of classes: class and exit code; nothing stands for no class.
fn documented() -> Vec<(String, u8)> {
    let text = read("docs/errors.md");
    let cells =
        |line: &str| line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>();
    let row = |line: &str| match cells(line).as_slice() {
        [_, class, code, _, _] => {
            let is_class = class.chars().all(|c| c.is_ascii_uppercase());
            code.parse().ok().filter(|_| is_class).map(|code| (class.clone(), code))
        }
        _ => None,
    };
    text.lines().filter_map(row).collect()
}

/// The classes that a file of the library gives to errors.
fn classes(source: &Source) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // The literal is blanked out in `code`, but stands at the same place of the text.
    let lines = source.shipped.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    for (index, line) in lines {
        let text = source.text.lines().nth(index).unwrap();
        for before in ["Error::input(", "const CODE: &str = ", "error[", "interrupted["] {
            let here = if before.ends_with('[') { text } else { line };
            for (at, _) in here.match_indices(before) {
                let rest = text.get(at + before.len()..).unwrap_or_default().trim_start_matches('"');
                let class: String = rest.chars().take_while(|c| c.is_ascii_uppercase()).collect();
                let is_literal = rest[class.len()..].starts_with(['"', ']']);
                found.extend(Some(class).filter(|class| is_literal && class.len() > 1));
            }
        }
    }
    found
}

#[test]
fn every_class_of_errors_is_documented_with_its_exit_code() {
    let documented = documented();
    let used: BTreeSet<String> =
        sources("src").iter().filter(|source| !source.shipped.is_empty()).flat_map(classes).collect();
    let listed: BTreeSet<String> = documented.iter().map(|(class, _)| class.clone()).collect();
    let missing = used.difference(&listed).map(|class| format!("docs/errors.md:1: no row for {class}"));
    let words = BTreeSet::from([String::new(), "SHAPE".into(), "IO".into(), "INTERNAL".into()]);
    let unused = listed.difference(&used).filter(|class| !words.contains(*class));
    demand(
        missing.chain(unused.map(|class| format!("docs/errors.md:1: nothing is of class {class}"))).collect(),
    );
    for (class, code) in &documented {
        let expected = match class.as_str() {
            "IO" => 3,
            "NUMERIC" => Error::Numeric { what: String::new(), fix: String::new() }.exit_code(),
            "DEVICE" => Error::Device { what: String::new(), fix: String::new() }.exit_code(),
            "SAVED" => Error::Interrupted { step: 1, checkpoint: "c".into() }.exit_code(),
            "STOPPED" => Error::Stopped { what: String::new() }.exit_code(),
            "INTERNAL" => 70,
            "" => 0,
            _ => Error::from(Error::input("DATA", "")).exit_code(),
        };
        assert_eq!(*code, expected, "{class}");
    }
    assert!(documented.len() > 15, "{documented:?}");
    let one =
        Source::new("src/a.rs", "fn a() { Error::input(\"NEW\", what); }\nconst CODE: &str = \"OLD\";\n");
    assert_eq!(classes(&one), BTreeSet::from(["NEW".to_owned(), "OLD".to_owned()]));
}

/// The modules that a program may use without `unstable`.
const STABLE: [&str; 4] = ["config", "error", "score", "train"];

#[test]
fn the_surface_is_what_the_crate_says() {
    let root = read("src/lib.rs");
    let mut public = BTreeSet::new();
    let mut before = "";
    for line in root.lines() {
        let name = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';'));
        public.extend(name.filter(|_| !before.contains("feature")));
        before = line;
    }
    assert_eq!(public, BTreeSet::from(STABLE));
}

#[test]
fn examples_and_the_readme_use_the_surface_alone() {
    let mut texts: Vec<(String, String)> =
        files("examples", &[".rs"]).into_iter().map(|path| (path.clone(), read(&path))).collect();
    texts.push(("README.md".into(), read("README.md")));
    texts.push(("src/lib.rs".into(), read("src/lib.rs")));
    demand(texts.iter().flat_map(|(path, text)| others(path, text)).collect());
    assert_eq!(others("a", "use tanren::{train, model::Decoder};\ntanren::ops::gemm()").len(), 1);
}

/// Uses of modules beyond the surface.
fn others(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().enumerate();
    let used = lines.flat_map(|(index, line)| {
        line.match_indices("tanren::").map(move |(at, _)| (index, &line[at + 8..]))
    });
    used.filter_map(|(index, rest)| {
        let name: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        let known = name.is_empty() || STABLE.contains(&name.as_str());
        (!known).then(|| format!("{path}:{}: `{name}` is not part of the surface", index + 1))
    })
    .collect()
}

/// What the README calls things that a build may be able to do: the option and its value, or `model_type` and a family.
const STATUS: [(&str, &str, &str); 10] = [
    ("model_type", "qwen2", "Qwen2"),
    ("model_type", "qwen3", "Qwen3"),
    ("model_type", "llama", "Llama-like"),
    ("model_type", "gpt2", "GPT-2"),
    ("model_type", "bert", "BERT"),
    ("model_type", "xlm-roberta", "XLM-R"),
    ("quant", "nf4", "nf4"),
    ("task", "classify", "classification"),
    ("task", "regress", "regression"),
    ("mode", "generate", "generation"),
];

#[test]
fn the_status_in_the_readme_is_what_this_build_can_do() {
    let text = read("README.md");
    let status = text.split("## Status").nth(1).unwrap().split("\n## ").next().unwrap();
    demand(untrue(status));
    let told = status.replace("GPT-2, ", "").replace("Qwen3, ", "").replace("classification and ", "");
    assert_eq!(untrue(&told).len(), 3, "{told}");
}

/// The faults of a table with the columns "works now" and "not yet": wrong and missing entries.
fn untrue(status: &str) -> Vec<String> {
    let column =
        |index: usize| -> String { status.lines().filter_map(|line| line.split('|').nth(index)).collect() };
    let (now, later) = (column(2), column(3));
    let is_said_wrongly = |(option, value, name): &(&str, &str, &str)| {
        let works = match *option {
            "model_type" => Family::from_model_type(value).is_some(),
            // Where nothing is listed, everything works.
            option => supported(option).is_empty() || supported(option).contains(value),
        };
        let (right, wrong) = if works { (&now, &later) } else { (&later, &now) };
        (!right.contains(name) || wrong.contains(name))
            .then(|| format!("README.md:1: {name}: it works: {works}"))
    };
    STATUS.iter().filter_map(is_said_wrongly).collect()
}
