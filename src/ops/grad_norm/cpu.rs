//! Gradient norm on the CPU.

use rayon::prelude::*;

use crate::device::Tensor;
use crate::tensor::Real;

/// See [`super::grad_norm`]. One partial sum per tensor, added in tensor order.
pub(super) fn grad_norm<T: Real>(grads: &[&Tensor<T>]) -> f64 {
    let squares: Vec<f64> =
        grads.par_iter().map(|g| g.data().iter().map(|x| x.to_f64() * x.to_f64()).sum()).collect();
    squares.iter().sum::<f64>().sqrt()
}
