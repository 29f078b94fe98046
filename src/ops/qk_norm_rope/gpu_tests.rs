//! The kernels for queries and keys against f64: all sizes of heads, with and without norm, live rows, schedules and counters.

#![cfg(feature = "emulated")]

use half::bf16;
use rayon::prelude::*;

use super::{
    Backward, HeadNorm, QkNormRope, RopeBackwardJob, RopeJob, RopeRow, RopeTable, backward, forward,
};
use crate::device::Device;
use crate::kinds::RopeSpec;
use crate::ops::testing::{
    RAGGED_ROWS, assert_as_good, assert_repeats, at_scale, bf16_numbers, kernel_device, live, with_room,
};

const EPS: f32 = 1e-6;
const THETA: f64 = 1e4;

struct Case {
    head_dim: usize,
    norm: bool,
    /// Rows and heads of q and of k.
    shapes: [(usize, usize); 2],
}

impl Case {
    fn cols(&self, job: usize) -> usize {
        self.shapes[job].1 * self.head_dim
    }

    fn numbers(&self, job: usize, index: u32) -> Vec<f64> {
        bf16_numbers(self.shapes[job].0 * self.cols(job), 1.5, 10 * job as u32 + index)
    }

    fn weight(&self, job: usize) -> Vec<f64> {
        bf16_numbers(self.head_dim, 1.0, 50 + job as u32)
    }

    fn positions(&self, job: usize) -> Vec<usize> {
        (0..self.shapes[job].0).map(|t| (t * 37 + job) % 200).collect()
    }

    /// y and dx of a job in f64; with `round` after the norm and after every product as PyTorch does.
    fn expected(&self, job: usize, round: bool) -> [Vec<f64>; 2] {
        let q = |x: f64| if round { bf16::from_f64(x).to_f64() } else { x };
        let (d, half, positions) = (self.head_dim, self.head_dim / 2, self.positions(job));
        let (x, dy, weight) = (self.numbers(job, 0), self.numbers(job, 1), self.weight(job));
        let of_head = |(i, (x, dy)): (usize, (&[f64], &[f64]))| {
            let position = positions[i / self.shapes[job].1];
            let turn = |v: &[f64], direction: f64| -> Vec<f64> {
                (0..d)
                    .map(|j| {
                        let inverse = (1.0 / THETA.powf(2.0 * (j % half) as f64 / d as f64)) as f32;
                        let angle = f64::from(position as f32 * inverse);
                        let (cos, sin) = (q(angle.cos()), q(direction * angle.sin()));
                        let other = if j < half { -v[j + half] } else { v[j - half] };
                        q(q(v[j] * cos) + q(other * sin))
                    })
                    .collect()
            };
            let rstd = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + f64::from(EPS)).sqrt();
            let normed = |i: usize| if self.norm { q(q(x[i] * rstd) * weight[i]) } else { x[i] };
            let y = turn(&(0..d).map(normed).collect::<Vec<_>>(), 1.0);
            let mut g = turn(dy, -1.0);
            if self.norm {
                g.iter_mut().zip(&weight).for_each(|(g, w)| *g = q(*g * w));
                let inner = g.iter().zip(x).map(|(g, x)| g * x * rstd).sum::<f64>() / d as f64;
                g.iter_mut().zip(x).for_each(|(g, x)| *g = q(rstd * (*g - x * rstd * inner)));
            }
            (y, g)
        };
        let heads = x.par_chunks(d).zip(dy.par_chunks(d)).enumerate();
        let (y, dx): (Vec<Vec<f64>>, Vec<Vec<f64>>) = heads.map(of_head).unzip();
        [y.concat(), dx.concat()]
    }

    /// y and dx of both jobs.
    fn run(&self, device: &Device) -> [[Vec<f64>; 2]; 2] {
        let with =
            |job: usize, values: &[f64]| with_room(device, self.shapes[job].0 + 2, self.cols(job), values);
        let tables = [0, 1].map(|job: usize| {
            let room = self.shapes[job].0 + 2;
            let mut table =
                RopeTable::with_capacity(device, room, 200, self.head_dim, RopeSpec::unscaled(THETA))
                    .unwrap();
            let rows = self.positions(job).into_iter().map(|position| RopeRow { position, len: 200 });
            table.write(device, &rows.collect::<Vec<_>>()).unwrap();
            table
        });
        let weights = [0, 1].map(|job| with_room(device, 1, self.head_dim, &self.weight(job)));
        let op = |job: usize| QkNormRope {
            norm: self.norm.then_some(HeadNorm { weight: &weights[job], eps: EPS }),
            table: &tables[job],
            head_dim: self.head_dim,
        };
        let x = [0, 1].map(|job| with(job, &self.numbers(job, 0)));
        let mut y = [0, 1].map(|job| with(job, &[]));
        let mut dy = [0, 1].map(|job| with(job, &self.numbers(job, 1)));
        let [y_q, y_k] = &mut y;
        let jobs = [(0, y_q), (1, y_k)].map(|(job, y)| RopeJob { x: (&x[job]).into(), op: op(job), y });
        forward(device, &mut { jobs }).unwrap();
        let [dy_q, dy_k] = &mut dy;
        let jobs =
            [(0, dy_q), (1, dy_k)].map(|(job, dy)| RopeBackwardJob { x: (&x[job]).into(), op: op(job), dy });
        backward(device, Backward { jobs: &mut { jobs }, projection: None, complete: &[] }).unwrap();
        [0, 1].map(|job: usize| [&y[job], &dy[job]].map(|t| live(device, t, self.shapes[job].0)))
    }

    fn compare(&self, device: &Device) {
        let got = self.run(device);
        for (job, got) in got.iter().enumerate() {
            let (exact, reference) = (self.expected(job, false), self.expected(job, true));
            let name = format!("{:?} head {} norm {} job {job}", self.shapes, self.head_dim, self.norm);
            assert_as_good(&format!("{name}: y"), &got[0], &exact[0], &reference[0], 2.0);
            assert_as_good(&format!("{name}: dx"), &got[1], &exact[1], &reference[1], 3.0);
        }
    }
}

#[test]
fn kernels_agree_with_f64() {
    let device = kernel_device(1);
    for (i, rows) in RAGGED_ROWS.into_iter().enumerate() {
        let head_dim = [16, 32, 64, 128][i % 4];
        Case { head_dim, norm: true, shapes: [(rows, 3), (rows.div_ceil(2), 1)] }.compare(&device);
    }
    for head_dim in [16, 32, 64, 128] {
        for norm in [false, true] {
            Case { head_dim, norm, shapes: [(21, 11), (40, 2)] }.compare(&device);
        }
    }
    Case { head_dim: 64, norm: true, shapes: [(0, 4), (5, 2)] }.compare(&device);
}

#[test]
fn heads_without_kernels_are_refused() {
    let device = kernel_device(0);
    let table = RopeTable::new(&device, &[0], 48, THETA).unwrap();
    let (x, mut y) = (with_room(&device, 1, 48, &[]), with_room(&device, 1, 48, &[]));
    let op = QkNormRope { norm: None, table: &table, head_dim: 48 };
    assert!(forward(&device, &mut [RopeJob { x: (&x).into(), op, y: &mut y }]).is_err());
}

#[test]
fn gpu_repeats_have_the_same_bits() {
    let case = Case { head_dim: 32, norm: true, shapes: [(30, 5), (30, 3)] };
    assert_repeats(30, |device| case.run(device));
}

/// Heads of Qwen3-0.6B and 8B, and those of Qwen2.5-0.5B, which have no norm.
#[test]
fn real_shapes() {
    for (head_dim, norm, [q, kv]) in [(128, true, [16, 8]), (128, true, [32, 8]), (64, false, [14, 2])] {
        let rows = at_scale(2176, 20);
        Case { head_dim, norm, shapes: [(rows, q), (rows, kv)] }.compare(&kernel_device(2));
    }
}

/// Tests that only the emulator can run.
mod emulator {
    use super::*;
    use crate::device::EmulatorOptions;

    #[test]
    fn every_sector_is_used_in_full() {
        let device = Device::emulated(EmulatorOptions { stats: true, ..EmulatorOptions::default() }).unwrap();
        Case { head_dim: 128, norm: true, shapes: [(33, 16), (33, 8)] }.run(&device);
        let counters = device.take_counters().kernels;
        assert_eq!(counters.len(), 2);
        for (symbol, counters) in counters {
            // The table of angles is read by half sectors: it stays in the caches.
            for (place, counts) in counters.lines.iter().filter(|(place, _)| place.0.ends_with(".cu")) {
                assert!(counts.sector_ratio() <= 1.05, "{symbol} {place:?}: {counts:?}");
            }
        }
    }
}
