//! LoRA linear on the CPU, a layer at a time: matrix products over the runs of rows of each adapter.
//!
//! A dry device runs this too, without the arithmetic, since the memory plan counts its temporary tensors.

use std::any::Any;
use std::ops::Range;

use rayon::prelude::*;

use super::group::LayerRows;
use super::{Apply, Dora, GradJob, Group, InputGradient, Lora, LoraGrad, Merged};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::gemm::{Mat, MatMut, Write, par_gemm};
use crate::ops::simd;
use crate::tensor::Real;

/// See [`super::project`].
pub(super) fn project<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    xa: &mut [&mut Tensor<T>],
) -> Result<()> {
    group.each().zip(xa).try_for_each(|(one, xa)| project_one(device, one, x, xa))
}

fn project_one<T: Real>(
    device: &Device,
    one: LayerRows<'_, T>,
    x: &Tensor<T>,
    xa: &mut Tensor<T>,
) -> Result<()> {
    let rank = xa.cols();
    if !device.is_dry() {
        // Rows without an adapter, and columns beyond an adapter's rank, are never read but must be
        // initialized.
        xa.data_mut().fill(T::ZERO);
    }
    for (_, lora, rows) in one.runs() {
        let dropped = dropped_input(device, one, x, &rows)?;
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

/// See [`super::apply`].
pub(super) fn apply<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    outputs: &mut [Apply<'_, T>],
) -> Result<()> {
    group.each().zip(outputs).try_for_each(|(one, out)| apply_one(device, one, x, out))
}

fn apply_one<T: Real>(
    device: &Device,
    one: LayerRows<'_, T>,
    x: &Tensor<T>,
    Apply { y, xa }: &mut Apply<'_, T>,
) -> Result<()> {
    let weight = one.layer.weight;
    let (rank, out_features) = (xa.cols(), y.cols());
    if !device.is_dry() {
        par_gemm(whole_mut(y), Write::Overwrite, T::ONE, whole(x), whole(weight).t());
    }
    for (_, lora, rows) in one.runs() {
        // Only DoRA multiplies the dropped-out input with the frozen weight.
        let dropped = match lora.dora {
            Some(_) => dropped_input(device, one, x, &rows)?,
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
    if let (Some(bias), false) = (one.layer.bias, device.is_dry()) {
        each_row(y.data_mut(), bias.data(), |y, bias| *y += bias);
    }
    Ok(())
}

/// See [`super::project_back`].
pub(super) fn project_back<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    dy: &[&Tensor<T>],
    dxa: &mut [&mut Tensor<T>],
) -> Result<()> {
    let tensors = dy.iter().zip(dxa);
    group.each().zip(tensors).try_for_each(|(one, (dy, dxa))| project_back_one(device, one, dy, dxa))
}

fn project_back_one<T: Real>(
    device: &Device,
    one: LayerRows<'_, T>,
    dy: &Tensor<T>,
    dxa: &mut Tensor<T>,
) -> Result<()> {
    let rank = dxa.cols();
    if !device.is_dry() {
        dxa.data_mut().fill(T::ZERO);
    }
    for (_, lora, rows) in one.runs() {
        let scaled = scaled_dy(device, lora, dy, &rows, &|g| g)?;
        if device.is_dry() {
            continue;
        }
        let r = lora.a.rows();
        let dxa = &mut dxa.data_mut()[rows.start * rank..rows.end * rank];
        let product = MatMut::strided(dxa, rows.len(), r, rank);
        let scaling = T::from_stat(lora.scaling);
        par_gemm(product, Write::Overwrite, scaling, input(dy, scaled.as_ref(), &rows), whole(lora.b));
    }
    Ok(())
}

/// See [`super::backward_input`].
pub(super) fn backward_input<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    args: InputGradient<'_, T>,
) -> Result<()> {
    let InputGradient { dy, dxa, dx } = args;
    for (i, (one, (dy, dxa))) in group.each().zip(dy.iter().zip(dxa)).enumerate() {
        // The first layer overwrites `dx`, the others add to it.
        let write = if i == 0 { Write::Overwrite } else { Write::Add };
        Share { one, dy, dxa, write }.write_to(device, dx)?;
    }
    Ok(())
}

/// The share of one layer in `dx`.
struct Share<'a, T: Real> {
    one: LayerRows<'a, T>,
    dy: &'a Tensor<T>,
    dxa: &'a Tensor<T>,
    write: Write,
}

impl<T: Real> Share<'_, T> {
    fn write_to(self, device: &Device, dx: &mut Tensor<T>) -> Result<()> {
        let Self { one, dy, dxa, write } = self;
        let weight = one.layer.weight;
        let (cols, rank) = (weight.cols(), dxa.cols());
        if !device.is_dry() {
            par_gemm(whole_mut(dx), write, T::ONE, whole(dy), whole(weight));
        }
        for (_, lora, rows) in one.runs() {
            // The gradient of x~ goes straight into dx, unless the mask has to be applied to it.
            let masked = one.layer.dropout.is_some();
            let mut dx_dropped = masked.then(|| device.zeros::<T>(rows.len(), cols)).transpose()?;
            let less_one = match lora.dora {
                Some(_) => scaled_dy(device, lora, dy, &rows, &|g| g - T::ONE)?,
                None => None,
            };
            if device.is_dry() {
                continue;
            }
            let r = lora.a.rows();
            let dxa = Mat::strided(&dxa.data()[rows.start * rank..rows.end * rank], rows.len(), r, rank);
            let dx_rows = match &mut dx_dropped {
                Some(dropped) => dropped.data_mut(),
                None => &mut dx.data_mut()[rows.start * cols..rows.end * cols],
            };
            if let Some(less_one) = &less_one {
                add(dx_rows, rows.len(), T::ONE, whole(less_one), whole(weight));
            }
            add(dx_rows, rows.len(), T::ONE, dxa, whole(lora.a));
            if let (Some(dropped), Some(dropout)) = (&dx_dropped, &one.layer.dropout) {
                let dx = &mut dx.data_mut()[rows.start * cols..rows.end * cols];
                let keys = &one.rows.keys().as_slice()[rows];
                dropout.apply(keys, dropped.data(), dx, Write::Add);
            }
        }
        Ok(())
    }
}

/// See [`super::gradients`].
pub(super) fn gradients<T: Real>(device: &Device, jobs: &mut [GradJob<'_, '_, T>]) -> Result<()> {
    jobs.iter_mut().try_for_each(|job| gradients_of_one(device, job))
}

fn gradients_of_one<T: Real>(device: &Device, job: &mut GradJob<'_, '_, T>) -> Result<()> {
    let GradJob { layer, rows, x, dy, xa, dxa, grads } = job;
    let (one, weight) = (LayerRows { layer, rows }, layer.weight);
    for (adapter, lora, rows) in one.runs() {
        let Some(grad) = &mut grads[adapter] else { continue };
        let dropped = dropped_input(device, one, x, &rows)?;
        let mut db = device.empty::<T>(lora.a.rows(), weight.rows())?;
        let z = lora.dora.map(|_| device.empty::<T>(rows.len(), weight.rows())).transpose()?;
        let scaled = scaled_dy(device, lora, dy, &rows, &|g| g)?;
        if device.is_dry() {
            continue;
        }
        let input_rows = input(x, dropped.as_ref(), &rows);
        let r = lora.a.rows();
        let narrow = |t: &Tensor<T>| -> std::ops::Range<usize> { rows.start * t.cols()..rows.end * t.cols() };
        let xa_rows = Mat::strided(&xa.data()[narrow(xa)], rows.len(), r, xa.cols());
        let dxa_rows = Mat::strided(&dxa.data()[narrow(dxa)], rows.len(), r, dxa.cols());
        if let Some(z) = z {
            let parts = OfMagnitude { lora, weight, input: input_rows, xa: xa_rows, dy, rows: &rows, z };
            parts.add_to(grad);
        }
        // dB^T = xa^T dy, then transposed: the long side of the product lies in columns, which is several times faster.
        let adapter_dy = input(dy, scaled.as_ref(), &rows);
        par_gemm(whole_mut(&mut db), Write::Overwrite, T::from_stat(lora.scaling), xa_rows.t(), adapter_dy);
        grad.b.data_mut().par_chunks_mut(r).enumerate().for_each(|(j, row)| {
            for (i, b) in row.iter_mut().enumerate() {
                *b += db.data()[i * weight.rows() + j].to_stat();
            }
        });
        add_to_statistics(grad.a, dxa_rows.t(), input_rows);
    }
    Ok(())
}

/// Inputs of the gradient of a magnitude.
struct OfMagnitude<'a, T: Real> {
    lora: &'a Lora<'a, T>,
    weight: &'a Tensor<T>,
    input: Mat<'a, T>,
    xa: Mat<'a, T>,
    dy: &'a Tensor<T>,
    rows: &'a Range<usize>,
    /// Buffer for `(W + scaling B A) x~`, which the forward pass does not store.
    z: Tensor<T>,
}

impl<T: Real> OfMagnitude<'_, T> {
    /// Adds the sum over rows of `dy * z / c`.
    fn add_to(mut self, grad: &mut LoraGrad<'_, T::Stat>) {
        let (Some(dora), Some(dmagnitude)) = (self.lora.dora, grad.magnitude.as_deref_mut()) else { return };
        par_gemm(whole_mut(&mut self.z), Write::Overwrite, T::ONE, self.input, whole(self.weight).t());
        let scaling = T::from_stat(self.lora.scaling);
        add(self.z.data_mut(), self.rows.len(), scaling, self.xa, whole(self.lora.b).t());
        let (z, cols) = (self.z.data(), self.dy.cols());
        let dy = &self.dy.data()[self.rows.start * cols..self.rows.end * cols];
        dmagnitude.data_mut().par_iter_mut().enumerate().for_each(|(j, dm)| {
            let sum: T = (0..self.rows.len()).map(|t| dy[t * cols + j] * z[t * cols + j]).sum();
            *dm += (sum / T::from_stat(dora.norm.data()[j])).to_stat();
        });
    }
}

/// `f(g) * dy` of some rows with DoRA; `None` without DoRA, where the factor is 1.
fn scaled_dy<T: Real>(
    device: &Device,
    lora: &Lora<'_, T>,
    dy: &Tensor<T>,
    rows: &Range<usize>,
    f: &dyn Fn(T) -> T,
) -> Result<Option<Tensor<T>>> {
    if lora.dora.is_none() {
        return Ok(None);
    }
    let mut scaled = device.empty::<T>(rows.len(), dy.cols())?;
    if !device.is_dry() {
        scaled.data_mut().copy_from_slice(&dy.data()[rows.start * dy.cols()..rows.end * dy.cols()]);
        let factors: Vec<T> = gains(lora).into_iter().map(f).collect();
        each_row(scaled.data_mut(), &factors, |x, g| *x *= g);
    }
    Ok(Some(scaled))
}

/// See [`super::dora_norm`].
pub(super) fn dora_norm<T: Real>(merged: Merged<'_, T>, norm: &mut Tensor<T::Stat>) {
    /// Rows of `W + s B A` that are held at once.
    const PIECE: usize = 64;
    let Merged { weight, a, b, scaling } = merged;
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
    lora.dora.map_or_else(Vec::new, |Dora { magnitude, norm }| {
        magnitude.data().iter().zip(norm.data()).map(|(&m, &c)| m / T::from_stat(c)).collect()
    })
}

/// The adapter's input after dropout; `None` without dropout.
fn dropped_input<T: Real>(
    device: &Device,
    one: LayerRows<'_, T>,
    x: &Tensor<T>,
    rows: &Range<usize>,
) -> Result<Option<Tensor<T>>> {
    let Some(dropout) = &one.layer.dropout else { return Ok(None) };
    let mut dropped = device.empty(rows.len(), x.cols())?;
    if !device.is_dry() {
        let x_rows = &x.data()[rows.start * x.cols()..rows.end * x.cols()];
        let keys = &one.rows.keys().as_slice()[rows.clone()];
        dropout.apply(keys, x_rows, dropped.data_mut(), Write::Overwrite);
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
