//! AdamW on the CPU.

use rayon::prelude::*;

use super::{AdamW, Trained};
use crate::ops::simd;
use crate::tensor::Real;

/// Elements one task handles.
const PIECE: usize = 1 << 14;

/// See [`super::update`].
pub(super) fn update<T: Real>(adamw: &AdamW, trained: &mut Trained<'_, T>) {
    let Trained { param, shadow, grad, exp_avg, exp_avg_sq, decays } = trained;
    let adamw = if *decays { *adamw } else { AdamW { weight_decay: 0.0, ..*adamw } };
    step(&adamw, param.data_mut(), grad.data(), exp_avg.data_mut(), exp_avg_sq.data_mut());
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
    let real = T::from_f64;
    let factors = adamw.factors();
    let (step_size, root, decay) = (real(factors.step_size), real(factors.root), real(factors.decay));
    let (beta1, rest1) = (real(factors.beta1), real(factors.rest1));
    let (beta2, rest2) = (real(factors.beta2), real(factors.rest2));
    let (clip, eps) = (real(adamw.clip), real(factors.epsilon));
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
