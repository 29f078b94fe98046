//! Groups in which some layers have DoRA: several launches of the plain kernels, with the operations of
//! [`dora`] between them. The formulas are documented there.
//!
//! Without dropout a layer with DoRA is launched with its group, and only its output and its `dy` are scaled.
//! With dropout its frozen weight has another input than the rest of the group, so it has launches of its
//! own.

use super::backward::{launch_gradients, launch_input};
use super::dora::{self, Dropped, Gain, MagnitudeGradient, Magnitudes, Scale};
use super::forward::launch;
use super::{Group, Layer};
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::lora_matmul::group::LayerRows;
use crate::ops::lora_matmul::{Apply, GradJob, InputGradient, OP};
use crate::tensor::Real;

/// See [`super::apply`].
pub(super) fn apply<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    outputs: &mut [Apply<'_, T>],
) -> Result<()> {
    let goes_alone = |layer: &Layer<'_, T>| layer.has_dora() && layer.dropout.is_some();
    let (mut layers, mut together) = (Vec::new(), Vec::new());
    for (layer, out) in group.layers.iter().zip(&mut *outputs).filter(|(layer, _)| !goes_alone(layer)) {
        // The bias is not scaled.
        let bias = layer.bias.filter(|_| !layer.has_dora());
        layers.push(Layer { bias, ..*layer });
        together.push(Apply { y: &mut *out.y, xa: out.xa });
    }
    if !layers.is_empty() {
        launch(device, &Group::new(&layers, group.rows), x, &mut together)?;
    }
    for (one, out) in group.each().zip(outputs).filter(|(one, _)| one.layer.has_dora()) {
        let base = apply_dropped(device, one, x, out)?;
        let (magnitudes, addend) = (magnitudes(one.layer)?, base.as_ref());
        let args = Scale { magnitudes, input: None, gain: Gain::Whole, addend, bias: one.layer.bias };
        dora::scale(device, one.rows, args, out.y)?;
    }
    Ok(())
}

/// Writes the product of the layer with its dropped-out input to `y`, without bias, and returns the product
/// of the frozen weight with the rest of the input. Without dropout it does nothing and returns `None`.
fn apply_dropped<T: Real>(
    device: &Device,
    LayerRows { layer, rows }: LayerRows<'_, T>,
    x: &Tensor<T>,
    out: &mut Apply<'_, T>,
) -> Result<Option<Tensor<T>>> {
    let Some(mask) = layer.dropout else { return Ok(None) };
    let mut dropped = device.empty(x.rows(), x.cols())?;
    let mut rest = device.empty(x.rows(), x.cols())?;
    let args = Dropped { mask, out: Some(&mut dropped), rest: Some(&mut rest), addend: None };
    dora::dropout(device, rows, Some(x), args)?;
    let adapted = [Layer { bias: None, dropout: None, ..*layer }];
    let together = &mut [Apply { y: &mut *out.y, xa: out.xa }];
    launch(device, &Group::new(&adapted, rows), &dropped, together)?;
    drop(dropped);
    let mut base = device.empty(out.y.rows(), out.y.cols())?;
    let none = device.empty(x.rows(), 0)?;
    let frozen = [Layer { bias: None, ..layer.frozen() }];
    launch(device, &Group::new(&frozen, rows), &rest, &mut [Apply { y: &mut base, xa: &none }])?;
    Ok(Some(base))
}

/// See [`super::backward_input`].
pub(super) fn backward_input<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    args: InputGradient<'_, T>,
) -> Result<()> {
    let InputGradient { dy, dxa, dx } = args;
    let Some(mask) = group.dropout() else {
        let scaled = scaled_each(device, group, dy)?;
        let dy = &or_plain(&scaled, dy);
        return launch_input(device, group, InputGradient { dy, dxa, dx });
    };
    // First all layers, those with DoRA as if frozen; then `mask(u)` (see `dora`) is added for each layer
    // with DoRA.
    let none = device.empty(dx.rows(), 0)?;
    let (mut layers, mut without) = (Vec::new(), dxa.to_vec());
    for (layer, dxa) in group.layers.iter().zip(&mut without) {
        match layer.has_dora() {
            true => {
                layers.push(Layer { dropout: layer.dropout, ..layer.frozen() });
                *dxa = &none;
            }
            false => layers.push(*layer),
        }
    }
    let args = InputGradient { dy, dxa: &without, dx: &mut *dx };
    launch_input(device, &Group::new(&layers, group.rows), args)?;
    for ((one, dy), dxa) in group.each().zip(dy).zip(dxa).filter(|((one, _), _)| one.layer.has_dora()) {
        let less_one = scaled(device, one, dy, Gain::LessOne)?;
        let mut of_dropped = device.empty(dx.rows(), dx.cols())?;
        let alone = [Layer { dropout: None, ..*one.layer }];
        let args = InputGradient { dy: &[&less_one], dxa: &[dxa], dx: &mut of_dropped };
        launch_input(device, &Group::new(&alone, one.rows), args)?;
        drop(less_one);
        let mask = one.layer.dropout.unwrap_or(mask);
        let args = Dropped { mask, out: None, rest: None, addend: Some(&mut *dx) };
        dora::dropout(device, one.rows, Some(&of_dropped), args)?;
    }
    Ok(())
}

/// The gradients of a layer with DoRA. The gradient of the magnitude needs the output of the layer, which is
/// recomputed.
pub(super) fn gradients<T: Real>(device: &Device, job: &GradJob<'_, '_, T>) -> Result<()> {
    let one = job.layer_rows();
    let magnitudes = magnitudes(one.layer)?;
    let mut z = device.empty(job.dy.rows(), job.dy.cols())?;
    let mut dropped = None;
    if let Some(mask) = one.layer.dropout {
        let out = dropped.insert(device.empty(job.x.rows(), job.x.cols())?);
        let args = Dropped { mask, out: Some(out), rest: None, addend: None };
        dora::dropout(device, job.rows, Some(job.x), args)?;
    }
    let alone = [Layer { bias: None, dropout: None, ..job.layer }];
    let input = dropped.as_ref().unwrap_or(job.x);
    launch(device, &Group::new(&alone, job.rows), input, &mut [Apply { y: &mut z, xa: job.xa }])?;
    drop(dropped);
    dora::magnitude_gradient(device, job.rows, MagnitudeGradient { magnitudes, dy: job.dy, z: &z })?;
    // `z` is not needed any more; its memory is freed.
    let mut scaled = z;
    let args = Scale { magnitudes, input: Some(job.dy), gain: Gain::Whole, addend: None, bias: None };
    dora::scale(device, job.rows, args, &mut scaled)?;
    let GradJob { layer, rows, x, xa, dxa, .. } = *job;
    launch_gradients(device, &[&GradJob { layer, rows, x, dy: &scaled, xa, dxa, grads: &mut [] }])
}

/// `dy` of a layer with DoRA times its gains.
fn scaled<T: Real>(device: &Device, one: LayerRows<'_, T>, dy: &Tensor<T>, gain: Gain) -> Result<Tensor<T>> {
    let mut out = device.empty(dy.rows(), dy.cols())?;
    let magnitudes = magnitudes(one.layer)?;
    let args = Scale { magnitudes, input: Some(dy), gain, addend: None, bias: None };
    dora::scale(device, one.rows, args, &mut out)?;
    Ok(out)
}

/// `dy` times the gains, for every layer with DoRA; `None` for the others.
pub(super) fn scaled_each<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    dy: &[&Tensor<T>],
) -> Result<Vec<Option<Tensor<T>>>> {
    let of_layer = |(one, dy): (LayerRows<'_, T>, &&Tensor<T>)| {
        one.layer.has_dora().then(|| scaled(device, one, dy, Gain::Whole)).transpose()
    };
    group.each().zip(dy).map(of_layer).collect()
}

/// The entry of `scaled` where there is one, else `dy`.
pub(super) fn or_plain<'t, T: Real>(
    scaled: &'t [Option<Tensor<T>>],
    dy: &[&'t Tensor<T>],
) -> Vec<&'t Tensor<T>> {
    scaled.iter().zip(dy).map(|(scaled, dy)| scaled.as_ref().unwrap_or(dy)).collect()
}

fn magnitudes<'a, T: Real>(layer: &Layer<'a, T>) -> Result<&'a Magnitudes> {
    layer.magnitudes.ok_or_else(|| Error::shape(OP, "magnitudes", "the table of the layer", "none"))
}
