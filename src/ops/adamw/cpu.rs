//! AdamW on the CPU.

use rayon::prelude::*;

use super::{AdamW, Trained};
use crate::ops::simd;
use crate::tensor::Real;

/// Elements one task handles.
const PIECE: usize = 1 << 14;

/// See [`super::update`].
pub(super) fn update<T: Real>(adamw: &AdamW, trained: &mut Trained<'_, T>) {
    let Trained { param, shadow, grad, exp_avg, exp_avg_sq } = trained;
    step(adamw, param.data_mut(), grad.data(), exp_avg.data_mut(), exp_avg_sq.data_mut());
    if let Some(shadow) = shadow {
        let pieces = shadow.data_mut().par_chunks_mut(PIECE).zip(param.data().par_chunks(PIECE));
        pieces.for_each(|(shadow, param)| {
            for (rounded, &p) in shadow.iter_mut().zip(param) {
                *rounded = T::from_stat(p);
            }
        });
    }
}

fn step<T: Real>(adamw: &AdamW, param: &mut [T], grad: &[T], m: &mut [T], v: &mut [T]) {
    let t = i32::try_from(adamw.step).unwrap_or(i32::MAX);
    let real = T::from_f64;
    let step_size = real(adamw.learning_rate / (1.0 - adamw.beta1.powi(t)));
    let root = real((1.0 - adamw.beta2.powi(t)).sqrt());
    let decay = real(1.0 - adamw.learning_rate * adamw.weight_decay);
    let (beta1, rest1) = (real(adamw.beta1), real(1.0 - adamw.beta1));
    let (beta2, rest2) = (real(adamw.beta2), real(1.0 - adamw.beta2));
    let (clip, eps) = (real(adamw.clip), real(adamw.epsilon));
    let state = m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE));
    let params = param.par_chunks_mut(PIECE).zip(grad.par_chunks(PIECE));
    params.zip(state).for_each(|((param, grad), (m, v))| {
        simd::run(
            #[inline(always)]
            || {
                for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m.iter_mut()).zip(v.iter_mut()) {
                    let g = g * clip;
                    *m = *m * beta1 + g * rest1;
                    *v = *v * beta2 + g * g * rest2;
                    *p = *p * decay - step_size * (*m / (v.sqrt() / root + eps));
                }
            },
        );
    });
}
