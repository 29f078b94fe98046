//! Norm over the gradients of a whole adapter.

use criterion::Criterion;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::grad_norm::grad_norm;

use crate::adamw::adapter_shapes;
use crate::harness::{Bench, random};

/// Two blocks, and all 28 of Qwen3-0.6B.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "grad_norm");
    for blocks in [2, 28] {
        let shapes = adapter_shapes(blocks);
        let grads: Vec<Tensor<f32>> =
            shapes.into_iter().map(|[rows, cols]| random(device, rows, cols)).collect::<Result<_>>()?;
        let all: Vec<&Tensor<f32>> = grads.iter().collect();
        bench.bytes(&format!("{blocks} blocks, r 16"), || {
            std::hint::black_box(grad_norm(device, &all));
            Ok(())
        })?;
    }
    Ok(())
}
