//! The kernels against f64, with extreme numbers, some live rows, and no live rows.

#![cfg(feature = "emulated")]

use half::bf16;
use rayon::prelude::*;

use super::{Activation, Backward, Forward, Input, InputMut, backward, forward};
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
    let (act, input) = (Activation::Silu, Input::Gated { gate: &gate, up: &up });
    forward(device, Forward { act, input, h: &mut h, live_rows, projection: None }).unwrap();
    let input = InputMut::Gated { gate: &mut gate, up: &mut up };
    backward(device, Backward { act, dh: &mut dh, input, live_rows, projection: None }).unwrap();
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

/// The functions and their derivatives, as the module text has them.
fn by_hand(act: Activation, x: f64) -> [f64; 2] {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    match act {
        Activation::Silu => {
            let sigma = 1.0 / (1.0 + (-x).exp());
            [x * sigma, sigma * (1.0 + x * (1.0 - sigma))]
        }
        Activation::Gelu => {
            let below = 0.5 * (1.0 + libm::erf(x / 2f64.sqrt()));
            [x * below, below + x * (-0.5 * x * x).exp() * 0.5 * root]
        }
        Activation::GeluTanh => {
            let t = (root * (x + 0.044715 * x.powi(3))).tanh();
            let inner = root * (1.0 + 3.0 * 0.044715 * x * x);
            [0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner]
        }
        Activation::Tanh => [x.tanh(), 1.0 - x.tanh() * x.tanh()],
    }
}

/// Gate and up side by side in one tensor, and no gate at all, with every function.
#[test]
fn every_function_and_form_agrees_with_f64() {
    let device = kernel_device(5);
    let shapes = RAGGED_ROWS.map(|rows| (rows, 8 + rows % 5 * 24)).into_iter().chain([(2, 3080), (0, 16)]);
    for (rows, cols) in shapes {
        let mut inputs = [0, 1, 2].map(|i| bf16_numbers(rows * cols, 2.0, 10 + i));
        for (gate, far) in inputs[0].iter_mut().zip([-1e4, 1e4, -90.0, 90.0, 0.0]) {
            *gate = bf16::from_f64(far).to_f64();
        }
        let [gate, up, dh] = &inputs;
        let both: Vec<f64> = (0..rows)
            .flat_map(|row| {
                let own = row * cols..(row + 1) * cols;
                [&gate[own.clone()], &up[own]].concat()
            })
            .collect();
        for act in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Tanh] {
            for is_fused in [true, false] {
                let (room, width) = (rows + 2, if is_fused { 2 * cols } else { cols });
                let count = live_count(&device, rows);
                let live_rows = LiveRows::at(count.ptr());
                let mut x = with_room(&device, room, width, if is_fused { &both } else { gate });
                let mut again = with_room(&device, room, cols, dh);
                let mut h = with_room(&device, room, cols, &[]);
                let input = if is_fused { Input::Fused(&x) } else { Input::Plain(&x) };
                let args = Forward { act, input, h: &mut h, live_rows, projection: None };
                forward(&device, args).unwrap();
                let input = if is_fused { InputMut::Fused(&mut x) } else { InputMut::Plain(&mut x) };
                let args = Backward { act, dh: &mut again, input, live_rows, projection: None };
                backward(&device, args).unwrap();
                let [h, again, dx] = [&h, &again, &x].map(|tensor| live(&device, tensor, rows));
                assert_eq!(h, again);
                let expected = |round: bool| -> [Vec<f64>; 2] {
                    let q = |x: f64| if round { bf16::from_f64(x).to_f64() } else { x };
                    let mut all = [Vec::new(), Vec::new()];
                    for row in 0..rows {
                        let mut gradients = [Vec::new(), Vec::new()];
                        for i in row * cols..(row + 1) * cols {
                            let [value, slope] = by_hand(act, gate[i]).map(q);
                            let up = if is_fused { up[i] } else { 1.0 };
                            all[0].push(q(value * up));
                            gradients[0].push(q(q(dh[i] * up) * slope));
                            gradients[1].push(q(dh[i] * value));
                        }
                        all[1].append(&mut gradients[0]);
                        all[1].extend(gradients[1].drain(..).filter(|_| is_fused));
                    }
                    all
                };
                let (exact, reference) = (expected(false), expected(true));
                let name = format!("{act:?} {is_fused} {rows}x{cols}");
                assert_as_good(&format!("h {name}"), &h, &exact[0], &reference[0], 2.0);
                assert_as_good(&format!("dx {name}"), &dx, &exact[1], &reference[1], 3.0);
            }
        }
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
