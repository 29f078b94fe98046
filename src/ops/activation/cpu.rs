//! Activations on the CPU.

use rayon::prelude::*;

use super::{Activation, Input, InputMut};
use crate::device::Tensor;
use crate::ops::simd;
use crate::tensor::Real;

/// Elements one task handles: large enough to hide the task, small enough to stay in the cache.
const PIECE: usize = 1 << 14;

/// Runs the body compiled for each function, so that its loops have no branch: `$value` is the function, `$gradients` gives for a
/// gate, a factor and the gradient of their output that output and both gradients.
macro_rules! by_function {
    ($act:expr, |$value:ident, $gradients:ident| $body:expr) => {
        match $act {
            Activation::Silu => {
                let ($value, $gradients) = (silu::<T>, silu_gradients::<T>);
                $body
            }
            Activation::Gelu => {
                let ($value, $gradients) =
                    (gelu::<T>, |g: T, u: T, dh: T| by_slope(gelu(g), gelu_slope(g), u, dh));
                $body
            }
            Activation::GeluTanh => {
                let ($value, $gradients) =
                    (gelu_tanh::<T>, |g: T, u: T, dh: T| by_slope(gelu_tanh(g), gelu_tanh_slope(g), u, dh));
                $body
            }
            Activation::Tanh => {
                let ($value, $gradients) =
                    (tanh::<T>, |g: T, u: T, dh: T| by_slope(tanh(g), T::ONE - tanh(g) * tanh(g), u, dh));
                $body
            }
        }
    };
}

/// See [`super::forward`].
pub(super) fn forward<T: Real>(act: Activation, input: Input<'_, T>, h: &mut Tensor<T>) {
    by_function!(act, |value, _gradients| forward_with(value, input, h));
}

fn forward_with<T: Real>(value: impl Fn(T) -> T + Sync + Copy, input: Input<'_, T>, h: &mut Tensor<T>) {
    let gated = |h: &mut [T], gate: &[T], up: &[T]| {
        simd::run(
            #[inline(always)]
            || {
                for ((h, &g), &u) in h.iter_mut().zip(gate).zip(up) {
                    *h = value(g) * u;
                }
            },
        );
    };
    match input {
        Input::Gated { gate, up } => {
            let inputs = gate.data().par_chunks(PIECE).zip(up.data().par_chunks(PIECE));
            h.data_mut().par_chunks_mut(PIECE).zip(inputs).for_each(|(h, (gate, up))| gated(h, gate, up));
        }
        Input::Fused(gate_up) => {
            let cols = h.cols();
            h.data_mut().par_chunks_mut(cols.max(1)).enumerate().for_each(|(row, h)| {
                let (gate, up) = gate_up.row(row).split_at(cols);
                gated(h, gate, up);
            });
        }
        Input::Plain(x) => {
            h.data_mut().par_chunks_mut(PIECE).zip(x.data().par_chunks(PIECE)).for_each(|(h, x)| {
                simd::run(
                    #[inline(always)]
                    || {
                        for (h, &x) in h.iter_mut().zip(x) {
                            *h = value(x);
                        }
                    },
                );
            });
        }
    }
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(act: Activation, dh: &mut Tensor<T>, input: InputMut<'_, T>) {
    by_function!(act, |_value, gradients| backward_with(gradients, dh, input));
}

fn backward_with<T: Real>(
    gradients: impl Fn(T, T, T) -> [T; 3] + Sync + Copy,
    dh: &mut Tensor<T>,
    input: InputMut<'_, T>,
) {
    let gated = |dh: &mut [T], gate: &mut [T], up: &mut [T]| {
        simd::run(
            #[inline(always)]
            || {
                for ((g, u), dh) in gate.iter_mut().zip(up).zip(dh) {
                    [*dh, *g, *u] = gradients(*g, *u, *dh);
                }
            },
        );
    };
    match input {
        InputMut::Gated { gate, up } => {
            let outputs = gate.data_mut().par_chunks_mut(PIECE).zip(up.data_mut().par_chunks_mut(PIECE));
            outputs.zip(dh.data_mut().par_chunks_mut(PIECE)).for_each(|((gate, up), dh)| gated(dh, gate, up));
        }
        InputMut::Fused(gate_up) => {
            let cols = dh.cols().max(1);
            let rows = gate_up.data_mut().par_chunks_mut(2 * cols).zip(dh.data_mut().par_chunks_mut(cols));
            rows.for_each(|(gate_up, dh)| {
                let (gate, up) = gate_up.split_at_mut(cols);
                gated(dh, gate, up);
            });
        }
        InputMut::Plain(x) => {
            let pieces = x.data_mut().par_chunks_mut(PIECE).zip(dh.data_mut().par_chunks_mut(PIECE));
            pieces.for_each(|(x, dh)| {
                simd::run(
                    #[inline(always)]
                    || {
                        for (x, dh) in x.iter_mut().zip(dh) {
                            [*dh, *x, _] = gradients(*x, T::ONE, *dh);
                        }
                    },
                );
            });
        }
    }
}

/// Output and gradients from the value and the derivative of the function at the gate.
#[inline(always)]
fn by_slope<T: Real>(value: T, slope: T, up: T, dh: T) -> [T; 3] {
    [value * up, dh * up * slope, dh * value]
}

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

#[inline(always)]
fn silu<T: Real>(x: T) -> T {
    x * sigmoid(x)
}

#[inline(always)]
fn silu_gradients<T: Real>(gate: T, up: T, dh: T) -> [T; 3] {
    let sigma = sigmoid(gate);
    let dgate = dh * up * sigma * (T::ONE + gate * (T::ONE - sigma));
    [gate * sigma * up, dgate, dh * gate * sigma]
}

#[inline(always)]
fn gelu<T: Real>(x: T) -> T {
    x * normal_cdf(x)
}

/// `P(X <= x)` of a normal number.
#[inline(always)]
fn normal_cdf<T: Real>(x: T) -> T {
    T::from_f64(0.5) * (T::ONE + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

#[inline(always)]
fn gelu_slope<T: Real>(x: T) -> T {
    // 1 / sqrt(2 pi).
    let density = T::from_f64(0.398_942_280_401_432_7) * (x * x * T::from_f64(-0.5)).exp();
    normal_cdf(x) + x * density
}

/// `sqrt(2 / pi)`.
const ROOT: f64 = 0.797_884_560_802_865_4;
const CUBE: f64 = 0.044_715;

/// `(1 + tanh(u)) / 2` is the sigmoid of `2 u`.
#[inline(always)]
fn gelu_tanh_gate<T: Real>(x: T) -> T {
    sigmoid(T::from_f64(2.0 * ROOT) * (x + T::from_f64(CUBE) * x * x * x))
}

#[inline(always)]
fn gelu_tanh<T: Real>(x: T) -> T {
    x * gelu_tanh_gate(x)
}

#[inline(always)]
fn gelu_tanh_slope<T: Real>(x: T) -> T {
    let sigma = gelu_tanh_gate(x);
    let inner = T::from_f64(2.0 * ROOT) * (T::ONE + T::from_f64(3.0 * CUBE) * x * x);
    sigma + x * sigma * (T::ONE - sigma) * inner
}

#[inline(always)]
fn tanh<T: Real>(x: T) -> T {
    T::from_f64(2.0) * sigmoid(x + x) - T::ONE
}
