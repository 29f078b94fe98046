//! QK-norm and rotation of queries and keys, alone and with the narrow products of q, k and v. The floor is every tensor once.

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::qk_norm_rope::{self, QkNormRope, RopeBackwardJob, RopeJob, RopeTable};

use crate::harness::{Bench, Cost, random};
use crate::lora_matmul::{MODELS, ROWS};
use crate::narrow::Narrow;

/// Elements of a head of every Qwen3 model.
const HEAD_DIM: usize = 128;

/// Both directions.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "qk_norm_rope");
    for (model, hidden, _, q_cols, kv_cols) in MODELS {
        for rows in ROWS {
            let name = format!("{model} {rows}");
            let cost = |count: usize, further: usize| Cost {
                flops: 10 * (rows * (q_cols + kv_cols)) as u64,
                bytes: (2 * rows * (count * (q_cols + kv_cols) + further)) as u64,
            };
            let positions: Vec<usize> = (0..rows).map(|row| row % 512).collect();
            let table = RopeTable::new(device, &positions, HEAD_DIM, 1e6)?;
            let weight = random(device, 1, HEAD_DIM, 1.0, 0)?;
            let op = QkNormRope { norm: Some((&weight, 1e-6)), table: &table, head_dim: HEAD_DIM };
            let (q, k) = (random(device, rows, q_cols, 1.0, 1)?, random(device, rows, kv_cols, 1.0, 2)?);
            let (mut q_rotated, mut k_rotated) = (device.empty(rows, q_cols)?, device.empty(rows, kv_cols)?);
            bench.run(&format!("forward {name}"), cost(2, 0), || {
                let q_job = RopeJob { x: &q, op, y: &mut q_rotated };
                let k_job = RopeJob { x: &k, op, y: &mut k_rotated };
                qk_norm_rope::forward(device, &mut [q_job, k_job])
            })?;
            // In place: the gradients go on from call to call, at the same cost.
            let (mut dq, mut dk) =
                (random(device, rows, q_cols, 1.0, 3)?, random(device, rows, kv_cols, 1.0, 4)?);
            let dv = random(device, rows, kv_cols, 1.0, 5)?;
            let shapes = [[q_cols, hidden], [kv_cols, hidden], [kv_cols, hidden]];
            let qkv = Narrow::new(device, rows, &shapes, true)?;
            for (kind, project) in [("backward", None), ("backward with dxa of qkv", qkv.project(true)?)] {
                let fused = qkv.on_top_of(cost(3, kv_cols));
                bench.run(
                    &format!("{kind} {name}"),
                    if project.is_some() { fused } else { cost(3, 0) },
                    || {
                        let q_job = RopeBackwardJob { x: &q, op, dy: &mut dq };
                        let k_job = RopeBackwardJob { x: &k, op, dy: &mut dk };
                        let further = [&dv];
                        let project = project.as_ref().map(|project| (project, &further[..]));
                        qk_norm_rope::backward_with(device, &mut [q_job, k_job], project)
                    },
                )?;
            }
        }
    }
    Ok(())
}
