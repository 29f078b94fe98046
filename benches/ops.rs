//! Benchmarks of the ops, one file each: `cargo bench --bench ops`, or `cargo bench --bench ops -- attention` for one.
//!
//! Shapes are those of Qwen3-0.6B for one row of 654 tokens, for four packed rows (2616 tokens), and one small shape that shows
//! fixed costs. `copy` and `gemm` are the limits to hold the others against: memory for element-wise ops, arithmetic for products.

#[allow(dead_code, reason = "filters and the short mode are for the other benchmarks")]
mod common;

#[path = "ops/activation.rs"]
mod activation;
#[path = "ops/adamw.rs"]
mod adamw;
#[path = "ops/attention.rs"]
mod attention;
#[path = "ops/copy.rs"]
mod copy;
#[path = "ops/embedding.rs"]
mod embedding;
#[path = "ops/gemm.rs"]
mod gemm;
#[path = "ops/grad_norm.rs"]
mod grad_norm;
#[path = "ops/harness.rs"]
mod harness;
#[path = "ops/linear_cross_entropy.rs"]
mod linear_cross_entropy;
#[path = "ops/lora_matmul.rs"]
mod lora_matmul;
#[path = "ops/norm.rs"]
mod norm;
#[path = "ops/qk_norm_rope.rs"]
mod qk_norm_rope;
#[path = "ops/rows.rs"]
mod rows;

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;

/// The benchmarks of one file.
type OpBench = fn(&mut Criterion, &Device) -> Result<()>;

fn main() -> Result<()> {
    let mut criterion = common::criterion();
    let device = common::device()?;
    let all: [OpBench; 12] = [
        copy::bench,
        gemm::bench,
        embedding::bench,
        norm::bench,
        qk_norm_rope::bench,
        activation::bench,
        lora_matmul::bench,
        attention::bench,
        linear_cross_entropy::bench,
        rows::bench,
        grad_norm::bench,
        adamw::bench,
    ];
    for bench in all {
        bench(&mut criterion, &device)?;
    }
    criterion.final_summary();
    Ok(())
}
