//! From the op's arguments to those of its kernels.
//!
//! A layer with DoRA takes its kernels several times, with what lies between them from [`gpu::dora`], whose text has the formulas.
//! Without dropout it goes along with its group: only its output and its `dy` are scaled. With dropout its frozen weight sees
//! another input than those of the others, so it goes alone.

use super::gpu::dora::{self, Dropped, Gain, Magnitudes, Scale};
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
    let dropout = rate(layers.iter());
    let goes_alone = |layer: &LoraMatmul<'_, T>| layer.has_dora() && dropout.is_some();
    let (mut of_gpu, mut xa, mut y) = (Vec::new(), Vec::new(), Vec::new());
    for (op, out) in layers.iter().zip(&mut *outputs).filter(|(op, _)| !goes_alone(op)) {
        let layer = layer(op)?;
        // The bias is not scaled.
        let bias = layer.bias.filter(|_| !op.has_dora());
        of_gpu.push(Layer { bias, ..layer });
        xa.push(out.xa);
        y.push(&mut *out.y);
    }
    if !of_gpu.is_empty() {
        let rows = tables(&layers[0])?.rows;
        gpu::apply(device, &Group { layers: &of_gpu, rows, dropout, tile: None }, x, &xa, &mut y)?;
    }
    for (op, out) in layers.iter().zip(outputs).filter(|(op, _)| op.has_dora()) {
        let base = match dropout {
            Some(dropout) => Some(apply_dropped(device, x, (op, dropout), out)?),
            None => None,
        };
        let args = Scale { input: None, gain: Gain::Whole, addend: base.as_ref(), bias: op.frozen.bias };
        dora::scale(device, tables(op)?.rows, magnitudes(op)?, args, out.y)?;
    }
    Ok(())
}

/// Writes the product of the layer with its dropped-out input to `y`, without bias, and gives that of the frozen weight with the
/// rest of the input.
fn apply_dropped<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    (op, dropout): (&LoraMatmul<'_, T>, DropoutRate),
    out: &mut Apply<'_, T>,
) -> Result<Tensor<T>> {
    let OnGpu { rows, key, .. } = tables(op)?;
    let mut dropped = device.empty(x.rows(), x.cols())?;
    let mut rest = device.empty(x.rows(), x.cols())?;
    let args = Dropped { out: Some(&mut dropped), rest: Some(&mut rest), addend: None };
    dora::dropout(device, rows, (dropout, key), x, args)?;
    let adapted = Layer { bias: None, ..layer(op)? };
    let frozen = Layer { adapters: None, ..adapted };
    let of_dropped = Group { layers: &[adapted], rows, dropout: None, tile: None };
    gpu::apply(device, &of_dropped, &dropped, &[out.xa], &mut [&mut *out.y])?;
    drop(dropped);
    let mut base = device.empty(out.y.rows(), out.y.cols())?;
    let none = device.empty(x.rows(), 0)?;
    let of_rest = Group { layers: &[frozen], ..of_dropped };
    gpu::apply(device, &of_rest, &rest, &[&none], &mut [&mut base])?;
    Ok(base)
}

/// See [`super::project_back`].
pub(super) fn project_back<T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    dy: &[&Tensor<T>],
    dxa: &mut [&mut Tensor<T>],
) -> Result<()> {
    let scaled = scaled_each(device, layers, dy)?;
    with_group(layers, |group| gpu::project_back(device, group, &or_plain(&scaled, dy), dxa))
}

/// See [`super::backward_input`].
pub(super) fn backward_input<T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    dy: &[&Tensor<T>],
    dxa: &[&Tensor<T>],
    dx: &mut Tensor<T>,
) -> Result<()> {
    let dropout = match rate(layers.iter()) {
        Some(dropout) if layers.iter().any(LoraMatmul::has_dora) => dropout,
        _ => {
            let scaled = scaled_each(device, layers, dy)?;
            return with_group(layers, |group| {
                gpu::backward_input(device, group, &or_plain(&scaled, dy), dxa, dx)
            });
        }
    };
    // First all layers, those with DoRA as frozen ones; then what dropout lets through of these.
    let none = device.empty(dx.rows(), 0)?;
    let (mut of_gpu, mut of_dxa) = (Vec::new(), dxa.to_vec());
    for (op, dxa) in layers.iter().zip(&mut of_dxa) {
        let mut layer = layer(op)?;
        if op.has_dora() {
            (layer.adapters, *dxa) = (None, &none);
        }
        of_gpu.push(layer);
    }
    let rows = tables(&layers[0])?.rows;
    let group = Group { layers: &of_gpu, rows, dropout: Some(dropout), tile: None };
    gpu::backward_input(device, &group, dy, &of_dxa, dx)?;
    for ((op, dy), dxa) in layers.iter().zip(dy).zip(dxa).filter(|((op, _), _)| op.has_dora()) {
        let OnGpu { rows, key, .. } = tables(op)?;
        let less_one = scaled(device, op, dy, Gain::LessOne)?;
        let mut of_dropped = device.empty(dx.rows(), dx.cols())?;
        let alone = Group { layers: &[layer(op)?], rows, dropout: None, tile: None };
        gpu::backward_input(device, &alone, &[&less_one], &[dxa], &mut of_dropped)?;
        drop(less_one);
        let args = Dropped { out: None, rest: None, addend: Some(&mut *dx) };
        dora::dropout(device, rows, (dropout, key), &of_dropped, args)?;
    }
    Ok(())
}

/// See [`super::gradients`].
pub(super) fn gradients<T: Real>(device: &Device, jobs: &[GradJob<'_, '_, T>]) -> Result<()> {
    let dropout = rate(jobs.iter().map(|job| &job.layer));
    let plain = jobs.iter().filter(|job| !job.layer.has_dora()).map(job);
    gpu::gradients(device, dropout, &plain.collect::<Result<Vec<_>>>()?)?;
    let mut with_dora = jobs.iter().filter(|job| job.layer.has_dora());
    with_dora.try_for_each(|of_op| dora_gradients(device, dropout, &of_op.layer, job(of_op)?))
}

/// The gradients of a layer with DoRA: those of its magnitudes need its output once more.
fn dora_gradients<T: Real>(
    device: &Device,
    dropout: Option<DropoutRate>,
    op: &LoraMatmul<'_, T>,
    job: gpu::GradJob<'_, T>,
) -> Result<()> {
    let OnGpu { rows, key, live_rows, .. } = tables(op)?;
    let device = &device.with_live_rows(live_rows);
    let mut z = device.empty(job.dy.rows(), job.dy.cols())?;
    let mut dropped = None;
    if let Some(dropout) = dropout {
        let out = dropped.insert(device.empty(job.x.rows(), job.x.cols())?);
        let args = Dropped { out: Some(out), rest: None, addend: None };
        dora::dropout(device, rows, (dropout, key), job.x, args)?;
    }
    let alone = Group { layers: &[Layer { bias: None, ..job.layer }], rows, dropout: None, tile: None };
    gpu::apply(device, &alone, dropped.as_ref().unwrap_or(job.x), &[job.xa], &mut [&mut z])?;
    drop(dropped);
    dora::magnitude_gradient(device, rows, magnitudes(op)?, job.dy, &z)?;
    // z is done with, and makes room.
    let mut scaled = z;
    let args = Scale { input: Some(job.dy), gain: Gain::Whole, addend: None, bias: None };
    dora::scale(device, rows, magnitudes(op)?, args, &mut scaled)?;
    gpu::gradients(device, dropout, &[gpu::GradJob { dy: &scaled, ..job }])
}

fn job<'j, T: Real>(job: &'j GradJob<'_, '_, T>) -> Result<gpu::GradJob<'j, T>> {
    let (x, dy, xa, dxa) = (job.x, job.dy, job.xa, job.dxa);
    Ok(gpu::GradJob { layer: layer(&job.layer)?, rows: tables(&job.layer)?.rows, x, dy, xa, dxa })
}

/// `dy` of a layer with DoRA times its gains.
fn scaled<T: Real>(device: &Device, op: &LoraMatmul<'_, T>, dy: &Tensor<T>, gain: Gain) -> Result<Tensor<T>> {
    let mut out = device.empty(dy.rows(), dy.cols())?;
    let args = Scale { input: Some(dy), gain, addend: None, bias: None };
    dora::scale(device, tables(op)?.rows, magnitudes(op)?, args, &mut out)?;
    Ok(out)
}

/// By layer; none without DoRA.
fn scaled_each<T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    dy: &[&Tensor<T>],
) -> Result<Vec<Option<Tensor<T>>>> {
    let of_layer = |(op, dy): (&LoraMatmul<'_, T>, &&Tensor<T>)| {
        op.has_dora().then(|| scaled(device, op, dy, Gain::Whole)).transpose()
    };
    layers.iter().zip(dy).map(of_layer).collect()
}

/// What there is of `scaled`, and `dy` elsewhere.
fn or_plain<'t, T: Real>(scaled: &'t [Option<Tensor<T>>], dy: &[&'t Tensor<T>]) -> Vec<&'t Tensor<T>> {
    scaled.iter().zip(dy).map(|(scaled, dy)| scaled.as_ref().unwrap_or(dy)).collect()
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

fn layer<'a, T: Real>(op: &LoraMatmul<'a, T>) -> Result<Layer<'a, T>> {
    let OnGpu { adapters, key, .. } = tables(op)?;
    Ok(Layer { weight: op.frozen.weight, bias: op.frozen.bias, adapters, key })
}

fn tables<'a, T: Real>(op: &LoraMatmul<'a, T>) -> Result<OnGpu<'a>> {
    op.gpu.ok_or_else(|| Error::shape(OP, "gpu", "the tables of the layer", "none"))
}

fn magnitudes<'a, T: Real>(op: &LoraMatmul<'a, T>) -> Result<&'a Magnitudes> {
    tables(op)?.magnitudes.ok_or_else(|| Error::shape(OP, "magnitudes", "the table of the layer", "none"))
}

fn rate<'a, T: Real>(mut layers: impl Iterator<Item = &'a LoraMatmul<'a, T>>) -> Option<DropoutRate> {
    layers.find_map(|layer| layer.dropout).map(|d| DropoutRate { threshold: d.threshold() })
}
