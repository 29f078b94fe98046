//! The backward pass: dxa, dx, and the gradients of the factors.

use super::{Group, adapted, key, lora_dropout, narrow, tiled, with_dora};
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{
    LoraDownLayer, LoraDxLayer, LoraGradJob, LoraMatmulDxParams, LoraMatmulGradParams,
};
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::lora_matmul::plan::{self, MAX_GRADIENTS, MAX_LAYERS};
use crate::ops::lora_matmul::{GradJob, InputGradient, OP};
use crate::ops::projection::FusedProjection;
use crate::tensor::Real;

/// See [`super::super::projection_back`].
pub(in super::super) fn projection_back<T: Real>(
    group: &Group<'_, T>,
    dxa: &[&Tensor<T>],
) -> Result<Option<FusedProjection>> {
    group.check(dxa.iter().copied())?;
    group.check_for_kernels()?;
    let down = group.layers.iter().zip(dxa).map(|(layer, dxa)| {
        let factors = adapted(layer).map(|adapters| adapters.b_t);
        factors.map_or_else(bytemuck::Zeroable::zeroed, |factors| LoraDownLayer {
            output: dxa.ptr(),
            factors,
            features: layer.out_features() as i64,
            ..bytemuck::Zeroable::zeroed()
        })
    });
    Ok(group.fused(&down.collect::<Vec<_>>(), false))
}

/// Writes `dxa = scaling * dy B` (`[rows, rank rounded up to 16]`) of every adapted layer.
pub(in super::super) fn project_back<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    dy: &[&Tensor<T>],
    dxa: &mut [&mut Tensor<T>],
) -> Result<()> {
    group.check_for_kernels()?;
    let scaled = with_dora::scaled_each(device, group, dy)?;
    let dy = with_dora::or_plain(&scaled, dy);
    let down = group.layers.iter().zip(&dy).zip(&*dxa).filter_map(|((layer, dy), dxa)| {
        Some(LoraDownLayer {
            input: dy.ptr(),
            output: dxa.ptr(),
            factors: adapted(layer)?.b_t,
            key: DevicePtr(0),
            features: layer.out_features() as i64,
        })
    });
    group.down(device, &down.collect::<Vec<_>>(), false)
}

/// Writes `dx` (`[rows, in_features]`), the sum over the layers of `dy W + mask(dxa A)`.
pub(in super::super) fn backward_input<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    args: InputGradient<'_, T>,
) -> Result<()> {
    if group.has_dora() {
        with_dora::backward_input(device, group, args)
    } else {
        launch_input(device, group, args)
    }
}

/// As [`backward_input`], of `W`, `A` and the masks alone.
pub(super) fn launch_input<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    args: InputGradient<'_, T>,
) -> Result<()> {
    let InputGradient { dy, dxa, dx } = args;
    group.check_for_kernels()?;
    let xa_stride = group.xa_stride("dxa", dxa)?;
    let problem = group.problem();
    if problem.rows == 0 {
        return Ok(());
    }
    let plan = plan::dx(&problem, device.chip()?);
    let [runs, num_runs] = group.rows.run_ptrs();
    let mut params = LoraMatmulDxParams {
        layers: [bytemuck::Zeroable::zeroed(); MAX_LAYERS],
        dx: dx.ptr(),
        runs,
        num_runs,
        live_rows: group.rows.live().ptr(),
        dropout: lora_dropout(group.rows, group.dropout()),
        num_layers: group.layers.len() as i32,
        rows: problem.rows as i32,
        in_features: problem.in_features as i32,
        xa_stride: xa_stride as i32,
        tiles_m: plan.tiles_m as i32,
        tiles_n: plan.tiles_n as i32,
        group: plan.group as i32,
        reserved: 0,
    };
    let tensors = dy.iter().zip(dxa);
    for (slot, (layer, (dy, dxa))) in params.layers.iter_mut().zip(group.layers.iter().zip(tensors)) {
        *slot = LoraDxLayer {
            dy: dy.ptr(),
            weight: layer.weight.ptr(),
            dxa: dxa.ptr(),
            factors: layer.adapters.map_or(DevicePtr(0), |a| a.a),
            key: key(layer),
            out_features: layer.out_features() as i64,
        };
    }
    device.launch(&tiled(&plan), &params)
}

/// Adds `dA += dxa^T dropout(x)` and `dB += dy^T xa` of up to seven layers to the gradients in their adapter
/// tables: one launch for all layers without DoRA, and one launch per layer with DoRA.
pub(in super::super) fn gradients<T: Real>(device: &Device, jobs: &[GradJob<'_, '_, T>]) -> Result<()> {
    let (with, without): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| job.layer.has_dora());
    launch_gradients(device, &without)?;
    with.into_iter().try_for_each(|job| with_dora::gradients(device, job))
}

/// As [`gradients`], of `A` and `B` alone.
pub(super) fn launch_gradients<T: Real>(device: &Device, of_layers: &[&GradJob<'_, '_, T>]) -> Result<()> {
    let all = || of_layers.iter().filter_map(|job| Some((*job, adapted(&job.layer)?)));
    let rank = all().map(|(_, adapters)| adapters.max_rank).max().unwrap_or(0);
    if rank == 0 || of_layers.iter().all(|job| job.rows.capacity() == 0) {
        return Ok(());
    }
    let common = |job: &GradJob<'_, '_, T>| {
        let [runs, num_runs] = job.rows.run_ptrs();
        LoraGradJob { runs, num_runs, stride: job.xa.cols() as i32, ..bytemuck::Zeroable::zeroed() }
    };
    let db = all().map(|(job, adapters)| LoraGradJob {
        wide: job.dy.ptr(),
        narrow: job.xa.ptr(),
        factors: adapters.b_t,
        features: job.layer.out_features() as i32,
        ..common(job)
    });
    let da = all().map(|(job, adapters)| LoraGradJob {
        wide: job.x.ptr(),
        narrow: job.dxa.ptr(),
        factors: adapters.a,
        key: key(&job.layer),
        row_keys: job.rows.key_ptr(),
        features: job.layer.in_features() as i32,
        ..common(job)
    });
    // All dB come first, so that the dA that read the same x are neighbours.
    let mut jobs: Vec<LoraGradJob> = db.chain(da).collect();
    if jobs.len() > MAX_GRADIENTS {
        return Err(Error::shape(OP, "gradients", format!("at most {MAX_GRADIENTS}"), jobs.len()));
    }
    let features: Vec<usize> = jobs.iter().map(|job| job.features as usize).collect();
    let mut first_block = 0;
    for (job, features) in jobs.iter_mut().zip(&features) {
        job.first_block = first_block;
        first_block += features.div_ceil(plan::GRAD_FEATURES) as i32;
    }
    let dropout = of_layers.iter().find_map(|job| job.layer.dropout);
    let mut params = LoraMatmulGradParams {
        jobs: [bytemuck::Zeroable::zeroed(); MAX_GRADIENTS],
        threshold: dropout.map_or(0, |d| u32::from(d.threshold())),
        keep: dropout.map_or(1.0, |d| d.keep() as f32),
        num_jobs: jobs.len() as i32,
        reserved: 0,
    };
    params.jobs[..jobs.len()].copy_from_slice(&jobs);
    device.launch(&narrow(&plan::grad(rank, &features, dropout.is_some())), &params)
}
