//! DoRA's kernels against f64: each alone, and whole layers in both directions against the CPU's op.

#![cfg(feature = "emulated")]

use half::bf16;

use super::*;
use crate::batch::{AdapterRows, Batch};
use crate::device::Machine;
use crate::ops::LiveRows;
use crate::ops::gemm::Write;
use crate::ops::lora_matmul::gpu::{FactorGrads, Factors, LayerAdapters, dropout_keys};
use crate::ops::lora_matmul::{
    Backward, Dora, Forward, Group, Layer, LayerBackward, Lora, LoraGrad, RowKeys, backward, dora_norm,
    forward,
};
use crate::ops::testing::{
    assert_as_good, assert_repeats, at_scale, cpu, drawn, kernel_device, live_count, relative_rms, rounded,
};
use crate::rng::{Purpose, Stream};

const SCALING: [f32; 3] = [0.5, 1.0, 0.25];
const RANKS: [usize; 3] = [7, 4, 16];
/// Adapter 1 has no magnitude.
const HAS_MAGNITUDE: [bool; 3] = [true, false, true];
const UNTOUCHED: f64 = 77.0;

/// One layer with three adapters, as f64 numbers that are exact in bf16. The first `live` rows of the
/// capacity are live.
struct Case {
    room: usize,
    live: usize,
    sizes: [usize; 2],
    p: f64,
    runs: Vec<AdapterRows>,
    keys: RowKeys,
    x: Vec<f64>,
    dy: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    a: [Vec<f64>; 3],
    b_t: [Vec<f64>; 3],
    magnitude: [Vec<f64>; 3],
}

fn random(len: usize, size: f32, index: u32) -> Vec<f64> {
    drawn(Stream::new(23, Purpose::ModelInit, index), len, size)
}

impl Case {
    fn new([room, live]: [usize; 2], [out, inputs]: [usize; 2], p: f64) -> Self {
        // Adapter 1, rows without adapter, adapter 0, adapter 2 and adapter 0 again.
        let cuts = [0, live / 4, live / 3, live / 2, live - live / 4, live];
        let run = |adapter, i: usize| AdapterRows { adapter, rows: cuts[i]..cuts[i + 1] };
        let mut batch = Batch::default();
        batch.push_segment(&vec![0; live.div_ceil(2)], None, 0);
        batch.push_segment(&vec![0; live / 2], None, 0);
        let each = |f: &dyn Fn(usize) -> Vec<f64>| [f(0), f(1), f(2)];
        Self {
            room,
            live,
            sizes: [out, inputs],
            p,
            runs: vec![run(1, 0), run(0, 2), run(2, 3), run(0, 4)],
            keys: RowKeys::new(&batch.segments),
            x: random(room * inputs, 1.0, 1),
            dy: random(room * out, 1.0, 2),
            weight: random(out * inputs, 0.1, 3),
            bias: random(out, 1.0, 4),
            a: each(&|i| random(RANKS[i] * inputs, 0.1, 10 + i as u32)),
            b_t: each(&|i| random(RANKS[i] * out, 0.3, 20 + i as u32)),
            magnitude: each(&|i| random(out, 0.3, 30 + i as u32).iter().map(|m| 1.0 + m).collect())
                .map(|m| rounded(&m)),
        }
    }

    fn dropout(&self) -> Option<Dropout> {
        Dropout::new(self.p, 5, 9, 3)
    }

    fn name(&self) -> String {
        format!("{} of {} rows, {:?}, dropout {}", self.live, self.room, self.sizes, self.p)
    }
}

/// y and dx of the live rows; then dA, dB transposed and d magnitude of all adapters.
#[derive(Debug, Clone, PartialEq, Default)]
struct Outcome {
    y: Vec<f64>,
    dx: Vec<f64>,
    da: Vec<f64>,
    db_t: Vec<f64>,
    magnitude: Vec<f64>,
}

fn tensor<T: Real>(device: &Device, rows: usize, values: &[f64]) -> Tensor<T> {
    let numbers: Vec<T> = values.iter().map(|&x| T::from_f64(x)).collect();
    device.tensor(rows, values.len().checked_div(rows).unwrap_or(0), &numbers).unwrap()
}

fn upload(device: &Device, rows: usize, values: &[f64]) -> Tensor<bf16> {
    tensor(device, rows, values)
}

fn read<T: Real>(device: &Device, tensor: &Tensor<T>) -> Vec<f64> {
    device.read(tensor).unwrap().into_iter().map(T::to_f64).collect()
}

/// The transpose of a matrix with `cols` columns.
fn transposed(values: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|c| values.iter().skip(c).step_by(cols).copied()).collect()
}

/// The op on a layer, both ways. Gradients start from 1, which is subtracted from the result.
fn run<T: Real>(case: &Case, device: &Device) -> Outcome {
    let ([out, inputs], on_gpu) = (case.sizes, device.machine() == Machine::Gpu);
    let room = if on_gpu { case.room } else { case.live };
    let count = live_count(device, case.live);
    let live = if on_gpu { LiveRows::at(count.ptr()) } else { LiveRows::ALL };
    let mut rows = Rows::with_capacity(device, room, 4, case.p > 0.0).unwrap().counted(live);
    rows.write(device, case.live, case.runs.clone(), (case.p > 0.0).then(|| case.keys.clone())).unwrap();
    let beyond = |values: &[f64], cols: usize| -> Tensor<T> {
        let mut values = values[..room * cols].to_vec();
        values[case.live * cols..].fill(f64::NAN);
        tensor(device, room, &values)
    };
    let (x, dy) = (beyond(&case.x, inputs), beyond(&case.dy, out));
    let (weight, bias) = (tensor(device, out, &case.weight), tensor(device, 1, &case.bias));
    let ones = |of: &Tensor<T>| -> Tensor<T::Stat> { tensor(device, of.rows(), &vec![1.0; of.len()]) };
    let (mut a, mut b, mut magnitudes, mut norms, mut grads) = (vec![], vec![], vec![], vec![], vec![]);
    for i in 0..3 {
        a.push(tensor(device, RANKS[i], &case.a[i]));
        b.push(match on_gpu {
            true => tensor(device, RANKS[i], &case.b_t[i]),
            false => tensor(device, out, &transposed(&case.b_t[i], out)),
        });
        magnitudes.push(tensor(device, 1, &case.magnitude[i]));
        let mut norm = device.empty(1, out).unwrap();
        let scaling = Real::from_f64(SCALING[i].into());
        dora_norm(device, Merged { weight: &weight, a: &a[i], b: &b[i], scaling }, &mut norm).unwrap();
        norms.push(norm);
        grads.push((ones(&a[i]), ones(&b[i]), ones(&magnitudes[i])));
    }
    let (mut loras, mut factors, mut gains) = (vec![], vec![], vec![]);
    for (i, (da, db, grad)) in grads.iter().enumerate() {
        let (a, b_t, norm, magnitude) = (&a[i], &b[i], &norms[i], &magnitudes[i]);
        let dora = HAS_MAGNITUDE[i].then_some(Dora { magnitude, norm });
        loras.push(Some(Lora { a, b: b_t, scaling: Real::from_f64(SCALING[i].into()), dora }));
        factors.push(Some(Factors {
            a,
            b_t,
            grads: Some(FactorGrads { a: da, b_t: db }),
            scaling: SCALING[i],
        }));
        gains.push(HAS_MAGNITUDE[i].then_some(Magnitude { magnitude, norm, grad: Some(grad) }));
    }
    let adapters = on_gpu.then(|| LayerAdapters::new(device, [out, inputs], &factors).unwrap());
    let gains = on_gpu.then(|| Magnitudes::new(device, out, &gains).unwrap());
    let key =
        on_gpu.then(|| dropout_keys(device, &case.dropout().map_or(vec![], |d| vec![d.key()])).unwrap());
    let layers = [Layer {
        weight: &weight,
        bias: Some(&bias),
        loras: &loras,
        adapters: adapters.as_ref(),
        magnitudes: gains.as_ref(),
        dropout: case.dropout().map(|d| d.with_key_at(key.as_ref().map_or(DevicePtr(0), Table::ptr))),
    }];
    let group = Group::new(&layers, &rows);
    let wide = |cols: usize| -> Tensor<T> { tensor(device, room, &vec![UNTOUCHED; room * cols]) };
    let (mut y, mut xa, mut dx) = (wide(out), wide(group.xa_cols(0)), wide(inputs));
    forward(device, &group, &x, &mut [Forward { y: &mut y, xa: &mut xa }]).unwrap();
    let views = grads.iter_mut().map(|(a, b, m)| Some(LoraGrad { a, b, magnitude: Some(m) }));
    let mut views: Vec<_> = views.collect();
    let of_layer = LayerBackward { dy: &dy, xa: &xa, grads: &mut views };
    backward(device, &group, Backward { x: &x, dx: Some(&mut dx), layers: &mut [of_layer] }).unwrap();

    let first = |tensor: &Tensor<T>| {
        let mut values = read(device, tensor);
        let beyond = values.split_off(case.live * tensor.cols());
        assert!(beyond.iter().all(|&x| x == UNTOUCHED), "{}: rows that are not there", case.name());
        values
    };
    let less_one = |tensor: &Tensor<T::Stat>| -> Vec<f64> {
        read(device, tensor).into_iter().map(|x| x - 1.0).collect()
    };
    let db_t = |db: &Tensor<T::Stat>| match on_gpu {
        true => less_one(db),
        false => transposed(&less_one(db), db.cols()),
    };
    Outcome {
        y: first(&y),
        dx: first(&dx),
        da: grads.iter().flat_map(|g| less_one(&g.0)).collect(),
        db_t: grads.iter().flat_map(|g| db_t(&g.1)).collect(),
        magnitude: grads.iter().flat_map(|g| less_one(&g.2)).collect(),
    }
}

fn compare(case: &Case, device: &Device) {
    let (got, exact) = (run::<bf16>(case, device), run::<f64>(case, &cpu()));
    // Roundings of z, g dy, x~ and of the results, 1.7e-3 each.
    for (what, got, exact, most) in [
        ("y", &got.y, &exact.y, 4e-3),
        ("dx", &got.dx, &exact.dx, 4e-3),
        ("dA", &got.da, &exact.da, 5e-3),
        ("dB", &got.db_t, &exact.db_t, 5e-3),
        ("d magnitude", &got.magnitude, &exact.magnitude, 4e-3),
    ] {
        let error = relative_rms(got, exact);
        assert!(error <= most, "{}: {what} is off by {error:e}", case.name());
    }
}

#[test]
fn whole_layers_are_those_of_the_cpu() {
    let cases = [
        ([17, 17], [72, 136], 0.0),
        ([129, 128], [264, 72], 0.0),
        ([300, 127], [72, 264], 0.25),
        ([130, 129], [136, 136], 0.5),
        ([300, 300], [72, 72], 0.25),
        ([8, 1], [8, 8], 0.25),
    ];
    for (number, (rows, sizes, p)) in cases.into_iter().enumerate() {
        compare(&Case::new(rows, sizes, p), &kernel_device(number as u64));
    }
    // Without a row nothing happens.
    let none = run::<bf16>(&Case::new([9, 0], [16, 24], 0.25), &kernel_device(0));
    assert!(none.y.is_empty() && none.da.iter().chain(&none.magnitude).all(|&g| g == 0.0));
}

#[test]
fn norms_are_those_of_the_merged_weight() {
    for (out, inputs) in [(8, 8), (72, 264), (136, 1000)] {
        let (case, device, host) = (Case::new([1, 1], [out, inputs], 0.0), kernel_device(3), cpu());
        for i in 0..3 {
            let (weight, mut c) = (upload(&device, out, &case.weight), device.empty(1, out).unwrap());
            let (a, b_t) = (upload(&device, RANKS[i], &case.a[i]), upload(&device, RANKS[i], &case.b_t[i]));
            let merged = Merged { weight: &weight, a: &a, b: &b_t, scaling: SCALING[i] };
            norm(&device, merged, &mut c).unwrap();
            let weight = host.tensor(out, inputs, &case.weight).unwrap();
            let a = host.tensor(RANKS[i], inputs, &case.a[i]).unwrap();
            let b = host.tensor(out, RANKS[i], &transposed(&case.b_t[i], out)).unwrap();
            let mut exact = host.empty(1, out).unwrap();
            let merged = Merged { weight: &weight, a: &a, b: &b, scaling: f64::from(SCALING[i]) };
            dora_norm(&host, merged, &mut exact).unwrap();
            for (got, exact) in device.read(&c).unwrap().iter().zip(exact.data()) {
                assert!((f64::from(*got) / exact - 1.0).abs() < 1e-6, "{got} {exact}");
            }
        }
    }
}

#[test]
fn scaled_columns_are_rounded_once() {
    let (rows, columns) = (57, 1048);
    let (case, device) = (Case::new([rows, rows], [columns, 8], 0.0), kernel_device(4));
    let of_rows = Rows::new(&device, rows, &case.runs, None).unwrap();
    let norms: Vec<f32> = (0..columns).map(|j| 1.5 + j as f32 / 512.0).collect();
    let norm = device.tensor(1, columns, &norms).unwrap();
    let magnitudes = case.magnitude.clone().map(|m| upload(&device, 1, &m));
    let of_adapter = |i: usize| {
        HAS_MAGNITUDE[i].then_some(Magnitude { magnitude: &magnitudes[i], norm: &norm, grad: None })
    };
    let gains = Magnitudes::new(&device, columns, &[of_adapter(0), of_adapter(1), of_adapter(2)]).unwrap();
    let addend = random(rows * columns, 1.0, 50);
    let (dy, bias) = (upload(&device, rows, &case.dy), upload(&device, 1, &case.bias));
    for (gain, less, has_more) in [(Gain::Whole, 0.0, true), (Gain::LessOne, 1.0, false)] {
        // In place of the addend, or of the input.
        let mut out = upload(&device, rows, if has_more { &addend } else { &case.dy });
        let other = upload(&device, rows, &addend);
        let args = Scale {
            magnitudes: &gains,
            input: has_more.then_some(&dy),
            gain,
            addend: has_more.then_some(&other),
            bias: has_more.then_some(&bias),
        };
        scale(&device, &of_rows, args, &mut out).unwrap();
        let exact: Vec<f64> = (0..rows * columns)
            .map(|at| {
                let (row, j) = (at / columns, at % columns);
                let adapter = case.runs.iter().find(|r| r.rows.contains(&row)).map(|r| r.adapter);
                let with = adapter.filter(|&i| HAS_MAGNITUDE[i]);
                let g = with.map_or(1.0, |i| case.magnitude[i][j] / f64::from(norms[j]));
                (g - less) * case.dy[at] + if has_more { addend[at] + case.bias[j] } else { 0.0 }
            })
            .collect();
        assert_as_good("scale", &read(&device, &out), &exact, &rounded(&exact), 1.0);
    }
}

#[test]
fn dropout_and_what_it_takes_away_make_the_input() {
    for (rows, columns, p) in [(5, 8, 0.3), (33, 264, 0.5), (130, 128, 0.1)] {
        let (case, device) = (Case::new([rows, rows], [8, columns], p), kernel_device(5));
        let of_rows = Rows::new(&device, rows, &case.runs, Some(&case.keys)).unwrap();
        let mask = case.dropout().unwrap();
        let key = dropout_keys(&device, &[mask.key()]).unwrap();
        let x = upload(&device, rows, &case.x);
        let (mut out, mut rest) =
            (device.empty(rows, columns).unwrap(), device.empty(rows, columns).unwrap());
        let mask = mask.with_key_at(key.ptr());
        let args = Dropped { mask, out: Some(&mut out), rest: Some(&mut rest), addend: None };
        dropout(&device, &of_rows, Some(&x), args).unwrap();
        let mut exact = vec![0.0; rows * columns];
        mask.apply(case.keys.as_slice(), &case.x, &mut exact, Write::Overwrite);
        let (out, rest) = (read(&device, &out), read(&device, &rest));
        assert_as_good("dropout", &out, &exact, &rounded(&exact), 1.0);
        assert!(out.iter().zip(&exact).all(|(got, exact)| (*got == 0.0) == (*exact == 0.0)), "{rows} {p}");
        assert!(out.iter().zip(&rest).zip(&case.x).all(|((out, rest), x)| out + rest == *x), "{rows} {p}");
    }
}

#[test]
fn gpu_repeats_have_the_same_bits() {
    let case = Case::new([150, 140], [72, 72], 0.25);
    assert_repeats(30, |device| run::<bf16>(&case, device));
}

/// The gate of Qwen3-0.6B and of Qwen3-4B; rows beyond the live ones contain NaN in inputs and 77 in outputs.
#[test]
fn real_shapes() {
    let real = [([2200, 2176], [3072, 1024], 0.0), ([2176, 2100], [9728, 2560], 0.05)];
    let reduced = [([150, 140], [264, 136], 0.0), ([140, 133], [136, 264], 0.05)];
    for (rows, sizes, p) in at_scale(real, reduced) {
        compare(&Case::new(rows, sizes, p), &kernel_device(6));
    }
}

/// Tests that only the emulator can run.
mod emulator {
    use super::*;
    use crate::device::EmulatorOptions;
    use crate::ops::testing::truncating_emulator;

    #[test]
    fn shared_memory_is_free_of_conflicts_and_sectors_are_used_in_full() {
        let device = Device::emulated(EmulatorOptions { stats: true, ..EmulatorOptions::default() }).unwrap();
        run::<bf16>(&Case::new([512, 512], [256, 256], 0.25), &device);
        let mut seen = 0;
        for (symbol, counters) in device.take_counters().kernels {
            if !symbol.starts_with("dora") && !symbol.starts_with("dropout") {
                continue;
            }
            seen += 1;
            assert_eq!(counters.worst_shared_ratio(), 1.0, "{symbol}: {counters:?}");
            // A warp of the norms reads 8 bytes of B transposed, a quarter of a sector, and the neighbours find the rest in the cache;
            // gains and keys are read once for many numbers.
            let most = if symbol == "dora_norm" { 1.3 } else { 1.15 };
            assert!(counters.total.sector_ratio() <= most, "{symbol}: {counters:?}");
        }
        assert_eq!(seen, 5);
    }

    #[test]
    fn sums_that_are_cut_off_stay_within_the_tolerances() {
        compare(&Case::new([150, 130], [136, 1024], 0.25), &truncating_emulator());
    }
}
