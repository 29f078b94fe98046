//! House rules of the kernel sources and of the build script: places of code, and files that belong to a
//! kernel.
//!
//! As in `tidy.rs`, every check is a function from sources to faults, and its test shows that it detects its
//! kind of fault.

use crate::source::{Source, files, has_word, read, root, sources};
use crate::tidy::{demand, length};

/// Endings of C++ sources, for the GPU and for the emulator.
const ENDINGS: [&str; 4] = [".cu", ".cuh", ".hpp", ".cpp"];

/// Files of kernels that are no op, and why: the device runs these to check itself.
const NO_OPS: [&str; 2] = ["primitives", "self_test"];

/// The headers that define the machine interface.
const GROUND: [&str; 2] = ["kernels/common/simt.cuh", "kernels/common/ptx.cuh"];

/// The C++ sources.
fn cpp() -> Vec<Source> {
    files("kernels", &ENDINGS).iter().map(|path| Source::new(path, &read(path))).collect()
}

/// Whether a file is one of those whose kernels go into the binary: they lie right in the folder.
fn is_kernel_file(path: &str) -> bool {
    path.ends_with(".cu") && path.matches('/').count() == 1
}

#[test]
fn every_kernel_source_says_what_it_is_for_and_is_not_too_long() {
    let all = cpp();
    demand(all.iter().filter_map(first_line).chain(all.iter().filter_map(length)).collect());
    assert!(first_line(&Source::new("kernels/a.cu", "// Adds rows.\n")).is_none());
    assert!(first_line(&Source::new("kernels/a.cu", "#include \"common/simt.cuh\"\n// Adds.\n")).is_some());
}

fn first_line(source: &Source) -> Option<String> {
    let good = source.text.lines().next().is_some_and(|line| line.starts_with("// ") && line.len() > 8);
    (!good)
        .then(|| format!("{}:1: the first line must be a `//` that says what the file is for", source.path))
}

#[test]
fn kernels_know_the_machine_through_one_header() {
    demand(cpp().iter().flat_map(machine).collect());
    let faults = |path: &str, text: &str| machine(&Source::new(path, text)).len();
    let good = "// A.\n// #include <cuda.h> is not for us, nor is asm.\n#include \"common/simt.cuh\"\n#include \"a.cuh\"\n";
    assert_eq!(faults("kernels/a.cu", good), 0);
    assert_eq!(faults("kernels/a.cu", "// A.\n#include \"a.cuh\"\n"), 0);
    assert_eq!(faults("kernels/a.cu", "// A.\n"), 1);
    assert_eq!(faults("kernels/a.cu", "// A.\n#include <stdint.h>\n#include \"common/simt.cuh\"\n"), 1);
    assert_eq!(faults("kernels/simt/a.cpp", "// A.\n#include <cuda.h>\n"), 1);
    for (path, text) in [
        ("kernels/a.cuh", "#include <cuda_bf16.h>"),
        ("kernels/a.cuh", "DEVICE void f() { asm(\"\"); }"),
        ("kernels/common/a.cuh", "DEVICE void f() { asm volatile(\"\"); }"),
    ] {
        let text = format!("// A.\n#include \"common/simt.cuh\"\n{text}\n");
        assert_eq!(faults(path, &text), 1, "{text}");
    }
    assert_eq!(faults("kernels/common/ptx.cuh", "// A.\nDEVICE void f() { asm(\"\"); }\n"), 0);
    // The emulator changes stacks, and has kernels of its own to test.
    assert_eq!(faults("kernels/simt/tests/a.cu", "// A.\n"), 0);
    assert_eq!(faults("kernels/simt/a.cpp", "// A.\nvoid f() { asm(\"\"); }\n"), 0);
}

/// Includes and inline assembly in the wrong place.
fn machine(source: &Source) -> Vec<String> {
    let Source { path, text, code, .. } = source;
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| line.starts_with("#include <cuda")) {
        faults.push(format!("{path}:{}: {line}: the emulator has no CUDA headers", index + 1));
    }
    // Our headers begin like that, too, so the first one that is read to its end is simt.cuh.
    let first = text.lines().find(|line| line.starts_with("#include"));
    let ours = first.is_some_and(|line| line.starts_with("#include \"") && line.ends_with(".cuh\""));
    if !path.starts_with("kernels/simt/") && !GROUND.contains(&path.as_str()) && !ours {
        faults.push(format!(
            "{path}:1: the first include must be common/simt.cuh or a header that includes it"
        ));
    }
    if path != "kernels/common/ptx.cuh" && !path.starts_with("kernels/simt/") {
        for (index, _) in code.lines().enumerate().filter(|(_, line)| has_word(line, "asm")) {
            faults.push(format!("{path}:{}: inline PTX belongs to kernels/common/ptx.cuh", index + 1));
        }
    }
    faults
}

#[test]
fn every_kernel_file_has_an_op_and_a_benchmark() {
    let rooms: Vec<String> = files("src/ops", &["mod.rs"])
        .iter()
        .filter_map(|path| path.strip_prefix("src/ops/")?.strip_suffix("/mod.rs").map(str::to_owned))
        .collect();
    let sources: Vec<String> =
        files("kernels", &[".cu"]).into_iter().filter(|path| is_kernel_file(path)).collect();
    demand(
        sources
            .iter()
            .filter_map(|path| homeless(path, &rooms, &|path| root().join(path).exists()))
            .collect(),
    );
    let rooms = ["lora_matmul".to_owned(), "lora".to_owned()];
    let faults = |path: &str, bench: bool| homeless(path, &rooms, &|_| bench);
    assert!(faults("kernels/lora_matmul.cu", true).is_none());
    assert!(faults("kernels/lora_matmul_fwd.cu", true).is_none());
    assert!(faults("kernels/self_test.cu", false).is_none());
    assert!(faults("kernels/lora_matmul_fwd.cu", false).unwrap().contains("benches/kernels/lora_matmul.rs"));
    assert!(faults("kernels/lora_matmuls.cu", false).unwrap().contains("benches/kernels/lora.rs"));
    assert!(faults("kernels/rope_fwd.cu", true).unwrap().contains("no op in src/ops"));
}

/// A kernel file whose op or benchmark does not exist. The op is the longest room of src/ops that its name begins with.
fn homeless(path: &str, rooms: &[String], exists: &dyn Fn(&str) -> bool) -> Option<String> {
    let stem = path.strip_prefix("kernels/")?.strip_suffix(".cu")?;
    if NO_OPS.contains(&stem) {
        return None;
    }
    let begins = |room: &&String| {
        stem.strip_prefix(room.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    let Some(op) = rooms.iter().filter(begins).max_by_key(|room| room.len()) else {
        return Some(format!("{path}:1: there is no op in src/ops whose name this file begins with"));
    };
    let bench = format!("benches/kernels/{op}.rs");
    (!exists(&bench)).then(|| format!("{path}:1: {bench} is missing; a kernel is measured"))
}

#[test]
fn only_the_device_and_the_build_know_whether_cuda_is_there() {
    let all: Vec<Source> = sources("src").into_iter().chain(sources("build")).collect();
    demand(all.iter().flat_map(feature).collect());
    let faults = |path: &str, text: &str| feature(&Source::new(path, text)).len();
    assert_eq!(faults("src/ops/a.rs", "//! A.\n#[cfg(feature = \"cuda\")]\nmod gpu;\n"), 1);
    assert_eq!(faults("src/cli/a.rs", "//! A.\nif cfg!(all(unix, feature=\"cuda\")) {}\n"), 1);
    assert_eq!(faults("src/cli/a.rs", "//! Not `cfg(feature = \"cuda\")`.\n"), 0);
    assert_eq!(faults("src/ops/a.rs", "//! A.\n#[cfg(feature = \"emulated\")]\nmod tests;\n"), 0);
    assert_eq!(faults("src/device/a.rs", "//! A.\n#[cfg(feature = \"cuda\")]\nmod cuda;\n"), 0);
}

/// Questions about the feature in the wrong place.
fn feature(source: &Source) -> Vec<String> {
    let Source { path, text, .. } = source;
    if path.starts_with("src/device/") || path.starts_with("build/") {
        return Vec::new();
    }
    let asks = |line: &str| {
        !line.trim_start().starts_with("//") && line.replace(' ', "").contains("feature=\"cuda\"")
    };
    let lines = text.lines().enumerate().filter(|(_, line)| asks(line));
    lines
        .map(|(index, _)| {
            format!("{path}:{}: the feature `cuda` is asked for in src/device/ only", index + 1)
        })
        .collect()
}

#[test]
fn every_part_of_the_build_script_is_used() {
    let script = read("build.rs");
    for path in files("build", &[".rs"]) {
        assert!(
            script.contains(&format!("#[path = \"{path}\"]")),
            "{path}:1: build.rs does not name this file"
        );
    }
}
