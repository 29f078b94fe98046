//! Dependencies in the binary come from crates.io and have a licence of `deny.toml`. `cargo deny` checks
//! more, where it is installed.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use serde_json::Value;

use crate::source::{read, root};

/// The licences of `deny.toml`.
fn allowed(text: &str) -> Vec<String> {
    let table: toml::Table = text.parse().unwrap_or_default();
    let list = table.get("licenses").and_then(|licences| licences.get("allow")?.as_array());
    list.into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
}

/// Whether an SPDX expression can be met with these licences. `/` is an old way to write `OR`.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let spaced =
        expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "~");
    let words: Vec<String> = spaced.split_whitespace().map(|word| word.replace('~', " WITH ")).collect();
    let mut at = 0;
    any_of(&words, &mut at, allowed) && at == words.len()
}

fn any_of(words: &[String], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = all_of(words, at, allowed);
    while words.get(*at).is_some_and(|word| word == "OR") {
        *at += 1;
        met |= all_of(words, at, allowed);
    }
    met
}

fn all_of(words: &[String], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at).is_some_and(|word| word == "AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[String], at: &mut usize, allowed: &[String]) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if word != "(" {
        return allowed.contains(word);
    }
    let met = any_of(words, at, allowed);
    *at += 1;
    met
}

#[test]
fn everything_built_in_has_an_allowed_licence_and_comes_from_the_registry() {
    let allowed = allowed(&read("deny.toml"));
    assert!(allowed.iter().any(|name| name == "MIT"), "{allowed:?}");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--locked", "--format-version", "1", "--all-features"]).current_dir(root());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100);
    for package in packages {
        let (name, licence) = (package["name"].as_str().unwrap(), package["license"].as_str());
        assert!(
            licence.is_some_and(|text| is_met(text, &allowed)),
            "{name}: {licence:?} is not in deny.toml"
        );
        let source = package["source"].as_str();
        let ours = source.is_none() && name == "tanren";
        assert!(ours || source.is_some_and(|from| from.ends_with("/crates.io-index")), "{name}: {source:?}");
    }
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "ISC"].map(str::to_owned);
    for met in [
        "MIT",
        "Unlicense/MIT",
        "GPL-3.0 OR MIT AND ISC",
        "(MIT OR GPL-3.0) AND Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "MIT WITH X", "", "MIT MIT"] {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}
