//! The ops, one room each: `mod.rs` is the contract (formula, shapes, checks, dispatch), `cpu.rs` the implementation for f32
//! (runs) and f64 (the oracle of tests), `tests.rs` agreement and gradients.
//!
//! Ops are coarse and fused; this is no tensor library. Outputs and activations are overwritten, gradients of adapters
//! accumulate, frozen weights never get gradients.

pub mod adamw;
pub mod attention;
pub mod embedding;
mod few_rows;
pub mod gemm;
pub mod grad_norm;
pub mod linear_cross_entropy;
pub mod lora_matmul;
pub mod qk_norm_rope;
pub mod rms_norm;
pub mod rows;
pub mod simd;
pub mod swiglu;
#[cfg(test)]
pub(crate) mod testing;

use crate::device::Tensor;
use crate::error::{Error, Result};
use crate::tensor::Element;

/// Fails unless `tensor` has the shape that `op` expects of its argument `arg`.
fn check_shape<T: Element>(
    op: &'static str,
    arg: &'static str,
    tensor: &Tensor<T>,
    expected: [usize; 2],
) -> Result<()> {
    if tensor.shape() == expected { Ok(()) } else { Err(Error::shape(op, arg, expected, tensor.shape())) }
}
