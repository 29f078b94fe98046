//! SwiGLU on the widest tensors of a block, alone and with the narrow products of its neighbours. The floor is every tensor once.

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::swiglu;

use crate::harness::{Bench, Cost, random};
use crate::lora_matmul::{MODELS, ROWS};
use crate::narrow::Narrow;

/// Both directions.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "swiglu");
    for (model, hidden, intermediate, ..) in MODELS {
        for rows in ROWS {
            let name = format!("{model} {rows}");
            let tensors = |count: usize| Cost {
                flops: 6 * (rows * intermediate) as u64,
                bytes: (2 * count * rows * intermediate) as u64,
            };
            let mut gate = random(device, rows, intermediate, 1.0, 0)?;
            let mut up = random(device, rows, intermediate, 1.0, 1)?;
            let mut h = device.empty(rows, intermediate)?;
            let down = Narrow::new(device, rows, &[[hidden, intermediate]], false)?;
            for (kind, project) in [("forward", None), ("forward with xa of down", down.project(false)?)] {
                let cost = if project.is_some() { down.on_top_of(tensors(3)) } else { tensors(3) };
                bench.run(&format!("{kind} {name}"), cost, || {
                    swiglu::forward_with(device, &gate, &up, &mut h, project.as_ref())
                })?;
            }
            let gate_up = Narrow::new(device, rows, &[[intermediate, hidden]; 2], true)?;
            for (kind, project) in
                [("backward", None), ("backward with dxa of gate, up", gate_up.project(true)?)]
            {
                let cost = if project.is_some() { gate_up.on_top_of(tensors(6)) } else { tensors(6) };
                bench.run(&format!("{kind} {name}"), cost, || {
                    swiglu::backward_with(device, &mut h, &mut gate, &mut up, project.as_ref())
                })?;
            }
        }
    }
    Ok(())
}
