//! Layers and losses against their formulas, and gradients against central differences.

use super::{
    Backward, Layer, Loss, PreparedLoss, Targets, backward, forward, logits, loss_gradient, pool,
    pool_backward,
};
use crate::batch::{Label, LabelTarget};
use crate::device::Tensor;
use crate::ops::LiveRows;
use crate::ops::testing::{cast, check_gradient, cpu, inner, random};

#[test]
fn a_layer_is_its_formula_and_its_gradients_are_right() {
    let device = cpu();
    for tanh in [false, true] {
        let (x, weight, bias) =
            (random::<f64>(&device, 5, 7, 0), random(&device, 3, 7, 1), random(&device, 1, 3, 2));
        let run = |x: &Tensor<f64>, weight: &Tensor<f64>, bias: &Tensor<f64>| {
            let mut y = device.empty(x.rows(), 3).unwrap();
            forward(&device, &Layer { weight, bias: Some(bias), tanh }, x, &mut y, LiveRows::ALL).unwrap();
            y
        };
        let y = run(&x, &weight, &bias);
        let mut z = device.empty(5, 3).unwrap();
        let layer = Layer { weight: &weight, bias: Some(&bias), tanh };
        logits(&device, &layer, &x, &mut z, LiveRows::ALL).unwrap();
        assert_eq!(z.data(), y.data());
        for (row, column) in [(0, 0), (4, 2)] {
            let z = inner(x.row(row), weight.row(column)) + bias.data()[column];
            let expected = if tanh { z.tanh() } else { z };
            assert!((y.row(row)[column] - expected).abs() < 1e-12);
        }
        let dy = random::<f64>(&device, 5, 3, 3);
        let (mut own_dy, mut dx) = (cast(&device, &dy), device.empty(5, 7).unwrap());
        // Gradients of parameters add to what is there.
        let (mut d_weight, mut d_bias) = (device.zeros(3, 7).unwrap(), device.zeros(1, 3).unwrap());
        d_bias.data_mut().fill(0.5);
        let args = Backward {
            x: &x,
            y: Some(&y),
            dy: &mut own_dy,
            dx: Some(&mut dx),
            d_weight: &mut d_weight,
            d_bias: Some(&mut d_bias),
        };
        backward(&device, &layer, args, LiveRows::ALL).unwrap();
        d_bias.data_mut().iter_mut().for_each(|d| *d -= 0.5);
        let value = |y: Tensor<f64>| inner(y.data(), dy.data());
        check_gradient(&device, "x", &x, dx.data(), |x| value(run(x, &weight, &bias)));
        check_gradient(&device, "weight", &weight, d_weight.data(), |w| value(run(&x, w, &bias)));
        check_gradient(&device, "bias", &bias, d_bias.data(), |b| value(run(&x, &weight, b)));
    }
}

#[test]
fn pooling_is_the_mean_and_spreads_its_gradient() {
    let device = cpu();
    let x = random::<f64>(&device, 9, 4, 0);
    let of = |rows: std::ops::Range<usize>| LabelTarget { rows, label: Label::None, weight: 1.0 };
    let targets = Targets::new(&device, &[0..1, 2..5, 5..9].map(of), 1, 1.0).unwrap();
    let run = |x: &Tensor<f64>| {
        let mut y = device.empty(3, 4).unwrap();
        pool(&device, x, &targets, &mut y).unwrap();
        y
    };
    let y = run(&x);
    assert!((y.row(1)[2] - (x.row(2)[2] + x.row(3)[2] + x.row(4)[2]) / 3.0).abs() < 1e-14);
    let dy = random::<f64>(&device, 3, 4, 1);
    let mut dx = device.empty(9, 4).unwrap();
    pool_backward(&device, &dy, &targets, &mut dx).unwrap();
    assert!(dx.row(1).iter().all(|&dx| dx == 0.0), "a row of no sequence");
    check_gradient(&device, "x", &x, dx.data(), |x| inner(run(x).data(), dy.data()));
    let mut y = device.empty::<f64>(1, 4).unwrap();
    let beyond = Targets::new(&device, &[of(8..10)], 1, 1.0).unwrap();
    assert!(pool(&device, &x, &beyond, &mut y).is_err());
    assert!(Targets::new(&device, &[of(3..3)], 1, 1.0).is_err());
}

/// Sequences of one row each.
fn targets(all: Vec<(Label, f32)>) -> Vec<LabelTarget> {
    let of = |(row, (label, weight))| LabelTarget { rows: row..row + 1, label, weight };
    all.into_iter().enumerate().map(of).collect()
}

#[test]
fn losses_are_their_formulas_and_have_right_gradients() {
    let device = cpu();
    let z = random::<f64>(&device, 3, 4, 0);
    let class = |class| Label::Class(class);
    let numbers = |numbers: [f32; 4]| Label::Numbers(numbers.to_vec());
    let classes = || targets(vec![(class(0), 1.0), (class(3), 2.0), (Label::None, 1.0)]);
    let of_numbers = || {
        let (a, b) = (numbers([0.0, 1.0, 1.0, 0.0]), numbers([0.3, 0.9, 0.1, 0.5]));
        targets(vec![(a, 1.0), (b, 0.5), (Label::None, 1.0)])
    };
    let weights = Some(vec![1.0, 2.0, 0.5, 3.0]);
    for (kind, list) in [
        (Loss::cross_entropy(), classes()),
        (Loss::CrossEntropy { class_weights: weights.clone(), label_smoothing: 0.1 }, classes()),
        (Loss::Bce { pos_weight: None }, of_numbers()),
        (Loss::Bce { pos_weight: weights }, of_numbers()),
        (Loss::Mse, of_numbers()),
        (Loss::SigmoidMse, of_numbers()),
    ] {
        let value = |z: &Tensor<f64>| {
            let scores = kind.scores(&list, z.data());
            0.25 * scores.iter().zip(&list).map(|(s, t)| s.loss * f64::from(t.weight)).sum::<f64>()
        };
        let mut d_logits = device.empty(3, 4).unwrap();
        let prepared = PreparedLoss::new(&device, &kind).unwrap();
        let own = Targets::new(&device, &list, 4, 0.25).unwrap();
        loss_gradient(&device, &prepared, &z, &own, &mut d_logits).unwrap();
        assert!(d_logits.row(2).iter().all(|&d| d == 0.0), "without a label");
        check_gradient(&device, &format!("{kind:?}"), &z, d_logits.data(), value);
        let wrong = if kind.divisor(&class(0)) == 1.0 && matches!(kind, Loss::CrossEntropy { .. }) {
            class(4)
        } else {
            Label::Numbers(vec![1.0])
        };
        let wrong = targets(vec![(wrong, 1.0), (Label::None, 1.0), (Label::None, 1.0)]);
        let wrong = Targets::new(&device, &wrong, 4, 1.0).unwrap();
        assert!(loss_gradient(&device, &prepared, &z, &wrong, &mut d_logits).is_err());
    }
    // By hand: -ln of a softmax of two.
    let found = Loss::cross_entropy().scores(&targets(vec![(class(1), 1.0)]), &[1.0f64, 0.0]);
    assert!((found[0].loss - (1.0 + 1f64.exp()).ln()).abs() < 1e-14);
    assert_eq!(found[0].logits, [1.0, 0.0]);
}

#[test]
fn divisors_are_those_of_pytorch() {
    let weighted = Loss::CrossEntropy { class_weights: Some(vec![1.0, 2.5]), label_smoothing: 0.0 };
    assert_eq!((weighted.divisor(&Label::Class(1)), weighted.divisor(&Label::None)), (2.5, 0.0));
    assert_eq!(Loss::cross_entropy().divisor(&Label::Class(7)), 1.0);
    assert_eq!(Loss::Mse.divisor(&Label::Numbers(vec![0.0; 3])), 3.0);
}
