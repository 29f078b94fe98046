//! LoRA linear on the CPU, a layer at a time: matrix products over the runs of rows of each adapter.
//!
//! This runs on a dry device too, up to the arithmetic: its temporary tensors belong in the memory plan.

use std::any::Any;
use std::ops::Range;

use rayon::prelude::*;

use super::{LayerBackward, Lora, LoraGrad, LoraMatmul};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::gemm::{Mat, MatMut, Write, par_gemm};
use crate::ops::simd;
use crate::tensor::Real;

/// Writes `xa`.
pub(super) fn project<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    layer: &LoraMatmul<'_, T>,
    xa: &mut Tensor<T>,
) -> Result<()> {
    let rank = xa.cols();
    if !device.is_dry() {
        // Rows without an adapter, and columns beyond an adapter's rank, are read by nobody but must be defined.
        xa.data_mut().fill(T::ZERO);
    }
    for (_, lora, rows) in layer.runs() {
        let dropped = dropped_input(device, layer, x, &rows)?;
        if device.is_dry() {
            continue;
        }
        let input = input(x, dropped.as_ref(), &rows);
        let r = lora.a.rows();
        let xa = &mut xa.data_mut()[rows.start * rank..rows.end * rank];
        let product = MatMut::strided(xa, rows.len(), r, rank);
        par_gemm(product, Write::Overwrite, T::ONE, input, whole(lora.a).t());
    }
    Ok(())
}

/// Writes `y`, given `xa`.
pub(super) fn apply<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    layer: &LoraMatmul<'_, T>,
    xa: &Tensor<T>,
    y: &mut Tensor<T>,
) -> Result<()> {
    let weight = layer.frozen.weight;
    let (rank, out_features) = (xa.cols(), y.cols());
    if !device.is_dry() {
        par_gemm(whole_mut(y), Write::Overwrite, T::ONE, whole(x), whole(weight).t());
    }
    for (_, lora, rows) in layer.runs() {
        // Only DoRA multiplies the dropped-out input with the frozen weight.
        let dropped = match lora.dora {
            Some(_) => dropped_input(device, layer, x, &rows)?,
            None => None,
        };
        let base = dropped.as_ref().map(|_| device.empty::<T>(rows.len(), out_features)).transpose()?;
        if device.is_dry() {
            continue;
        }
        let (r, scaling) = (lora.a.rows(), T::from_stat(lora.scaling));
        let xa = Mat::strided(&xa.data()[rows.start * rank..rows.end * rank], rows.len(), r, rank);
        let y = &mut y.data_mut()[rows.start * out_features..rows.end * out_features];
        match (lora.dora, base) {
            (None, _) => add(y, rows.len(), scaling, xa, whole(lora.b).t()),
            (Some(_), None) => {
                add(y, rows.len(), scaling, xa, whole(lora.b).t());
                each_row(y, &gains(lora), |y, by| *y *= by);
            }
            (Some(_), Some(mut base)) => {
                // y += (g - 1) * x~ W^T + scaling * xa (g * B)^T, with g over the columns of y.
                let gains = gains(lora);
                let input = input(x, dropped.as_ref(), &rows);
                par_gemm(whole_mut(&mut base), Write::Overwrite, T::ONE, input, whole(weight).t());
                y.par_chunks_mut(out_features).zip(base.data().par_chunks(out_features)).for_each(
                    |(y, x)| {
                        for ((y, &x), &g) in y.iter_mut().zip(x).zip(&gains) {
                            *y += (g - T::ONE) * x;
                        }
                    },
                );
                let b = lora.b.data().chunks_exact(r).zip(&gains);
                let b: Vec<T> = b.flat_map(|(row, &g)| row.iter().map(move |&b| b * g)).collect();
                add(y, rows.len(), scaling, xa, Mat::new(&b, out_features, r).t());
            }
        }
    }
    if let (Some(bias), false) = (layer.frozen.bias, device.is_dry()) {
        each_row(y.data_mut(), bias.data(), |y, bias| *y += bias);
    }
    Ok(())
}

/// One layer of [`super::backward`].
pub(super) fn backward<T: Real>(
    device: &Device,
    layer: &LoraMatmul<'_, T>,
    x: &Tensor<T>,
    args: &mut LayerBackward<'_, '_, T>,
    mut dx: Option<(&mut Tensor<T>, Write)>,
) -> Result<()> {
    let LayerBackward { dy, xa, grads } = args;
    let (dy, xa) = (*dy, *xa);
    let weight = layer.frozen.weight;
    if let (Some((dx, write)), false) = (&mut dx, device.is_dry()) {
        par_gemm(whole_mut(dx), *write, T::ONE, whole(dy), whole(weight));
    }
    for (adapter, lora, rows) in layer.runs() {
        let Some(grad) = &mut grads[adapter] else { continue };
        let dropped = dropped_input(device, layer, x, &rows)?;
        let mut dxa = device.empty::<T>(rows.len(), lora.a.rows())?;
        let mut db = device.empty::<T>(lora.a.rows(), weight.rows())?;
        // The gradient of x~ goes straight into dx, unless the mask has to be applied to it.
        let masked = layer.dropout.is_some() && dx.is_some();
        let mut dx_dropped = masked.then(|| device.zeros::<T>(rows.len(), weight.cols())).transpose()?;
        let scaled = lora.dora.map(|_| device.empty::<T>(rows.len(), weight.rows())).transpose()?;
        if device.is_dry() {
            continue;
        }
        let input = input(x, dropped.as_ref(), &rows);
        let r = lora.a.rows();
        let xa =
            Mat::strided(&xa.data()[rows.start * xa.cols()..rows.end * xa.cols()], rows.len(), r, xa.cols());
        let dy_rows = &dy.data()[rows.start * dy.cols()..rows.end * dy.cols()];
        // Where the adapter's part of dx is collected.
        let cols = weight.cols();
        let mut dx_rows: Option<&mut [T]> = match (&mut dx_dropped, &mut dx) {
            (Some(dropped), _) => Some(dropped.data_mut()),
            (None, Some((dx, _))) => Some(&mut dx.data_mut()[rows.start * cols..rows.end * cols]),
            (None, None) => None,
        };
        // What reaches the adapter's output: dy, or g * dy.
        let mut scaled = scaled;
        let adapter_dy = match &mut scaled {
            None => dy_rows,
            Some(scaled) => {
                dora_backward(&DoraRows { lora, weight, input, xa, dy: dy_rows }, grad, scaled, &mut dx_rows);
                scaled.data()
            }
        };
        let adapter_dy = Mat::new(adapter_dy, rows.len(), weight.rows());
        let scaling = T::from_stat(lora.scaling);
        par_gemm(whole_mut(&mut dxa), Write::Overwrite, scaling, adapter_dy, whole(lora.b));
        // dB^T = xa^T dy, then transposed: the long side of the product lies in columns, which is several times faster.
        par_gemm(whole_mut(&mut db), Write::Overwrite, scaling, xa.t(), adapter_dy);
        grad.b.data_mut().par_chunks_mut(r).enumerate().for_each(|(j, row)| {
            for (i, b) in row.iter_mut().enumerate() {
                *b += db.data()[i * weight.rows() + j].to_stat();
            }
        });
        add_to_statistics(grad.a, whole(&dxa).t(), input);
        if let Some(dx_rows) = dx_rows {
            add(dx_rows, rows.len(), T::ONE, whole(&dxa), whole(lora.a));
        }
        if let (Some(dropped), Some((dx, _)), Some(dropout)) = (&dx_dropped, &mut dx, &layer.dropout) {
            let dx = &mut dx.data_mut()[rows.start * cols..rows.end * cols];
            dropout.apply(rows.start, cols, dropped.data(), dx, true);
        }
    }
    Ok(())
}

/// The rows of one adapter with DoRA in the backward pass.
struct DoraRows<'a, T: Real> {
    lora: &'a Lora<'a, T>,
    weight: &'a Tensor<T>,
    input: Mat<'a, T>,
    xa: Mat<'a, T>,
    dy: &'a [T],
}

/// Adds the gradient of the magnitude, adds `((g - 1) * dy) W` to `dx`, and leaves `g * dy` in `scaled`.
fn dora_backward<T: Real>(
    rows: &DoraRows<'_, T>,
    grad: &mut LoraGrad<'_, T::Stat>,
    scaled: &mut Tensor<T>,
    dx: &mut Option<&mut [T]>,
) {
    let (lora, weight) = (rows.lora, rows.weight);
    let (num_rows, cols) = (scaled.rows(), scaled.cols());
    if let (Some((_, norm)), Some(dmagnitude)) = (lora.dora, grad.magnitude.as_deref_mut()) {
        // z = (W + scaling B A) x~ was never stored; d magnitude = sum over rows of dy * z / c.
        par_gemm(whole_mut(scaled), Write::Overwrite, T::ONE, rows.input, whole(weight).t());
        add(scaled.data_mut(), num_rows, T::from_stat(lora.scaling), rows.xa, whole(lora.b).t());
        let z = scaled.data();
        dmagnitude.data_mut().par_iter_mut().enumerate().for_each(|(j, dm)| {
            let sum: T = (0..num_rows).map(|t| rows.dy[t * cols + j] * z[t * cols + j]).sum();
            *dm += (sum / T::from_stat(norm.data()[j])).to_stat();
        });
    }
    let gains = gains(lora);
    let from_dy = |scaled: &mut Tensor<T>, factors: &[T]| {
        scaled.data_mut().copy_from_slice(rows.dy);
        each_row(scaled.data_mut(), factors, |x, g| *x *= g);
    };
    if let Some(dx) = dx {
        let less_one: Vec<T> = gains.iter().map(|&g| g - T::ONE).collect();
        from_dy(scaled, &less_one);
        add(dx, num_rows, T::ONE, whole(scaled), whole(weight));
    }
    from_dy(scaled, &gains);
}

/// See [`super::dora_norm`].
pub(super) fn dora_norm<T: Real>(
    weight: &Tensor<T>,
    a: &Tensor<T>,
    b: &Tensor<T>,
    scaling: T::Stat,
    norm: &mut Tensor<T::Stat>,
) {
    /// Rows of `W + s B A` that exist at once.
    const PIECE: usize = 64;
    let (cols, r) = (weight.cols(), a.rows());
    norm.data_mut().par_chunks_mut(PIECE).enumerate().for_each(|(i, norms)| {
        let rows = i * PIECE..i * PIECE + norms.len();
        let mut merged = weight.data()[rows.start * cols..rows.end * cols].to_vec();
        let b = Mat::new(&b.data()[rows.start * r..rows.end * r], norms.len(), r);
        let dst = MatMut::new(&mut merged, norms.len(), cols);
        crate::ops::gemm::gemm(dst, Write::Add, T::from_stat(scaling), b, whole(a));
        for (norm, row) in norms.iter_mut().zip(merged.chunks_exact(cols)) {
            *norm = simd::run(
                #[inline(always)]
                || simd::dot(row, row),
            )
            .sqrt()
            .to_stat();
        }
    });
}

/// `g = magnitude / c` over the output features.
fn gains<T: Real>(lora: &Lora<'_, T>) -> Vec<T> {
    lora.dora.map_or_else(Vec::new, |(magnitude, norm)| {
        magnitude.data().iter().zip(norm.data()).map(|(&m, &c)| m / T::from_stat(c)).collect()
    })
}

/// The input of the adapter where dropout changes it.
fn dropped_input<T: Real>(
    device: &Device,
    layer: &LoraMatmul<'_, T>,
    x: &Tensor<T>,
    rows: &Range<usize>,
) -> Result<Option<Tensor<T>>> {
    let Some(dropout) = &layer.dropout else { return Ok(None) };
    let mut dropped = device.empty(rows.len(), x.cols())?;
    if !device.is_dry() {
        let x_rows = &x.data()[rows.start * x.cols()..rows.end * x.cols()];
        dropout.apply(rows.start, x.cols(), x_rows, dropped.data_mut(), false);
    }
    Ok(Some(dropped))
}

fn input<'a, T: Real>(x: &'a Tensor<T>, dropped: Option<&'a Tensor<T>>, rows: &Range<usize>) -> Mat<'a, T> {
    match dropped {
        Some(dropped) => whole(dropped),
        None => Mat::new(&x.data()[rows.start * x.cols()..rows.end * x.cols()], rows.len(), x.cols()),
    }
}

/// Applies `f(element, factor of its column)` to every row.
fn each_row<T: Real>(rows: &mut [T], by: &[T], f: impl Fn(&mut T, T) + Sync) {
    rows.par_chunks_mut(by.len()).for_each(|row| {
        simd::run(
            #[inline(always)]
            || {
                for (x, &by) in row.iter_mut().zip(by) {
                    f(x, by);
                }
            },
        );
    });
}

fn add<T: Real>(dst: &mut [T], rows: usize, scale: T, a: Mat<'_, T>, b: Mat<'_, T>) {
    let cols = dst.len() / rows;
    par_gemm(MatMut::new(dst, rows, cols), Write::Add, scale, a, b);
}

/// `dst += a b`, summed in the type of `dst`.
fn add_to_statistics<T: Real>(dst: &mut Tensor<T::Stat>, a: Mat<'_, T>, b: Mat<'_, T>) {
    match (dst as &mut dyn Any).downcast_mut::<Tensor<T>>() {
        Some(dst) => par_gemm(whole_mut(dst), Write::Add, T::ONE, a, b),
        None => {
            let wide = |m: &Mat<'_, T>| -> Vec<T::Stat> {
                let at = |i: usize| m.at(i / m.cols(), i % m.cols());
                (0..m.rows() * m.cols()).map(|i| at(i).to_stat()).collect()
            };
            let (left, right) = (wide(&a), wide(&b));
            let (left, right) = (Mat::new(&left, a.rows(), a.cols()), Mat::new(&right, b.rows(), b.cols()));
            par_gemm(whole_mut(dst), Write::Add, Real::ONE, left, right);
        }
    }
}

fn whole<T: Real>(tensor: &Tensor<T>) -> Mat<'_, T> {
    Mat::new(tensor.data(), tensor.rows(), tensor.cols())
}

fn whole_mut<T: Real>(tensor: &mut Tensor<T>) -> MatMut<'_, T> {
    let [rows, cols] = tensor.shape();
    MatMut::new(tensor.data_mut(), rows, cols)
}
