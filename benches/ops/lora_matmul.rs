//! Linear layers with LoRA: the bulk of a step. Compare with `gemm` of the same shape.

use criterion::Criterion;
use tanren::batch::AdapterRows;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::lora_matmul::{
    self, Backward, Dropout, Forward, Group, Layer, LayerBackward, Lora, LoraGrad, RowKeys, Rows,
};

use crate::common::{LORA_R, ROW};
use crate::harness::{Bench, HIDDEN_SIZE, INTERMEDIATE_SIZE, packed_rows, random};

/// Up and down projections in both directions, without and with dropout.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "lora_matmul");
    for (rows, len, inputs, outputs) in [
        (1, 64, 256, 768),
        (1, ROW, HIDDEN_SIZE, INTERMEDIATE_SIZE),
        (4, ROW, HIDDEN_SIZE, INTERMEDIATE_SIZE),
        (4, ROW, INTERMEDIATE_SIZE, HIDDEN_SIZE),
    ] {
        let tokens = rows * len;
        let weight = random(device, outputs, inputs)?;
        let (a, b) = (random(device, LORA_R, inputs)?, random(device, outputs, LORA_R)?);
        let loras = [Some(Lora { a: &a, b: &b, scaling: 2.0, dora: None })];
        let runs = [AdapterRows { adapter: 0, rows: 0..tokens }];
        let of_rows = Rows::new(device, tokens, &runs, Some(&RowKeys::new(&packed_rows(rows, len))))?;
        let x = random(device, tokens, inputs)?;
        let dy = random(device, tokens, outputs)?;
        let (mut y, mut dx) = (random(device, tokens, outputs)?, random(device, tokens, inputs)?);
        let mut xa = random(device, tokens, LORA_R)?;
        let (mut da, mut db) = (random(device, LORA_R, inputs)?, random(device, outputs, LORA_R)?);
        for (note, dropout) in [("", None), (" dropout", Dropout::new(0.05, 0, 0, 0))] {
            let layers = [Layer {
                weight: &weight,
                bias: None,
                loras: &loras,
                adapters: None,
                magnitudes: None,
                dropout,
            }];
            let group = Group::new(&layers, &of_rows);
            let shape = format!("{tokens}x{inputs}x{outputs}{note}");
            bench.flops(&format!("forward {shape}"), || {
                lora_matmul::forward(device, &group, &x, &mut [Forward { y: &mut y, xa: &mut xa }])
            })?;
            bench.flops(&format!("backward {shape}"), || {
                let grad = LoraGrad { a: &mut da, b: &mut db, magnitude: None };
                let dx = Some(&mut dx);
                let grads = &mut [Some(grad)];
                let layers = &mut [LayerBackward { dy: &dy, xa: &xa, grads }];
                lora_matmul::backward(device, &group, Backward { x: &x, dx, layers })
            })?;
        }
    }
    Ok(())
}
