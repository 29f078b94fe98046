//! SwiGLU on the widest tensors of a block, alone and with the narrow products of its neighbours. The floor is every tensor once.

use half::bf16;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::LiveRows;
use tanren::ops::activation::{self, Activation, Input, InputMut};

use super::harness::{Bench, Cost, random};
use super::narrow::Narrow;

struct Set {
    gate: Tensor<bf16>,
    up: Tensor<bf16>,
    h: Tensor<bf16>,
    /// Of down, and of gate and up.
    narrow: [Narrow; 2],
}

/// Both directions.
pub(crate) fn bench(bench: &mut Bench<'_>) -> Result<()> {
    for model in bench.mode.models() {
        let (hidden, intermediate) = (model.hidden, model.intermediate);
        for &rows in bench.mode.rows() {
            let (down, gate_up) = ([[hidden, intermediate]], [[intermediate, hidden]; 2]);
            let make = |device: &Device, _| {
                Ok(Set {
                    gate: random(device, rows, intermediate, 1.0, 0)?,
                    up: random(device, rows, intermediate, 1.0, 1)?,
                    h: random(device, rows, intermediate, 1.0, 2)?,
                    narrow: [Narrow::new(device, rows, &down)?, Narrow::new(device, rows, &gate_up)?],
                })
            };
            let tensors = |count: usize| Cost {
                flops: 6 * (rows * intermediate) as u64,
                bytes: (2 * count * rows * intermediate) as u64,
            };
            let name = |what: &str| format!("activation/{what} {} {rows}", model.name);
            let fused = Narrow::cost(rows, &gate_up, true).on_top_of(tensors(6));
            for (what, is_fused, cost) in
                [("backward with dxa of gate, up", true, fused), ("backward", false, tensors(6))]
            {
                // In place: the gradients go on from call to call, at the same cost.
                bench.run(&name(what), cost, &[], make, |device, set| {
                    let Set { gate, up, h, narrow } = set;
                    let projection = if is_fused { narrow[1].project(device, true)? } else { None };
                    let live_rows = LiveRows::ALL;
                    activation::backward(
                        device,
                        activation::Backward {
                            act: Activation::Silu,
                            dh: h,
                            input: InputMut::Gated { gate, up },
                            live_rows,
                            projection,
                        },
                    )
                })?;
            }
            let fused = Narrow::cost(rows, &down, false).on_top_of(tensors(3));
            for (what, is_fused, cost) in
                [("forward with xa of down", true, fused), ("forward", false, tensors(3))]
            {
                bench.run(&name(what), cost, &[], make, |device, set| {
                    let Set { gate, up, h, narrow } = set;
                    let projection = if is_fused { narrow[0].project(device, false)? } else { None };
                    let live_rows = LiveRows::ALL;
                    activation::forward(
                        device,
                        activation::Forward {
                            act: Activation::Silu,
                            input: Input::Gated { gate, up },
                            h,
                            live_rows,
                            projection,
                        },
                    )
                })?;
            }
        }
    }
    Ok(())
}
