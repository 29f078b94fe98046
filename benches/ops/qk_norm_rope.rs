//! QK-norm and rotation of the queries.

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::qk_norm_rope::{self, Backward, HeadNorm, QkNormRope, RopeBackwardJob, RopeJob, RopeTable};

use crate::common::ROW;
use crate::harness::{Bench, HEAD_DIM, NUM_ATTENTION_HEADS, random};

/// Both directions, and the table of angles that is made once per pass.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "qk_norm_rope");
    for (tokens, heads, head_dim) in
        [(64, 4, 64), (ROW, NUM_ATTENTION_HEADS, HEAD_DIM), (4 * ROW, NUM_ATTENTION_HEADS, HEAD_DIM)]
    {
        let cols = heads * head_dim;
        let positions: Vec<usize> = (0..tokens).map(|i| i % ROW).collect();
        let table = RopeTable::new(device, &positions, head_dim, 1e6)?;
        let weight = random(device, 1, head_dim)?;
        let op = QkNormRope { norm: Some(HeadNorm { weight: &weight, eps: 1e-6 }), table: &table, head_dim };
        let x = random(device, tokens, cols)?;
        let mut y = random(device, tokens, cols)?;
        let shape = format!("{tokens}x{cols}");
        bench.bytes(&format!("forward {shape}"), || {
            qk_norm_rope::forward(device, &mut [RopeJob { x: (&x).into(), op, y: &mut y }])
        })?;
        let dy = random(device, tokens, cols)?;
        bench.bytes_in_place(
            &format!("backward {shape}"),
            y,
            |dx| dx.data_mut().copy_from_slice(dy.data()),
            |dx| {
                let jobs = &mut [RopeBackwardJob { x: (&x).into(), op, dy: dx }];
                qk_norm_rope::backward(device, Backward { jobs, projection: None, complete: &[] })
            },
        )?;
        let table_bytes = criterion::Throughput::BytesDecimal((4 * tokens * head_dim) as u64);
        bench.measure(&format!("table {tokens}x{head_dim}"), table_bytes, || {
            RopeTable::<f32>::new(device, &positions, head_dim, 1e6)
        });
    }
    Ok(())
}
