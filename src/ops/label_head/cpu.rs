//! Heads for labels on the CPU.

use super::{Backward, Layer};
use crate::batch::LabelTarget;
use crate::device::Tensor;
use crate::ops::gemm::{Mat, MatMut, Write, axpy, gemm};
use crate::tensor::Real;

/// See [`super::pool`].
pub(super) fn pool<T: Real>(x: &Tensor<T>, targets: &[LabelTarget], y: &mut Tensor<T>) {
    let cols = x.cols();
    for (y, LabelTarget { rows, .. }) in y.data_mut().chunks_exact_mut(cols).zip(targets) {
        let share = T::from_f64(1.0 / rows.len() as f64);
        y.fill(T::ZERO);
        rows.clone().for_each(|row| axpy(y, share, x.row(row)));
    }
}

/// See [`super::pool_backward`].
pub(super) fn pool_backward<T: Real>(dy: &Tensor<T>, targets: &[LabelTarget], dx: &mut Tensor<T>) {
    let cols = dx.cols();
    let dx = dx.data_mut();
    dx.fill(T::ZERO);
    for (i, LabelTarget { rows, .. }) in targets.iter().enumerate() {
        let share = T::from_f64(1.0 / rows.len() as f64);
        rows.clone().for_each(|row| axpy(&mut dx[row * cols..(row + 1) * cols], share, dy.row(i)));
    }
}

/// See [`super::forward`].
pub(super) fn forward<T: Real>(layer: &Layer<'_, T>, x: &Tensor<T>, y: &mut Tensor<T>) {
    outputs(layer, x, y.data_mut());
}

/// See [`super::logits`].
pub(super) fn logits<T: Real>(layer: &Layer<'_, T>, x: &Tensor<T>, z: &mut Tensor<T::Stat>) {
    let mut y = vec![T::ZERO; z.len()];
    outputs(layer, x, &mut y);
    z.data_mut().iter_mut().zip(y).for_each(|(z, y)| *z = y.to_stat());
}

fn outputs<T: Real>(layer: &Layer<'_, T>, x: &Tensor<T>, y: &mut [T]) {
    let (rows, outputs) = (x.rows(), layer.weight.rows());
    if rows > 0 {
        gemm(MatMut::new(y, rows, outputs), Write::Overwrite, T::ONE, matrix(x), matrix(layer.weight).t());
    }
    for y in y.chunks_exact_mut(outputs) {
        if let Some(bias) = layer.bias {
            axpy(y, T::ONE, bias.data());
        }
        if layer.tanh {
            y.iter_mut().for_each(|y| *y = tanh(*y));
        }
    }
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(layer: &Layer<'_, T>, args: Backward<'_, T>) {
    let Backward { x, y, dy, dx, d_weight, d_bias } = args;
    if let Some(y) = y.filter(|_| layer.tanh) {
        dy.data_mut().iter_mut().zip(y.data()).for_each(|(dy, &y)| *dy *= T::ONE - y * y);
    }
    if let Some(dx) = dx {
        let [rows, cols] = dx.shape();
        if rows > 0 {
            let to = MatMut::new(dx.data_mut(), rows, cols);
            gemm(to, Write::Overwrite, T::ONE, matrix(dy), matrix(layer.weight));
        }
    }
    // Row after row, in the statistics type.
    let inputs = x.cols();
    for row in 0..x.rows() {
        let (x, dy) = (x.row(row), dy.row(row));
        for (d_weight, &dy) in d_weight.data_mut().chunks_exact_mut(inputs).zip(dy) {
            let dy = dy.to_stat();
            d_weight.iter_mut().zip(x).for_each(|(d, &x)| *d += dy * x.to_stat());
        }
    }
    if let Some(d_bias) = d_bias {
        for row in 0..x.rows() {
            d_bias.data_mut().iter_mut().zip(dy.row(row)).for_each(|(d, &dy)| *d += dy.to_stat());
        }
    }
}

fn matrix<T: Real>(tensor: &Tensor<T>) -> Mat<'_, T> {
    Mat::new(tensor.data(), tensor.rows(), tensor.cols())
}

fn tanh<T: Real>(x: T) -> T {
    T::from_f64(x.to_f64().tanh())
}
