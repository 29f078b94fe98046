//! The kernels against plain f64 products: ragged rows, ranks, several adapters, dropout, groups of layers.
//!
//! All elements of all results are compared, at the shapes of models too: a product of the `gemm` crate in f64 is fast enough.

#![cfg(feature = "emulated")]

use half::bf16;

use super::*;
use crate::batch::{AdapterRows, Batch};
use crate::ops::gemm::{Mat, MatMut, Write, par_gemm};
use crate::ops::lora_matmul::{Backward, Forward, LayerBackward, Lora, LoraGrad, RowKeys, backward, forward};
use crate::ops::testing::{
    RAGGED_ROWS, assert_as_good, assert_repeats, at_scale, drawn, kernel_device, rounded,
};
use crate::rng::{Purpose, Stream};

const SCALING: [f32; 3] = [0.5, 1.0, 0.25];

/// The operands, as f64 numbers that are exact in bf16.
struct Case {
    rows: usize,
    in_features: usize,
    out_features: Vec<usize>,
    /// Rank by adapter; 0 if it targets no layer.
    ranks: [usize; 3],
    runs: Vec<AdapterRows>,
    keys: RowKeys,
    p: f64,
    tile: Option<[usize; 2]>,
    x: Vec<f64>,
    layers: Vec<CaseLayer>,
}

struct CaseLayer {
    weight: Vec<f64>,
    bias: Vec<f64>,
    dy: Vec<f64>,
    /// `[r, in_features]` and `[r, out_features]` by adapter.
    factors: [(Vec<f64>, Vec<f64>); 3],
}

fn random(len: usize, size: f32, index: &mut u32) -> Vec<f64> {
    *index += 1;
    drawn(Stream::new(77, Purpose::ModelInit, *index), len, size)
}

impl Case {
    fn new(rows: usize, ranks: [usize; 3], p: f64, out_features: &[usize], tile: Option<[usize; 2]>) -> Self {
        let in_features = 136;
        let mut index = 0;
        // Adapter 1, a few rows without adapter, adapter 0, adapter 2.
        let cuts = [0, rows / 3, rows / 3 + rows / 8, rows - rows / 4, rows];
        let mut runs = Vec::new();
        for (adapter, cut) in [(1, 0), (0, 2), (2, 3)] {
            runs.push(AdapterRows { adapter, rows: cuts[cut]..cuts[cut + 1] });
        }
        let mut batch = Batch::default();
        batch.push_segment(&vec![0; rows.div_ceil(2)], None, 0);
        batch.push_segment(&vec![0; rows / 2], None, 0);
        let layer = |index: &mut u32, out: usize| CaseLayer {
            weight: random(out * in_features, 0.1, index),
            bias: random(out, 1.0, index),
            dy: random(rows * out, 1.0, index),
            factors: ranks.map(|r| {
                (random(r * in_features, 0.1, index), random(r * out, 0.5 / (r as f32).sqrt(), index))
            }),
        };
        Self {
            rows,
            in_features,
            out_features: out_features.to_vec(),
            ranks,
            runs,
            keys: RowKeys::new(&batch.segments),
            p,
            tile,
            x: random(rows * in_features, 1.0, &mut index),
            layers: out_features.iter().map(|&out| layer(&mut index, out)).collect(),
        }
    }

    /// The same case with other numbers, for `in_features` columns.
    fn widen_input(&mut self, in_features: usize) {
        self.in_features = in_features;
        let mut index = 1000;
        self.x = random(self.rows * in_features, 1.0, &mut index);
        for (layer, &out) in self.layers.iter_mut().zip(&self.out_features) {
            layer.weight = random(out * in_features, 0.1, &mut index);
            for ((a, _), r) in layer.factors.iter_mut().zip(self.ranks) {
                *a = random(r * in_features, 0.1, &mut index);
            }
        }
    }

    fn dropout(&self, layer: usize) -> Option<Dropout> {
        Dropout::new(self.p, 5, 9, layer as u32)
    }

    /// `values` with the mask of a layer applied.
    fn masked(&self, layer: usize, values: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; values.len()];
        match self.dropout(layer) {
            Some(dropout) => dropout.apply(self.keys.as_slice(), values, &mut out, Write::Overwrite),
            None => out.copy_from_slice(values),
        }
        out
    }
}

/// The results of both directions; lists go by layer.
#[derive(Debug, Clone, PartialEq, Default)]
struct Outcome {
    y: Vec<Vec<f64>>,
    xa: Vec<Vec<f64>>,
    dx: Vec<f64>,
    /// By layer and adapter.
    da: Vec<Vec<f64>>,
    db_t: Vec<Vec<f64>>,
}

fn times(a: Mat<'_, f64>, b: Mat<'_, f64>, [rows, cols]: [usize; 2]) -> Vec<f64> {
    let mut out = vec![0.0; rows * cols];
    par_gemm(MatMut::new(&mut out, rows, cols), Write::Overwrite, 1.0, a, b);
    out
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn scaled(a: &[f64], by: f32) -> Vec<f64> {
    a.iter().map(|a| a * f64::from(by)).collect()
}

/// The formulas in f64; with `round` each product and sum is rounded to bf16, as PEFT on PyTorch does it.
fn expected(case: &Case, round: bool) -> Outcome {
    let q = |values: Vec<f64>| if round { rounded(&values) } else { values };
    let (rows, cols) = (case.rows, case.in_features);
    let mut outcome = Outcome { dx: vec![0.0; rows * cols], ..Outcome::default() };
    let stride = case.ranks.iter().max().unwrap().next_multiple_of(plan::RANK_UNIT);
    for (l, (layer, &out)) in case.layers.iter().zip(&case.out_features).enumerate() {
        let weight = Mat::new(&layer.weight, out, cols);
        let dropped = q(case.masked(l, &case.x));
        let mut y = times(Mat::new(&case.x, rows, cols), weight.t(), [rows, out]);
        for row in y.chunks_mut(out) {
            row.iter_mut().zip(&layer.bias).for_each(|(y, b)| *y += b);
        }
        let mut y = q(y);
        let mut dx = q(times(Mat::new(&layer.dy, rows, out), weight, [rows, cols]));
        let mut xa_all = vec![0.0; rows * stride];
        let mut grads: [(Vec<f64>, Vec<f64>); 3] = Default::default();
        for run in &case.runs {
            let (r, n, scaling) = (case.ranks[run.adapter], run.rows.len(), SCALING[run.adapter]);
            let (a, b_t) = &layer.factors[run.adapter];
            let (a, b_t) = (Mat::new(a, r, cols), Mat::new(b_t, r, out));
            let of =
                |values: &[f64], width: usize| values[run.rows.start * width..run.rows.end * width].to_vec();
            let (x, dy) = (of(&dropped, cols), of(&layer.dy, out));
            let xa = q(times(Mat::new(&x, n, cols), a.t(), [n, r]));
            let lora = q(times(Mat::new(&xa, n, r), b_t, [n, out]));
            let place = run.rows.start * out..run.rows.end * out;
            let new = q(sum(&y[place.clone()], &q(scaled(&lora, scaling))));
            y[place].copy_from_slice(&new);
            let xa = scaled(&xa, scaling);
            for (row, xa) in run.rows.clone().zip(xa.chunks(r.max(1))) {
                xa_all[row * stride..row * stride + r].copy_from_slice(&xa[..r]);
            }
            let dxa = q(times(Mat::new(&q(scaled(&dy, scaling)), n, out), b_t.t(), [n, r]));
            // The mask belongs to the rows in their places.
            let mut part = vec![0.0; rows * cols];
            let place = run.rows.start * cols..run.rows.end * cols;
            part[place.clone()].copy_from_slice(&q(times(Mat::new(&dxa, n, r), a, [n, cols])));
            let part = q(case.masked(l, &part));
            let new = q(sum(&dx[place.clone()], &part[place.clone()]));
            dx[place].copy_from_slice(&new);
            grads[run.adapter] = (
                q(times(Mat::new(&dxa, n, r).t(), Mat::new(&x, n, cols), [r, cols])),
                q(times(Mat::new(&xa, n, r).t(), Mat::new(&dy, n, out), [r, out])),
            );
        }
        outcome.dx = q(sum(&outcome.dx, &dx));
        outcome.y.push(y);
        outcome.xa.push(xa_all);
        for (da, db_t) in grads {
            outcome.da.push(da);
            outcome.db_t.push(db_t);
        }
    }
    outcome
}

/// Runs the kernels; gradients start from 1, which is subtracted from the result.
fn run(case: &Case, device: &Device) -> Result<Outcome> {
    let number = |values: &[f64]| values.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<_>>();
    let upload = |values: &[f64], rows: usize| -> Result<Tensor<bf16>> {
        device.tensor(rows, values.len().checked_div(rows).unwrap_or(0), &number(values))
    };
    let ones = |rows: usize, cols: usize| device.tensor(rows, cols, &vec![1.0f32; rows * cols]);
    let keys = (case.p > 0.0).then_some(&case.keys);
    let rows = Rows::new(device, case.rows, &case.runs, keys)?;
    let (mut weights, mut factors, mut grads, mut dy) = (vec![], vec![], vec![], vec![]);
    let (mut tables, mut loras) = (vec![], vec![]);
    for (layer, &out) in case.layers.iter().zip(&case.out_features) {
        weights.push((upload(&layer.weight, out)?, upload(&layer.bias, 1)?));
        dy.push(upload(&layer.dy, case.rows)?);
        for ((a, b_t), r) in layer.factors.iter().zip(case.ranks) {
            factors.push((upload(a, r)?, upload(b_t, r)?));
            grads.push((ones(r, case.in_features)?, ones(r, out)?));
        }
    }
    for (l, &out) in case.out_features.iter().enumerate() {
        let (mut adapters, mut of_layer) = (vec![], vec![]);
        for (i, scaling) in SCALING.into_iter().enumerate() {
            let ((a, b), (da, db)) = (&factors[3 * l + i], &grads[3 * l + i]);
            let is_there = case.ranks[i] > 0;
            adapters.push(is_there.then_some(Factors {
                a,
                b_t: b,
                grads: Some(FactorGrads { a: da, b_t: db }),
                scaling,
            }));
            of_layer.push(is_there.then_some(Lora { a, b, scaling, dora: None }));
        }
        tables.push(LayerAdapters::new(device, [out, case.in_features], &adapters)?);
        loras.push(of_layer);
    }
    let keys: Vec<[u32; 2]> = (0..weights.len()).filter_map(|l| Some(case.dropout(l)?.key())).collect();
    let keys = dropout_keys(device, &keys)?;
    let layer = |l: usize| Layer {
        weight: &weights[l].0,
        bias: Some(&weights[l].1),
        loras: &loras[l],
        adapters: Some(&tables[l]),
        magnitudes: None,
        dropout: case.dropout(l).map(|d| d.with_key_at(DevicePtr(keys.ptr().0 + 8 * l as u64))),
    };
    let layers: Vec<Layer<'_, bf16>> = (0..weights.len()).map(layer).collect();
    let group = Group { tile: case.tile, ..Group::new(&layers, &rows) };
    let x = upload(&case.x, case.rows)?;
    let stride = group.xa_cols(0);
    let mut y: Vec<Tensor<bf16>> =
        case.out_features.iter().map(|&out| device.empty(case.rows, out).unwrap()).collect();
    let mut xa: Vec<Tensor<bf16>> =
        case.out_features.iter().map(|_| device.empty(case.rows, stride).unwrap()).collect();
    let outputs = y.iter_mut().zip(&mut xa).map(|(y, xa)| Forward { y, xa });
    forward(device, &group, &x, &mut outputs.collect::<Vec<_>>())?;
    let mut dx = device.empty(case.rows, case.in_features).unwrap();
    let mut views: Vec<_> = grads
        .iter_mut()
        .enumerate()
        .map(|(i, (a, b))| (case.ranks[i % 3] > 0).then_some(LoraGrad { a, b, magnitude: None }))
        .collect();
    let of_layers = views.chunks_mut(3).zip(&dy).zip(&xa);
    let mut of_layers: Vec<_> = of_layers.map(|((grads, dy), xa)| LayerBackward { dy, xa, grads }).collect();
    backward(device, &group, Backward { x: &x, dx: Some(&mut dx), layers: &mut of_layers })?;
    let read = |t: &Tensor<bf16>| -> Result<Vec<f64>> {
        Ok(device.read(t)?.into_iter().map(|x| x.to_f64()).collect())
    };
    let less_one = |t: &Tensor<f32>| -> Result<Vec<f64>> {
        Ok(device.read(t)?.into_iter().map(|x| f64::from(x) - 1.0).collect())
    };
    Ok(Outcome {
        y: y.iter().map(read).collect::<Result<_>>()?,
        xa: xa.iter().map(read).collect::<Result<_>>()?,
        dx: read(&dx)?,
        da: grads.iter().map(|grads| less_one(&grads.0)).collect::<Result<_>>()?,
        db_t: grads.iter().map(|grads| less_one(&grads.1)).collect::<Result<_>>()?,
    })
}

fn compare(case: &Case, device: &Device) {
    let name = format!(
        "rows {} ranks {:?} dropout {} out {:?} tile {:?}",
        case.rows, case.ranks, case.p, case.out_features, case.tile
    );
    let got = run(case, device).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (exact, reference) = (expected(case, false), expected(case, true));
    let each = |what: &str, got: &[Vec<f64>], exact: &[Vec<f64>], reference: &[Vec<f64>], k: f64| {
        assert_eq!(got.len(), exact.len(), "{name}");
        for (i, ((got, exact), reference)) in got.iter().zip(exact).zip(reference).enumerate() {
            assert_as_good(&format!("{name}: {what}[{i}]"), got, exact, reference, k);
        }
    };
    each("y", &got.y, &exact.y, &reference.y, 2.0);
    each("xa", &got.xa, &exact.xa, &reference.xa, 2.0);
    assert_as_good(&format!("{name}: dx"), &got.dx, &exact.dx, &reference.dx, 3.0);
    each("dA", &got.da, &exact.da, &reference.da, 3.0);
    each("dB", &got.db_t, &exact.db_t, &reference.db_t, 3.0);
}

#[test]
fn kernels_agree_with_f64_on_ragged_shapes_under_checks() {
    let groups: [&[usize]; 3] = [&[200], &[72, 64], &[136, 72, 64]];
    let tiles = [None, Some([128, 128]), Some([64, 64]), Some([128, 256])];
    let mut number = 0;
    for rows in RAGGED_ROWS {
        for rank in [1usize, 7, 16, 64] {
            for p in [0.0, 0.25] {
                let ranks = [rank, rank.div_ceil(2), 3];
                // Over the rows every tile meets every rank, with and without dropout.
                let tile = tiles[(number / 2 + number / 8) % 4];
                let case = Case::new(rows, ranks, p, groups[number % 3], tile);
                compare(&case, &kernel_device(number as u64));
                number += 1;
            }
        }
    }
}

/// Tiles of 256 columns have two stretches of the mask, and here the last tile ends in the middle of its second one.
#[test]
fn wide_tiles_have_the_masks_of_all_their_columns() {
    for (number, (rows, p)) in [(129, 0.25), (70, 0.6), (150, 0.0)].into_iter().enumerate() {
        let mut case = Case::new(rows, [16, 7, 33], p, &[72, 136], Some([128, 256]));
        case.widen_input(440);
        let device = kernel_device(40 + number as u64);
        compare(&case, &device);
        // Sums run along k in one order whatever the tile, so the bits are those of the others.
        let wide = run(&case, &device).unwrap();
        for tile in [[128, 128], [64, 64]] {
            case.tile = Some(tile);
            assert!(run(&case, &device).unwrap() == wide, "{rows} rows, dropout {p}, {tile:?}");
        }
    }
}

#[test]
fn adapters_may_be_missing_and_ranks_may_pass_a_block() {
    for (ranks, p) in [([0, 16, 0], 0.0), ([0, 0, 5], 0.3), ([100, 0, 33], 0.2), ([17, 130, 1], 0.0)] {
        compare(&Case::new(77, ranks, p, &[72, 136], None), &kernel_device(3));
    }
}

#[test]
fn gpu_repeats_have_the_same_bits() {
    let case = Case::new(150, [16, 7, 3], 0.25, &[136, 72], Some([64, 64]));
    assert_repeats(250, |device| run(&case, device).unwrap());
}

/// The layers of Qwen3-0.6B, 4B and 8B, each tile and rank once. Every output is NaN before, and every element is compared.
#[test]
fn real_shapes() {
    type Shape<'a> = (usize, usize, &'a [usize], [usize; 3], f64, Option<[usize; 2]>);
    let real: &[Shape<'_>] = &[
        (2176, 1024, &[2048, 1024, 1024], [16, 16, 16], 0.0, None),
        (2176, 1024, &[3072, 3072], [64, 64, 64], 0.05, None),
        (2176, 3072, &[1024], [64, 16, 0], 0.05, Some([128, 128])),
        (2176, 4096, &[4096], [16, 16, 16], 0.0, Some([128, 256])),
        (1999, 2560, &[4096, 1024], [16, 7, 3], 0.05, Some([64, 64])),
    ];
    let reduced: &[Shape<'_>] = &[
        (200, 256, &[264, 128, 128], [16, 16, 16], 0.0, None),
        (150, 384, &[136], [64, 16, 0], 0.05, Some([128, 256])),
    ];
    for (number, &(rows, in_features, out_features, ranks, p, tile)) in
        at_scale(real, reduced).iter().enumerate()
    {
        let mut case = Case::new(rows, ranks, p, out_features, tile);
        case.widen_input(in_features);
        compare(&case, &kernel_device(number as u64));
    }
}

/// Tests that only the emulator can run.
mod emulator {
    use super::*;
    use crate::device::EmulatorOptions;
    use crate::ops::testing::truncating_emulator;
    use crate::ops::tiles::Shape;

    /// Every kernel once, at features that are whole sectors.
    #[test]
    fn shared_memory_is_free_of_conflicts_and_sectors_are_used_in_full() {
        let mut seen = std::collections::BTreeSet::new();
        for (rank, p, tile) in [
            (16, 0.0, [128, 128]),
            (32, 0.0, [128, 256]),
            (64, 0.0, [64, 64]),
            (16, 0.25, [128, 128]),
            (32, 0.25, [64, 64]),
            (64, 0.25, [128, 128]),
            (16, 0.25, [128, 256]),
        ] {
            let mut case = Case::new(256, [rank; 3], p, &[256, 128], Some(tile));
            case.widen_input(256);
            let device =
                Device::emulated(EmulatorOptions { stats: true, ..EmulatorOptions::default() }).unwrap();
            run(&case, &device).unwrap();
            for (symbol, counters) in device.take_counters().kernels {
                let total = counters.total;
                assert_eq!(counters.worst_shared_ratio(), 1.0, "{symbol}: {counters:?}");
                assert!(total.sector_ratio() <= 1.05, "{symbol}: {counters:?}");
                seen.insert(symbol);
            }
        }
        let lora = |k: &&crate::device::kernels::Kernel| k.symbol().starts_with("lora_matmul");
        for kernel in crate::device::kernels::Kernel::ALL.iter().filter(lora) {
            assert!(seen.contains(kernel.symbol()), "{} was not measured", kernel.symbol());
        }
    }

    #[test]
    fn sums_that_are_cut_off_stay_within_the_tolerances() {
        let mut case = Case::new(129, [16, 7, 64], 0.25, &[72, 136], Some([64, 64]));
        case.widen_input(1024);
        compare(&case, &truncating_emulator());
    }

    /// The emulator's counters equal the counts of the plan, except for staging the result in shared memory.
    #[test]
    fn wavefronts_of_a_product_are_those_that_plans_count() {
        for (size, warps) in [([128, 128], [2, 4]), ([128, 256], [2, 4]), ([64, 64], [2, 2])] {
            let shape = Shape { size, warps };
            let counted = shape.wavefronts() as f64 / shape.mma() as f64;
            let mut case = Case::new(128, [32; 3], 0.0, &[256, 256], Some(size));
            case.widen_input(256);
            let device =
                Device::emulated(EmulatorOptions { stats: true, ..EmulatorOptions::default() }).unwrap();
            run(&case, &device).unwrap();
            let (kernels, name) = (device.take_counters().kernels, format!("{}x{}", size[0], size[1]));
            let of_tile: Vec<_> = kernels.iter().filter(|(symbol, _)| symbol.ends_with(&name)).collect();
            assert_eq!(of_tile.len(), 2, "fwd and dx: {kernels:?}");
            for (symbol, counters) in of_tile {
                let measured = counters.total.wavefronts as f64 / counters.total.mma as f64;
                assert!((counted..counted + 0.3).contains(&measured), "{symbol}: {measured} and {counted}");
            }
        }
    }
}
