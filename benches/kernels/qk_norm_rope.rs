//! QK-norm and rotation of queries and keys, alone and with the narrow products of q, k and v. The floor is every tensor once.

use half::bf16;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::qk_norm_rope::{self, Backward, HeadNorm, QkNormRope, RopeBackwardJob, RopeJob, RopeTable};

use super::harness::{Bench, Cost, random};
use super::narrow::Narrow;
use super::shapes::Model;

struct Set {
    table: RopeTable<f32>,
    weight: Tensor<bf16>,
    q: Tensor<bf16>,
    k: Tensor<bf16>,
    rotated: [Tensor<bf16>; 2],
    /// Of q and k, which are changed in place, and of v.
    dq: Tensor<bf16>,
    dk: Tensor<bf16>,
    dv: Tensor<bf16>,
    narrow: Narrow,
}

impl Set {
    fn new(device: &Device, rows: usize, model: &Model) -> Result<Self> {
        let (q_cols, kv_cols) = (model.q_cols(), model.kv_cols());
        let positions: Vec<usize> = (0..rows).map(|row| row % 512).collect();
        Ok(Self {
            table: RopeTable::new(device, &positions, model.head_dim, 1e6)?,
            weight: random(device, 1, model.head_dim, 1.0, 0)?,
            q: random(device, rows, q_cols, 1.0, 1)?,
            k: random(device, rows, kv_cols, 1.0, 2)?,
            rotated: [device.empty(rows, q_cols)?, device.empty(rows, kv_cols)?],
            dq: random(device, rows, q_cols, 1.0, 3)?,
            dk: random(device, rows, kv_cols, 1.0, 4)?,
            dv: random(device, rows, kv_cols, 1.0, 5)?,
            narrow: Narrow::new(device, rows, &shapes(model))?,
        })
    }
}

/// q, k and v.
fn shapes(model: &Model) -> [[usize; 2]; 3] {
    [model.q_cols(), model.kv_cols(), model.kv_cols()].map(|cols| [cols, model.hidden])
}

/// Both directions.
pub(crate) fn bench(bench: &mut Bench<'_>) -> Result<()> {
    for model in bench.mode.models() {
        let head_dim = model.head_dim;
        for &rows in bench.mode.rows() {
            let both = model.q_cols() + model.kv_cols();
            let cost = |count: usize, further: usize| Cost {
                flops: 10 * (rows * both) as u64,
                bytes: (2 * rows * (count * both + further)) as u64,
            };
            let make = |device: &Device, _| Set::new(device, rows, model);
            let name = |what: &str| format!("qk_norm_rope/{what} {} {rows}", model.name);
            let fused = Narrow::cost(rows, &shapes(model), true).on_top_of(cost(3, model.kv_cols()));
            for (what, is_fused, cost) in
                [("backward with dxa of qkv", true, fused), ("backward", false, cost(3, 0))]
            {
                // In place: the gradients go on from call to call, at the same cost.
                bench.run(&name(what), cost, &[], make, |device, set| {
                    let Set { table, weight, q, k, dq, dk, dv, narrow, .. } = set;
                    let op = QkNormRope { norm: Some(HeadNorm { weight, eps: 1e-6 }), table, head_dim };
                    let jobs = &mut [
                        RopeBackwardJob { x: (&*q).into(), op, dy: dq },
                        RopeBackwardJob { x: (&*k).into(), op, dy: dk },
                    ];
                    let projection = if is_fused { narrow.project(device, true)? } else { None };
                    qk_norm_rope::backward(device, Backward { jobs, projection, complete: &[dv] })
                })?;
            }
            bench.run(&name("forward"), cost(2, 0), &[], make, |device, set| {
                let Set { table, weight, q, k, rotated: [q_rotated, k_rotated], .. } = set;
                let op = QkNormRope { norm: Some(HeadNorm { weight, eps: 1e-6 }), table, head_dim };
                let jobs = &mut [
                    RopeJob { x: (&*q).into(), op, y: q_rotated },
                    RopeJob { x: (&*k).into(), op, y: k_rotated },
                ];
                qk_norm_rope::forward(device, jobs)
            })?;
        }
    }
    Ok(())
}
