//! `tanren inspect kernels`: the GPU kernels of this build and what each takes of a multiprocessor.

use crate::cli::console::Console;
use crate::cli::table;
use crate::cli::units::{bytes, count};
use crate::device::arch::{Arch, occupancy};
use crate::device::kernels::{FATBIN, Kernel, NVCC};

/// Shows the compiler, the machine code, and a row for every kernel and architecture.
pub(super) fn show(console: &Console) {
    let architectures = Arch::ALL.map(|arch| arch.to_string()).join(", ");
    let code = match FATBIN {
        Some(image) => format!("{} for {architectures}, and PTX for newer ones", bytes(image.len() as u64)),
        None => "none".to_owned(),
    };
    console.lines(table::pairs(&[
        ("compiler", NVCC.to_owned()),
        ("machine code", code),
        ("kernels", count(Kernel::ALL.len() as u64)),
    ]));
    if Kernel::ALL.is_empty() {
        return;
    }
    console.heading("what a block takes, and how many fit on a multiprocessor");
    let heads = [
        "kernel",
        ">threads",
        "arch",
        ">registers",
        ">static smem",
        ">most smem",
        ">stack",
        ">spills",
        ">blocks",
        ">occupancy",
    ];
    let rows: Vec<_> = Kernel::ALL.iter().flat_map(|kernel| rows(*kernel)).collect();
    console.lines(table::columns(&heads, &rows));
}

/// The rows of a kernel; without machine code one row of what is known from the source.
fn rows(kernel: Kernel) -> Vec<Vec<String>> {
    let (threads, smem) = (kernel.threads(), kernel.budget().smem);
    let start = vec![kernel.symbol().to_owned(), threads.to_string()];
    let row = |arch: Arch| {
        let used = kernel.resources(arch)?;
        let smem = smem.max(used.static_smem);
        let blocks = occupancy(arch, threads, used.registers, smem);
        let share = f64::from(blocks * threads) / f64::from(32 * arch.limits().warps);
        let numbers = [
            used.registers.to_string(),
            used.static_smem.to_string(),
            smem.to_string(),
            used.stack.to_string(),
            used.spills.to_string(),
            blocks.to_string(),
            format!("{:.0}%", 100.0 * share),
        ];
        Some(start.iter().cloned().chain([arch.to_string()]).chain(numbers).collect())
    };
    let rows: Vec<Vec<String>> = Arch::ALL.into_iter().filter_map(row).collect();
    if rows.is_empty() { vec![start] } else { rows }
}
