//! The gather and scatter-add kernels, with indices that fill their capacity and indices that do not.

#![cfg(feature = "emulated")]

use super::{RowIndex, gather, scatter_add};
use crate::device::Device;
use crate::ops::testing::{RAGGED_ROWS, at_scale, bf16_numbers, kernel_device, live, rounded, with_room};

/// Gathers `rows` of twice as many rows, and adds to them.
fn compare(device: &Device, rows: usize, cols: usize) {
    let picked: Vec<usize> = (0..rows).map(|i| 2 * i + i % 2).collect();
    let (x, y) = (bf16_numbers((2 * rows + 1) * cols, 1.0, 0), bf16_numbers((rows + 2) * cols, 1.0, 1));
    let mut index = RowIndex::with_capacity(device, rows + 2).unwrap();
    index.write(device, &picked).unwrap();
    let mut to = with_room(device, 2 * rows + 3, cols, &x);
    let got = gather(device, &to, &index).unwrap();
    let expected: Vec<f64> = picked.iter().flat_map(|r| x[r * cols..(r + 1) * cols].to_vec()).collect();
    let got: Vec<f64> = device.read(&got).unwrap().into_iter().map(|x| x.to_f64()).collect();
    assert!(got[..rows * cols] == expected, "{rows} x {cols}");
    assert!(got[rows * cols..].iter().all(|x| x.is_nan()), "rows beyond the index were written");

    let from = with_room(device, rows + 2, cols, &y);
    scatter_add(device, &from, &index, &mut to).unwrap();
    let mut sums = x.clone();
    for (i, row) in picked.iter().enumerate() {
        (0..cols).for_each(|c| sums[row * cols + c] += y[i * cols + c]);
    }
    assert!(live(device, &to, 2 * rows + 1) == rounded(&sums), "{rows} x {cols}");
}

#[test]
fn rows_are_picked_and_added() {
    let device = kernel_device(1);
    for (cols, rows) in
        RAGGED_ROWS.map(|rows| (8 + rows % 5 * 8, rows)).into_iter().chain([(2560, 3), (16, 0)])
    {
        compare(&device, rows, cols);
    }
}

/// Half of 2,176 rows.
#[test]
fn real_shapes() {
    for (rows, cols) in at_scale([(1088, 1024), (1088, 4096)], [(40, 1024), (5, 4096)]) {
        compare(&kernel_device(2), rows, cols);
    }
}
