//! `tanren inspect kernels`: the GPU kernels of this build and the resources that each takes on a
//! multiprocessor.

use crate::cli::console::Console;
use crate::cli::table;
use crate::cli::units::{bytes, count};
use crate::device::arch::{Arch, occupancy};
use crate::device::image::images;
use crate::device::kernels::{IMAGES, Kernel, NVCC, PTXAS};

/// Shows the compiler, the machine code, and a row for every kernel and architecture.
pub(super) fn show(console: &Console) {
    let (mut packed, mut unpacked) = (0, 0);
    for (_, image) in IMAGES {
        packed += image.bytes.len() as u64;
        unpacked += image.size as u64;
    }
    let (compiler, size) = match IMAGES.is_empty() {
        true => (NVCC.to_owned(), "none".to_owned()),
        false => (
            format!("{NVCC}; {PTXAS}"),
            format!("{} in the program, {} unpacked", bytes(packed), bytes(unpacked)),
        ),
    };
    console.lines(table::pairs(&[
        ("compiler", compiler),
        ("images", images()),
        ("machine code", size),
        ("kernels", count(Kernel::ALL.len() as u64)),
    ]));
    if Kernel::ALL.is_empty() {
        return;
    }
    console.heading("resources of a block, and blocks per multiprocessor");
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

/// The rows of a kernel; without machine code, one row with the data from the source.
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
