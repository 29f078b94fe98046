//! The SwiGLU kernels against f64, with extreme numbers, some live rows, and no live rows.

#![cfg(feature = "emulated")]

use half::bf16;
use rayon::prelude::*;

use super::{Backward, Forward, backward, forward};
use crate::device::Device;
use crate::ops::LiveRows;
use crate::ops::testing::{
    RAGGED_ROWS, assert_as_good, at_scale, bf16_numbers, kernel_device, live, live_count, with_room,
};

/// h, dgate and dup of one element; with `round` every intermediate value is rounded to bf16, as PyTorch does.
fn expected([gate, up, dh]: [f64; 3], round: bool) -> [f64; 3] {
    let q = |x: f64| if round { bf16::from_f64(x).to_f64() } else { x };
    let sigma = 1.0 / (1.0 + (-gate).exp());
    let silu = q(gate * sigma);
    let slope = q(sigma * (1.0 + gate * (1.0 - sigma)));
    [q(silu * up), q(q(dh * up) * slope), q(dh * silu)]
}

fn run(device: &Device, [gate, up, dh]: [&[f64]; 3], rows: usize, cols: usize) -> [Vec<f64>; 4] {
    let room = rows + 2;
    let count = live_count(device, rows);
    let live_rows = LiveRows::at(count.ptr());
    let [mut gate, mut up, mut dh] = [gate, up, dh].map(|values| with_room(device, room, cols, values));
    let mut h = with_room(device, room, cols, &[]);
    forward(device, Forward { gate: &gate, up: &up, h: &mut h, live_rows, projection: None }).unwrap();
    backward(device, Backward { dh: &mut dh, gate: &mut gate, up: &mut up, live_rows, projection: None })
        .unwrap();
    [&h, &dh, &gate, &up].map(|tensor| live(device, tensor, rows))
}

fn compare(device: &Device, rows: usize, cols: usize) {
    let mut inputs = [0, 1, 2].map(|i| bf16_numbers(rows * cols, 2.0, i));
    for (gate, far) in inputs[0].iter_mut().zip([-1e4, 1e4, -90.0, 90.0]) {
        *gate = bf16::from_f64(far).to_f64();
    }
    let [h, h_again, dgate, dup] = run(device, [&inputs[0], &inputs[1], &inputs[2]], rows, cols);
    assert_eq!(h, h_again);
    let [exact, reference] = [false, true].map(|round| {
        (0..rows * cols)
            .into_par_iter()
            .map(|i| expected([0, 1, 2].map(|j| inputs[j][i]), round))
            .collect::<Vec<_>>()
    });
    for (i, (name, got, k)) in
        [("h", &h, 2.0), ("dgate", &dgate, 3.0), ("dup", &dup, 3.0)].into_iter().enumerate()
    {
        let pick = |from: &[[f64; 3]]| from.iter().map(|x| x[i]).collect::<Vec<_>>();
        assert_as_good(&format!("{name} {rows}x{cols}"), got, &pick(&exact), &pick(&reference), k);
    }
}

#[test]
fn kernels_agree_with_f64() {
    let device = kernel_device(1);
    for (cols, rows) in
        RAGGED_ROWS.map(|rows| (8 + rows % 9 * 8, rows)).into_iter().chain([(3080, 2), (16, 0)])
    {
        compare(&device, rows, cols);
    }
}

/// Intermediate sizes of Qwen3-0.6B and 8B.
#[test]
fn real_shapes() {
    for (rows, cols) in at_scale([(2176, 3072), (1000, 12_288)], [(40, 3072), (2, 12_288)]) {
        compare(&kernel_device(2), rows, cols);
    }
}

/// Tests that only the emulator can run.
mod emulator {
    use super::*;
    use crate::device::EmulatorOptions;

    #[test]
    fn every_sector_is_used_in_full() {
        let device = Device::emulated(EmulatorOptions { stats: true, ..EmulatorOptions::default() }).unwrap();
        let inputs = [0, 1, 2].map(|i| bf16_numbers(33 * 256, 1.0, i));
        run(&device, [&inputs[0], &inputs[1], &inputs[2]], 33, 256);
        let counters = device.take_counters().kernels;
        assert_eq!(counters.len(), 2);
        for (symbol, counters) in counters {
            assert_eq!(counters.worst_shared_ratio(), 1.0, "{symbol}: {counters:?}");
            assert!(counters.total.sector_ratio() <= 1.05, "{symbol}: {counters:?}");
        }
    }
}
