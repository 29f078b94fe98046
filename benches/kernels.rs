//! Benchmarks of the GPU kernels, one file for each op: `cargo bench --bench kernels`, or `-- lora_matmul/forward` for a part.
//!
//! Times are those of the GPU's clock (CUDA events around recorded launches), on buffers that lie far enough apart that no L2 cache
//! holds them (`kernels/harness.rs`). Shapes are those of Qwen3 models at 2,176 and 4,352 rows, which fill the 68 multiprocessors
//! of an RTX 3080 in whole waves. A row of the table is printed as soon as it is measured: milliseconds, TFLOP/s, GB/s, the share of
//! the floor (operations over the peak rate, bytes over the bandwidth, whichever is longer), and where a cuBLASLt is found (by the
//! loader, or in the packages of an installed PyTorch), its time for the same frozen products over ours. Criterion's report comes
//! beside it.
//!
//! `TANREN_BENCH_QUICK=1`: one shape each (Qwen3-0.6B, 2,176 rows), seven samples, no criterion, in the order of what a step
//! spends on them; below a minute. Arguments are parts of names, of which a benchmark has to have one; nothing is allocated for the
//! others. Without a GPU everything is skipped, and the reason printed; with `TANREN_BENCH_DEVICE=emulated` (feature `emulated`)
//! the benchmarks run at tiny shapes on the emulator, to see that they do.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints what it found")]

#[path = "kernels/activation.rs"]
mod activation;
#[path = "kernels/adamw.rs"]
mod adamw;
#[path = "kernels/attention.rs"]
mod attention;
#[allow(dead_code, reason = "rows and the CPU are for the other benchmarks")]
#[path = "common/mod.rs"]
pub(crate) mod common;
#[path = "kernels/cublaslt.rs"]
mod cublaslt;
#[path = "kernels/dora.rs"]
mod dora;
#[path = "kernels/embedding.rs"]
mod embedding;
#[path = "kernels/harness.rs"]
pub(crate) mod harness;
#[path = "kernels/label_head.rs"]
mod label_head;
#[path = "kernels/libraries.rs"]
pub(crate) mod libraries;
#[path = "kernels/linear_cross_entropy.rs"]
mod linear_cross_entropy;
#[path = "kernels/lora_matmul.rs"]
mod lora_matmul;
#[path = "kernels/narrow.rs"]
mod narrow;
#[path = "kernels/norm.rs"]
mod norm;
#[path = "kernels/qk_norm_rope.rs"]
mod qk_norm_rope;
#[path = "kernels/rows.rs"]
mod rows;
#[path = "kernels/shapes.rs"]
pub(crate) mod shapes;

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;

use harness::{Bench, HEADER, Row};
use shapes::Mode;

/// The device, and what is measured on it.
fn device_and_mode() -> Result<(Device, Mode)> {
    #[cfg(feature = "emulated")]
    if std::env::var("TANREN_BENCH_DEVICE").is_ok_and(|device| device == "emulated") {
        return Ok((Device::emulated(tanren::device::EmulatorOptions::default())?, Mode::Smoke));
    }
    Ok((Device::cuda(0)?, if common::is_quick() { Mode::Quick } else { Mode::Full }))
}

fn main() {
    if !cublaslt::is_there() {
        libraries::restart_with_pytorch();
    }
    let (device, mode) = match device_and_mode() {
        Ok(found) => found,
        Err(reason) => return eprintln!("kernels: skipped, there is no GPU to measure: {reason}"),
    };
    let mut criterion = common::criterion();
    if let Err(error) = run(&device, mode, &common::filters(), &mut criterion) {
        eprintln!("{error}");
        std::process::exit(error.exit_code().into());
    }
    criterion.final_summary();
}

/// Everything whose name the filters let through, in the order of what a training step spends on it. An op that fails does not keep
/// the others from running.
pub(crate) fn run(
    device: &Device,
    mode: Mode,
    filters: &[String],
    criterion: &mut Criterion,
) -> Result<Vec<Row>> {
    // Launches are recorded, and temporary tensors of ops cost nothing, only where memory is reserved. The rest is for cuBLASLt.
    let free = device.card_memory()?.map_or(64 << 20, |memory| memory.free_bytes / 10 * 7);
    device.reserve(free)?;
    println!("kernels on {}", device.label());
    let mut bench = Bench::new(device, mode, filters, criterion);
    bench.missing().iter().for_each(|what| println!("{what}"));
    println!("{HEADER}");
    let mut failure = None;
    for op in [
        lora_matmul::bench,
        linear_cross_entropy::bench,
        attention::bench,
        activation::bench,
        norm::bench,
        qk_norm_rope::bench,
        adamw::bench,
        rows::bench,
        embedding::bench,
        label_head::bench,
        dora::bench,
    ] {
        if let Err(error) = op(&mut bench) {
            println!("{error}");
            failure.get_or_insert(error);
        }
    }
    failure.map_or(Ok(bench.rows().to_vec()), Err)
}
