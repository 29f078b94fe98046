//! What the kernels take of a multiprocessor, against the budgets of `kernels/README.md`.
//!
//! Registers, stack and spills decide whether a kernel is fast, and nobody sees them when a line changes. They come from the
//! compiler and need no GPU. Without nvcc in the build there is nothing to check, unless `TANREN_REQUIRE_NVCC=1` demands one.

// The notes are meant for the reader of the test output.
#![allow(clippy::print_stderr)]

use crate::kernel_table::budgets::{self, Row};
use crate::source::read;
use tanren::device::arch::{Arch, occupancy};
use tanren::device::kernels::{FATBIN, Kernel, NVCC, Resources};

/// A kernel as the build knows it.
struct Built {
    symbol: String,
    params: String,
    threads: u32,
    min_blocks: u32,
    resources: Vec<(Arch, Resources)>,
}

impl Built {
    fn new(kernel: Kernel) -> Self {
        let resources = |arch| kernel.resources(arch).map(|resources| (arch, resources));
        Self {
            symbol: kernel.symbol().to_owned(),
            params: kernel.params_name().to_owned(),
            threads: kernel.threads(),
            min_blocks: kernel.min_blocks(),
            resources: Arch::ALL.into_iter().filter_map(resources).collect(),
        }
    }
}

#[test]
fn kernels_stay_within_their_budgets() {
    if FATBIN.is_none() {
        let required = std::env::var_os("TANREN_REQUIRE_NVCC").is_some_and(|value| value == "1");
        assert!(!required, "TANREN_REQUIRE_NVCC=1, but {NVCC}");
        eprintln!("skipped the check of registers, stack and spills: {NVCC}");
    }
    let built: Vec<Built> = Kernel::ALL.iter().map(|kernel| Built::new(*kernel)).collect();
    let faults = faults(&built, &budgets::read(&read("kernels/README.md")).unwrap());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Where kernels and rows differ, and where a kernel takes more than its row allows.
fn faults(built: &[Built], rows: &[Row]) -> Vec<String> {
    let mut faults = Vec::new();
    for row in rows.iter().filter(|row| built.iter().all(|kernel| kernel.symbol != row.symbol)) {
        faults.push(format!(
            "kernels/README.md:{}: there is no kernel {}; remove the row",
            row.line, row.symbol
        ));
    }
    for kernel in built {
        match rows.iter().find(|row| row.symbol == kernel.symbol) {
            Some(row) => faults.extend(
                excess(kernel, row)
                    .into_iter()
                    .map(|what| format!("kernels/README.md:{}: {}: {what}", row.line, kernel.symbol)),
            ),
            None => faults.push(format!("kernels/README.md: no row for the kernel {}", kernel.symbol)),
        }
    }
    faults
}

/// What a kernel takes that its row does not allow.
fn excess(kernel: &Built, row: &Row) -> Vec<String> {
    let mut found = Vec::new();
    let mut demand = |good: bool, what: String| found.extend((!good).then_some(what));
    let Built { params, threads, min_blocks, resources, .. } = kernel;
    demand(row.params == *params, format!("takes {params}, the row says {}", row.params));
    demand(row.threads == *threads, format!("has {threads} threads, the row says {}", row.threads));
    for (arch, Resources { registers, static_smem, stack, spills }) in resources {
        demand(*spills == 0, format!("{spills} bytes of spills on {arch}"));
        demand(*stack == 0, format!("a stack of {stack} bytes on {arch}"));
        demand(
            *static_smem <= row.smem,
            format!("{static_smem} bytes of static shared memory, the row says {}", row.smem),
        );
        let blocks = occupancy(*arch, *threads, *registers, row.smem);
        if *arch == Arch::Sm86 {
            demand(
                *registers <= row.registers,
                format!("{registers} registers on {arch}, the row says {}", row.registers),
            );
            demand(
                blocks >= *min_blocks,
                format!("{blocks} blocks fit on {arch}, KERNEL(...) says {min_blocks}"),
            );
        }
        demand(blocks > 0, format!("no block fits on {arch}"));
    }
    found
}

#[test]
fn every_excess_is_found() {
    let row = |symbol: &str| Row {
        line: 9,
        symbol: symbol.to_owned(),
        params: "AParams".to_owned(),
        threads: 256,
        registers: 128,
        smem: 48 << 10,
    };
    let fair = Resources { registers: 128, static_smem: 1024, stack: 0, spills: 0 };
    let kernel = |change: &dyn Fn(&mut Built)| {
        let resources = Arch::ALL.map(|arch| (arch, fair)).to_vec();
        let (symbol, params) = ("a_fwd".to_owned(), "AParams".to_owned());
        let mut kernel = Built { symbol, params, threads: 256, min_blocks: 2, resources };
        change(&mut kernel);
        [kernel]
    };
    assert_eq!(faults(&kernel(&|_| ()), &[row("a_fwd")]), Vec::<String>::new());
    // sm_90 gets more registers, which no row limits.
    assert!(faults(&kernel(&|k| k.resources[3].1.registers = 168), &[row("a_fwd")]).is_empty());
    type Change = fn(&mut Built);
    let cases: [(Change, &str); 9] = [
        (|k| k.params = "BParams".to_owned(), "takes BParams"),
        (|k| k.threads = 128, "has 128 threads"),
        (|k| k.resources[1].1.registers = 129, "129 registers on sm_86, the row says 128"),
        (|k| k.resources[0].1.stack = 8, "a stack of 8 bytes on sm_80"),
        (|k| k.resources[3].1.spills = 4, "4 bytes of spills on sm_90"),
        (|k| k.resources[2].1.static_smem = 65536, "65536 bytes of static shared memory"),
        (|k| k.min_blocks = 3, "2 blocks fit on sm_86, KERNEL(...) says 3"),
        (|k| k.threads = 1024, "no block fits on sm_89"),
        (|k| k.symbol = "b_fwd".to_owned(), "no row for the kernel b_fwd"),
    ];
    for (change, what) in cases {
        let text = faults(&kernel(&change), &[row("a_fwd")]).join("\n");
        assert!(text.contains(what), "{what}: {text}");
    }
    assert!(faults(&[], &[row("a_fwd")])[0].starts_with("kernels/README.md:9: there is no kernel a_fwd"));
}
