//! The backward pass: dxa, dx, and the gradients of the factors.

use super::{DropoutRate, Group, Layer, Rows, check_each, launch, tiled};
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{
    LoraDownLayer, LoraDxLayer, LoraGradJob, LoraMatmulDxParams, LoraMatmulGradParams,
};
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::check_shape;
use crate::ops::lora_matmul::OP;
use crate::ops::lora_matmul::plan::{self, MAX_GRADIENTS, MAX_LAYERS};
use crate::tensor::Real;

/// Writes `dxa = scaling * dy B` (`[rows, rank rounded up to 16]`) of every adapted layer.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit; errors of the device.
pub fn project_back<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    dy: &[&Tensor<T>],
    dxa: &mut [&mut Tensor<T>],
) -> Result<()> {
    let problem = group.problem();
    group.check(&problem)?;
    check_each("dy", dy.iter().copied(), group, |layer| [problem.rows, layer.weight.rows()])?;
    check_each("dxa", dxa.iter().map(|t| &**t), group, |layer| problem.xa_shape(layer))?;
    let adapted = group.layers.iter().zip(dy).zip(&*dxa).filter_map(|((layer, dy), dxa)| {
        let factors = layer.adapters.filter(|a| a.max_rank > 0)?.b_t;
        let (input, output) = (dy.ptr(), dxa.ptr());
        let down = LoraDownLayer { input, output, factors, key: DevicePtr(0), features: 0 };
        Some((down, layer.weight.rows()))
    });
    group.down(device, &problem, &adapted.collect::<Vec<_>>(), false)
}

/// Writes `dx` (`[rows, in_features]`), the sum over the layers of `dy W + mask(dxa A)`.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit; errors of the device.
pub fn backward_input<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    dy: &[&Tensor<T>],
    dxa: &[&Tensor<T>],
    dx: &mut Tensor<T>,
) -> Result<()> {
    let problem = group.problem();
    group.check(&problem)?;
    check_shape(OP, "dx", dx, [problem.rows, problem.in_features])?;
    check_each("dy", dy.iter().copied(), group, |layer| [problem.rows, layer.weight.rows()])?;
    let xa_stride = group.xa_stride(&problem, "dxa", dxa)?;
    if problem.rows == 0 {
        return Ok(());
    }
    let plan = plan::dx(&problem, device.chip()?);
    let mut params = LoraMatmulDxParams {
        layers: [bytemuck::Zeroable::zeroed(); MAX_LAYERS],
        dx: dx.ptr(),
        runs: group.rows.runs.ptr(),
        num_runs: group.rows.runs.count_ptr(),
        live_rows: device.live_rows(),
        dropout: group.dropout(),
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
            key: group.key(layer),
            out_features: layer.weight.rows() as i64,
        };
    }
    device.launch(&tiled(&plan), &params)
}

/// What the gradients of one layer's factors are made of.
#[derive(Debug, Clone, Copy)]
pub struct GradJob<'a, T: Real> {
    /// The layer.
    pub layer: Layer<'a, T>,
    /// Its rows.
    pub rows: &'a Rows,
    /// Input of the forward pass, `[rows, in_features]`.
    pub x: &'a Tensor<T>,
    /// Gradient of the output, `[rows, out_features]`.
    pub dy: &'a Tensor<T>,
    /// Saved by the forward pass.
    pub xa: &'a Tensor<T>,
    /// Of [`project_back`].
    pub dxa: &'a Tensor<T>,
}

/// Adds `dA += dxa^T dropout(x)` and `dB += dy^T xa` of up to seven layers to the gradients that their adapters name, in one launch.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit or there are more layers; errors of the device.
pub fn gradients<T: Real>(
    device: &Device,
    dropout: Option<DropoutRate>,
    of_layers: &[GradJob<'_, T>],
) -> Result<()> {
    let adapted = || {
        let with = of_layers.iter().filter_map(|job| Some((job, job.layer.adapters?)));
        with.filter(|(_, adapters)| adapters.max_rank > 0)
    };
    for job in of_layers {
        check_shape(OP, "x", job.x, [job.rows.capacity, job.layer.weight.cols()])?;
        check_shape(OP, "dy", job.dy, [job.rows.capacity, job.layer.weight.rows()])?;
        check_shape(OP, "dxa", job.dxa, job.xa.shape())?;
    }
    let rank = adapted().map(|(_, adapters)| adapters.max_rank).max().unwrap_or(0);
    if rank == 0 || of_layers.iter().all(|job| job.rows.capacity == 0) {
        return Ok(());
    }
    let common = |job: &GradJob<'_, T>| LoraGradJob {
        runs: job.rows.runs.ptr(),
        num_runs: job.rows.runs.count_ptr(),
        stride: job.xa.cols() as i32,
        ..bytemuck::Zeroable::zeroed()
    };
    let db = adapted().map(|(job, adapters)| LoraGradJob {
        wide: job.dy.ptr(),
        narrow: job.xa.ptr(),
        factors: adapters.b_t,
        features: job.layer.weight.rows() as i32,
        ..common(job)
    });
    let da = adapted().map(|(job, adapters)| LoraGradJob {
        wide: job.x.ptr(),
        narrow: job.dxa.ptr(),
        factors: adapters.a,
        key: if dropout.is_some() { job.layer.key } else { DevicePtr(0) },
        row_keys: job.rows.row_keys(),
        features: job.layer.weight.cols() as i32,
        ..common(job)
    });
    // All dB first: then the dA that read the same x are neighbours.
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
    let mut params = LoraMatmulGradParams {
        jobs: [bytemuck::Zeroable::zeroed(); MAX_GRADIENTS],
        threshold: dropout.map_or(0, |d| u32::from(d.threshold)),
        keep: dropout.map_or(1.0, DropoutRate::keep),
        num_jobs: jobs.len() as i32,
        reserved: 0,
    };
    params.jobs[..jobs.len()].copy_from_slice(&jobs);
    device.launch(&launch(&plan::grad(rank, &features, dropout.is_some())), &params)
}

/// What the backward pass of a group reads and writes.
#[derive(Debug)]
pub struct Backward<'a, T: Real> {
    /// Gradient of the output by layer, `[rows, out_features]`.
    pub dy: &'a [&'a Tensor<T>],
    /// Input of the forward pass.
    pub x: &'a Tensor<T>,
    /// Saved by the forward pass, by layer.
    pub xa: &'a [&'a Tensor<T>],
    /// `[rows, in_features]`, overwritten with the sum over the layers; none where nobody needs it.
    pub dx: Option<&'a mut Tensor<T>>,
}

/// Writes `dx` and adds to the gradients of a group's adapters: [`project_back`], [`backward_input`] and [`gradients`].
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit; errors of the device.
pub fn backward<T: Real>(device: &Device, group: &Group<'_, T>, args: Backward<'_, T>) -> Result<()> {
    let Backward { dy, x, xa, dx } = args;
    check_each("xa", xa.iter().copied(), group, |layer| group.problem().xa_shape(layer))?;
    let mut dxa: Vec<Tensor<T>> =
        xa.iter().map(|xa| device.empty(xa.rows(), xa.cols())).collect::<Result<_>>()?;
    project_back(device, group, dy, &mut dxa.iter_mut().collect::<Vec<_>>())?;
    if let Some(dx) = dx {
        backward_input(device, group, dy, &dxa.iter().collect::<Vec<_>>(), dx)?;
    }
    let tensors = dy.iter().zip(xa).zip(&dxa);
    let jobs = group.layers.iter().zip(tensors).map(|(layer, ((dy, xa), dxa))| GradJob {
        layer: *layer,
        rows: group.rows,
        x,
        dy,
        xa,
        dxa,
    });
    gradients(device, group.dropout, &jobs.collect::<Vec<_>>())
}
