//! The optimizer step over all adapters of a model at rank 16: norm, clipping, update, in three launches.
//!
//! Bound by memory: 34 bytes an element for the update and 4 for the norm.

use criterion::Criterion;
use half::bf16;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::adamw::gpu::{StepScalars, Tensors, clip_and_update};
use tanren::ops::adamw::{AdamW, Trained};

use crate::common::LORA_R;
use crate::harness::{Bench, Cost};

/// Model, layers, and the features on either side of the factors of one of them.
const MODELS: [(&str, usize, [usize; 14]); 2] = [
    ("Qwen3-0.6B", 28, [1024, 2048, 1024, 1024, 1024, 1024, 2048, 1024, 1024, 3072, 1024, 3072, 3072, 1024]),
    ("Qwen3-8B", 36, [4096, 4096, 4096, 1024, 4096, 1024, 4096, 4096, 4096, 12288, 4096, 12288, 12288, 4096]),
];

/// All tensors of a model.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "adamw");
    for (model, layers, features) in MODELS {
        let features = features.repeat(layers);
        let zeros = || -> Result<Vec<Tensor<f32>>> {
            features.iter().map(|&features| device.zeros(LORA_R, features)).collect()
        };
        let (mut params, grads, mut exp_avg, mut exp_avg_sq) = (zeros()?, zeros()?, zeros()?, zeros()?);
        let mut shadows: Vec<Tensor<bf16>> =
            features.iter().map(|&features| device.zeros(LORA_R, features)).collect::<Result<_>>()?;
        let moments = exp_avg.iter_mut().zip(&mut exp_avg_sq);
        let trained: Vec<Trained<'_, bf16>> = params
            .iter_mut()
            .zip(&mut shadows)
            .zip(&grads)
            .zip(moments)
            .map(|(((param, shadow), grad), (exp_avg, exp_avg_sq))| Trained {
                param,
                shadow: Some(shadow),
                grad,
                exp_avg,
                exp_avg_sq,
            })
            .collect();
        let tensors = Tensors::new(device, &trained)?;
        let mut scalars = StepScalars::new(device)?;
        let adamw = AdamW {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            step: 1,
        };
        scalars.write(device, &adamw, Some(1.0))?;
        let elements = tensors.num_params() as u64;
        let cost = Cost { flops: 16 * elements, bytes: 38 * elements };
        bench.run(&format!("step {model} {elements}"), cost, || {
            clip_and_update(device, &tensors, &scalars).map(drop)
        })?;
    }
    Ok(())
}
