//! The optimizer's kernels against the CPU's code in f32, bit by bit, and the norm against f64.

#![cfg(feature = "emulated")]

use half::bf16;

use super::gpu::{Step, StepScalars, Tensors, clip_and_update};
use super::{AdamW, Trained, update};
use crate::device::{Device, Tensor};
use crate::ops::grad_norm::clip_factor;
use crate::ops::testing::{assert_repeats, at_scale, cpu, kernel_device, random};

/// Less than a block, one, more, and several.
const SHAPES: &[[usize; 2]] = &[[1, 8], [16, 256], [3, 1368], [1, 3], [7, 24], [1, 1], [5, 2400], [3, 1367]];

/// Parameters, shadows, gradients and moments of all tensors.
struct State {
    param: Vec<Tensor<f32>>,
    shadow: Vec<Tensor<bf16>>,
    grad: Vec<Tensor<f32>>,
    exp_avg: Vec<Tensor<f32>>,
    exp_avg_sq: Vec<Tensor<f32>>,
}

impl State {
    fn new(device: &Device, shapes: &[[usize; 2]]) -> Self {
        let each = |index: u32| -> Vec<Tensor<f32>> {
            let upload = |(i, &[rows, cols]): (usize, &[usize; 2])| {
                let values = random::<f32>(&cpu(), rows, cols, index + i as u32);
                device.tensor(rows, cols, values.data()).unwrap()
            };
            shapes.iter().enumerate().map(upload).collect()
        };
        let zeros = || shapes.iter().map(|&[rows, cols]| device.zeros(rows, cols).unwrap()).collect();
        let shadow = shapes.iter().map(|&[rows, cols]| device.zeros(rows, cols).unwrap()).collect();
        Self { param: each(0), shadow, grad: each(100), exp_avg: zeros(), exp_avg_sq: zeros() }
    }

    fn trained(&mut self) -> Vec<Trained<'_, bf16>> {
        let moments = self.exp_avg.iter_mut().zip(&mut self.exp_avg_sq);
        let params = self.param.iter_mut().zip(&mut self.shadow).zip(&self.grad).zip(moments);
        let one = |(((param, shadow), grad), (exp_avg, exp_avg_sq))| Trained {
            param,
            shadow: Some(shadow),
            grad,
            exp_avg,
            exp_avg_sq,
            decays: true,
        };
        let mut all: Vec<Trained<'_, bf16>> = params.map(one).collect();
        // Some do not decay, as the biases of heads.
        all.iter_mut().for_each(|one| one.decays = one.param.cols() != 3);
        all
    }

    fn set_gradients(&mut self, device: &Device, step: u32) {
        for (i, grad) in self.grad.iter_mut().enumerate() {
            let values = random::<f32>(&cpu(), grad.rows(), grad.cols(), 1000 * step + i as u32);
            device.write(grad, values.data()).unwrap();
        }
    }

    /// Bits of all numbers but the gradients, and the gradients.
    fn read(&self, device: &Device) -> (Vec<u32>, Vec<f32>) {
        let mut bits = Vec::new();
        for tensor in self.param.iter().chain(&self.exp_avg).chain(&self.exp_avg_sq) {
            bits.extend(device.read(tensor).unwrap().into_iter().map(f32::to_bits));
        }
        for tensor in &self.shadow {
            bits.extend(device.read(tensor).unwrap().into_iter().map(|x| u32::from(x.to_bits())));
        }
        (bits, self.grad.iter().flat_map(|t| device.read(t).unwrap()).collect())
    }
}

fn settings(step: u64) -> AdamW {
    AdamW {
        learning_rate: 3e-3 / step as f64,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        clip: 1.0,
        step,
    }
}

fn norm(grads: &[f32]) -> f64 {
    grads.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt()
}

/// Three steps on `device`.
fn steps(device: &Device, shapes: &[[usize; 2]], max_grad_norm: Option<f64>) -> (State, Vec<Step>) {
    let mut state = State::new(device, shapes);
    let tensors = Tensors::new(device, &state.trained()).unwrap();
    let mut scalars = StepScalars::new(device).unwrap();
    let step = |step: u64| {
        state.set_gradients(device, step as u32);
        scalars.write(device, &settings(step), max_grad_norm).unwrap();
        clip_and_update(device, &tensors, &scalars).unwrap().read(device).unwrap()
    };
    let outcomes = (1..=3).map(step).collect();
    (state, outcomes)
}

/// Three steps on `device` and on the CPU.
fn compare(device: &Device, shapes: &[[usize; 2]], max_grad_norm: Option<f64>) {
    let (state, outcomes) = steps(device, shapes, max_grad_norm);
    let host = cpu();
    let mut expected = State::new(&host, shapes);
    for (step, outcome) in (1..=3).zip(outcomes) {
        expected.set_gradients(&host, step);
        let right = norm(&expected.read(&host).1);
        assert!((outcome.norm / right - 1.0).abs() < 1e-7, "{outcome:?} {right}");
        assert!((outcome.clip / clip_factor(right, max_grad_norm) - 1.0).abs() < 1e-7, "{outcome:?}");
        assert!(outcome.was_applied);
        let adamw = AdamW { clip: outcome.clip, ..settings(u64::from(step)) };
        update(&host, &adamw, &mut expected.trained()).unwrap();
    }
    let (bits, grads) = state.read(device);
    assert!(bits == expected.read(&host).0, "{max_grad_norm:?}");
    assert!(grads.iter().all(|&g| g == 0.0));
}

#[test]
fn three_steps_have_the_bits_of_the_cpu() {
    for max_grad_norm in [None, Some(0.3), Some(1e6)] {
        compare(&kernel_device(7), SHAPES, max_grad_norm);
    }
}

/// The factors of two blocks of Qwen3-0.6B at rank 16 and one of Qwen3-8B at rank 64.
#[test]
fn real_shapes() {
    let of_06b = [1024, 2048, 1024, 1024, 1024, 1024, 2048, 1024, 1024, 3072, 1024, 3072, 3072, 1024];
    let of_8b = [4096, 4096, 4096, 1024, 4096, 1024, 4096, 4096, 4096, 12_288, 4096, 12_288, 12_288, 4096];
    let mut real: Vec<[usize; 2]> = of_06b.repeat(2).into_iter().map(|features| [16, features]).collect();
    real.extend(of_8b.map(|features| [64, features]));
    let shapes = at_scale(real, vec![[16, 1024], [16, 3072], [64, 256]]);
    compare(&kernel_device(10), &shapes, Some(1.0));
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing_but_the_gradients() {
    for bad in [f32::NAN, f32::INFINITY, -1e30] {
        let device = kernel_device(8);
        let mut state = State::new(&device, SHAPES);
        let tensors = Tensors::new(&device, &state.trained()).unwrap();
        let before = state.read(&device).0;
        let mut values = device.read(&state.grad[2]).unwrap();
        values[4099] = bad;
        device.write(&mut state.grad[2], &values).unwrap();
        let mut scalars = StepScalars::new(&device).unwrap();
        scalars.write(&device, &settings(1), Some(1.0)).unwrap();
        let outcome = clip_and_update(&device, &tensors, &scalars).unwrap().read(&device).unwrap();
        assert!(!outcome.was_applied && !outcome.norm.is_finite(), "{outcome:?}");
        let (after, grads) = state.read(&device);
        assert!(after == before && grads.iter().all(|&g| g == 0.0), "{bad}");
    }
}

#[test]
fn no_tensors_and_wrong_ones() {
    let device = kernel_device(9);
    let none = Tensors::new::<bf16>(&device, &[]).unwrap();
    let mut scalars = StepScalars::new(&device).unwrap();
    scalars.write(&device, &settings(1), None).unwrap();
    let outcome = clip_and_update(&device, &none, &scalars).unwrap().read(&device).unwrap();
    assert_eq!(outcome, Step { norm: 0.0, clip: 1.0, was_applied: true });
    let mut state = State::new(&device, SHAPES);
    let mut trained = state.trained();
    trained[0].shadow = None;
    assert!(Tensors::new(&device, &trained).is_err());
}

#[test]
fn gpu_repeats_have_the_same_bits() {
    assert_repeats(30, |device| {
        let (state, outcomes) = steps(device, SHAPES, Some(0.5));
        (state.read(device).0, outcomes)
    });
}

/// Tests that only the emulator can run.
mod emulator {
    use super::*;
    use crate::device::EmulatorOptions;

    #[test]
    fn three_launches_without_conflicts() {
        let device = Device::emulated(EmulatorOptions { stats: true, ..EmulatorOptions::default() }).unwrap();
        device.take_ledger();
        steps(&device, SHAPES, Some(0.5));
        let launches: u64 = device.take_ledger().launches().map(|(_, count)| count).sum();
        assert_eq!(launches, 3 * 3);
        for (symbol, counters) in device.take_counters().kernels {
            assert_eq!(counters.worst_shared_ratio(), 1.0, "{symbol}: {counters:?}");
            // Besides the tensors, every block reads its place and the scalars of the step.
            assert!(counters.total.sector_ratio() <= 1.2, "{symbol}: {counters:?}");
        }
    }
}
