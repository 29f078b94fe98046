//! Norms on the CPU: one row at a time, rows in parallel.

use rayon::prelude::*;

use super::{Apply, Backward, Forward, Norm, NormKind};
use crate::ops::simd;
use crate::tensor::Real;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(args: Forward<'_, T>) {
    let Forward { x, residual, norm, y, rstd, .. } = args;
    let cols = x.cols();
    let rows = x.data_mut().par_chunks_mut(cols).zip(y.data_mut().par_chunks_mut(cols));
    rows.zip(rstd.data_mut()).enumerate().for_each(|(t, ((x, y), rstd))| {
        simd::run(
            #[inline(always)]
            || {
                if let Some(residual) = residual {
                    for (x, &r) in x.iter_mut().zip(residual.row(t)) {
                        *x += r;
                    }
                }
                let (centre, square) = match norm.kind {
                    NormKind::Rms => (T::ZERO, simd::dot(x, x)),
                    NormKind::Layer => {
                        let centre = mean(x);
                        (centre, simd::sum(x, |x| (x - centre) * (x - centre)))
                    }
                };
                let own = T::ONE / (square / T::from_f64(cols as f64) + T::from_stat(norm.eps)).sqrt();
                *rstd = own.to_stat();
                scale(&norm, x, centre, own, y);
            },
        );
    });
}

/// See [`super::apply`].
pub(super) fn apply<T: Real>(args: Apply<'_, T>) {
    let Apply { s, norm, rstd, y, .. } = args;
    y.data_mut().par_chunks_mut(s.cols()).enumerate().for_each(|(t, y)| {
        simd::run(
            #[inline(always)]
            || {
                let s = s.row(t);
                let centre = if norm.kind == NormKind::Layer { mean(s) } else { T::ZERO };
                scale(&norm, s, centre, T::from_stat(rstd.data()[t]), y);
            },
        );
    });
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(args: Backward<'_, T>) {
    let Backward { dy, s, norm, rstd, d_in, ds, normed, live_rows, .. } = args;
    let cols = s.cols();
    let weight = &norm.weight.data()[..cols];
    ds.data_mut().par_chunks_mut(cols).enumerate().for_each(|(t, ds)| {
        let (dy, s, rstd) = (dy.row(t), s.row(t), T::from_stat(rstd.data()[t]));
        match d_in {
            Some(d_in) => ds.copy_from_slice(d_in.row(t)),
            None => ds.fill(T::ZERO),
        }
        simd::run(
            #[inline(always)]
            || {
                let count = T::from_f64(cols as f64);
                match norm.kind {
                    NormKind::Rms => {
                        let inner = simd::dot3(dy, weight, s);
                        // x^ mean(g x^) = s * rstd^2 * sum(g s) / cols
                        let pull = rstd * rstd * inner / count;
                        for (((ds, &dy), &w), &s) in ds.iter_mut().zip(dy).zip(weight).zip(s) {
                            *ds += rstd * (dy * w - s * pull);
                        }
                    }
                    NormKind::Layer => {
                        let (centre, sum) = (mean(s), simd::dot(dy, weight));
                        let inner = simd::sum3(dy, weight, s, |dy, w, s| dy * w * (s - centre));
                        let (shift, pull) = (sum / count, rstd * rstd * inner / count);
                        for (((ds, &dy), &w), &s) in ds.iter_mut().zip(dy).zip(weight).zip(s) {
                            *ds += rstd * (dy * w - shift - (s - centre) * pull);
                        }
                    }
                }
            },
        );
    });
    if let Some(normed) = normed {
        apply(Apply { s, norm, rstd, y: normed, live_rows });
    }
}

#[inline(always)]
fn mean<T: Real>(x: &[T]) -> T {
    simd::sum(x, |x| x) / T::from_f64(x.len() as f64)
}

#[inline(always)]
fn scale<T: Real>(norm: &Norm<'_, T>, x: &[T], centre: T, rstd: T, y: &mut [T]) {
    let weight = norm.weight.data();
    match (norm.kind, norm.bias) {
        (NormKind::Rms, _) => {
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * rstd * w;
            }
        }
        (NormKind::Layer, None) => {
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                *y = (x - centre) * rstd * w;
            }
        }
        (NormKind::Layer, Some(bias)) => {
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias.data()) {
                *y = (x - centre) * rstd * w + b;
            }
        }
    }
}
