//! SwiGLU on the CPU.

use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::simd;
use crate::tensor::Real;

/// Elements one task handles: large enough to hide the task, small enough to stay in the cache.
const PIECE: usize = 1 << 14;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(gate: &Tensor<T>, up: &Tensor<T>, h: &mut Tensor<T>) {
    let inputs = gate.data().par_chunks(PIECE).zip(up.data().par_chunks(PIECE));
    h.data_mut().par_chunks_mut(PIECE).zip(inputs).for_each(|(h, (gate, up))| {
        simd::run(
            #[inline(always)]
            || {
                for ((h, &g), &u) in h.iter_mut().zip(gate).zip(up) {
                    *h = g * sigmoid(g) * u;
                }
            },
        );
    });
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(dh: &mut Tensor<T>, gate: &mut Tensor<T>, up: &mut Tensor<T>) {
    let outputs = gate.data_mut().par_chunks_mut(PIECE).zip(up.data_mut().par_chunks_mut(PIECE));
    outputs.zip(dh.data_mut().par_chunks_mut(PIECE)).for_each(|((gate, up), dh)| {
        simd::run(
            #[inline(always)]
            || {
                for ((g, u), dh) in gate.iter_mut().zip(up.iter_mut()).zip(dh.iter_mut()) {
                    let sigma = sigmoid(*g);
                    let dgate = *dh * *u * sigma * (T::ONE + *g * (T::ONE - sigma));
                    let (h, dup) = (*g * sigma * *u, *dh * *g * sigma);
                    (*dh, *g, *u) = (h, dgate, dup);
                }
            },
        );
    });
}

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}
