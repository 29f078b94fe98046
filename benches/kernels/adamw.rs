//! The optimizer step over all adapters of a model at rank 16: norm, clipping, update, in three launches.
//!
//! Bound by memory: 34 bytes an element for the update and 4 for the norm.

use half::bf16;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::adamw::gpu::{StepScalars, Tensors, clip_and_update};
use tanren::ops::adamw::{AdamW, Trained};

use super::common::LORA_R;
use super::harness::{Bench, Cost};
use super::shapes::Model;

/// The smallest model and the largest.
pub(crate) fn bench(bench: &mut Bench<'_>) -> Result<()> {
    let models = bench.mode.models();
    for model in models.iter().step_by((models.len() - 1).max(1)) {
        let features = features(model);
        let elements = (LORA_R * features.iter().sum::<usize>()) as u64;
        let cost = Cost { flops: 16 * elements, bytes: 38 * elements };
        let make = |device: &Device, _| Set::new(device, &features);
        bench.run(&format!("adamw/step {} {elements}", model.name), cost, &[], make, |device, set| {
            clip_and_update(device, &set.tensors, &set.scalars).map(drop)
        })?;
    }
    Ok(())
}

/// Features on either side of the factors of all layers: q, k, v, o, gate, up, down.
fn features(model: &Model) -> Vec<usize> {
    let (h, i, q, kv) = (model.hidden, model.intermediate, model.q_cols(), model.kv_cols());
    [h, q, h, kv, h, kv, q, h, h, i, h, i, i, h].repeat(model.num_layers)
}

struct Set {
    tensors: Tensors,
    scalars: StepScalars,
    /// What the table of tensors points to.
    _memory: (Vec<Tensor<f32>>, Vec<Tensor<bf16>>),
}

impl Set {
    fn new(device: &Device, features: &[usize]) -> Result<Self> {
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
                decays: true,
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
        let floats = params.into_iter().chain(grads).chain(exp_avg).chain(exp_avg_sq).collect();
        Ok(Self { tensors, scalars, _memory: (floats, shadows) })
    }
}
