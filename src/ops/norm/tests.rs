//! Norms against their formulas, and their gradients against central differences.

use super::{Apply, Backward, Forward, Norm, NormKind, apply, backward, forward};
use crate::device::Tensor;
use crate::ops::LiveRows;
use crate::ops::testing::{cast, check_gradient, cpu, inner, random, relative_rms};

/// Every kind, without a bias and with one where there may be one.
fn kinds<'a>(weight: &'a Tensor<f64>, bias: &'a Tensor<f64>, eps: f64) -> [Norm<'a, f64>; 3] {
    let norm = |kind, bias| Norm { kind, weight, bias, eps };
    [norm(NormKind::Rms, None), norm(NormKind::Layer, None), norm(NormKind::Layer, Some(bias))]
}

#[test]
fn forward_follows_the_formula_and_apply_repeats_it() {
    let device = cpu();
    for (rows, cols) in [(1, 1), (3, 17), (5, 128), (0, 8)] {
        let (mut x, residual) = (random::<f64>(&device, rows, cols, 0), random(&device, rows, cols, 1));
        let (weight, bias) = (random(&device, 1, cols, 2), random(&device, 1, cols, 3));
        let before = x.data().to_vec();
        for norm in kinds(&weight, &bias, 1e-6) {
            x.data_mut().copy_from_slice(&before);
            let (mut y, mut rstd) = (device.empty(rows, cols).unwrap(), device.empty(rows, 1).unwrap());
            forward(
                &device,
                Forward {
                    x: &mut x,
                    residual: Some(&residual),
                    norm,
                    y: &mut y,
                    rstd: &mut rstd,
                    live_rows: LiveRows::ALL,
                    projection: None,
                },
            )
            .unwrap();
            for t in 0..rows {
                let s: Vec<f64> = (0..cols).map(|i| before[t * cols + i] + residual.row(t)[i]).collect();
                let is_layer = norm.kind == NormKind::Layer;
                let centre = if is_layer { s.iter().sum::<f64>() / cols as f64 } else { 0.0 };
                let mean = s.iter().map(|x| (x - centre).powi(2)).sum::<f64>() / cols as f64;
                for (i, (&s, &y)) in s.iter().zip(y.row(t)).enumerate() {
                    let added = norm.bias.map_or(0.0, |bias| bias.data()[i]);
                    let expected = (s - centre) / (mean + 1e-6).sqrt() * weight.data()[i] + added;
                    assert!((y - expected).abs() < 1e-10, "{:?} {y} {expected}", norm.kind);
                }
                assert_eq!(x.row(t), s);
            }
            let mut again = device.empty(rows, cols).unwrap();
            apply(&device, Apply { s: &x, norm, rstd: &rstd, y: &mut again, live_rows: LiveRows::ALL })
                .unwrap();
            assert_eq!(again.data(), y.data());
        }
    }
}

#[test]
fn backward_is_the_gradient_on_top_of_the_stream() {
    let device = cpu();
    let (s, dy) = (random::<f64>(&device, 3, 21, 0), random(&device, 3, 21, 1));
    let (weight, bias) = (random(&device, 1, 21, 2), random(&device, 1, 21, 3));
    for norm in kinds(&weight, &bias, 1e-5) {
        let run = |x: &Tensor<f64>| {
            let mut x = cast(&device, x);
            let (mut y, mut rstd) = (device.empty(3, 21).unwrap(), device.empty(3, 1).unwrap());
            forward(&device, Forward::alone(&mut x, norm, &mut y, &mut rstd)).unwrap();
            (y, rstd)
        };
        let (y, rstd) = run(&s);
        let (mut ds, mut normed) = (device.empty(3, 21).unwrap(), device.empty(3, 21).unwrap());
        backward(
            &device,
            Backward {
                dy: &dy,
                s: &s,
                norm,
                rstd: &rstd,
                d_in: Some(&dy),
                ds: &mut ds,
                normed: Some(&mut normed),
                live_rows: LiveRows::ALL,
                projection: None,
            },
        )
        .unwrap();
        assert_eq!(normed.data(), y.data());
        // The gradient of the residual stream is dy.
        let through: Vec<f64> = ds.data().iter().zip(dy.data()).map(|(a, b)| a - b).collect();
        let mut alone = device.empty(3, 21).unwrap();
        backward(
            &device,
            Backward {
                dy: &dy,
                s: &s,
                norm,
                rstd: &rstd,
                d_in: None,
                ds: &mut alone,
                normed: None,
                live_rows: LiveRows::ALL,
                projection: None,
            },
        )
        .unwrap();
        assert!(alone.data().iter().zip(&through).all(|(a, b)| (a - b).abs() < 1e-12));
        check_gradient(&device, "s", &s, &through, |x| inner(run(x).0.data(), dy.data()));
    }
}

#[test]
fn f32_stays_near_f64() {
    let device = cpu();
    let x = random::<f32>(&device, 7, 2048, 0);
    let weight = random::<f32>(&device, 1, 2048, 1);
    let (mut y, mut rstd) = (device.empty(7, 2048).unwrap(), device.empty(7, 1).unwrap());
    let norm = Norm { kind: NormKind::Rms, weight: &weight, bias: None, eps: 1e-6 };
    forward(&device, Forward::alone(&mut cast(&device, &x), norm, &mut y, &mut rstd)).unwrap();
    let (wide, mut y64, mut rstd64) =
        (cast::<f32, f64>(&device, &weight), device.empty(7, 2048).unwrap(), device.empty(7, 1).unwrap());
    let norm = Norm { kind: NormKind::Rms, weight: &wide, bias: None, eps: 1e-6 };
    forward(&device, Forward::alone(&mut cast(&device, &x), norm, &mut y64, &mut rstd64)).unwrap();
    let error = relative_rms(y.data(), y64.data());
    assert!(error < 5e-7, "{error:e}");
}

#[test]
fn a_wrong_shape_names_the_argument() {
    let device = cpu();
    let weight = device.zeros::<f32>(1, 4).unwrap();
    let norm = Norm { kind: NormKind::Rms, weight: &weight, bias: None, eps: 1e-6 };
    let mut x = device.zeros(2, 5).unwrap();
    let error = forward(
        &device,
        Forward::alone(&mut x, norm, &mut device.empty(2, 5).unwrap(), &mut device.empty(2, 1).unwrap()),
    )
    .unwrap_err();
    assert!(error.to_string().contains("norm: argument \"weight\": got [1, 4], expected [1, 5]"), "{error}");
}
