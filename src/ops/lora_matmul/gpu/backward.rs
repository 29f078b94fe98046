//! The backward pass: dxa, dx, and the gradients of the factors.

use half::bf16;

use super::tables::upload;
use super::{Group, check_each, launch, tiled};
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{
    LoraDownLayer, LoraDxLayer, LoraGradJob, LoraMatmulDxParams, LoraMatmulGradParams,
};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::check_shape;
use crate::ops::lora_matmul::OP;
use crate::ops::lora_matmul::plan::{self, MAX_LAYERS, Problem};

/// What the backward pass of a group reads and writes.
#[derive(Debug)]
pub struct Backward<'a> {
    /// Gradient of the output by layer, `[rows, out_features]`.
    pub dy: &'a [&'a Tensor<bf16>],
    /// Input of the forward pass.
    pub x: &'a Tensor<bf16>,
    /// Saved by the forward pass, by layer.
    pub xa: &'a [&'a Tensor<bf16>],
    /// `[rows, in_features]`, overwritten with the sum over the layers; none where nobody needs it.
    pub dx: Option<&'a mut Tensor<bf16>>,
}

/// Writes `dx` and adds to the gradients of the layers' adapters.
///
/// # Errors
/// [`crate::error::Error::Shape`] if shapes do not fit; errors of the device.
pub fn backward(device: &Device, group: &Group<'_>, args: Backward<'_>) -> Result<()> {
    let problem = group.problem();
    group.check(&problem)?;
    check_shape(OP, "x", args.x, [problem.rows, problem.in_features])?;
    check_each("dy", args.dy.iter().copied(), group, |layer| [problem.rows, layer.weight.rows()])?;
    check_each("xa", args.xa.iter().copied(), group, |_| [problem.rows, problem.rank_stride()])?;
    if problem.rows == 0 {
        return Ok(());
    }
    let dxa: Vec<Tensor<bf16>> = group
        .layers
        .iter()
        .map(|_| device.empty(problem.rows, problem.rank_stride()))
        .collect::<Result<_>>()?;
    let layers = || group.layers.iter().zip(args.dy).zip(&dxa);
    let adapted = layers().filter_map(|((layer, dy), dxa)| {
        let factors = layer.adapters.filter(|a| a.max_rank > 0)?.b_t.ptr();
        let down = LoraDownLayer {
            input: dy.ptr(),
            output: dxa.ptr(),
            factors,
            key: DevicePtr::default(),
            features: 0,
        };
        Some((down, layer.weight.rows()))
    });
    group.down(device, &problem, &adapted.collect::<Vec<_>>(), false)?;
    if let Some(dx) = args.dx {
        check_shape(OP, "dx", dx, [problem.rows, problem.in_features])?;
        let plan = plan::dx(&problem, device.chip()?);
        let (runs, num_runs) = group.runs();
        let mut params = LoraMatmulDxParams {
            layers: [bytemuck::Zeroable::zeroed(); MAX_LAYERS],
            dx: dx.ptr(),
            runs,
            dropout: group.dropout(),
            num_layers: group.layers.len() as i32,
            rows: problem.rows as i32,
            in_features: problem.in_features as i32,
            xa_stride: problem.rank_stride() as i32,
            num_runs,
            tiles_m: plan.tiles_m as i32,
            tiles_n: plan.tiles_n as i32,
            group: plan.group as i32,
        };
        for (slot, ((layer, dy), dxa)) in params.layers.iter_mut().zip(layers()) {
            *slot = LoraDxLayer {
                dy: dy.ptr(),
                weight: layer.weight.ptr(),
                dxa: dxa.ptr(),
                factors: layer.adapters.map_or(DevicePtr::default(), |a| a.a.ptr()),
                key: group.key(layer),
                out_features: layer.weight.rows() as i64,
            };
        }
        device.launch(&tiled(&plan), &params)?;
    }
    let tensors = args.dy.iter().zip(args.xa).zip(&dxa);
    let tensors: Vec<_> = tensors.map(|((dy, xa), dxa)| LayerTensors { dy, xa, dxa }).collect();
    gradients(device, group, &problem, &tensors, args.x)
}

/// What the gradients of one layer's factors are made of, beside x.
struct LayerTensors<'a> {
    dy: &'a Tensor<bf16>,
    xa: &'a Tensor<bf16>,
    dxa: &'a Tensor<bf16>,
}

/// Adds `dA` and `dB` of every adapted layer: sums by slab of rows, then their sum in order.
fn gradients(
    device: &Device,
    group: &Group<'_>,
    problem: &Problem,
    tensors: &[LayerTensors<'_>],
    x: &Tensor<bf16>,
) -> Result<()> {
    // All dB first: then the dA, which read the same x, are neighbours.
    let adapted = || group.layers.iter().zip(tensors).filter_map(|(l, t)| Some((l, l.adapters?, t)));
    let db = adapted().map(|(layer, adapters, LayerTensors { dy, xa, .. })| LoraGradJob {
        wide: dy.ptr(),
        narrow: xa.ptr(),
        factors: adapters.b_t.ptr(),
        features: layer.weight.rows() as i32,
        ..bytemuck::Zeroable::zeroed()
    });
    let da = adapted().map(|(layer, adapters, LayerTensors { dxa, .. })| LoraGradJob {
        wide: x.ptr(),
        narrow: dxa.ptr(),
        factors: adapters.a.ptr(),
        key: group.key(layer),
        features: problem.in_features as i32,
        ..bytemuck::Zeroable::zeroed()
    });
    let mut jobs: Vec<LoraGradJob> = db.chain(da).collect();
    if jobs.is_empty() || problem.rank == 0 {
        return Ok(());
    }
    let features: Vec<usize> = jobs.iter().map(|job| job.features as usize).collect();
    let plan = plan::grad(problem, &features, device.chip()?);
    // More runs than adapters make more slabs that are not full.
    let slabs = group.rows.slabs(plan.slab_rows);
    if slabs.is_empty() {
        return Ok(());
    }
    let slab_table = upload(device, &slabs)?;
    let partial: Tensor<f32> =
        device.empty(slabs.len() * problem.rank_stride(), features.iter().sum::<usize>())?;
    let (mut first_block, mut offset) = (0, 0);
    for (job, features) in jobs.iter_mut().zip(&features) {
        job.partial = DevicePtr(partial.ptr().0 + offset);
        job.first_block = first_block;
        offset += (slabs.len() * problem.rank_stride() * features * size_of::<f32>()) as u64;
        first_block += features.div_ceil(plan::GRAD_FEATURES) as i32;
    }
    let mut params = LoraMatmulGradParams {
        jobs: [bytemuck::Zeroable::zeroed(); 2 * MAX_LAYERS],
        slabs: slab_table.ptr(),
        dropout: group.dropout(),
        num_jobs: jobs.len() as i32,
        num_slabs: slabs.len() as i32,
        stride: problem.rank_stride() as i32,
        rank_stride: problem.rank_stride() as i32,
    };
    params.jobs[..jobs.len()].copy_from_slice(&jobs);
    let mut grad = launch(&plan.grad);
    grad.grid[1] = slabs.len() as u32;
    device.launch(&grad, &params)?;
    device.launch(&launch(&plan.reduce), &params)
}
