//! House rules of the tests of kernels: tests that run on a GPU, tests that need the emulator, and tests that
//! every op must have.
//!
//! A test runs on a GPU if a part of its path begins with `gpu` and none contains `emulator`: that is how
//! `scripts/gpu-check` chooses. So a test that uses the device of kernel tests must be below such a part, and
//! a test that counts, schedules or truncates must be in a module `emulator`.

use std::collections::BTreeSet;

use crate::source::{Source, files, has_word, read};
use crate::tidy::demand;

/// Calls that make a test run on a GPU if there is one.
const ON_CARD: [&str; 2] = ["kernel_device", "assert_repeats"];

/// Calls that only the emulator supports.
const EMULATOR_ONLY: [&str; 5] =
    ["take_counters", "stats: true", "truncating_emulator", "Device::emulated", "set_emulator_options"];

/// Kernel files that are no op, and the one op whose kernels lie in a file of another name.
const NO_OPS: [&str; 2] = ["primitives", "self_test"];

/// A function and where it stands.
struct Function {
    /// Modules, and its own name.
    path: Vec<String>,
    is_test: bool,
    body: String,
}

impl Function {
    fn name(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }

    fn runs_on_card(&self) -> bool {
        self.path.iter().any(|part| part.starts_with("gpu"))
    }

    fn is_for_the_emulator(&self) -> bool {
        self.path.iter().any(|part| part.contains("emulator"))
    }
}

/// The module that a file is, for all files that `mod` lines lead to from `src/lib.rs`.
fn modules() -> Vec<(Source, Vec<String>)> {
    let mut found = Vec::new();
    let mut open = vec![("src/lib.rs".to_owned(), Vec::new())];
    while let Some((path, module)) = open.pop() {
        let source = Source::new(&path, &read(&path));
        for (name, file) in children(&source) {
            let exists = |path: &String| crate::source::root().join(path).exists();
            let Some(file) = file.into_iter().find(exists) else { continue };
            let mut child: Vec<String> = module.clone();
            child.push(name);
            open.push((file, child));
        }
        found.push((source, module));
    }
    found
}

/// Modules that a file names, and where their files may be.
fn children(source: &Source) -> Vec<(String, Vec<String>)> {
    let folder = source.folder();
    let below = match source.name() {
        "mod.rs" | "lib.rs" => folder.to_owned(),
        _ => format!("{folder}/{}", source.stem()),
    };
    let mut found = Vec::new();
    let mut path = None;
    for line in source.text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("#[path = \"") {
            path = rest.strip_suffix("\"]").map(|file| format!("{folder}/{file}"));
        } else if let Some(name) = module_name(line).and_then(|rest| rest.strip_suffix(';')) {
            let usual = [format!("{below}/{name}.rs"), format!("{below}/{name}/mod.rs")];
            found.push((name.to_owned(), path.take().map_or(usual.to_vec(), |path| vec![path])));
        } else if !line.starts_with("#[") {
            path = None;
        }
    }
    found
}

/// What follows `mod` in a line that declares a module.
fn module_name(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let line = match line.strip_prefix("pub(") {
        Some(rest) => rest.split_once(") ")?.1,
        None => line,
    };
    line.strip_prefix("mod ")
}

/// The functions of a file, with their bodies.
fn functions(source: &Source, module: &[String]) -> Vec<Function> {
    let mut found: Vec<Function> = Vec::new();
    let mut inline: Vec<(String, usize)> = Vec::new();
    let (mut depth, mut is_test) = (0usize, false);
    // Depth outside of the function that is being read.
    let mut reading: Option<usize> = None;
    for line in source.code.lines() {
        let trimmed = line.trim();
        if reading.is_none() {
            if let Some(name) = module_name(trimmed).and_then(|rest| rest.strip_suffix(" {")) {
                inline.push((name.to_owned(), depth));
            } else if trimmed == "#[test]" {
                is_test = true;
            } else if let Some((_, rest)) = trimmed.split_once("fn ").filter(|_| has_word(trimmed, "fn")) {
                let name: String = rest.chars().take_while(|&c| crate::source::is_name(c)).collect();
                let modules = module.iter().chain(inline.iter().map(|(name, _)| name)).cloned();
                let path = modules.chain([name]).collect();
                found.push(Function { path, is_test: std::mem::take(&mut is_test), body: String::new() });
                reading = Some(depth);
            }
        }
        if reading.is_some()
            && let Some(function) = found.last_mut()
        {
            function.body += line;
            function.body.push('\n');
        }
        depth = (depth + line.matches('{').count()).saturating_sub(line.matches('}').count());
        let has_body =
            found.last().is_some_and(|function| function.body.contains('{')) || trimmed.ends_with(';');
        if reading.is_some_and(|outside| depth == outside) && has_body {
            reading = None;
        }
        inline.retain(|(_, outside)| depth > *outside);
    }
    found
}

/// The tests of a file that do one of `marks`, or call a function of the file that does.
fn doing<'f>(functions: &'f [Function], marks: &[&str]) -> Vec<&'f Function> {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    let does = |function: &Function, names: &BTreeSet<&str>| {
        // The first line is the function's own name.
        let body = function.body.split_once('{').map_or("", |(_, body)| body);
        marks.iter().any(|mark| body.contains(mark)) || names.iter().any(|name| has_word(body, name))
    };
    loop {
        let helpers = functions.iter().filter(|f| !f.is_test && does(f, &names)).map(Function::name);
        let more: BTreeSet<&str> = helpers.collect();
        if more == names {
            break;
        }
        names = more;
    }
    functions.iter().filter(|function| function.is_test && does(function, &names)).collect()
}

/// Tests of a file in the wrong place.
fn misplaced(source: &Source, module: &[String]) -> Vec<String> {
    let functions = functions(source, module);
    let mut faults = Vec::new();
    for test in doing(&functions, &ON_CARD).into_iter().filter(|test| !test.runs_on_card()) {
        let path = test.path.join("::");
        faults.push(format!(
            "{}: {path} never runs on a GPU: no part of its path begins with `gpu`",
            source.path
        ));
    }
    for test in doing(&functions, &EMULATOR_ONLY) {
        if test.runs_on_card() && !test.is_for_the_emulator() {
            let path = test.path.join("::");
            faults.push(format!(
                "{}: {path} is for the emulator: put it into a module `emulator`",
                source.path
            ));
        }
    }
    faults
}

#[test]
fn tests_of_kernels_are_where_a_gpu_finds_them() {
    let modules = modules();
    assert!(modules.len() > 150, "{} files were found", modules.len());
    demand(modules.iter().flat_map(|(source, module)| misplaced(source, module)).collect());

    let faults = |module: &str, text: &str| {
        let module: Vec<String> = module.split("::").map(str::to_owned).collect();
        misplaced(&Source::new("src/ops/a/x_tests.rs", text), &module).len()
    };
    let direct = "#[test]\nfn t() {\n    run(&kernel_device(1));\n}\n";
    assert_eq!(faults("ops::a::gpu_tests", direct), 0);
    assert_eq!(faults("ops::a::dora_tests", direct), 1);
    assert_eq!(faults("ops::a::tests", &direct.replace("fn t", "fn gpu_repeats")), 0);
    let through =
        "fn all() {\n    one()\n}\nfn one() {\n    kernel_device(1);\n}\n#[test]\nfn t() {\n    all();\n}\n";
    assert_eq!(faults("ops::a::tests", through), 1);
    assert_eq!(faults("ops::a::tests", &through.replace("    all();\n", "")), 0);
    let counting = "#[test]\nfn t() {\n    device.take_counters();\n}\n";
    assert_eq!(faults("ops::a::gpu_tests", counting), 1);
    assert_eq!(faults("device::emulated::tests", counting), 0);
    let inside = format!("mod emulator {{\n{counting}}}\n");
    assert_eq!(faults("ops::a::gpu_tests", &inside), 0);
    // What comes after the module is outside of it.
    assert_eq!(faults("ops::a::gpu_tests", &format!("{inside}{counting}")), 1);
}

/// Integration tests that `gpu-check` would choose by their path, although they use no card.
fn strays(source: &Source, module: &str) -> Vec<String> {
    let functions = functions(source, &[module.to_owned()]);
    let asking: BTreeSet<&str> = doing(&functions, &["gpu_device"]).into_iter().map(Function::name).collect();
    let chosen = functions.iter().filter(|f| f.is_test && f.runs_on_card() && !f.is_for_the_emulator());
    let stray = chosen.filter(|function| !asking.contains(function.name()));
    stray
        .map(|test| format!("{}: {} needs no GPU, and runs on one", source.path, test.path.join("::")))
        .collect()
}

#[test]
fn only_tests_that_ask_for_a_gpu_run_on_one() {
    let paths = files("tests/it", &[".rs"]);
    let sources: Vec<Source> = paths.iter().map(|path| Source::new(path, &read(path))).collect();
    assert!(sources.len() > 15, "{} files were found", sources.len());
    demand(sources.iter().flat_map(|source| strays(source, source.stem())).collect());

    let of = |module: &str, text: &str| strays(&Source::new("tests/it/a.rs", text), module).len();
    let plain = "#[test]\nfn t() {\n    run();\n}\n";
    assert_eq!((of("gpu_check", plain), of("check", plain)), (1, 0));
    assert_eq!(of("check", &plain.replace("fn t", "fn gpu_t")), 1);
    assert_eq!(of("golden", "mod gpu {\n#[test]\nfn t() {\n    gpu_device(1);\n}\n}\n"), 0);
}

/// Ops without a test on a GPU or one at real shapes.
fn lacking(ops: &BTreeSet<String>, tests: &[Vec<String>]) -> Vec<String> {
    let mut faults = Vec::new();
    for op in ops {
        let of_op = || {
            let of_op = |path: &&Vec<String>| {
                path.first().is_some_and(|room| room == "ops") && path.get(1) == Some(op)
            };
            tests.iter().filter(of_op)
        };
        for (what, marks) in [("on a GPU", "gpu"), ("at the shapes of models", "real_shapes")] {
            let is_one = |path: &Vec<String>| {
                path.iter().any(|part| part.starts_with("gpu"))
                    && !path.iter().any(|part| part.contains("emulator"))
                    && path.iter().any(|part| part.contains(marks))
            };
            if !of_op().any(is_one) {
                faults.push(format!("src/ops/{op}: no test {what} (`{marks}` in its path)"));
            }
        }
    }
    faults
}

#[test]
fn every_op_with_kernels_is_tested_on_a_gpu_at_real_shapes() {
    let rooms: Vec<String> = files("src/ops", &["mod.rs"])
        .iter()
        .filter_map(|path| path.strip_prefix("src/ops/")?.strip_suffix("/mod.rs").map(str::to_owned))
        .collect();
    let stems = files("kernels", &[".cu"]);
    let stems = stems.iter().filter_map(|path| path.strip_prefix("kernels/")?.strip_suffix(".cu"));
    let op_of =
        |stem: &str| rooms.iter().filter(|room| stem.starts_with(room.as_str())).max_by_key(|r| r.len());
    let ops: BTreeSet<String> = stems
        .filter(|stem| !stem.contains('/') && !NO_OPS.contains(stem))
        .filter_map(|stem| op_of(stem).cloned())
        .collect();
    assert!(ops.len() >= 9, "{ops:?}");
    let tests: Vec<Vec<String>> = modules()
        .iter()
        .flat_map(|(source, module)| functions(source, module))
        .filter(|function| function.is_test)
        .map(|function| function.path)
        .collect();
    demand(lacking(&ops, &tests));

    let ops = BTreeSet::from(["a".to_owned()]);
    let path = |path: &str| path.split("::").map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        lacking(&ops, &[path("ops::a::gpu::tests::t"), path("ops::a::gpu::tests::real_shapes")]).len(),
        0
    );
    assert_eq!(lacking(&ops, &[path("ops::a::gpu::tests::t")]).len(), 1);
    assert_eq!(lacking(&ops, &[path("ops::b::gpu::tests::real_shapes"), path("ops::a::tests::t")]).len(), 2);
    assert_eq!(lacking(&ops, &[path("ops::a::gpu_tests::emulator::real_shapes")]).len(), 2);
}
