//! Activations against their formulas, and their gradients against central differences.

use super::{Activation, Backward, Forward, Input, InputMut, backward, forward};
use crate::device::{Device, Tensor};
use crate::ops::LiveRows;
use crate::ops::testing::{cast, check_gradient, cpu, inner, random, relative_rms};
use crate::tensor::Real;

const ALL: [Activation; 4] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Tanh];

/// The formula of the module text.
fn by_hand(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Tanh => x.tanh(),
    }
}

fn run<T: Real>(device: &Device, act: Activation, input: Input<'_, T>, shape: [usize; 2]) -> Tensor<T> {
    let mut h = device.empty(shape[0], shape[1]).unwrap();
    let args = Forward { act, input, h: &mut h, live_rows: LiveRows::ALL, projection: None };
    forward(device, args).unwrap();
    h
}

fn side_by_side<T: Real>(device: &Device, left: &Tensor<T>, right: &Tensor<T>) -> Tensor<T> {
    let rows = (0..left.rows()).flat_map(|row| [left.row(row), right.row(row)].concat());
    device.tensor(left.rows(), 2 * left.cols(), &rows.collect::<Vec<_>>()).unwrap()
}

#[test]
fn values_follow_the_formulas_in_every_form() {
    let device = cpu();
    let (gate, up) = (random::<f64>(&device, 5, 21, 0), random::<f64>(&device, 5, 21, 1));
    let both = side_by_side(&device, &gate, &up);
    for act in ALL {
        let plain = run(&device, act, Input::Plain(&gate), gate.shape());
        let gated = run(&device, act, Input::Gated { gate: &gate, up: &up }, gate.shape());
        let fused = run(&device, act, Input::Fused(&both), gate.shape());
        assert_eq!(gated.data(), fused.data());
        for (i, (&g, &u)) in gate.data().iter().zip(up.data()).enumerate() {
            assert!((plain.data()[i] - by_hand(act, g)).abs() < 1e-13, "{act:?} {g}");
            assert!((gated.data()[i] - by_hand(act, g) * u).abs() < 1e-12, "{act:?} {g}");
        }
    }
    let wrong = Input::Plain(&both);
    let mut h = device.empty(5, 21).unwrap();
    let args = Forward { act: ALL[0], input: wrong, h: &mut h, live_rows: LiveRows::ALL, projection: None };
    assert!(forward(&device, args).is_err());
}

#[test]
fn backward_is_the_gradient_and_makes_the_output_again() {
    let device = cpu();
    let (gate, up, dh) =
        (random::<f64>(&device, 3, 11, 0), random(&device, 3, 11, 1), random(&device, 3, 11, 2));
    let shape = gate.shape();
    let back = |act, dh: &mut Tensor<f64>, input: InputMut<'_, f64>| {
        backward(&device, Backward { act, dh, input, live_rows: LiveRows::ALL, projection: None }).unwrap();
    };
    for act in ALL {
        let (mut dgate, mut dup, mut again) = (cast(&device, &gate), cast(&device, &up), cast(&device, &dh));
        back(act, &mut again, InputMut::Gated { gate: &mut dgate, up: &mut dup });
        let h = run(&device, act, Input::Gated { gate: &gate, up: &up }, shape);
        assert_eq!(again.data(), h.data());
        let loss = |gate: &Tensor<f64>, up: &Tensor<f64>| {
            inner(run(&device, act, Input::Gated { gate, up }, shape).data(), dh.data())
        };
        check_gradient(&device, "gate", &gate, dgate.data(), |x| loss(x, &up));
        check_gradient(&device, "up", &up, dup.data(), |x| loss(&gate, x));

        let (mut both, mut again) = (side_by_side(&device, &gate, &up), cast(&device, &dh));
        back(act, &mut again, InputMut::Fused(&mut both));
        assert_eq!((both.data(), again.data()), (side_by_side(&device, &dgate, &dup).data(), h.data()));

        let (mut dx, mut again) = (cast(&device, &gate), cast(&device, &dh));
        back(act, &mut again, InputMut::Plain(&mut dx));
        assert_eq!(again.data(), run(&device, act, Input::Plain(&gate), shape).data());
        check_gradient(&device, "x", &gate, dx.data(), |x| {
            inner(run(&device, act, Input::Plain(x), shape).data(), dh.data())
        });
    }
}

#[test]
fn f32_stays_near_f64_and_far_values_stay_finite() {
    let device = cpu();
    let (mut gate, up) = (random::<f32>(&device, 9, 5003, 0), random::<f32>(&device, 9, 5003, 1));
    gate.data_mut()[..4].copy_from_slice(&[-1e4, 1e4, -90.0, 90.0]);
    for act in ALL {
        let h = run(&device, act, Input::Gated { gate: &gate, up: &up }, gate.shape());
        let of = |(&g, &u): (&f32, &f32)| by_hand(act, f64::from(g)) * f64::from(u);
        let expected: Vec<f64> = gate.data().iter().zip(up.data()).map(of).collect();
        let error = relative_rms(&h.data()[4..], &expected[4..]);
        assert!(error < 5e-7, "{act:?} {error:e}");
        assert!(h.data().iter().all(|x| x.is_finite()));
    }
}
