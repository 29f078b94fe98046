//! SwiGLU, the element-wise op on the widest tensors of a block.

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::LiveRows;
use tanren::ops::activation::{self, Activation, Input, InputMut};

use crate::common::ROW;
use crate::harness::{Bench, INTERMEDIATE_SIZE, random};

/// Both directions.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "activation");
    for (tokens, cols) in [(64, 768), (ROW, INTERMEDIATE_SIZE), (4 * ROW, INTERMEDIATE_SIZE)] {
        let (gate, up) = (random(device, tokens, cols)?, random(device, tokens, cols)?);
        let mut h = random(device, tokens, cols)?;
        let shape = format!("{tokens}x{cols}");
        bench.bytes(&format!("forward {shape}"), || {
            activation::forward(
                device,
                activation::Forward {
                    act: Activation::Silu,
                    input: Input::Gated { gate: &gate, up: &up },
                    h: &mut h,
                    live_rows: LiveRows::ALL,
                    projection: None,
                },
            )
        })?;
        bench.bytes_in_place(
            &format!("backward {shape}"),
            (random(device, tokens, cols)?, random(device, tokens, cols)?, random(device, tokens, cols)?),
            |(dh, dgate, dup)| {
                dh.data_mut().copy_from_slice(h.data());
                dgate.data_mut().copy_from_slice(gate.data());
                dup.data_mut().copy_from_slice(up.data());
            },
            |(dh, dgate, dup)| {
                activation::backward(
                    device,
                    activation::Backward {
                        act: Activation::Silu,
                        dh,
                        input: InputMut::Gated { gate: dgate, up: dup },
                        live_rows: LiveRows::ALL,
                        projection: None,
                    },
                )
            },
        )?;
    }
    Ok(())
}
