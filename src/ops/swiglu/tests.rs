//! SwiGLU against its formula, and its gradients against central differences.

use super::{Backward, Forward, backward, forward};
use crate::device::Tensor;
use crate::ops::LiveRows;
use crate::ops::testing::{cast, check_gradient, cpu, inner, random, relative_rms};

#[test]
fn backward_is_the_gradient() {
    let device = cpu();
    let (gate, up, dh) =
        (random::<f64>(&device, 3, 11, 0), random(&device, 3, 11, 1), random(&device, 3, 11, 2));
    let (mut dgate, mut dup) = (cast(&device, &gate), cast(&device, &up));
    let mut h_again = cast(&device, &dh);
    backward(
        &device,
        Backward {
            dh: &mut h_again,
            gate: &mut dgate,
            up: &mut dup,
            live_rows: LiveRows::ALL,
            projection: None,
        },
    )
    .unwrap();
    let mut h = device.empty(3, 11).unwrap();
    forward(&device, Forward { gate: &gate, up: &up, h: &mut h, live_rows: LiveRows::ALL, projection: None })
        .unwrap();
    assert_eq!(h_again.data(), h.data());
    let loss = |gate: &Tensor<f64>, up: &Tensor<f64>| {
        let mut h = device.empty(3, 11).unwrap();
        forward(&device, Forward { gate, up, h: &mut h, live_rows: LiveRows::ALL, projection: None })
            .unwrap();
        inner(h.data(), dh.data())
    };
    check_gradient(&device, "gate", &gate, dgate.data(), |x| loss(x, &up));
    check_gradient(&device, "up", &up, dup.data(), |x| loss(&gate, x));
}

#[test]
fn f32_stays_near_f64_and_far_values_stay_finite() {
    let device = cpu();
    let (mut gate, up) = (random::<f32>(&device, 9, 5003, 0), random::<f32>(&device, 9, 5003, 1));
    gate.data_mut()[..4].copy_from_slice(&[-1e4, 1e4, -90.0, 90.0]);
    let mut h = device.empty(9, 5003).unwrap();
    forward(&device, Forward { gate: &gate, up: &up, h: &mut h, live_rows: LiveRows::ALL, projection: None })
        .unwrap();
    let expected: Vec<f64> = gate
        .data()
        .iter()
        .zip(up.data())
        .map(|(&g, &u)| f64::from(g) / (1.0 + (-f64::from(g)).exp()) * f64::from(u))
        .collect();
    let error = relative_rms(&h.data()[4..], &expected[4..]);
    assert!(error < 5e-7, "{error:e}");
    assert!(h.data().iter().all(|x| x.is_finite()));
}
