//! Compiles the emulator: its runtime, and the kernels twice, fast and with the instrumentation of the checks.
//!
//! The instrumentation is `-fsanitize=thread` as a compiler flag only: its callbacks are the runtime's own (see
//! kernels/simt/README.md), the sanitizer's library is not linked. All objects go into one archive, because the runtime names
//! the kernels and the kernels name the runtime.

use crate::Failure;
use std::path::{Path, PathBuf};
use std::{env, fs, io, thread};

/// Flags of the kernels. The first two fix the semantics: no contraction of a * b + c, and casts as in nvcc.
/// Then: calls are not merged and return to their line, so that messages name the right one; and stack
/// overflows hit the guard page, not the memory behind it.
const KERNELS: [&str; 8] = [
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-fno-crossjumping",
    "-fno-tree-tail-merge",
    "-fno-optimize-sibling-calls",
    "-fstack-clash-protection",
    "-Wno-unknown-pragmas",
];

/// Flags of the checked kernels: a callback before every access, and accesses as written in the source.
const INSTRUMENT: [&str; 6] = [
    "-DSIMT_CHECK",
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-fno-store-merging",
];

/// Compiles everything into `libtanren_emulator.a` and has it linked. `kernels_tu` is the file that includes all kernels.
///
/// # Errors
/// If a file cannot be read or written, or the compiler fails.
pub(crate) fn compile(out_dir: &Path, kernels_tu: &Path) -> Result<(), Failure> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let simt = root.join("kernels/simt");
    let mut parts = vec![compiler(&[])];
    parts[0].files(files(&simt.join("runtime"), "cpp")?);
    for (flavour, name, flags) in [("kFast", "fast", &[][..]), ("kChecked", "checked", &INSTRUMENT)] {
        let unit = out_dir.join(format!("emulated_{name}.cpp"));
        fs::write(&unit, translation_unit(&simt, flavour, name, kernels_tu))?;
        let mut part = compiler(flags);
        for flag in KERNELS {
            part.flag_if_supported(flag);
        }
        part.file(unit);
        parts.push(part);
    }
    // All in parallel: the two large units take equally long.
    let objects = thread::scope(|scope| {
        let started: Vec<_> =
            parts.iter().map(|part| scope.spawn(|| part.try_compile_intermediates())).collect();
        let mut objects = Vec::new();
        for part in started {
            objects.extend(part.join().map_err(|_| "the thread of a compiler is gone")??);
        }
        Ok::<_, Failure>(objects)
    })?;
    cc::Build::new().cpp(true).objects(objects).try_compile("tanren_emulator")?;
    Ok(())
}

/// The flags of all parts. Optimised in every profile: the emulator is useless without.
fn compiler(flags: &[&str]) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(true).warnings(true).extra_warnings(true);
    build.flag("-fno-omit-frame-pointer").flag("-pthread").include("kernels");
    for flag in flags {
        build.flag_if_supported(flag);
    }
    build
}

/// All kernels in a namespace of their own, so that the linker merges nothing of the two compilations.
fn translation_unit(simt: &Path, flavour: &str, name: &str, kernels_tu: &Path) -> String {
    let include = |path: &Path| format!("#include \"{}\"\n", path.display());
    let mut text = String::from("// Written by build/emulated.rs.\n");
    text += &include(&simt.join("abi.hpp"));
    text += &format!("#define SIMT_FLAVOUR {flavour}\nnamespace simt_{name} {{\n");
    text += &include(kernels_tu);
    text += &include(&simt.join("tests/kernels.cuh"));
    text += &format!(
        "}}\nextern \"C\" {{ extern const int simt_{name}_kernels; const int simt_{name}_kernels = 0; }}\n"
    );
    text
}

/// The files of a folder that end in `.extension`, sorted.
fn files(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|e| e == extension));
    paths.sort();
    Ok(paths)
}
