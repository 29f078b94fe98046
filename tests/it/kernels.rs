//! The resources of the kernels, against the budgets of `kernels/README.md`.
//!
//! Registers, stack and spills decide whether a kernel is fast, but a change of them is not visible in the
//! source. They come from the compiler and need no GPU. Without nvcc in the build there is nothing to check,
//! unless `TANREN_REQUIRE_NVCC=1` demands one.

// The notes are meant for the reader of the test output.
#![allow(clippy::print_stderr)]
#![allow(clippy::unwrap_used, reason = "tests")]

#[cfg(feature = "cuda")]
use std::path::Path;
#[cfg(feature = "cuda")]
use std::process::Command;

use crate::kernel_table::budgets::{self, Row};
#[cfg(feature = "cuda")]
use crate::kernel_table::ptxas;
use crate::source::read;
use tanren::device::arch::{Arch, occupancy};
use tanren::device::kernels::{IMAGES, Kernel, NVCC, Resources};

/// A kernel as the build knows it.
struct Built {
    symbol: String,
    params: String,
    threads: u32,
    min_blocks: u32,
    resources: Vec<(Arch, Resources)>,
}

impl Built {
    /// By the compiler whose code is in the program.
    fn new(kernel: Kernel) -> Self {
        let resources = |arch| kernel.resources(arch).map(|resources| (arch, resources));
        Self::with(kernel, Arch::ALL.into_iter().filter_map(resources).collect())
    }

    fn with(kernel: Kernel, resources: Vec<(Arch, Resources)>) -> Self {
        Self {
            symbol: kernel.symbol().to_owned(),
            params: kernel.params_name().to_owned(),
            threads: kernel.threads(),
            min_blocks: kernel.min_blocks(),
            resources,
        }
    }
}

#[test]
fn kernels_stay_within_their_budgets() {
    if IMAGES.is_empty() {
        let required = std::env::var_os("TANREN_REQUIRE_NVCC").is_some_and(|value| value == "1");
        assert!(!required, "TANREN_REQUIRE_NVCC=1, but {NVCC}");
        eprintln!("skipped the check of registers, stack and spills: {NVCC}");
    }
    let built: Vec<Built> = Kernel::ALL.iter().map(|kernel| Built::new(*kernel)).collect();
    let faults = faults(&built, &budgets::read(&read("kernels/README.md")).unwrap());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// The code of the program is that of one ptxas. Others are used too: the compiler in a driver, if the
/// program has no machine code for the GPU, and that of a toolkit, if the build uses only that. Each one that
/// `scripts/setup-nvcc.sh` installs is tried.
#[cfg(feature = "cuda")]
#[test]
fn kernels_stay_within_their_budgets_with_every_compiler() {
    use crate::source::root;
    use tanren::device::image::Image;
    use tanren::device::kernels::PTXAS;
    if IMAGES.is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ptx = folder.path().join("kernels.ptx");
    let text = Image::Ptx(Arch::Sm80).unpack().unwrap();
    std::fs::write(&ptx, text.bytes().strip_suffix(&[0]).unwrap()).unwrap();
    let mut versions = vec![PTXAS.to_owned()];
    for name in ["ptxas", "ptxas-12.8"] {
        let compiler = root().join(".cuda/bin").join(name);
        let Some(version) = version(&compiler) else { continue };
        if versions.contains(&version) {
            continue;
        }
        let built = built_by(&compiler, &ptx);
        let faults = faults(&built, &budgets::read(&read("kernels/README.md")).unwrap());
        assert!(faults.is_empty(), "{version}: {} faults:\n{}", faults.len(), faults.join("\n"));
        versions.push(version);
    }
    let required = std::env::var_os("TANREN_REQUIRE_NVCC").is_some_and(|value| value == "1");
    assert!(!required || versions.len() > 1, "TANREN_REQUIRE_NVCC=1, but only {versions:?} is there");
    eprintln!("budgets compared for {}", versions.join(" and "));
}

/// What a ptxas is called in [`tanren::device::kernels::PTXAS`].
#[cfg(feature = "cuda")]
fn version(compiler: &Path) -> Option<String> {
    let output = Command::new(compiler).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let words = text.lines().find_map(|line| line.split_once("release ")).map(|(_, rest)| rest.trim())?;
    Some(format!("ptxas {words}"))
}

/// All kernels as a ptxas compiles them, with the flags of build/nvcc.rs.
#[cfg(feature = "cuda")]
fn built_by(compiler: &Path, ptx: &Path) -> Vec<Built> {
    let compile = |arch: Arch| {
        let mut command = Command::new(compiler);
        command.args(["-v", "-m64", "-fmad=false", &format!("-arch={arch}"), "-o", "/dev/null"]);
        let output = command.arg(ptx).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arch}: {text}");
        ptxas::read(&text).unwrap().into_iter().map(move |usage| (arch, usage))
    };
    let usages: Vec<(Arch, ptxas::Usage)> = std::thread::scope(|scope| {
        let started = Arch::ALL.map(|arch| scope.spawn(move || compile(arch)));
        started.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let resources = |kernel: Kernel| {
        let own = usages.iter().filter(|(_, usage)| usage.symbol == kernel.symbol());
        let own = own.map(|(arch, usage)| {
            let ptxas::Usage { registers, static_smem, stack, spills, .. } = *usage;
            (*arch, Resources { registers, static_smem, stack, spills })
        });
        own.collect::<Vec<_>>()
    };
    let built: Vec<Built> =
        Kernel::ALL.iter().map(|kernel| Built::with(*kernel, resources(*kernel))).collect();
    assert!(built.iter().all(|kernel| kernel.resources.len() == Arch::ALL.len()));
    built
}

/// Differences between kernels and rows, and kernels that exceed their row.
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

/// The limits of its row that a kernel exceeds.
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
        }
        demand(
            blocks >= *min_blocks,
            format!("{blocks} blocks fit on {arch}, KERNEL(...) says {min_blocks}"),
        );
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
    // sm_90 gets more registers, which no row limits as long as the promised blocks fit.
    let more = |k: &mut Built| {
        k.min_blocks = 1;
        k.resources[3].1.registers = 168;
    };
    assert!(faults(&kernel(&more), &[row("a_fwd")]).is_empty());
    type Change = fn(&mut Built);
    let cases: [(Change, &str); 10] = [
        (|k| k.params = "BParams".to_owned(), "takes BParams"),
        (|k| k.threads = 128, "has 128 threads"),
        (|k| k.resources[1].1.registers = 129, "129 registers on sm_86, the row says 128"),
        (|k| k.resources[0].1.stack = 8, "a stack of 8 bytes on sm_80"),
        (|k| k.resources[3].1.spills = 4, "4 bytes of spills on sm_90"),
        (|k| k.resources[2].1.static_smem = 65536, "65536 bytes of static shared memory"),
        (|k| k.min_blocks = 3, "2 blocks fit on sm_86, KERNEL(...) says 3"),
        (|k| k.threads = 1024, "0 blocks fit on sm_89, KERNEL(...) says 2"),
        (|k| k.resources[4].1.registers = 200, "1 blocks fit on sm_120, KERNEL(...) says 2"),
        (|k| k.symbol = "b_fwd".to_owned(), "no row for the kernel b_fwd"),
    ];
    for (change, what) in cases {
        let text = faults(&kernel(&change), &[row("a_fwd")]).join("\n");
        assert!(text.contains(what), "{what}: {text}");
    }
    assert!(faults(&[], &[row("a_fwd")])[0].starts_with("kernels/README.md:9: there is no kernel a_fwd"));
}
