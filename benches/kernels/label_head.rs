//! The layers of a head for labels: a sequence of 16 tokens each, the dense layer of XLM-R and a last one with two outputs. The floor is
//! the weight and the states once; both are small beside a block.

use half::bf16;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::LiveRows;
use tanren::ops::label_head::{self, Backward, Layer};

use super::harness::{Bench, Cost, random};

struct Set {
    x: Tensor<bf16>,
    weight: Tensor<bf16>,
    y: Tensor<bf16>,
    dy: Tensor<bf16>,
    dx: Tensor<bf16>,
    d_weight: Tensor<f32>,
}

/// Forward and backward.
pub(crate) fn bench(bench: &mut Bench<'_>) -> Result<()> {
    for model in bench.mode.models() {
        for &num_rows in bench.mode.rows() {
            let (hidden, sequences) = (model.hidden, num_rows.div_ceil(16));
            for outputs in [2, hidden] {
                let name = format!("{} {sequences} x {outputs}", model.name);
                let bytes = |passes: usize, wide: usize| {
                    (2 * (passes * sequences * (hidden + outputs) + outputs * hidden)
                        + wide * outputs * hidden) as u64
                };
                let flops = |products: usize| (2 * products * sequences * hidden * outputs) as u64;
                let make = |device: &Device, _| {
                    Ok(Set {
                        x: random(device, sequences, hidden, 1.0, 0)?,
                        weight: random(device, outputs, hidden, 1.0, 1)?,
                        y: random(device, sequences, outputs, 0.5, 2)?,
                        dy: random(device, sequences, outputs, 1e-3, 3)?,
                        dx: device.empty(sequences, hidden)?,
                        d_weight: device.zeros(outputs, hidden)?,
                    })
                };
                let cost = Cost { flops: flops(1), bytes: bytes(1, 0) };
                bench.run(&format!("label_head/forward {name}"), cost, &[], make, |device, set| {
                    let layer = Layer { weight: &set.weight, bias: None, tanh: true };
                    label_head::forward(device, &layer, &set.x, &mut set.y, LiveRows::ALL)
                })?;
                let cost = Cost { flops: flops(2), bytes: bytes(2, 8) };
                bench.run(&format!("label_head/backward {name}"), cost, &[], make, |device, set| {
                    let layer = Layer { weight: &set.weight, bias: None, tanh: true };
                    let args = Backward {
                        x: &set.x,
                        y: Some(&set.y),
                        dy: &mut set.dy,
                        dx: Some(&mut set.dx),
                        d_weight: &mut set.d_weight,
                        d_bias: None,
                    };
                    label_head::backward(device, &layer, args, LiveRows::ALL)
                })?;
            }
        }
    }
    Ok(())
}
