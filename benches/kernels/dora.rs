//! What DoRA adds to a layer beside its products: norms, gains, gradients of magnitudes, and dropout as a pass of its own.
//!
//! All are bound by memory, but for the norms, which multiply the factors.

use criterion::Criterion;
use half::bf16;
use tanren::batch::{AdapterRows, Segment};
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::lora_matmul::RowKeys;
use tanren::ops::lora_matmul::gpu::dora::{
    Dropped, Gain, Magnitude, Magnitudes, Merged, Scale, dropout, magnitude_gradient, norm, scale,
};
use tanren::ops::lora_matmul::gpu::{DropoutRate, Rows, dropout_keys};

use crate::common::LORA_R;
use crate::harness::{Bench, Cost, random};

const ROWS: usize = 2176;

/// The MLP's gate of three models.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "dora");
    for (model, inputs, out) in
        [("Qwen3-0.6B", 1024, 3072), ("Qwen3-1.7B", 2048, 6144), ("Qwen3-8B", 4096, 12288)]
    {
        let weight = random(device, out, inputs, 0.02, 0)?;
        let (a, b_t) = (random(device, LORA_R, inputs, 0.02, 1)?, random(device, LORA_R, out, 0.02, 2)?);
        let magnitude = random(device, 1, out, 1.0, 3)?;
        let (mut norms, grad): (Tensor<f32>, Tensor<f32>) = (device.zeros(1, out)?, device.zeros(1, out)?);
        let matrix = out * inputs;
        let cost = Cost { flops: 2 * (matrix * (LORA_R + 1)) as u64, bytes: 2 * matrix as u64 };
        bench.run(&format!("norm {model}"), cost, || {
            norm(device, Merged { weight: &weight, a: &a, b_t: &b_t, scaling: 2.0 }, &mut norms)
        })?;

        let segment =
            Segment { start: 0, len: ROWS, prefix: None, adapter: 0, position_offset: 0, sample: 0 };
        let keys = RowKeys::new(&[segment]);
        let rows = Rows::new(device, ROWS, &[AdapterRows { adapter: 0, rows: 0..ROWS }], Some(&keys))?;
        let one = Magnitude { magnitude: &magnitude, norm: &norms, grad: Some(&grad) };
        let gains = Magnitudes::new(device, out, &[Some(one)])?;
        let (dy, z) = (random(device, ROWS, out, 1.0, 4)?, random(device, ROWS, out, 1.0, 5)?);
        let mut y: Tensor<bf16> = device.zeros(ROWS, out)?;
        let outputs = 4 * (ROWS * out) as u64;
        bench.run(&format!("scale {model}"), Cost { flops: outputs / 2, bytes: outputs }, || {
            let args = Scale { input: Some(&z), gain: Gain::Whole, addend: None, bias: None };
            scale(device, &rows, &gains, args, &mut y)
        })?;
        bench.run(&format!("magnitude {model}"), Cost { flops: outputs / 2, bytes: outputs }, || {
            magnitude_gradient(device, &rows, &gains, &dy, &z)
        })?;
        let (x, key) = (random(device, ROWS, inputs, 1.0, 6)?, dropout_keys(device, &[[1, 2]])?);
        let mut dropped: Tensor<bf16> = device.zeros(ROWS, inputs)?;
        let inputs = (ROWS * inputs) as u64;
        bench.run(&format!("dropout {model}"), Cost { flops: inputs, bytes: 4 * inputs }, || {
            let mask = (DropoutRate { threshold: 6554 }, key.ptr());
            dropout(device, &rows, mask, &x, Dropped { out: Some(&mut dropped), rest: None, addend: None })
        })?;
    }
    Ok(())
}
