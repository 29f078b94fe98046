//! The lookup kernel copies the rows of the ids, and does not change rows beyond the live ones.

#![cfg(feature = "emulated")]

use super::{Forward, Lookup, forward};
use crate::device::Device;
use crate::ops::LiveRows;
use crate::ops::testing::{RAGGED_ROWS, at_scale, bf16_numbers, kernel_device, live, live_count, with_room};

/// `rows` of `rows + 2` ids, which are all over the table.
fn compare(device: &Device, vocab_size: usize, rows: usize, cols: usize) {
    let numbers = bf16_numbers(vocab_size * cols, 1.0, 0);
    let table = with_room(device, vocab_size, cols, &numbers);
    let ids: Vec<u32> = (0..rows + 2).map(|i| (i * i * 31 % vocab_size) as u32).collect();
    let ids_there = device.tensor(rows + 2, 1, &ids).unwrap();
    let mut y = with_room(device, rows + 2, cols, &[]);
    let count = live_count(device, rows);
    forward(
        device,
        Forward {
            table: &table,
            ids: &ids_there,
            types: None,
            positions: None,
            y: &mut y,
            live_rows: LiveRows::at(count.ptr()),
        },
    )
    .unwrap();
    let expected: Vec<f64> = ids[..rows]
        .iter()
        .flat_map(|&id| numbers[id as usize * cols..(id as usize + 1) * cols].to_vec())
        .collect();
    assert!(live(device, &y, rows) == expected, "{rows} rows of {vocab_size} x {cols}");

    // With types and positions: a sum in f32, rounded once.
    let others = [1, 2].map(|i| bf16_numbers(9 * cols, 1.0, i));
    let tables = others.each_ref().map(|numbers| with_room(device, 9, cols, numbers));
    let other_ids: Vec<u32> = (0..rows + 2).map(|i| (i * 5 % 9) as u32).collect();
    let other_ids_there = device.tensor(rows + 2, 1, &other_ids).unwrap();
    let lookup = |i: usize| Some(Lookup { table: &tables[i], ids: &other_ids_there });
    for (types, positions) in [(lookup(0), lookup(1)), (None, lookup(1)), (lookup(0), None)] {
        let mut y = with_room(device, rows + 2, cols, &[]);
        let live_rows = LiveRows::at(count.ptr());
        let args = Forward { table: &table, ids: &ids_there, types, positions, y: &mut y, live_rows };
        forward(device, args).unwrap();
        let at = |numbers: &[f64], row: u32, i: usize| numbers[row as usize * cols + i] as f32;
        let sum = |(t, i): (usize, usize)| {
            let added = [types.map(|_| &others[0]), positions.map(|_| &others[1])];
            let mut x = at(&numbers, ids[t], i);
            added.into_iter().flatten().for_each(|numbers| x += at(numbers, other_ids[t], i));
            half::bf16::from_f32(x).to_f64()
        };
        let expected: Vec<f64> = (0..rows).flat_map(|t| (0..cols).map(move |i| (t, i))).map(sum).collect();
        assert!(live(device, &y, rows) == expected, "{rows} rows of {vocab_size} x {cols} and others");
    }
}

#[test]
fn rows_come_from_the_table() {
    let device = kernel_device(1);
    for (cols, rows) in
        RAGGED_ROWS.map(|rows| (8 + rows % 5 * 8, rows)).into_iter().chain([(2560, 3), (16, 0)])
    {
        compare(&device, 50, rows, cols);
    }
}

/// The table of Qwen3-0.6B, whose last rows lie beyond 2^28 bytes, and of a wider model.
#[test]
fn real_shapes() {
    for (vocab_size, rows, cols) in
        at_scale([(151_936, 2176, 1024), (50_000, 2176, 4096)], [(1500, 70, 256), (300, 9, 1024)])
    {
        compare(&kernel_device(2), vocab_size, rows, cols);
    }
}

#[test]
fn rows_of_half_pieces_are_refused() {
    let device = kernel_device(0);
    let table = with_room(&device, 5, 12, &[]);
    let ids = device.tensor(1, 1, &[0u32]).unwrap();
    assert!(
        forward(
            &device,
            Forward {
                table: &table,
                ids: &ids,
                types: None,
                positions: None,
                y: &mut with_room(&device, 1, 12, &[]),
                live_rows: LiveRows::ALL
            }
        )
        .is_err()
    );
}
