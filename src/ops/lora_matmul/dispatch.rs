//! From the op's arguments to those of its kernels.

use super::gpu::{self, DropoutRate, Group, Layer};
use super::{Apply, GradJob, LoraMatmul, OP, OnGpu};
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::tensor::Real;

/// See [`super::project`].
pub(super) fn project<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    layers: &[LoraMatmul<'_, T>],
    xa: &mut [&mut Tensor<T>],
) -> Result<()> {
    with_group(layers, |group| gpu::project(device, group, x, xa))
}

/// See [`super::projection`].
pub(super) fn projection<T: Real>(
    layers: &[LoraMatmul<'_, T>],
    xa: &[&Tensor<T>],
) -> Result<Option<gpu::Project>> {
    with_group(layers, |group| gpu::Project::forward(group, xa))
}

/// See [`super::projection_back`].
pub(super) fn projection_back<T: Real>(
    layers: &[LoraMatmul<'_, T>],
    dxa: &[&Tensor<T>],
) -> Result<Option<gpu::Project>> {
    with_group(layers, |group| gpu::Project::backward(group, dxa))
}

/// See [`super::apply`].
pub(super) fn apply<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    layers: &[LoraMatmul<'_, T>],
    outputs: &mut [Apply<'_, T>],
) -> Result<()> {
    let xa: Vec<&Tensor<T>> = outputs.iter().map(|out| out.xa).collect();
    let mut y: Vec<&mut Tensor<T>> = outputs.iter_mut().map(|out| &mut *out.y).collect();
    with_group(layers, |group| gpu::apply(device, group, x, &xa, &mut y))
}

/// See [`super::project_back`].
pub(super) fn project_back<T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    dy: &[&Tensor<T>],
    dxa: &mut [&mut Tensor<T>],
) -> Result<()> {
    with_group(layers, |group| gpu::project_back(device, group, dy, dxa))
}

/// See [`super::backward_input`].
pub(super) fn backward_input<T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    dy: &[&Tensor<T>],
    dxa: &[&Tensor<T>],
    dx: &mut Tensor<T>,
) -> Result<()> {
    with_group(layers, |group| gpu::backward_input(device, group, dy, dxa, dx))
}

/// See [`super::gradients`].
pub(super) fn gradients<T: Real>(device: &Device, jobs: &[GradJob<'_, '_, T>]) -> Result<()> {
    let jobs_of_gpu: Vec<_> = jobs.iter().map(job).collect::<Result<_>>()?;
    gpu::gradients(device, rate(jobs.iter().map(|job| &job.layer)), &jobs_of_gpu)
}

fn job<'j, T: Real>(job: &'j GradJob<'_, '_, T>) -> Result<gpu::GradJob<'j, T>> {
    let (x, dy, xa, dxa) = (job.x, job.dy, job.xa, job.dxa);
    Ok(gpu::GradJob { layer: layer(&job.layer)?, rows: tables(&job.layer)?.rows, x, dy, xa, dxa })
}

/// Runs `work` on the group that `layers` are on a GPU.
fn with_group<T: Real, R>(
    layers: &[LoraMatmul<'_, T>],
    work: impl FnOnce(&Group<'_, T>) -> Result<R>,
) -> Result<R> {
    let of_gpu: Vec<Layer<'_, T>> = layers.iter().map(layer).collect::<Result<_>>()?;
    let rows = tables(&layers[0])?.rows;
    work(&Group { layers: &of_gpu, rows, dropout: rate(layers.iter()), tile: None })
}

fn layer<'a, T: Real>(layer: &LoraMatmul<'a, T>) -> Result<Layer<'a, T>> {
    if layer.loras.iter().flatten().any(|lora| lora.dora.is_some()) {
        return Err(Error::Device {
            what: "DoRA has no GPU kernels yet".into(),
            fix: "train without --use-dora, or compute on the cpu".into(),
        });
    }
    let OnGpu { adapters, key, .. } = tables(layer)?;
    Ok(Layer { weight: layer.frozen.weight, bias: layer.frozen.bias, adapters, key })
}

fn tables<'a, T: Real>(layer: &LoraMatmul<'a, T>) -> Result<OnGpu<'a>> {
    layer.gpu.ok_or_else(|| Error::shape(OP, "gpu", "the tables of the layer", "none"))
}

fn rate<'a, T: Real>(
    mut layers: impl Iterator<Item = &'a LoraMatmul<'a, T>>,
) -> Option<DropoutRate> {
    layers.find_map(|layer| layer.dropout).map(|d| DropoutRate { threshold: d.threshold() })
}
