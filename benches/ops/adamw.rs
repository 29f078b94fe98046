//! The update of a whole adapter, as the optimizer does it.

use criterion::Criterion;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::adamw::{self, AdamW, Trained};

use crate::common::LORA_R;
use crate::harness::{
    Bench, HEAD_DIM, HIDDEN_SIZE, INTERMEDIATE_SIZE, NUM_ATTENTION_HEADS, NUM_KEY_VALUE_HEADS, random,
};

/// Two blocks, and all 28 of Qwen3-0.6B.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "adamw");
    let adamw = AdamW {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        clip: 0.5,
        step: 10,
    };
    for blocks in [2, 28] {
        let shapes = adapter_shapes(blocks);
        let tensors = || -> Result<Vec<Tensor<f32>>> {
            shapes.iter().map(|&[rows, cols]| random(device, rows, cols)).collect()
        };
        let zeros = || -> Result<Vec<Tensor<f32>>> {
            shapes.iter().map(|&[rows, cols]| device.zeros(rows, cols)).collect()
        };
        let (mut params, grads) = (tensors()?, tensors()?);
        let (mut exp_avg, mut exp_avg_sq) = (zeros()?, zeros()?);
        bench.bytes(&format!("{blocks} blocks, r 16"), || {
            let moments = exp_avg.iter_mut().zip(&mut exp_avg_sq);
            let mut trained: Vec<Trained<'_, f32>> = params
                .iter_mut()
                .zip(&grads)
                .zip(moments)
                .map(|((param, grad), (exp_avg, exp_avg_sq))| Trained {
                    param,
                    shadow: None,
                    grad,
                    exp_avg,
                    exp_avg_sq,
                    decays: true,
                })
                .collect();
            adamw::update(device, &adamw, &mut trained)
        })?;
    }
    Ok(())
}

/// Shapes of A and B of every linear layer.
pub(crate) fn adapter_shapes(blocks: usize) -> Vec<[usize; 2]> {
    let (q, kv) = (NUM_ATTENTION_HEADS * HEAD_DIM, NUM_KEY_VALUE_HEADS * HEAD_DIM);
    let (h, i) = (HIDDEN_SIZE, INTERMEDIATE_SIZE);
    let linears = [(h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)];
    let of_block = linears.map(|(inputs, outputs)| [[LORA_R, inputs], [outputs, LORA_R]]);
    (0..blocks).flat_map(|_| of_block.into_iter().flatten()).collect()
}
