//! The kernels against f64: widths from one piece to the widest, live rows, schedules and counters.

#![cfg(feature = "emulated")]

use half::bf16;

use super::{Apply, Backward, Forward, Norm, NormKind, apply, backward, forward};
use crate::device::Device;
use crate::ops::LiveRows;
use crate::ops::testing::{
    RAGGED_ROWS, assert_as_good, assert_repeats, at_scale, bf16_numbers, kernel_device, live, live_count,
    rounded, with_room,
};

const EPS: f32 = 1e-6;

/// A case: x, residual, dy and d_in are `[rows, cols]`.
struct Case {
    kind: NormKind,
    rows: usize,
    cols: usize,
    weight: Vec<f64>,
    /// Empty for none.
    bias: Vec<f64>,
    inputs: [Vec<f64>; 4],
}

/// s, y, y again by `apply` and by `backward`, and ds with and without the gradient of the stream.
#[derive(Debug, PartialEq)]
struct Outcome {
    s: Vec<f64>,
    rstd: Vec<f32>,
    y: [Vec<f64>; 3],
    ds: [Vec<f64>; 2],
}

impl Case {
    fn new(rows: usize, cols: usize) -> Self {
        let weight = bf16_numbers(cols, 1.0, 9);
        let (kind, bias) = (NormKind::Rms, Vec::new());
        let inputs = [0, 1, 2, 3].map(|i| bf16_numbers(rows * cols, 1.5, i));
        Self { kind, rows, cols, weight, bias, inputs }
    }

    /// LayerNorm of numbers that are not around 0.
    fn layer(rows: usize, cols: usize, has_bias: bool) -> Self {
        let mut case = Self::new(rows, cols);
        case.kind = NormKind::Layer;
        case.bias = if has_bias { bf16_numbers(cols, 1.0, 10) } else { Vec::new() };
        case.inputs[1].iter_mut().for_each(|x| *x = bf16::from_f64(*x + 1.5).to_f64());
        case
    }

    /// The formulas in f64 from the rounded stream; with `round` every step is rounded as PyTorch's modules do it.
    fn expected(&self, s: &[f64], round: bool) -> [Vec<f64>; 3] {
        let q = |x: f64| if round { bf16::from_f64(x).to_f64() } else { x };
        let mut out = [vec![], vec![], vec![]];
        for t in 0..self.rows {
            let of = |values: &[f64], i: usize| values[t * self.cols + i];
            let mean = |f: &dyn Fn(usize) -> f64| (0..self.cols).map(f).sum::<f64>() / self.cols as f64;
            let is_layer = self.kind == NormKind::Layer;
            let centre = if is_layer { mean(&|i| of(s, i)) } else { 0.0 };
            let c = |i: usize| of(s, i) - centre;
            let rstd = 1.0 / (mean(&|i| c(i) * c(i)) + f64::from(EPS)).sqrt();
            let dy = |i: usize| of(&self.inputs[2], i);
            let inner = mean(&|i| q(dy(i) * self.weight[i]) * c(i) * rstd);
            let shift = if is_layer { mean(&|i| q(dy(i) * self.weight[i])) } else { 0.0 };
            for i in 0..self.cols {
                let scaled = q(q(c(i) * rstd) * self.weight[i]);
                out[0].push(self.bias.get(i).map_or(scaled, |bias| q(scaled + bias)));
                let through = q(rstd * (q(dy(i) * self.weight[i]) - shift - c(i) * rstd * inner));
                out[1].push(q(through + of(&self.inputs[3], i)));
                out[2].push(through);
            }
        }
        out
    }

    fn run(&self, device: &Device) -> Outcome {
        let (rows, cols, room) = (self.rows, self.cols, self.rows + 2);
        let count = live_count(device, rows);
        let live_rows = LiveRows::at(count.ptr());
        let [mut x, residual, dy, d_in] =
            [0, 1, 2, 3].map(|i: usize| with_room(device, room, cols, &self.inputs[i]));
        let weight = with_room(device, 1, cols, &self.weight);
        let bias = (!self.bias.is_empty()).then(|| with_room(device, 1, cols, &self.bias));
        let norm = Norm { kind: self.kind, weight: &weight, bias: bias.as_ref(), eps: EPS };
        let empty = || with_room(device, room, cols, &[]);
        let (mut y, mut again, mut normed) = (empty(), empty(), empty());
        let (mut ds, mut alone) = (empty(), empty());
        let mut rstd = device.tensor(room, 1, &vec![7.0f32; room]).unwrap();
        forward(
            device,
            Forward {
                x: &mut x,
                residual: Some(&residual),
                norm,
                y: &mut y,
                rstd: &mut rstd,
                live_rows,
                projection: None,
            },
        )
        .unwrap();
        apply(device, Apply { s: &x, norm, rstd: &rstd, y: &mut again, live_rows }).unwrap();
        backward(
            device,
            Backward {
                dy: &dy,
                s: &x,
                norm,
                rstd: &rstd,
                d_in: Some(&d_in),
                ds: &mut ds,
                normed: Some(&mut normed),
                live_rows,
                projection: None,
            },
        )
        .unwrap();
        backward(
            device,
            Backward {
                dy: &dy,
                s: &x,
                norm,
                rstd: &rstd,
                d_in: None,
                ds: &mut alone,
                normed: None,
                live_rows,
                projection: None,
            },
        )
        .unwrap();
        let get = |tensor| live(device, tensor, rows);
        let rstd = device.read(&rstd).unwrap();
        assert!(rstd[rows..].iter().all(|&x| x == 7.0));
        Outcome {
            s: get(&x),
            rstd: rstd[..rows].to_vec(),
            y: [get(&y), get(&again), get(&normed)],
            ds: [get(&ds), get(&alone)],
        }
    }

    fn compare(&self, device: &Device) {
        let name = format!("{:?} {}x{}", self.kind, self.rows, self.cols);
        let got = self.run(device);
        let sums: Vec<f64> = self.inputs[0].iter().zip(&self.inputs[1]).map(|(x, r)| x + r).collect();
        assert_eq!(got.s, rounded(&sums), "{name}");
        assert_eq!((&got.y[0], &got.y[0]), (&got.y[1], &got.y[2]), "{name}");
        let (exact, reference) = (self.expected(&got.s, false), self.expected(&got.s, true));
        assert_as_good(&format!("y {name}"), &got.y[0], &exact[0], &reference[0], 2.0);
        for i in 0..2 {
            assert_as_good(&format!("ds {name}"), &got.ds[i], &exact[1 + i], &reference[1 + i], 3.0);
        }
    }
}

#[test]
fn kernels_agree_with_f64() {
    let device = kernel_device(1);
    for rows in RAGGED_ROWS {
        Case::new(rows, 8 + rows % 7 * 24).compare(&device);
    }
    for (rows, cols) in
        [(0, 64), (9, 1024), (9, 1032), (5, 2560), (3, 5120), (2, 8192), (2, 8200), (3, 16384)]
    {
        Case::new(rows, cols).compare(&device);
    }
}

#[test]
fn layer_norm_agrees_with_f64() {
    let device = kernel_device(3);
    for rows in RAGGED_ROWS {
        Case::layer(rows, 8 + rows % 7 * 24, rows % 2 == 0).compare(&device);
    }
    for (rows, cols) in
        [(0, 64), (9, 768), (9, 1024), (9, 1032), (5, 2560), (3, 5120), (2, 8192), (2, 8200), (3, 16384)]
    {
        Case::layer(rows, cols, true).compare(&device);
    }
}

#[test]
fn without_a_residual_x_is_not_written() {
    let device = kernel_device(2);
    let values = bf16_numbers(3 * 64, 1.0, 0);
    let mut x = with_room(&device, 3, 64, &values);
    let weight = with_room(&device, 1, 64, &[1.0; 64]);
    let mut y = with_room(&device, 3, 64, &[]);
    let mut rstd = device.zeros::<f32>(3, 1).unwrap();
    let norm = Norm { kind: NormKind::Rms, weight: &weight, bias: None, eps: EPS };
    forward(&device, Forward::alone(&mut x, norm, &mut y, &mut rstd)).unwrap();
    assert_eq!(live(&device, &x, 3), values);
}

#[test]
fn widths_without_kernels_are_refused() {
    let device = kernel_device(0);
    for cols in [12, 16_392] {
        let weight = with_room(&device, 1, cols, &[]);
        let (mut x, mut y) = (with_room(&device, 1, cols, &[]), with_room(&device, 1, cols, &[]));
        let mut rstd = device.zeros::<f32>(1, 1).unwrap();
        let norm = Norm { kind: NormKind::Rms, weight: &weight, bias: None, eps: EPS };
        assert!(forward(&device, Forward::alone(&mut x, norm, &mut y, &mut rstd)).is_err());
    }
}

#[test]
fn gpu_repeats_have_the_same_bits() {
    let case = Case::new(19, 3000);
    assert_repeats(30, |device| case.run(device));
}

/// Hidden sizes of Qwen3-0.6B, 4B and 8B.
#[test]
fn real_shapes() {
    for (rows, cols) in
        at_scale([(2176, 1024), (2176, 2560), (2176, 4096)], [(40, 1024), (3, 2560), (2, 4096)])
    {
        Case::new(rows, cols).compare(&kernel_device(3));
    }
}

/// Tests that only the emulator can run.
mod emulator {
    use super::*;
    use crate::device::EmulatorOptions;

    #[test]
    fn shared_memory_is_free_of_conflicts_and_sectors_are_used_in_full() {
        for cols in [1024, 10240] {
            let device =
                Device::emulated(EmulatorOptions { stats: true, ..EmulatorOptions::default() }).unwrap();
            Case::new(33, cols).run(&device);
            let counters = device.take_counters().kernels;
            assert_eq!(counters.len(), 3);
            for (symbol, counters) in counters {
                assert_eq!(counters.worst_shared_ratio(), 1.0, "{symbol}: {counters:?}");
                // A row has 4 bytes of rstd, of a sector of 32.
                assert!(counters.total.sector_ratio() <= 1.05, "{symbol}: {counters:?}");
            }
        }
    }
}
