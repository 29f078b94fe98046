//! Benchmarks of the GPU kernels, one file for each op: `cargo bench --bench kernels`, or `-- lora_matmul/forward` for a part.
//!
//! Times are those of the GPU's clock (CUDA events around many launches). Shapes are those of Qwen3 models at 2,176 and 4,352 rows,
//! which fill the 68 multiprocessors of an RTX 3080 in whole waves. Beside criterion's report a table says TFLOP/s, the share of
//! the floor (operations over the peak rate, bytes over the bandwidth, whichever is longer), and where a cuBLASLt is found, how
//! its products compare. Without a GPU everything is skipped, and the reason printed.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints what it found")]

#[allow(dead_code, reason = "rows and the CPU are for the other benchmarks")]
mod common;

#[path = "kernels/adamw.rs"]
mod adamw;
#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/cublaslt.rs"]
mod cublaslt;
#[path = "kernels/dora.rs"]
mod dora;
#[path = "kernels/embedding.rs"]
mod embedding;
#[path = "kernels/harness.rs"]
mod harness;
#[path = "kernels/linear_cross_entropy.rs"]
mod linear_cross_entropy;
#[path = "kernels/lora_matmul.rs"]
mod lora_matmul;
#[path = "kernels/narrow.rs"]
mod narrow;
#[path = "kernels/qk_norm_rope.rs"]
mod qk_norm_rope;
#[path = "kernels/rms_norm.rs"]
mod rms_norm;
#[path = "kernels/rows.rs"]
mod rows;
#[path = "kernels/swiglu.rs"]
mod swiglu;

use tanren::device::Device;

fn main() {
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(reason) => return eprintln!("kernels: skipped, there is no GPU to measure: {reason}"),
    };
    println!("kernels on {}", device.label());
    let mut criterion = common::criterion();
    for bench in [
        lora_matmul::bench,
        attention::bench,
        linear_cross_entropy::bench,
        adamw::bench,
        dora::bench,
        rms_norm::bench,
        qk_norm_rope::bench,
        swiglu::bench,
        rows::bench,
        embedding::bench,
    ] {
        if let Err(error) = bench(&mut criterion, &device) {
            eprintln!("{error}");
            std::process::exit(error.exit_code().into());
        }
    }
    criterion.final_summary();
}
