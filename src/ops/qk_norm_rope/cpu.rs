//! QK-norm and RoPE on the CPU: one head at a time, rows in parallel.

use rayon::prelude::*;

use super::{HeadNorm, QkNormRope};
use crate::device::Tensor;
use crate::ops::cols::Cols;
use crate::ops::simd;
use crate::tensor::Real;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(x: Cols<'_, T>, op: &QkNormRope<'_, T>, y: &mut Tensor<T>) {
    y.data_mut().par_chunks_mut(x.cols()).take(op.table.len()).enumerate().for_each(|(t, y)| {
        let (cos, sin) = op.table.of_row(t);
        simd::run(
            #[inline(always)]
            || {
                for (x, y) in x.row(t).chunks_exact(op.head_dim).zip(y.chunks_exact_mut(op.head_dim)) {
                    y.copy_from_slice(x);
                    if let Some(HeadNorm { weight, eps }) = op.norm {
                        let rstd = rstd(x, T::from_stat(eps));
                        for (y, &w) in y.iter_mut().zip(weight.data()) {
                            *y = *y * rstd * w;
                        }
                    }
                    rotate(y, cos, sin, T::ONE);
                }
            },
        );
    });
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(x: Cols<'_, T>, op: &QkNormRope<'_, T>, dy: &mut Tensor<T>) {
    let stride = dy.cols();
    dy.data_mut().par_chunks_mut(stride).take(op.table.len()).enumerate().for_each(|(t, dy)| {
        let (cos, sin) = op.table.of_row(t);
        simd::run(
            #[inline(always)]
            || {
                // The zip ends with the columns of x.
                for (x, dy) in x.row(t).chunks_exact(op.head_dim).zip(dy.chunks_exact_mut(op.head_dim)) {
                    rotate(dy, cos, sin, -T::ONE);
                    let Some(HeadNorm { weight, eps }) = op.norm else { continue };
                    let (weight, rstd) = (&weight.data()[..x.len()], rstd(x, T::from_stat(eps)));
                    let inner = simd::dot3(dy, weight, x);
                    let pull = rstd * rstd * inner / T::from_f64(x.len() as f64);
                    for ((dy, &w), &x) in dy.iter_mut().zip(weight).zip(x) {
                        *dy = rstd * (*dy * w - x * pull);
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn rstd<T: Real>(x: &[T], eps: T) -> T {
    T::ONE / (simd::dot(x, x) / T::from_f64(x.len() as f64) + eps).sqrt()
}

/// Turns the pairs `(i, i + d/2)`; `direction` -1 turns back.
#[inline(always)]
fn rotate<T: Real>(y: &mut [T], cos: &[T::Stat], sin: &[T::Stat], direction: T) {
    let (low, high) = y.split_at_mut(cos.len());
    for (((a, b), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (cos, sin) = (T::from_stat(cos), T::from_stat(sin) * direction);
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
