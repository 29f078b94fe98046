//! The head's kernels against f64: ragged rows, several chunks, shared rows, live rows, schedules, counters.

#![cfg(feature = "emulated")]

use half::bf16;
use rayon::prelude::*;

use super::plan::{Plan, Problem, Wanted, plan};
use super::tests::scored;
use super::*;
use crate::batch::TokenTarget;
use crate::ops::gemm::{Mat, MatMut, Write, par_gemm};
use crate::ops::testing::{
    RAGGED_ROWS, assert_as_good, assert_repeats, at_scale, cut_off, drawn, inner, kernel_device, rounded,
};
use crate::rng::{Purpose, Stream};

/// The inputs, as f64 numbers that are exact in bf16.
struct Case {
    /// Capacity in rows, and number of live rows.
    rows: [usize; 2],
    hidden_size: usize,
    vocab_size: usize,
    x: Vec<f64>,
    weight: Vec<f64>,
    targets: Vec<TokenTarget>,
    scale: f64,
    wanted: Wanted,
}

fn random(len: usize, size: f32, index: u32) -> Vec<f64> {
    drawn(Stream::new(31, Purpose::ModelInit, index), len, size)
}

impl Case {
    fn new(rows: [usize; 2], hidden_size: usize, vocab_size: usize) -> Self {
        let mut targets = Vec::new();
        // Most rows have a target, some have two, some two of one token, every eighth none.
        for row in (0..rows[1]).filter(|r| r % 8 != 6) {
            let token = [0, vocab_size - 1, (row * 37 + 5) % vocab_size][row % 3] as u32;
            targets.push(TokenTarget { row, token, weight: 1.0 });
            if row % 4 == 1 {
                targets.push(TokenTarget { row, token: (token + 7) % vocab_size as u32, weight: 0.25 });
            }
            if row % 5 == 2 {
                targets.push(TokenTarget { row, token, weight: 0.5 });
            }
        }
        Self {
            rows,
            hidden_size,
            vocab_size,
            x: random(rows[0] * hidden_size, 1.0, 1),
            weight: random(vocab_size * hidden_size, 3.0 / (hidden_size as f32).sqrt(), 2),
            targets,
            scale: 0.125,
            wanted: Wanted::default(),
        }
    }

    fn plan(&self, device: &Device) -> Plan {
        let problem =
            Problem { rows: self.rows[0], hidden_size: self.hidden_size, vocab_size: self.vocab_size };
        plan(&problem, self.wanted, device.chip().unwrap())
    }
}

/// By target: log-probability and whether it is the largest; then dx by row.
#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    scores: Vec<TargetScore>,
    dx: Vec<f64>,
}

fn upload(device: &Device, rows: usize, values: &[f64]) -> Tensor<bf16> {
    let numbers: Vec<bf16> = values.par_iter().map(|&x| bf16::from_f64(x)).collect();
    device.tensor(rows, values.len().checked_div(rows).unwrap_or(0), &numbers).unwrap()
}

const UNTOUCHED: f64 = 77.0;

fn run(case: &Case, device: &Device, has_gradient: bool) -> Outcome {
    let [room, rows] = case.rows;
    // Rows beyond the live ones contain NaN, which would spread to the results.
    let mut x = case.x.clone();
    x[rows * case.hidden_size..].fill(f64::NAN);
    let x = upload(device, room, &x);
    let weight = upload(device, case.vocab_size, &case.weight);
    let mut targets = Targets::with_capacity(device, room, case.targets.len() + 3).unwrap();
    targets.write(device, &case.targets, rows, case.scale).unwrap();
    let mut dx = upload(device, room, &vec![UNTOUCHED; room * case.hidden_size]);
    let plan = case.plan(device);
    let dx_or_none = has_gradient.then_some(&mut dx);
    let mut scores = device.empty(targets.max_targets(), 2).unwrap();
    let (targets_of, to) = (&targets, &mut scores);
    let operands = gpu::Operands { x: &x, weight: &weight, targets: targets_of, scores: to, dx: dx_or_none };
    gpu::run(device, &plan, operands).unwrap();
    let scores = Scores { place: Place::Device(scores, case.targets.len()) }.read(device).unwrap();
    Outcome { scores, dx: device.read(&dx).unwrap().into_iter().map(bf16::to_f64).collect() }
}

/// The definition in f64 for `rows`; with `round` logits and their gradients are rounded to bf16, as PyTorch's head and loss do it.
fn expected(case: &Case, rows: &[usize], round: bool) -> Outcome {
    let q = |x: f64| if round { bf16::from_f64(x).to_f64() } else { x };
    let (hidden, vocab) = (case.hidden_size, case.vocab_size);
    if rows.is_empty() {
        return Outcome { scores: Vec::new(), dx: Vec::new() };
    }
    let x: Vec<f64> = rows.iter().flat_map(|row| case.x[row * hidden..][..hidden].to_vec()).collect();
    let weight = Mat::new(&case.weight, vocab, hidden);
    let mut z = vec![0.0; rows.len() * vocab];
    let of_z = MatMut::new(&mut z, rows.len(), vocab);
    par_gemm(of_z, Write::Overwrite, 1.0, Mat::new(&x, rows.len(), hidden), weight.t());
    // Logits become their gradients.
    let scores: Vec<Vec<TargetScore>> = z
        .par_chunks_mut(vocab)
        .zip(rows)
        .map(|(z, &row)| {
            z.iter_mut().for_each(|z| *z = q(*z));
            let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
            let of_row: Vec<&TokenTarget> = case.targets.iter().filter(|t| t.row == row).collect();
            let score = |target: &&TokenTarget| {
                let logit = z[target.token as usize];
                TargetScore { logprob: logit - lse, is_argmax: logit >= max }
            };
            let scores = of_row.iter().map(score).collect();
            let weight: f64 = of_row.iter().map(|t| f64::from(t.weight)).sum();
            z.iter_mut().for_each(|z| *z = case.scale * weight * (*z - lse).exp());
            for target in of_row {
                z[target.token as usize] -= case.scale * f64::from(target.weight);
            }
            z.iter_mut().for_each(|dz| *dz = q(*dz));
            scores
        })
        .collect();
    // By parts of the vocabulary, added in order.
    let dz = Mat::new(&z, rows.len(), vocab);
    let part = vocab.div_ceil(64).max(1);
    let parts: Vec<Vec<f64>> = (0..vocab.div_ceil(part))
        .into_par_iter()
        .map(|i| {
            let (first, last) = (i * part, vocab.min((i + 1) * part));
            let mut dx = vec![0.0; rows.len() * hidden];
            let of_dx = MatMut::new(&mut dx, rows.len(), hidden);
            par_gemm(
                of_dx,
                Write::Overwrite,
                1.0,
                dz.cols_range(first, last),
                weight.t().cols_range(first, last).t(),
            );
            dx
        })
        .collect();
    let mut dx = vec![0.0; rows.len() * hidden];
    for part in &parts {
        dx.iter_mut().zip(part).for_each(|(dx, part)| *dx += part);
    }
    dx.iter_mut().for_each(|dx| *dx = q(*dx));
    Outcome { scores: scores.concat(), dx }
}

/// The rows that are compared: all of a few, otherwise one of eight, in all places of a tile. A row goes through all tiles of the
/// vocabulary, in the logits and in the sums of dx; at 151,936 tokens about 20 of them have nearly all of a row's probability, so
/// 272 rows put weight on all parts of the vocabulary.
fn sample(case: &Case) -> Vec<usize> {
    match case.rows[1] {
        rows @ 0..=600 => (0..rows).collect(),
        rows => (0..rows.div_ceil(8)).map(|i| (8 * i + 3 * i % 8).min(rows - 1)).collect(),
    }
}

fn compare(case: &Case, device: &Device) {
    let name = format!("{:?} x {} x {} {:?}", case.rows, case.hidden_size, case.vocab_size, case.wanted);
    let (rows, hidden) = (sample(case), case.hidden_size);
    let (exact, reference) = (expected(case, &rows, false), expected(case, &rows, true));
    let got = run(case, device, true);
    let (live, beyond) = got.dx.split_at(case.rows[1] * hidden);
    assert!(beyond.iter().all(|&x| x == UNTOUCHED), "{name}: rows that are not there");
    assert!(live.iter().all(|&x| x.is_finite() && x != UNTOUCHED), "{name}: dx is not written everywhere");
    assert!(got.scores.iter().all(|score| score.logprob.is_finite()), "{name}: not every score is written");
    let targets = case.targets.iter().zip(&got.scores).filter(|(t, _)| rows.binary_search(&t.row).is_ok());
    let targets: Vec<_> = targets.collect();
    assert_eq!(targets.len(), exact.scores.len(), "{name}");
    // Rounded sums are off by 3.4e-6 and 2.1e-6 at most where there are 72 and 136 products. Tensor cores cut sums off, and logits
    // are normal with a standard deviation of 3, so that the largest of a row is about 15.
    let cut_off = cut_off(hidden, 15.0);
    let tolerance = cut_off.max(1e-5);
    let (mut loss, mut right, mut weights) = (0.0, 0.0, 0.0);
    for ((target, got), exact) in targets.iter().zip(&exact.scores) {
        let error = (got.logprob - exact.logprob).abs();
        assert!(error < tolerance, "{name} {target:?}: {got:?} {exact:?}, allowed {tolerance:e}");
        assert_eq!(got.is_argmax, exact.is_argmax, "{name} {target:?}");
        loss -= got.logprob * f64::from(target.weight);
        right -= exact.logprob * f64::from(target.weight);
        weights += f64::from(target.weight);
    }
    // The mean of the log-probabilities; targets have logits of any size.
    let of_loss = (1e-6 * right.abs()).max(0.5 * weights * cut_off);
    assert!((loss - right).abs() <= of_loss, "{name}: {loss} {right}, allowed {of_loss:e}");
    let of_rows: Vec<f64> = rows.iter().flat_map(|row| live[row * hidden..][..hidden].to_vec()).collect();
    assert_as_good(&format!("{name}: dx"), &of_rows, &exact.dx, &reference.dx, 2.0);
    // Without a gradient the same scores, bit by bit.
    let scores = run(case, device, false);
    assert!(scores.scores == got.scores, "{name}");
    assert!(scores.dx.iter().all(|&x| x == UNTOUCHED), "{name}");
}

#[test]
fn kernels_agree_with_f64_on_ragged_shapes_under_checks() {
    let tiles = [None, Some([64, 64]), Some([128, 128]), Some([128, 256]), Some([128, 256])];
    let mut number = 0;
    for rows in RAGGED_ROWS {
        for (vocab_size, hidden_size) in [(100, 72), (1000, 40)] {
            let mut case = Case::new([rows, rows], hidden_size, vocab_size);
            case.wanted.tile = tiles[number % tiles.len()];
            compare(&case, &kernel_device(number as u64));
            number += 1;
        }
    }
}

#[test]
fn chunks_parts_and_rows_that_are_not_there() {
    let wanted = |chunk, tile, splits| Wanted { chunk_rows: Some(chunk), tile: Some(tile), splits };
    for (rows, wanted) in [
        ([200, 200], wanted(64, [64, 64], Some(5))),
        ([200, 129], wanted(64, [64, 64], None)),
        ([200, 64], wanted(64, [64, 64], Some(1))),
        ([150, 1], wanted(128, [128, 128], Some(3))),
        ([150, 0], wanted(128, [128, 128], None)),
        ([150, 140], wanted(128, [128, 256], Some(3))),
    ] {
        let mut case = Case::new(rows, 136, 264);
        case.wanted = wanted;
        compare(&case, &kernel_device(5));
    }
}

#[test]
fn a_larger_vocabulary_and_no_targets() {
    compare(&Case::new([33, 20], 64, 4104), &kernel_device(1));
    let mut case = Case::new([20, 20], 16, 104);
    case.targets.clear();
    let got = run(&case, &kernel_device(2), true);
    assert!(got.scores.is_empty() && got.dx.iter().all(|&x| x == 0.0));
}

#[test]
fn logits_far_below_zero_do_not_spread_from_the_columns_that_pad_a_row() {
    let mut case = Case::new([20, 20], 16, 100);
    case.x.fill(1.0);
    for (token, weight) in case.weight.chunks_mut(16).enumerate() {
        weight.fill(0.0);
        // Beside e^-100 a logit of 0 is infinite in f32.
        weight[0] = -100.0 - (token % 50) as f64;
    }
    compare(&case, &kernel_device(4));
}

#[test]
fn tables_are_written_again_and_the_door_is_the_same() {
    let device = kernel_device(3);
    let case = Case::new([40, 40], 24, 104);
    let (x, weight) = (upload(&device, 40, &case.x), upload(&device, 104, &case.weight));
    let mut targets = Targets::with_capacity(&device, 40, 100).unwrap();
    for rows in [40, 7, 0] {
        let case = Case {
            rows: [40, rows],
            targets: Case::new([40, rows], 24, 104).targets,
            ..Case::new([40, 40], 24, 104)
        };
        targets.write(&device, &case.targets, rows, case.scale).unwrap();
        let mut dx = upload(&device, 40, &vec![UNTOUCHED; 40 * 24]);
        let scores = scored(&device, [&x, &weight], &targets, Some(&mut dx)).unwrap();
        let dx = device.read(&dx).unwrap().into_iter().map(bf16::to_f64).collect();
        assert_eq!(Outcome { scores: scores.read(&device).unwrap(), dx }, run(&case, &device, true));
    }
}

#[test]
fn logits_of_all_rows() {
    for (rows, vocab_size) in [(1, 304), (70, 304), (130, 304), (3, 9)] {
        let (case, device) = (Case::new([rows, rows], 40, vocab_size), kernel_device(4));
        let (x, weight) = (upload(&device, rows, &case.x), upload(&device, vocab_size, &case.weight));
        let z = logits(&device, &x, &weight).unwrap();
        let z: Vec<f64> = device.read(&z).unwrap().into_iter().map(bf16::to_f64).collect();
        let row = |x: &[f64]| case.weight.chunks(40).map(|w| inner(x, w)).collect::<Vec<_>>();
        let exact: Vec<f64> = case.x.chunks(40).flat_map(row).collect();
        assert_as_good("logits", &z, &exact, &rounded(&exact), 2.0);
    }
}

#[test]
fn gpu_repeats_have_the_same_bits() {
    let mut case = Case::new([70, 70], 72, 200);
    case.wanted = Wanted { chunk_rows: Some(64), tile: Some([64, 64]), splits: Some(3) };
    assert_repeats(30, |device| run(&case, device, true));
}

#[test]
fn launches_are_counted() {
    let device = Device::dry_gpu(crate::device::arch::Chip::RTX_3080);
    let (x, weight) = (device.empty::<bf16>(2176, 1024).unwrap(), device.empty(151_936, 1024).unwrap());
    let mut dx = device.empty(2176, 1024).unwrap();
    let targets = Targets::with_capacity(&device, 2176, 2176).unwrap();
    for (gradient, expected) in [(None, 10), (Some(&mut dx), 20)] {
        device.take_ledger();
        scored(&device, [&x, &weight], &targets, gradient).unwrap();
        let launches: u64 = device.take_ledger().launches().map(|(_, count)| count).sum();
        assert_eq!(launches, expected);
    }
}

/// Hidden size and vocabulary of Qwen3-0.6B over a whole batch, and wider models over fewer rows.
#[test]
fn real_shapes() {
    let real = [([2176, 2176], 1024, 151_936), ([300, 290], 4096, 40_000)];
    for (number, (rows, hidden_size, vocab_size)) in
        at_scale(real, [([70, 65], 1024, 700), ([33, 30], 256, 2056)]).into_iter().enumerate()
    {
        compare(&Case::new(rows, hidden_size, vocab_size), &kernel_device(6 + number as u64));
    }
    // Every element of the logits, so every tile of the vocabulary.
    let (rows, hidden_size, vocab_size) = at_scale((136, 1024, 151_936), (20, 256, 520));
    let (case, device) = (Case::new([rows, rows], hidden_size, vocab_size), kernel_device(8));
    let (x, weight) = (upload(&device, rows, &case.x), upload(&device, vocab_size, &case.weight));
    let z = logits(&device, &x, &weight).unwrap();
    let z: Vec<f64> = device.read(&z).unwrap().into_iter().map(bf16::to_f64).collect();
    let mut exact = vec![0.0; rows * vocab_size];
    let (x, weight) = (Mat::new(&case.x, rows, hidden_size), Mat::new(&case.weight, vocab_size, hidden_size));
    par_gemm(MatMut::new(&mut exact, rows, vocab_size), Write::Overwrite, 1.0, x, weight.t());
    assert_as_good("logits", &z, &exact, &rounded(&exact), 2.0);
}

/// Tests that only the emulator can run.
mod emulator {
    use super::*;
    use crate::device::EmulatorOptions;
    use crate::ops::testing::truncating_emulator;

    #[test]
    fn shared_memory_is_free_of_conflicts_and_sectors_are_used_in_full() {
        for tile in [[64, 64], [128, 128], [128, 256]] {
            let mut case = Case::new([256, 256], 128, 1024);
            case.wanted.tile = Some(tile);
            let device =
                Device::emulated(EmulatorOptions { stats: true, ..EmulatorOptions::default() }).unwrap();
            run(&case, &device, true);
            for (symbol, counters) in device.take_counters().kernels {
                assert_eq!(counters.worst_shared_ratio(), 1.0, "{symbol}: {counters:?}");
                // Rows of the tables take half a sector, and the sums of a row are a chunk apart; with rows
                // as long as those of models, both are negligible.
                let most = if symbol.contains("dx") || symbol.ends_with("reduce") { 1.05 } else { 1.3 };
                assert!(counters.total.sector_ratio() <= most, "{symbol}: {counters:?}");
            }
        }
    }

    #[test]
    fn sums_that_are_cut_off_stay_within_the_tolerances() {
        compare(&Case::new([40, 40], 1024, 600), &truncating_emulator());
        compare(&Case::new([70, 65], 72, 1000), &truncating_emulator());
    }
}
