//! Gradient norm on the CPU.

use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::simd;
use crate::tensor::Real;

/// Elements of one partial sum.
const PIECE: usize = 1 << 14;

/// See [`super::grad_norm`]. Partial sums of fixed pieces, added in the order of tensors and pieces.
pub(super) fn grad_norm<T: Real>(grads: &[&Tensor<T>]) -> f64 {
    let pieces: Vec<&[T]> = grads.iter().flat_map(|g| g.data().chunks(PIECE)).collect();
    let square = |x: T| x.to_f64() * x.to_f64();
    let of_piece = |piece: &&[T]| {
        simd::run(
            #[inline(always)]
            || simd::sum(piece, square),
        )
    };
    let squares: Vec<f64> = pieces.par_iter().map(of_piece).collect();
    squares.iter().sum::<f64>().sqrt()
}
