//! Embedding lookup on the CPU.

use rayon::prelude::*;

use crate::device::Tensor;
use crate::tensor::Real;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(table: &Tensor<T>, input_ids: &[u32], y: &mut Tensor<T>) {
    let hidden_size = table.cols();
    y.data_mut()
        .par_chunks_mut(hidden_size)
        .zip(input_ids)
        .for_each(|(row, &id)| row.copy_from_slice(table.row(id as usize)));
}
