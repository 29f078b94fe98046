//! House rules of the ops: the files of an op, and that ops do not import each other.

use std::collections::BTreeSet;

use crate::source::{Source, files, sources};
use crate::tidy::{demand, imports};

#[test]
fn every_op_has_its_three_files() {
    let all = files("src/ops", &[".rs"]);
    assert!(all.iter().any(|path| path == "src/ops/attention/cpu.rs"), "the ops are not where they were");
    demand(incomplete_ops(&all));
    let names = ["mod.rs", "cpu.rs", "gpu/mod.rs"].map(|name| format!("src/ops/softmax/{name}"));
    let [fault] = incomplete_ops(&names).try_into().unwrap();
    assert!(fault.starts_with("src/ops/softmax/tests.rs:1: this file is missing"), "{fault}");
}

fn incomplete_ops(all: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    for op in ops(all) {
        for name in ["mod.rs", "cpu.rs", "tests.rs"] {
            let path = format!("src/ops/{op}/{name}");
            if !all.contains(&path) {
                faults.push(format!(
                    "{path}:1: this file is missing; every op has a contract, a CPU part, tests"
                ));
            }
        }
    }
    faults
}

/// The folders of `src/ops/`: one op each.
fn ops(all: &[String]) -> BTreeSet<&str> {
    all.iter()
        .filter_map(|path| path.trim_start_matches("src/ops/").split_once('/').map(|(op, _)| op))
        .collect()
}

#[test]
fn ops_do_not_know_each_other() {
    let all = files("src/ops", &[".rs"]);
    let ops = ops(&all);
    demand(sources("src/ops").iter().flat_map(|source| strangers(source, &ops)).collect());
    let ops = ["rope", "norm"].into();
    let faults = |path: &str, text: &str| strangers(&Source::new(path, text), &ops).join("\n");
    for text in [
        "use crate::ops::norm::A;",
        "use crate::ops::{gemm, norm::A};",
        "fn a() -> crate::ops::norm::A {}",
        "use super::norm;",
    ] {
        assert!(faults("src/ops/rope/mod.rs", text).starts_with("src/ops/rope/mod.rs:1: "), "{text}");
    }
    for (path, text) in [
        ("src/ops/rope/mod.rs", "use crate::ops::{gemm, rope::A}; use super::check_shape;"),
        ("src/ops/rope/gpu.rs", "use super::norm; use crate::ops::gemm;"),
        ("src/ops/rope/gpu_tests.rs", "use crate::ops::norm;"),
        ("src/ops/mod.rs", "use self::norm::A;"),
    ] {
        assert_eq!(faults(path, text), "", "{path}: {text}");
    }
}

/// Names of other ops in the code of an op.
fn strangers(source: &Source, ops: &BTreeSet<&str>) -> Vec<String> {
    let inside = source.path.trim_start_matches("src/ops/");
    let Some((own, file)) = inside.split_once('/') else { return Vec::new() };
    let mut found = imports(&source.shipped, "crate::ops::");
    if file == "mod.rs" {
        found.extend(imports(&source.shipped, "super::"));
    }
    found.retain(|(_, name)| name != own && ops.contains(name.as_str()));
    let fault = |(line, other)| format!("{}:{line}: op `{own}` must not know op `{other}`", source.path);
    found.into_iter().map(fault).collect()
}
