//! Embedding lookup on the CPU.

use rayon::prelude::*;

use super::{Forward, Lookup};
use crate::tensor::Real;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(args: Forward<'_, T>) {
    let Forward { table, ids, types, positions, y, .. } = args;
    let hidden_size = table.cols();
    let rows = y.data_mut().par_chunks_mut(hidden_size).zip(ids.data()).enumerate();
    rows.for_each(|(t, (y, &id))| {
        y.copy_from_slice(table.row(id as usize));
        for Lookup { table, ids } in [types, positions].into_iter().flatten() {
            let row = table.row(ids.data()[t] as usize);
            y.iter_mut().zip(row).for_each(|(y, &x)| *y += x);
        }
    });
}
