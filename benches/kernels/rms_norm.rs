//! RMSNorm of the residual stream, alone and with the narrow products of what comes next. The floor is every tensor once.

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::rms_norm::{self, Backward, Norm};

use crate::harness::{Bench, Cost, random};
use crate::lora_matmul::{MODELS, ROWS};
use crate::narrow::Narrow;

/// Both directions, and the second half of forward again.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "rms_norm");
    for (model, hidden, _, q, kv) in MODELS {
        for rows in ROWS {
            let name = format!("{model} {rows}");
            let tensors = |count: usize| Cost {
                flops: 6 * (rows * hidden) as u64,
                bytes: (2 * count * rows * hidden) as u64,
            };
            let weight = random(device, 1, hidden, 1.0, 0)?;
            let norm = Norm { weight: &weight, eps: 1e-6 };
            let mut x = random(device, rows, hidden, 1.0, 1)?;
            let residual = random(device, rows, hidden, 1e-3, 2)?;
            let (mut y, mut ds) = (device.empty(rows, hidden)?, device.empty(rows, hidden)?);
            let mut rstd = device.empty(rows, 1)?;
            bench.run(&format!("forward {name}"), tensors(4), || {
                rms_norm::forward(device, &mut x, Some(&residual), &norm, &mut y, &mut rstd)
            })?;
            let qkv = Narrow::new(device, rows, &[[q, hidden], [kv, hidden], [kv, hidden]], false)?;
            let project = qkv.project(false)?;
            bench.run(&format!("forward with xa of qkv {name}"), qkv.on_top_of(tensors(4)), || {
                let to = (&mut y, &mut rstd);
                rms_norm::forward_with(device, &mut x, Some(&residual), &norm, to, project.as_ref())
            })?;
            bench.run(&format!("apply {name}"), tensors(2), || {
                rms_norm::apply(device, &x, &norm, &rstd, &mut y)
            })?;
            let dy = random(device, rows, hidden, 1.0, 3)?;
            let o = Narrow::new(device, rows, &[[hidden, q]], true)?;
            for (kind, project) in [("backward", None), ("backward with dxa of o", o.project(true)?)] {
                let cost = if project.is_some() { o.on_top_of(tensors(5)) } else { tensors(5) };
                bench.run(&format!("{kind} {name}"), cost, || {
                    let (d_in, normed) = (Some(&residual), Some(&mut y));
                    let args =
                        Backward { dy: &dy, s: &x, norm: &norm, rstd: &rstd, d_in, ds: &mut ds, normed };
                    rms_norm::backward_with(device, args, project.as_ref())
                })?;
            }
        }
    }
    Ok(())
}
