//! The parsers of the build script: kernel sources, the table of budgets, PTX, the output of ptxas.
//!
//! The build script cannot test itself, so its parsers are included here.

use self::params::{Fault, Field, Source, Struct, Table, Type};

#[path = "../../build/budgets.rs"]
pub(crate) mod budgets;
#[path = "../../build/params.rs"]
mod params;
#[path = "../../build/ptx.rs"]
mod ptx;
#[path = "../../build/ptxas.rs"]
pub(crate) mod ptxas;

fn read(files: &[(&str, &str)]) -> Result<Table, Fault> {
    let source = |&(name, text): &(&str, &str)| Source { name: name.to_owned(), text: text.to_owned() };
    params::read(&files.iter().map(source).collect::<Vec<_>>())
}

/// A params struct with these lines and a kernel that takes it, in `a.cu`; the first line of the struct is line 2.
fn with_fields(fields: &str) -> Result<Table, Fault> {
    read(&[("a.cu", &format!("struct AParams {{\n{fields}\n}};\nKERNEL(a_fwd, AParams, 64, 1) {{}}\n"))])
}

fn fault(table: Result<Table, Fault>) -> String {
    table.expect_err("a fault").to_string()
}

const HEADER: &str = "\
#pragma once
// One of the products.
struct Job {
    const bf16* const* list;  // [n], device
    int32_t n;                // count
                              // of jobs
    float scale;
};
";

const SOURCE: &str = "\
// A file.
#include \"common/simt.cuh\"
#include \"job.cuh\"

// Not a params struct, so what is in it does not matter.
struct Tile {
    float acc[4][4];
    DEVICE void f() {}
};

// What it gets,
// in two lines.
struct ProductParams {
    // Inputs,
    // by rows.
    const bf16 *x;  // [rows, k]

    // Lost by the blank line.

    int64_t rows;
    Job jobs[3];
    uint32_t seed[2];
    uint64_t step;
};

// Forward.
KERNEL(product_fwd_bf16, ProductParams, 256, 2) {
    // KERNEL(no, kernel, at, all)
}
KERNEL(product_fwd_f32_r8,
       ProductParams, 1024, 1) {}
";

#[test]
fn kernels_and_params_are_read() {
    let table = read(&[("job.cuh", HEADER), ("product.cu", SOURCE)]).unwrap();

    let [first, second] = &table.kernels[..] else { panic!("{:?}", table.kernels) };
    assert_eq!((first.symbol.as_str(), first.threads, first.min_blocks), ("product_fwd_bf16", 256, 2));
    assert_eq!((first.variant().as_str(), first.doc.as_str()), ("ProductFwdBf16", "Forward."));
    assert_eq!((first.place.file.as_str(), first.place.line), ("product.cu", 27));
    assert_eq!(
        (second.variant().as_str(), second.threads, second.doc.as_str()),
        ("ProductFwdF32R8", 1024, "")
    );

    let [job, product] = &table.structs[..] else { panic!("{:?}", table.structs) };
    assert_eq!(
        (job.name.as_str(), job.size, job.align, job.doc.as_str()),
        ("Job", 16, 8, "One of the products.")
    );
    assert_eq!((product.name.as_str(), product.size, product.align), ("ProductParams", 80, 8));
    assert_eq!(product.doc, "What it gets, in two lines.");
    let fields = |found: &Struct| -> Vec<(String, usize, Option<usize>, String)> {
        let field = |f: &Field| (f.name.clone(), f.offset, f.count, f.doc.clone());
        found.fields.iter().map(field).collect()
    };
    let expected = |rows: &[(&str, usize, Option<usize>, &str)]| -> Vec<_> {
        rows.iter().map(|&(name, at, count, doc)| (name.to_owned(), at, count, doc.to_owned())).collect()
    };
    assert_eq!(
        fields(job),
        expected(&[
            ("list", 0, None, "[n], device"),
            ("n", 8, None, "count of jobs"),
            ("scale", 12, None, "")
        ])
    );
    assert_eq!(
        fields(product),
        expected(&[
            ("x", 0, None, "Inputs, by rows. [rows, k]"),
            ("rows", 8, None, ""),
            ("jobs", 16, Some(3), ""),
            ("seed", 64, Some(2), ""),
            ("step", 72, None, ""),
        ])
    );
    assert_eq!(job.fields[0].kind, Type::Pointer("const bf16* const*".to_owned()));
    assert_eq!(product.fields[1].kind, Type::Number("int64_t", "i64", 8));
    assert_eq!(product.fields[2].kind, Type::Struct("Job".to_owned()));
}

#[test]
fn no_kernels_are_a_table_too() {
    assert_eq!(read(&[]).unwrap(), Table::default());
    assert_eq!(read(&[("a.cuh", "struct A {\n    bool b;\n};\n")]).unwrap(), Table::default());
}

#[test]
fn padding_is_refused_with_its_size_and_place() {
    let text = fault(with_fields("    int32_t n;\n    float* y;"));
    assert!(text.starts_with("kernels/a.cu:3: 4 bytes of implicit padding before AParams::y"), "{text}");
    assert!(text.ends_with("or add `uint32_t reserved;`"), "{text}");
    let text = fault(with_fields("    float* y;\n    int32_t n[3];"));
    assert!(text.starts_with("kernels/a.cu:1: 4 bytes of implicit padding at the end of AParams"), "{text}");
    assert_eq!(
        with_fields("    float* y;\n    int32_t n[3];\n    uint32_t reserved;").unwrap().structs[0].size,
        24
    );
}

#[test]
fn wrong_fields_are_refused_with_their_line() {
    for (fields, what) in [
        ("    bool b;", "unknown type \"bool\""),
        ("    size_t n;", "unknown type \"size_t\""),
        ("    const float x;", "unknown type \"const float\""),
        ("    unsigned int x;", "expected `type name;`"),
        ("    int32_t a, b;", "expected `type name;`"),
        ("    int32_t a = 1;", "expected `type name;`"),
        ("    int32_t a", "expected `type name;`"),
        ("    int32_t a[2][2];", "expected `type name;`"),
        ("    int32_t a[kCount];", "expected `type name;`"),
        ("    int32_t a[0];", "expected `type name;`"),
        ("    int32_t;", "expected `type name;`"),
        ("    void (*f)(int);", "expected `type name;`"),
        ("    DEVICE int rows() { return 1; }", "expected `type name;`"),
        ("    Missing jobs;", "field AParams::jobs is of no known type, or needs `struct Missing { ... };`"),
        ("    float type;", "AParams::type: this name is a keyword of Rust"),
    ] {
        let text = fault(with_fields(fields));
        assert!(text.starts_with("kernels/a.cu:2: ") && text.contains(what), "{fields}: {text}");
    }
    assert!(fault(with_fields("    float a;\n    float a;")).contains("a.cu:3: duplicate field AParams::a"));
    assert!(fault(with_fields("    // Nothing.")).contains("a.cu:1: AParams has no fields"));
    assert!(fault(with_fields("    AParams again;")).contains("nested too deeply"));
}

#[test]
fn wrong_kernels_are_refused_with_their_line() {
    let params = "struct AParams {\n    float* x;\n};\n";
    for (line, what) in [
        ("KERNEL(a_fwd, AParams, 100, 1) {", "threads of a_fwd: got 100, expected a multiple of 32"),
        ("KERNEL(a_fwd, AParams, 0, 1) {", "threads of a_fwd: got 0"),
        ("KERNEL(a_fwd, AParams, 1056, 1) {", "threads of a_fwd: got 1056"),
        ("KERNEL(a_fwd, AParams, kThreads, 1) {", "threads of a_fwd must be an integer literal"),
        ("KERNEL(a_fwd, AParams, 128, 0) {", "min_blocks of a_fwd: got 0"),
        ("KERNEL(a_fwd, AParams, 128) {", "expected KERNEL(symbol, Params, threads, min_blocks)"),
        ("KERNEL(a_fwd, AParams, 128, 1", "does not end"),
        ("KERNEL(AFwd, AParams, 128, 1) {", "\"AFwd\" is no kernel name"),
        ("KERNEL(a__fwd, AParams, 128, 1) {", "\"a__fwd\" is no kernel name"),
        ("KERNEL(a_fwd, int, 128, 1) {", "\"int\" is no name of a params struct"),
        ("KERNEL(a_fwd, BParams, 128, 1) {", "kernel a_fwd needs `struct BParams { ... };`"),
        ("    KERNEL(a_fwd, AParams, 128, 1) {", "must start its line"),
        ("#define MORE(name) KERNEL(name, AParams, 128, 1) {", "must start its line"),
    ] {
        let text = fault(read(&[("a.cu", &format!("{params}{line}\n}}\n"))]));
        assert!(text.starts_with("kernels/a.cu:4: ") && text.contains(what), "{line}: {text}");
    }
}

#[test]
fn names_exist_once() {
    let kernel = "KERNEL(a_fwd, AParams, 64, 1) {}\n";
    let params = "struct AParams {\n    float* x;\n};\n";
    let twice = fault(read(&[("a.cu", &format!("{params}{kernel}")), ("b.cu", kernel)]));
    assert_eq!(twice, "kernels/b.cu:1: duplicate kernel a_fwd: a_fwd stands at a.cu:4");
    // The enum could not tell these apart.
    let alike = format!("{params}KERNEL(a_1b, AParams, 64, 1) {{}}\nKERNEL(a1b, AParams, 64, 1) {{}}\n");
    assert!(fault(read(&[("a.cu", &alike)])).contains("a.cu:5: duplicate kernel a1b: a_1b stands at a.cu:4"));
    let twice = fault(read(&[("a.cu", &format!("{params}{kernel}")), ("b.cu", params)]));
    assert_eq!(twice, "kernels/b.cu:1: duplicate struct AParams: the first stands at a.cu:1");
    let away = fault(read(&[("a.cu", params), ("b.cu", kernel)]));
    assert!(away.contains("kernels/b.cu:1: a_fwd takes AParams, which is declared in a.cu"), "{away}");
    assert!(read(&[("a.cuh", params), ("b.cu", kernel)]).is_ok());
    assert!(fault(read(&[("a.cuh", &format!("{params}{kernel}"))])).contains("belongs to a .cu file"));
}

/// A table of budgets with these rows below its head, which is line 3.
fn budgets(rows: &str) -> Result<Vec<budgets::Row>, Fault> {
    let head = budgets::HEAD.join(" | ");
    budgets::read(&format!(
        "# Kernels\n\n| {head} |\n|---|---|---|---|---|---|---|\n{rows}\nMore.\n| a | b |\n"
    ))
}

#[test]
fn budgets_are_read() {
    let rows = budgets("| `a_fwd` | adds | `AParams` | 256 | 128 | 49152 | yes |\n").unwrap();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((row.symbol.as_str(), row.params.as_str(), row.line), ("a_fwd", "AParams", 5));
    assert_eq!((row.threads, row.registers, row.smem), (256, 128, 49152));
    assert!(budgets("").unwrap().is_empty());
    assert!(budgets::read("# Kernels\n").unwrap().is_empty());
    for (rows, what) in [
        ("| `a_fwd` | adds | `AParams` | 256 | 128 | 48 KiB | yes |", "README.md:5: shared memory in bytes"),
        ("| `a_fwd` | adds | `AParams` | 256 | 128 | 0 |", "README.md:5: a row needs 7 columns"),
        ("| `a_fwd` | | `AParams` | 256 | 128 | 0 | yes |", "say what it does"),
        (
            "| `a_fwd` | a | `A` | 32 | 8 | 0 | yes |\n| `a_fwd` | a | `A` | 32 | 8 | 0 | yes |",
            "README.md:6: a second row of a_fwd",
        ),
    ] {
        let text = budgets(rows).unwrap_err().to_string();
        assert!(text.contains(what), "{rows}: {text}");
    }
}

#[test]
fn the_output_of_ptxas_is_read() {
    // From nvcc 13.0.88 with --threads; two architectures, one of them with spills.
    let log = "\
ptxas info    : 24 bytes gmem
ptxas info    : Compiling entry function 'toy_b' for 'sm_90'
ptxas info    : Function properties for toy_b
    296 bytes stack frame, 740 bytes spill stores, 628 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 296 bytes cumulative stack size
ptxas info    : Compile time = 44.707 ms
ptxas info    : Function properties for helper
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas warning : Value of threads per SM for entry toy_b is out of range. .minnctapersm will be ignored
ptxas info    : Compiling entry function 'toy_b' for 'sm_86'
ptxas info    : Function properties for toy_b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16896 bytes smem, 392 bytes cmem[0]
";
    let usages = ptxas::read(log).unwrap();
    let numbers = |usage: &ptxas::Usage| {
        (usage.symbol.clone(), usage.sm, usage.registers, usage.static_smem, usage.stack, usage.spills)
    };
    assert_eq!(
        usages.iter().map(numbers).collect::<Vec<_>>(),
        [("toy_b".to_owned(), 90, 128, 0, 296, 1368), ("toy_b".to_owned(), 86, 40, 16896, 0, 0)]
    );
    assert!(ptxas::read("").unwrap().is_empty());
    let cut = log.rsplit_once("ptxas info    : Used").unwrap().0;
    assert_eq!(ptxas::read(cut).unwrap_err(), "ptxas -v gave no registers for toy_b on sm_86");
    let odd = log.replace("bytes spill loads", "bytes");
    assert!(ptxas::read(&odd).is_ok());
    let odd = log.replace("628 bytes spill loads", "many spill loads");
    assert!(ptxas::read(&odd).unwrap_err().contains("cannot read this line"));
}

#[test]
fn ptx_is_lowered_or_refused() {
    let text = |version: &str, line: &str| format!("//\n.version {version}\n.target sm_80\n{line}\n");
    let plain = "\tld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];";
    // Newer versions become 7.8, older ones stay.
    for (from, to) in [("9.0", "7.8"), ("8.0", "7.8"), ("10.3", "7.8"), ("7.8", "7.8"), ("7.0", "7.0")] {
        assert_eq!(ptx::lower(&text(from, plain)), Ok(text(to, plain)));
    }
    let unroll = "\t.pragma \"nounroll\";";
    assert_eq!(ptx::lower(&text("9.0", unroll)), Ok(text("7.8", unroll)));
    let hint = format!("\t.pragma \"used_bytes_mask 15\";\n{plain}");
    assert_eq!(ptx::lower(&text("9.0", &hint)), Ok(text("7.8", plain)));
    for (bad, what) in [
        (text("9.0", "\t.pragma \"enable_smem_spilling\";"), "line 4 of the PTX: this hint is not known"),
        (
            text("9.0", "$L1: .pragma \"used_bytes_mask 15\"; ret;"),
            "line 4 of the PTX: this hint is not known",
        ),
        (text("next", plain), "line 2 of the PTX: this is no version: .version next"),
        (plain.to_owned(), "the PTX has 0 lines with a version"),
        (text("9.0", ".version 9.0"), "the PTX has 2 lines with a version"),
    ] {
        let fault = ptx::lower(&bad).unwrap_err();
        assert!(fault.contains(what), "{fault}");
    }
}
