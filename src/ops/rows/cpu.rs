//! Rows on the CPU.

use crate::device::Tensor;
use crate::ops::cols::Cols;
use crate::ops::gemm::axpy;
use crate::tensor::Real;

/// See [`super::gather`].
pub(super) fn gather<T: Real>(x: Cols<'_, T>, rows: &[usize], y: &mut Tensor<T>) {
    let cols = x.cols();
    for (y, &row) in y.data_mut().chunks_exact_mut(cols).zip(rows) {
        y.copy_from_slice(x.row(row));
    }
}

/// See [`super::scatter_add`].
pub(super) fn scatter_add<T: Real>(y: &Tensor<T>, rows: &[usize], x: &mut Tensor<T>) {
    let stride = x.cols();
    let x = x.data_mut();
    for (i, &row) in rows.iter().enumerate() {
        axpy(&mut x[row * stride..row * stride + y.cols()], T::ONE, y.row(i));
    }
}
