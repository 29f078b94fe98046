//! RMSNorm of the residual stream, alone and with the narrow products of what comes next. The floor is every tensor once.

use half::bf16;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::LiveRows;
use tanren::ops::norm::{self, Apply, Backward, Forward, Norm, NormKind};

use super::harness::{Bench, Cost, random};
use super::narrow::Narrow;
use super::shapes::Model;

struct Set {
    weight: Tensor<bf16>,
    x: Tensor<bf16>,
    residual: Tensor<bf16>,
    dy: Tensor<bf16>,
    y: Tensor<bf16>,
    ds: Tensor<bf16>,
    rstd: Tensor<f32>,
    /// Of q, k and v, and of o.
    narrow: [Narrow; 2],
}

impl Set {
    fn new(device: &Device, rows: usize, model: &Model) -> Result<Self> {
        let (hidden, q, kv) = (model.hidden, model.q_cols(), model.kv_cols());
        let mut set = Self {
            weight: random(device, 1, hidden, 1.0, 0)?,
            x: random(device, rows, hidden, 1.0, 1)?,
            residual: random(device, rows, hidden, 1e-3, 2)?,
            dy: random(device, rows, hidden, 1.0, 3)?,
            y: device.empty(rows, hidden)?,
            ds: device.empty(rows, hidden)?,
            rstd: device.empty(rows, 1)?,
            narrow: [
                Narrow::new(device, rows, &[[q, hidden], [kv, hidden], [kv, hidden]])?,
                Narrow::new(device, rows, &[[hidden, q]])?,
            ],
        };
        // `apply` and backward read what forward made.
        let norm = Norm { kind: NormKind::Rms, weight: &set.weight, bias: None, eps: 1e-6 };
        let args = Forward {
            x: &mut set.x,
            residual: Some(&set.residual),
            norm,
            y: &mut set.y,
            rstd: &mut set.rstd,
            live_rows: LiveRows::ALL,
            projection: None,
        };
        norm::forward(device, args)?;
        Ok(set)
    }
}

/// Both directions, and the second half of forward again.
pub(crate) fn bench(bench: &mut Bench<'_>) -> Result<()> {
    for model in bench.mode.models() {
        for &rows in bench.mode.rows() {
            let (hidden, q, kv) = (model.hidden, model.q_cols(), model.kv_cols());
            let make = |device: &Device, _| Set::new(device, rows, model);
            let name = |what: &str| format!("norm/{what} {} {rows}", model.name);
            let tensors = |count: usize| Cost {
                flops: 6 * (rows * hidden) as u64,
                bytes: (2 * count * rows * hidden) as u64,
            };
            let with_qkv =
                Narrow::cost(rows, &[[q, hidden], [kv, hidden], [kv, hidden]], false).on_top_of(tensors(4));
            let with_o = Narrow::cost(rows, &[[hidden, q]], true).on_top_of(tensors(5));
            for (what, is_fused, cost) in
                [("forward with xa of qkv", true, with_qkv), ("forward", false, tensors(4))]
            {
                bench.run(&name(what), cost, &[], make, |device, set| {
                    let projection = if is_fused { set.narrow[0].project(device, false)? } else { None };
                    let norm = Norm { kind: NormKind::Rms, weight: &set.weight, bias: None, eps: 1e-6 };
                    let args = Forward {
                        x: &mut set.x,
                        residual: Some(&set.residual),
                        norm,
                        y: &mut set.y,
                        rstd: &mut set.rstd,
                        live_rows: LiveRows::ALL,
                        projection,
                    };
                    norm::forward(device, args)
                })?;
            }
            for (what, is_fused, cost) in
                [("backward with dxa of o", true, with_o), ("backward", false, tensors(5))]
            {
                bench.run(&name(what), cost, &[], make, |device, set| {
                    let projection = if is_fused { set.narrow[1].project(device, true)? } else { None };
                    let norm = Norm { kind: NormKind::Rms, weight: &set.weight, bias: None, eps: 1e-6 };
                    let args = Backward {
                        dy: &set.dy,
                        s: &set.x,
                        norm,
                        rstd: &set.rstd,
                        d_in: Some(&set.residual),
                        ds: &mut set.ds,
                        normed: Some(&mut set.y),
                        live_rows: LiveRows::ALL,
                        projection,
                    };
                    norm::backward(device, args)
                })?;
            }
            bench.run(&name("apply"), tensors(2), &[], make, |device, set| {
                let norm = Norm { kind: NormKind::Rms, weight: &set.weight, bias: None, eps: 1e-6 };
                let (s, rstd, y, live_rows) = (&set.x, &set.rstd, &mut set.y, LiveRows::ALL);
                norm::apply(device, Apply { s, norm, rstd, y, live_rows })
            })?;
        }
    }
    Ok(())
}
