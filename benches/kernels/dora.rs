//! What DoRA adds to a layer beside its products: norms, gains, gradients of magnitudes, and dropout as a pass of its own.
//!
//! All are bound by memory, but for the norms, which multiply the factors.

use half::bf16;
use tanren::batch::{AdapterRows, Segment};
use tanren::device::kernels::params::DropoutKey;
use tanren::device::{Device, Table, Tensor};
use tanren::error::Result;
use tanren::ops::lora_matmul::gpu::dora::{
    Dropped, Gain, Magnitude, MagnitudeGradient, Magnitudes, Scale, dropout, magnitude_gradient, scale,
};
use tanren::ops::lora_matmul::gpu::dropout_keys;
use tanren::ops::lora_matmul::{Dropout, Merged, RowKeys, Rows, dora_norm};

use super::common::LORA_R;
use super::harness::{Bench, Cost, random};

/// The MLP's gate of the models.
pub(crate) fn bench(bench: &mut Bench<'_>) -> Result<()> {
    for model in bench.mode.models() {
        let (rows, inputs, out) = (bench.mode.rows()[0], model.hidden, model.intermediate);
        let make = |device: &Device, _| Set::new(device, rows, [out, inputs]);
        let name = |what: &str| format!("dora/{what} {} {rows}", model.name);
        let outputs = 4 * (rows * out) as u64;
        let cost = Cost { flops: outputs / 2, bytes: outputs };
        bench.run(&name("scale"), cost, &[], make, |device, set| {
            let (magnitudes, input) = (&set.gains, Some(&set.z));
            let args = Scale { magnitudes, input, gain: Gain::Whole, addend: None, bias: None };
            scale(device, &set.rows, args, &mut set.y)
        })?;
        bench.run(&name("magnitude"), cost, &[], make, |device, set| {
            let args = MagnitudeGradient { magnitudes: &set.gains, dy: &set.dy, z: &set.z };
            magnitude_gradient(device, &set.rows, args)
        })?;
        let numbers = (rows * inputs) as u64;
        let cost = Cost { flops: numbers, bytes: 4 * numbers };
        bench.run(&name("dropout"), cost, &[], make, |device, set| {
            let Some(mask) = Dropout::new(0.1, 0, 0, 0) else { return Ok(()) };
            let mask = mask.with_key_at(set.key.ptr());
            let to = Dropped { mask, out: Some(&mut set.dropped), rest: None, addend: None };
            dropout(device, &set.rows, Some(&set.x), to)
        })?;
        let matrix = out * inputs;
        let cost = Cost { flops: 2 * (matrix * (LORA_R + 1)) as u64, bytes: 2 * matrix as u64 };
        bench.run(&name("norm"), cost, &[], make, |device, set| {
            let merged = Merged { weight: &set.weight, a: &set.a, b: &set.b_t, scaling: 2.0 };
            dora_norm(device, merged, &mut set.norms)
        })?;
    }
    Ok(())
}

struct Set {
    weight: Tensor<bf16>,
    a: Tensor<bf16>,
    b_t: Tensor<bf16>,
    norms: Tensor<f32>,
    rows: Rows,
    gains: Magnitudes,
    key: Table<DropoutKey>,
    x: Tensor<bf16>,
    dy: Tensor<bf16>,
    z: Tensor<bf16>,
    y: Tensor<bf16>,
    dropped: Tensor<bf16>,
    /// What the gains point to.
    _of_gains: (Tensor<bf16>, Tensor<f32>, Tensor<f32>),
}

impl Set {
    fn new(device: &Device, rows: usize, [out, inputs]: [usize; 2]) -> Result<Self> {
        let segment =
            Segment { start: 0, len: rows, prefix: None, adapter: 0, position_offset: 0, tail: 0, sample: 0 };
        let keys = RowKeys::new(&[segment]);
        let run = [AdapterRows { adapter: 0, rows: 0..rows }];
        let magnitude = random(device, 1, out, 1.0, 3)?;
        let (norm, grad): (Tensor<f32>, Tensor<f32>) =
            (device.tensor(1, out, &vec![1.0; out])?, device.zeros(1, out)?);
        let one = Magnitude { magnitude: &magnitude, norm: &norm, grad: Some(&grad) };
        Ok(Self {
            weight: random(device, out, inputs, 0.02, 0)?,
            a: random(device, LORA_R, inputs, 0.02, 1)?,
            b_t: random(device, LORA_R, out, 0.02, 2)?,
            norms: device.zeros(1, out)?,
            rows: Rows::new(device, rows, &run, Some(&keys))?,
            gains: Magnitudes::new(device, out, &[Some(one)])?,
            key: dropout_keys(device, &[[1, 2]])?,
            x: random(device, rows, inputs, 1.0, 6)?,
            dy: random(device, rows, out, 1.0, 4)?,
            z: random(device, rows, out, 1.0, 5)?,
            y: device.zeros(rows, out)?,
            dropped: device.zeros(rows, inputs)?,
            _of_gains: (magnitude, norm, grad),
        })
    }
}
