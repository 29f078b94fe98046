//! Loss and gradient against the definition: ragged vocabularies, shared rows, weights, several chunks.

use super::*;
use crate::batch::TokenTarget;
use crate::ops::testing::{cast, check_gradient, cpu, inner, random, relative_rms};

fn targets(rows: usize, vocab: u32) -> Vec<TokenTarget> {
    let mut targets = Vec::new();
    for row in (0..rows).filter(|r| r % 4 != 2) {
        targets.push(TokenTarget { row, token: (row as u32 * 37 + 5) % vocab, weight: 1.0 });
        if row % 3 == 0 {
            targets.push(TokenTarget { row, token: vocab - 1, weight: 0.25 });
        }
    }
    targets
}

fn loss(scores: &[TargetScore], targets: &[TokenTarget]) -> f64 {
    scores.iter().zip(targets).map(|(s, t)| -s.logprob * f64::from(t.weight)).sum()
}

fn scores<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    w: &Tensor<T>,
    targets: &[TokenTarget],
    gradient: Option<(&mut Tensor<T>, f64)>,
) -> Vec<TargetScore> {
    let scale = gradient.as_ref().map_or(1.0, |g| g.1);
    let targets = Targets::new(device, targets, x.rows(), scale).unwrap();
    scored(device, [x, w], &targets, gradient.map(|g| g.0)).unwrap().read(device).unwrap()
}

/// Runs the op and returns its scores.
pub(super) fn scored<T: Real>(
    device: &Device,
    [x, weight]: [&Tensor<T>; 2],
    targets: &Targets,
    dx: Option<&mut Tensor<T>>,
) -> Result<Scores> {
    let mut scores = Scores::with_capacity(device, targets.max_targets())?;
    forward(device, Forward { x, weight, targets, scores: &mut scores, dx })?;
    Ok(scores)
}

#[test]
fn scores_follow_the_definition() {
    let device = cpu();
    for (rows, vocab) in [(1, 2), (9, 311), (1500, 1025)] {
        let (x, w) = (random::<f64>(&device, rows, 5, 0), random::<f64>(&device, vocab, 5, 1));
        let targets = targets(rows, vocab as u32);
        let scores = scores(&device, &x, &w, &targets, None);
        let z = logits(&device, &x, &w).unwrap();
        for (target, score) in targets.iter().zip(&scores) {
            let z = z.row(target.row);
            let own = inner(x.row(target.row), w.row(target.token as usize));
            let expected = own - z.iter().map(|z| z.exp()).sum::<f64>().ln();
            assert!((score.logprob - expected).abs() < 1e-10, "{rows} {vocab} {target:?}");
            assert_eq!(score.is_argmax, z.iter().all(|&z| z <= own + 1e-12));
        }
    }
}

#[test]
fn dx_is_the_gradient() {
    let device = cpu();
    let (x, w) = (random::<f64>(&device, 9, 6, 0), random::<f64>(&device, 700, 6, 1));
    let targets = targets(9, 700);
    let mut dx = device.empty(9, 6).unwrap();
    scores(&device, &x, &w, &targets, Some((&mut dx, 0.125)));
    check_gradient(&device, "x", &x, dx.data(), |x| {
        0.125 * loss(&scores(&device, x, &w, &targets, None), &targets)
    });
    // Rows 2 and 6 have no target.
    assert!(dx.row(2).iter().chain(dx.row(6)).all(|&g| g == 0.0));
}

#[test]
fn chunks_do_not_change_the_result_and_f32_stays_near_f64() {
    let device = cpu();
    // 1024 rows make a chunk for a small vocabulary.
    let (x, w) = (random::<f32>(&device, 1100, 8, 0), random::<f32>(&device, 333, 8, 1));
    let targets = targets(1100, 333);
    fn run<T: Real>(
        device: &Device,
        x: &Tensor<T>,
        w: &Tensor<T>,
        targets: &[TokenTarget],
    ) -> (f64, Tensor<T>) {
        let mut dx = device.empty(x.rows(), x.cols()).unwrap();
        let scores = scores(device, x, w, targets, Some((&mut dx, 1.0)));
        (loss(&scores, targets), dx)
    }
    let (loss32, dx32) = run(&device, &x, &w, &targets);
    let (loss64, dx64) = run(&device, &cast::<f32, f64>(&device, &x), &cast(&device, &w), &targets);
    assert!((loss32 / loss64 - 1.0).abs() < 1e-6, "{loss32} {loss64}");
    assert!(relative_rms(dx32.data(), dx64.data()) < 2e-6);
}

#[test]
fn no_rows_and_bad_targets() {
    let device = cpu();
    let w = random::<f32>(&device, 4, 2, 0);
    assert!(scores(&device, &device.zeros(0, 2).unwrap(), &w, &[], None).is_empty());
    let target = |row, token| TokenTarget { row, token, weight: 1.0 };
    let x = device.zeros(2, 2).unwrap();
    for bad in [vec![target(2, 0)], vec![target(1, 0), target(0, 0)]] {
        assert!(Targets::new(&device, &bad, 2, 1.0).is_err(), "{bad:?}");
    }
    let too_large = Targets::new(&device, &[target(0, 4)], 2, 1.0).unwrap();
    assert!(scored(&device, [&x, &w], &too_large, None).is_err());
    let too_many = Targets::with_capacity(&device, 3, 1).unwrap();
    assert!(scored(&device, [&x, &w], &too_many, None).is_err());
}

#[test]
fn rows_beyond_those_of_the_targets_are_left_alone() {
    let device = cpu();
    let (x, w) = (random::<f64>(&device, 5, 4, 0), random::<f64>(&device, 20, 4, 1));
    let mut targets = Targets::with_capacity(&device, 5, 9).unwrap();
    let mut dx = device.tensor(5, 4, &[7.0; 20]).unwrap();
    for rows in [3, 0, 2] {
        let list: Vec<TokenTarget> =
            (0..rows).map(|row| TokenTarget { row, token: 1, weight: 1.0 }).collect();
        targets.write(&device, &list, rows, 0.5).unwrap();
        let got = scored(&device, [&x, &w], &targets, Some(&mut dx)).unwrap();
        assert_eq!(got.read(&device).unwrap(), scores(&device, &x, &w, &list, None));
        assert!(got.read_first(&device, rows + 1).is_err());
    }
    assert!(dx.data()[..12].iter().all(|&g| g != 7.0) && dx.data()[12..].iter().all(|&g| g == 7.0));
}
