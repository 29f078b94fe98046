//! The kernels against f64: ragged numbers of sequences, outputs of any number, every loss, no live rows, and the emulator's counters.

#![cfg(feature = "emulated")]

use super::{
    Backward, Layer, Loss, PreparedLoss, Targets, backward, forward, logits, loss_gradient, pool,
    pool_backward,
};
use crate::batch::{Label, LabelTarget};
use crate::device::{Device, Tensor};
use crate::ops::LiveRows;
use crate::ops::testing::{
    RAGGED_ROWS, assert_as_good, assert_repeats, at_scale, bf16_numbers, kernel_device, live, live_count,
    rounded, with_room,
};

/// `x W^T + b` in f64.
fn outputs(x: &[f64], weight: &[f64], bias: &[f64], inputs: usize) -> Vec<f64> {
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    let row = |x: &[f64]| -> Vec<f64> {
        weight.chunks_exact(inputs).zip(bias).map(|(w, bias)| dot(x, w) + bias).collect()
    };
    x.chunks_exact(inputs).flat_map(row).collect()
}

fn values(device: &Device, tensor: &Tensor<f32>) -> Vec<f64> {
    device.read(tensor).unwrap().into_iter().map(f64::from).collect()
}

/// A layer with and without tanh, forward and back, on `rows` of `rows + 2` rows.
fn compare_layer(device: &Device, rows: usize, inputs: usize, outs: usize) {
    let count = live_count(device, rows);
    let live_rows = LiveRows::at(count.ptr());
    let room = rows + 2;
    let x = bf16_numbers(rows * inputs, 1.0, 0);
    let weight = bf16_numbers(outs * inputs, 0.3, 1);
    let bias = bf16_numbers(outs, 1.0, 2);
    let dy = bf16_numbers(rows * outs, 1.0, 3);
    let own_x = with_room(device, room, inputs, &x);
    let (own_weight, own_bias) =
        (with_room(device, outs, inputs, &weight), with_room(device, 1, outs, &bias));
    let z = outputs(&x, &weight, &bias, inputs);
    let name = format!("{rows} x {inputs} -> {outs}");
    for tanh in [false, true] {
        let layer = Layer { weight: &own_weight, bias: Some(&own_bias), tanh };
        let mut y = with_room(device, room, outs, &[]);
        forward(device, &layer, &own_x, &mut y, live_rows).unwrap();
        let exact: Vec<f64> = if tanh { z.iter().map(|z| z.tanh()).collect() } else { z.clone() };
        let got = live(device, &y, rows);
        assert_as_good(&format!("y {name}"), &got, &exact, &rounded(&exact), 1.5);
        // The same without rounding.
        let mut wide: Tensor<f32> = device.tensor(room, outs, &vec![7.0; room * outs]).unwrap();
        logits(device, &layer, &own_x, &mut wide, live_rows).unwrap();
        let wide = values(device, &wide);
        let largest = exact.iter().fold(1.0f64, |most, x| most.max(x.abs()));
        for (got, exact) in wide.iter().zip(&exact) {
            assert!((got - exact).abs() < 1e-5 * largest * (inputs as f64).sqrt(), "{name}: {got} {exact}");
        }
        assert!(wide[rows * outs..].iter().all(|&x| x == 7.0), "rows beyond the live ones were written");

        let mut own_dy = with_room(device, room, outs, &dy);
        let mut dx = with_room(device, room, inputs, &[]);
        let mut d_weight: Tensor<f32> = device.tensor(outs, inputs, &vec![0.5; outs * inputs]).unwrap();
        let mut d_bias: Tensor<f32> = device.tensor(1, outs, &vec![0.5; outs]).unwrap();
        let args = Backward {
            x: &own_x,
            y: Some(&y),
            dy: &mut own_dy,
            dx: Some(&mut dx),
            d_weight: &mut d_weight,
            d_bias: Some(&mut d_bias),
        };
        backward(device, &layer, args, live_rows).unwrap();
        // From the output as it was kept.
        let slope = |(dy, y): (&f64, &f64)| if tanh { dy * (1.0 - y * y) } else { *dy };
        let dz: Vec<f64> = dy.iter().zip(&got).map(slope).collect();
        let mut exact_dx = vec![0.0; rows * inputs];
        let (mut exact_dw, mut exact_db) = (vec![0.5; outs * inputs], vec![0.5; outs]);
        for row in 0..rows {
            for out in 0..outs {
                let dz = dz[row * outs + out];
                exact_db[out] += dz;
                for i in 0..inputs {
                    exact_dx[row * inputs + i] += dz * weight[out * inputs + i];
                    exact_dw[out * inputs + i] += dz * x[row * inputs + i];
                }
            }
        }
        let got_dx = live(device, &dx, rows);
        assert_as_good(&format!("dx {name}"), &got_dx, &exact_dx, &rounded(&exact_dx), 1.5);
        for (what, got, exact) in
            [("dW", values(device, &d_weight), exact_dw), ("db", values(device, &d_bias), exact_db)]
        {
            let largest = exact.iter().fold(1.0f64, |most, x| most.max(x.abs()));
            for (got, exact) in got.iter().zip(&exact) {
                let limit = 1e-5 * largest * (rows as f64).sqrt();
                assert!((got - exact).abs() <= limit, "{what} {name}: {got} {exact}");
            }
        }
    }
}

#[test]
fn layers_agree_with_f64() {
    let device = kernel_device(1);
    for (i, rows) in RAGGED_ROWS.into_iter().enumerate() {
        compare_layer(&device, rows, 8 + i % 4 * 24, [1, 2, 3, 5, 33, 4, 7][i]);
    }
    compare_layer(&device, 3, 1032, 40);
    compare_layer(&device, 0, 16, 3);
}

/// Sequences of these lengths, packed.
fn sequences(lengths: &[usize]) -> Vec<LabelTarget> {
    let mut start = 0;
    let of = |&len: &usize| {
        start += len;
        LabelTarget { rows: start - len..start, label: Label::None, weight: 1.0 }
    };
    lengths.iter().map(of).collect()
}

#[test]
fn pooling_agrees_with_f64() {
    let device = kernel_device(2);
    for (lengths, cols) in [(vec![1, 5, 17, 2, 300], 24), ((1..40).collect(), 16), (vec![3], 1032)] {
        let (rows, count) = (lengths.iter().sum::<usize>(), lengths.len());
        let x = bf16_numbers(rows * cols, 1.0, 0);
        let mut targets = Targets::with_capacity(&device, count + 3, 1).unwrap();
        targets.write(&device, &sequences(&lengths), 1.0).unwrap();
        let mut y = with_room(&device, count + 3, cols, &[]);
        pool(&device, &with_room(&device, rows + 1, cols, &x), &targets, &mut y).unwrap();
        let mean = |target: &LabelTarget| -> Vec<f64> {
            let rows = target.rows.clone();
            let sum = |c: usize| rows.clone().map(|row| x[row * cols + c]).sum::<f64>() / rows.len() as f64;
            (0..cols).map(sum).collect()
        };
        let exact: Vec<f64> = targets.list().iter().flat_map(mean).collect();
        assert_as_good("y", &live(&device, &y, count), &exact, &rounded(&exact), 1.5);
        let dy = bf16_numbers(count * cols, 1.0, 1);
        let mut dx = with_room(&device, rows + 1, cols, &[]);
        pool_backward(&device, &with_room(&device, count + 3, cols, &dy), &targets, &mut dx).unwrap();
        let spread = |(i, target): (usize, &LabelTarget)| {
            let share = target.rows.len() as f64;
            let row: Vec<f64> = dy[i * cols..(i + 1) * cols].iter().map(|dy| dy / share).collect();
            row.repeat(target.rows.len())
        };
        let exact: Vec<f64> = targets.list().iter().enumerate().flat_map(spread).collect();
        assert_as_good("dx", &live(&device, &dx, rows), &exact, &rounded(&exact), 1.5);
    }
}

/// The gradient of a loss on the GPU and in f64.
fn compare_loss(device: &Device, loss: &Loss, label: impl Fn(usize) -> Label, rows: usize, outs: usize) {
    let mut z = bf16_numbers(rows * outs, 3.0, 7);
    for (z, far) in z.iter_mut().zip([-120.0, 120.0, 0.0, -40.0]) {
        *z = far;
    }
    let target =
        |row: usize| LabelTarget { rows: row..row + 1, label: label(row), weight: 1.0 + row as f32 / 8.0 };
    let list: Vec<LabelTarget> = (0..rows).map(target).collect();
    let mut targets = Targets::with_capacity(device, rows + 2, outs).unwrap();
    targets.write(device, &list, 0.25).unwrap();
    let mut all: Vec<f32> = z.iter().map(|&z| z as f32).collect();
    all.resize((rows + 2) * outs, 7.0);
    let logits: Tensor<f32> = device.tensor(rows + 2, outs, &all).unwrap();
    let mut got = with_room(device, rows + 2, outs, &[]);
    let prepared = PreparedLoss::new(device, loss).unwrap();
    loss_gradient(device, &prepared, &logits, &targets, &mut got).unwrap();
    let slopes = |target: &LabelTarget| {
        let of_row = &z[target.rows.start * outs..target.rows.end * outs];
        let factor = 0.25 * f64::from(target.weight);
        loss.of(&target.label, of_row).1.into_iter().map(move |slope| factor * slope)
    };
    let exact: Vec<f64> = list.iter().flat_map(slopes).collect();
    assert_as_good(&format!("{loss:?} {rows}"), &live(device, &got, rows), &exact, &rounded(&exact), 1.5);
}

#[test]
fn losses_agree_with_f64() {
    let device = kernel_device(3);
    for (rows, outs) in [(1, 2), (17, 5), (9, 33), (130, 3), (2, 700)] {
        let weights: Vec<f32> = (0..outs).map(|c| 0.5 + c as f32 / 4.0).collect();
        let class =
            |row: usize| if row % 5 == 3 { Label::None } else { Label::Class((row * 7 % outs) as u32) };
        let numbers = |row: usize| match row % 5 {
            3 => Label::None,
            _ => Label::Numbers((0..outs).map(|c| ((row + 3 * c) % 11) as f32 / 10.0).collect()),
        };
        let (some, none) = (Some(weights), None);
        for (class_weights, label_smoothing) in [(none.clone(), 0.0), (some.clone(), 0.1)] {
            compare_loss(&device, &Loss::CrossEntropy { class_weights, label_smoothing }, class, rows, outs);
        }
        for loss in
            [Loss::Bce { pos_weight: none }, Loss::Bce { pos_weight: some }, Loss::Mse, Loss::SigmoidMse]
        {
            compare_loss(&device, &loss, numbers, rows, outs);
        }
    }
}

/// The two layers of XLM-R and the one of BERT, for 300 pairs.
#[test]
fn real_shapes() {
    for (rows, inputs, outs) in at_scale([(300, 768, 768), (300, 768, 1)], [(6, 64, 64), (20, 768, 1)]) {
        compare_layer(&kernel_device(4), rows, inputs, outs);
    }
}

#[test]
fn gpu_repeats_have_the_same_bits() {
    assert_repeats(20, |device| {
        let [x, weight, dy] =
            [(40 * 64, 0), (5 * 64, 1), (40 * 5, 2)].map(|(len, i)| bf16_numbers(len, 1.0, i));
        let (x, weight) = (with_room(device, 40, 64, &x), with_room(device, 5, 64, &weight));
        let layer = Layer { weight: &weight, bias: None, tanh: false };
        let (mut dy, mut dx) = (with_room(device, 40, 5, &dy), with_room(device, 40, 64, &[]));
        let mut d_weight = device.zeros(5, 64).unwrap();
        let args = Backward {
            x: &x,
            y: None,
            dy: &mut dy,
            dx: Some(&mut dx),
            d_weight: &mut d_weight,
            d_bias: None,
        };
        backward(device, &layer, args, LiveRows::ALL).unwrap();
        (device.read(&dx).unwrap(), device.read(&d_weight).unwrap())
    });
}

/// Tests that only the emulator can run.
mod emulator {
    use super::*;
    use crate::device::EmulatorOptions;

    #[test]
    fn no_bank_conflicts() {
        let device = Device::emulated(EmulatorOptions { stats: true, ..EmulatorOptions::default() }).unwrap();
        compare_layer(&device, 40, 768, 8);
        for (symbol, counters) in device.take_counters().kernels {
            assert_eq!(counters.worst_shared_ratio(), 1.0, "{symbol}: {counters:?}");
        }
    }
}
