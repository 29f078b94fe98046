//! AdamW against the formula over several steps; the goldens have the results of PyTorch 2.9 for one step.

use super::{AdamW, Trained, update};
use crate::device::{Device, Tensor};
use crate::ops::testing::{cpu, random};
use crate::tensor::Real;

/// One tensor without a shadow.
fn update_one<T: Real<Stat = T>>(
    device: &Device,
    adamw: &AdamW,
    [param, exp_avg, exp_avg_sq]: [&mut Tensor<T>; 3],
    grad: &Tensor<T>,
) {
    let one: Trained<'_, T> = Trained { param, shadow: None, grad, exp_avg, exp_avg_sq, decays: true };
    update(device, adamw, &mut [one]).unwrap();
}

#[test]
fn three_steps_follow_the_formula() {
    let device = cpu();
    let mut p = random::<f64>(&device, 3, 7, 0);
    let (mut m, mut v) = (device.zeros(3, 7).unwrap(), device.zeros(3, 7).unwrap());
    let (mut p1, mut m1, mut v1) = (p.data().to_vec(), vec![0.0; 21], vec![0.0; 21]);
    for step in 1..=3 {
        let grad = random::<f64>(&device, 3, 7, step as u32);
        let adamw = AdamW {
            learning_rate: 0.1 * step as f64,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.01,
            clip: 0.5,
            step,
        };
        update_one(&device, &adamw, [&mut p, &mut m, &mut v], &grad);
        for i in 0..21 {
            let g = 0.5 * grad.data()[i];
            m1[i] = 0.9 * m1[i] + 0.1 * g;
            v1[i] = 0.99 * v1[i] + 0.01 * g * g;
            let m_hat = m1[i] / (1.0 - 0.9f64.powi(step as i32));
            let v_hat: f64 = v1[i] / (1.0 - 0.99f64.powi(step as i32));
            p1[i] = p1[i] * (1.0 - 0.001 * step as f64) - 0.1 * step as f64 * m_hat / (v_hat.sqrt() + 1e-8);
            assert!((p.data()[i] - p1[i]).abs() < 1e-12);
        }
    }
}

#[test]
fn a_zero_learning_rate_moves_the_moments_only() {
    let device = cpu();
    let mut p = random::<f32>(&device, 2, 2, 0);
    let before = p.data().to_vec();
    let grad = random::<f32>(&device, 2, 2, 1);
    let (mut m, mut v) = (device.zeros(2, 2).unwrap(), device.zeros(2, 2).unwrap());
    let adamw = AdamW {
        learning_rate: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        clip: 1.0,
        step: 1,
    };
    update_one(&device, &adamw, [&mut p, &mut m, &mut v], &grad);
    assert_eq!(p.data(), before);
    assert!(m.data().iter().chain(v.data()).all(|&x| x != 0.0));
}

#[test]
fn a_shadow_follows_its_master_and_small_updates_are_not_lost() {
    use half::bf16;
    let device = cpu();
    let mut param = device.tensor(1, 2, &[1.0f32, -2.0]).unwrap();
    let mut shadow = device.zeros::<bf16>(1, 2).unwrap();
    let grad = device.tensor(1, 2, &[1.0f32, -1.0]).unwrap();
    let (mut exp_avg, mut exp_avg_sq) = (device.zeros(1, 2).unwrap(), device.zeros(1, 2).unwrap());
    for step in 1..=20 {
        let adamw = AdamW {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            step,
        };
        let one = Trained {
            param: &mut param,
            shadow: Some(&mut shadow),
            grad: &grad,
            exp_avg: &mut exp_avg,
            exp_avg_sq: &mut exp_avg_sq,
            decays: true,
        };
        update(&device, &adamw, &mut [one]).unwrap();
        let rounded: Vec<bf16> = param.data().iter().map(|&p| bf16::from_f32(p)).collect();
        assert_eq!(shadow.data(), rounded);
    }
    // A step of 0.001 alone is less than half a unit in the last place of bf16.
    assert!((param.data()[0] - 0.98).abs() < 1e-4 && shadow.data()[0] < bf16::ONE, "{param:?}");
}
