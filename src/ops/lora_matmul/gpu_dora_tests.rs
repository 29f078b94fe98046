//! DoRA through the op: all steps on a GPU against the CPU in f64, in groups where some layers, and some adapters of a layer, have
//! magnitudes.

#![cfg(feature = "emulated")]

use half::bf16;

use super::gpu::dora::{Magnitude, Magnitudes};
use super::gpu::{FactorGrads, Factors, LayerAdapters, dropout_keys};
use super::*;
use crate::batch::{AdapterRows, Batch};
use crate::device::Machine;
use crate::device::kernels::DevicePtr;
use crate::ops::LiveRows;
use crate::ops::testing::{bf16_numbers, cpu, kernel_device, live_count, relative_rms};

const IN: usize = 72;
const OUT: [usize; 3] = [64, 136, 72];
const SCALING: [f64; 3] = [0.5, 1.0, 0.25];
/// By layer and adapter: the rank (0: the adapter does not target the layer), and whether there is a
/// magnitude.
const ADAPTERS: [[(usize, bool); 3]; 3] = [
    [(7, false), (4, false), (0, false)],
    [(7, true), (4, false), (16, true)],
    [(0, false), (4, true), (20, false)],
];
/// Content of rows beyond the live ones.
const UNTOUCHED: f64 = 77.0;

/// The first `live` rows of the capacity are live.
struct Case<'a> {
    room: usize,
    live: usize,
    p: f64,
    /// The layers of the group.
    layers: &'a [usize],
}

/// One adapter of a layer, with B in the layout of the device.
struct One<T: Real> {
    a: Tensor<T>,
    b: Tensor<T>,
    dora: Option<(Tensor<T>, Tensor<T::Stat>)>,
}

/// Gradients of [`One`].
struct OneGrad<T: Real> {
    a: Tensor<T::Stat>,
    b: Tensor<T::Stat>,
    magnitude: Option<Tensor<T::Stat>>,
}

/// By adapter.
type Each<X> = [Option<X>; 3];

/// The results, by name.
type Named = Vec<(String, Vec<f64>)>;

fn transposed(values: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|c| values.iter().skip(c).step_by(cols).copied()).collect()
}

fn tensor<T: Real>(device: &Device, rows: usize, cols: usize, values: &[f64]) -> Tensor<T> {
    let values: Vec<T> = values.iter().map(|&x| T::from_f64(x)).collect();
    device.tensor(rows, cols, &values).unwrap()
}

fn read<T: Real>(device: &Device, tensor: &Tensor<T>) -> Vec<f64> {
    device.read(tensor).unwrap().iter().map(|x| x.to_f64()).collect()
}

fn adapter<T: Real>(device: &Device, weight: &Tensor<T>, l: usize, i: usize) -> Option<One<T>> {
    let ((r, has_magnitude), out) = (ADAPTERS[l][i], OUT[l]);
    let number = (10 * l + i) as u32;
    let b_t = bf16_numbers(r * out, 0.3, 200 + number);
    let b = match device.machine() {
        Machine::Cpu => transposed(&b_t, out),
        Machine::Gpu => b_t,
    };
    let [rows, cols] = b_shape(device, out, r);
    let (a, b) =
        (tensor(device, r, IN, &bf16_numbers(r * IN, 0.1, 100 + number)), tensor(device, rows, cols, &b));
    let dora = has_magnitude.then(|| {
        let magnitude = bf16_numbers(out, 0.3, 300 + number).into_iter();
        let magnitude: Vec<f64> = magnitude.map(|m| bf16::from_f64(1.0 + m).to_f64()).collect();
        let mut norm = device.empty(1, out).unwrap();
        let merged = Merged { weight, a: &a, b: &b, scaling: Real::from_f64(SCALING[i]) };
        dora_norm(device, merged, &mut norm).unwrap();
        (tensor(device, 1, out, &magnitude), norm)
    });
    (r > 0).then_some(One { a, b, dora })
}

/// Outputs and gradients (that of B transposed) of the live rows. Gradients start from 1, which is subtracted
/// from the result.
fn run<T: Real>(device: &Device, case: &Case<'_>) -> Named {
    let on_gpu = device.machine() == Machine::Gpu;
    let (live, room) = (case.live, if on_gpu { case.room } else { case.live });
    let rows_of = |cols: usize, index: u32| -> Tensor<T> {
        let mut values = bf16_numbers(room * cols, 1.0, index);
        values[live * cols..].fill(f64::NAN);
        tensor(device, room, cols, &values)
    };
    let untouched = |cols: usize| -> Tensor<T> { tensor(device, room, cols, &vec![UNTOUCHED; room * cols]) };
    // Adapter 1, rows without adapter, adapter 0, adapter 2 and adapter 0 again.
    let cuts = [0, live / 4, live / 3, live / 2, live - live / 4, live];
    let run = |adapter, i: usize| AdapterRows { adapter, rows: cuts[i]..cuts[i + 1] };
    let runs = [run(1, 0), run(0, 2), run(2, 3), run(0, 4)];
    let mut batch = Batch::default();
    batch.push_segment(&vec![0; live.div_ceil(2)], None, 0);
    batch.push_segment(&vec![0; live / 2], None, 0);
    let keys = RowKeys::new(&batch.segments);
    let dropout = |l: usize| Dropout::new(case.p, 5, 9, l as u32);

    let (x, dy) =
        (rows_of(IN, 1), case.layers.iter().map(|&l| rows_of(OUT[l], 2 + l as u32)).collect::<Vec<_>>());
    let frozen = |&l: &usize| {
        let weight = tensor(device, OUT[l], IN, &bf16_numbers(OUT[l] * IN, 0.1, 10 + l as u32));
        (weight, tensor(device, 1, OUT[l], &bf16_numbers(OUT[l], 1.0, 20 + l as u32)))
    };
    let frozen: Vec<(Tensor<T>, Tensor<T>)> = case.layers.iter().map(frozen).collect();
    let of_layer =
        |(&l, (weight, _)): (&usize, &(Tensor<T>, _))| [0, 1, 2].map(|i| adapter(device, weight, l, i));
    let adapters: Vec<Each<One<T>>> = case.layers.iter().zip(&frozen).map(of_layer).collect();
    let ones = |[rows, cols]: [usize; 2]| tensor::<T::Stat>(device, rows, cols, &vec![1.0; rows * cols]);
    let grad = |one: &Option<One<T>>| {
        let grad = |One { a, b, dora }: &One<T>| OneGrad {
            a: ones(a.shape()),
            b: ones(b.shape()),
            magnitude: dora.as_ref().map(|(m, _)| ones(m.shape())),
        };
        one.as_ref().map(grad)
    };
    let mut grads: Vec<Each<OneGrad<T>>> =
        adapters.iter().map(|of_layer| of_layer.each_ref().map(grad)).collect();

    // The inputs of kernels.
    let count = on_gpu.then(|| live_count(device, live));
    let live_rows = count.as_ref().map_or(LiveRows::ALL, |count| LiveRows::at(count.ptr()));
    let words: Vec<[u32; 2]> = case.layers.iter().filter_map(|&l| Some(dropout(l)?.key())).collect();
    let key_table = (!words.is_empty()).then(|| dropout_keys(device, &words).unwrap());
    let mut rows = Rows::with_capacity(device, room, 4, case.p > 0.0).unwrap().counted(live_rows);
    rows.write(device, live, runs.to_vec(), (case.p > 0.0).then_some(keys)).unwrap();
    let tables = on_gpu.then(|| {
        let of_layer = |l: usize, ones: &Each<One<T>>, grads: &Each<OneGrad<T>>| {
            let (mut factors, mut magnitudes) = (Vec::new(), Vec::new());
            for (i, (one, grad)) in ones.iter().zip(grads).enumerate() {
                let both = one.as_ref().zip(grad.as_ref());
                factors.push(both.map(|(one, grad)| Factors {
                    a: &one.a,
                    b_t: &one.b,
                    grads: Some(FactorGrads { a: &grad.a, b_t: &grad.b }),
                    scaling: SCALING[i] as f32,
                }));
                magnitudes.push(both.and_then(|(one, grad)| {
                    let (magnitude, norm) = one.dora.as_ref()?;
                    Some(Magnitude { magnitude, norm, grad: grad.magnitude.as_ref() })
                }));
            }
            let adapters = LayerAdapters::new(device, [OUT[l], IN], &factors).unwrap();
            (adapters, Magnitudes::new(device, OUT[l], &magnitudes).unwrap())
        };
        let all = case.layers.iter().zip(&adapters).zip(&grads);
        all.map(|((l, ones), grads)| of_layer(*l, ones, grads)).collect::<Vec<_>>()
    });

    let loras: Vec<Vec<Option<Lora<'_, T>>>> = adapters
        .iter()
        .map(|of_layer| {
            let mut loras = Vec::new();
            for (one, scaling) in of_layer.iter().zip(SCALING) {
                loras.push(one.as_ref().map(|one| Lora {
                    a: &one.a,
                    b: &one.b,
                    scaling: Real::from_f64(scaling),
                    dora: one.dora.as_ref().map(|(magnitude, norm)| Dora { magnitude, norm }),
                }));
            }
            loras
        })
        .collect();
    let key = |at: usize| key_table.as_ref().map_or(DevicePtr(0), |t| DevicePtr(t.ptr().0 + 8 * at as u64));
    let layers: Vec<Layer<'_, T>> = (0..case.layers.len())
        .map(|at| Layer {
            weight: &frozen[at].0,
            bias: Some(&frozen[at].1),
            loras: &loras[at],
            adapters: tables.as_ref().map(|of_layers| &of_layers[at].0),
            magnitudes: tables.as_ref().map(|of_layers| &of_layers[at].1),
            dropout: dropout(case.layers[at]).map(|dropout| dropout.with_key_at(key(at))),
        })
        .collect();
    let group = Group::new(&layers, &rows);
    for (layer, &l) in layers.iter().zip(case.layers) {
        assert_eq!(layer.has_dora(), ADAPTERS[l].iter().any(|(_, has_magnitude)| *has_magnitude));
    }

    let mut xa: Vec<_> = (0..layers.len()).map(|i| untouched(group.xa_cols(i))).collect();
    let mut y: Vec<_> = case.layers.iter().map(|&l| untouched(OUT[l])).collect();
    let mut again: Vec<_> = case.layers.iter().map(|&l| untouched(OUT[l])).collect();
    let mut dx = untouched(IN);
    let outputs = y.iter_mut().zip(&mut xa).map(|(y, xa)| Forward { y, xa });
    forward(device, &group, &x, &mut outputs.collect::<Vec<_>>()).unwrap();
    let outputs = again.iter_mut().zip(&xa).map(|(y, xa)| Apply { y, xa });
    recompute(device, &group, &x, &mut outputs.collect::<Vec<_>>()).unwrap();
    let mut views: Vec<Vec<Option<LoraGrad<'_, T::Stat>>>> = Vec::new();
    for of_layer in &mut grads {
        let mut of_one = Vec::new();
        for grad in of_layer {
            of_one.push(grad.as_mut().map(|g| LoraGrad {
                a: &mut g.a,
                b: &mut g.b,
                magnitude: g.magnitude.as_mut(),
            }));
        }
        views.push(of_one);
    }
    let args = views.iter_mut().zip(&dy).zip(&xa).map(|((grads, dy), xa)| LayerBackward { dy, xa, grads });
    let args = Backward { x: &x, dx: Some(&mut dx), layers: &mut args.collect::<Vec<_>>() };
    backward(device, &group, args).unwrap();

    let there = |tensor: &Tensor<T>| {
        let mut values = read(device, tensor);
        assert!(
            values.split_off(live * tensor.cols()).iter().all(|&x| x == UNTOUCHED),
            "rows that are not there"
        );
        values
    };
    let mut named = vec![("dx".to_owned(), there(&dx))];
    for (i, (y, again)) in y.iter().zip(&again).enumerate() {
        named.push((format!("y[{i}]"), there(y)));
        assert_eq!(there(y), there(again), "recomputed");
    }
    let less_one = |t: &Tensor<T::Stat>| read(device, t).into_iter().map(|x| x - 1.0).collect::<Vec<_>>();
    for (l, of_layer) in grads.iter().enumerate() {
        for (i, grad) in of_layer.iter().enumerate() {
            let Some(grad) = grad else { continue };
            named.push((format!("dA[{l}, {i}]"), less_one(&grad.a)));
            let db = less_one(&grad.b);
            named.push((format!("dB[{l}, {i}]"), if on_gpu { db } else { transposed(&db, grad.b.cols()) }));
            named.extend(grad.magnitude.as_ref().map(|m| (format!("d magnitude[{l}, {i}]"), less_one(m))));
        }
    }
    named
}

#[test]
fn groups_with_dora_are_those_of_the_cpu() {
    let cases: [(usize, usize, f64, &[usize]); 8] = [
        (17, 17, 0.0, &[1]),
        (129, 127, 0.0, &[0, 1]),
        (300, 300, 0.0, &[0, 1, 2]),
        (150, 128, 0.0, &[2, 1]),
        (17, 1, 0.25, &[1]),
        (129, 129, 0.25, &[0, 1]),
        (300, 200, 0.5, &[0, 1, 2]),
        (64, 64, 0.25, &[1, 2]),
    ];
    for (number, (room, live, p, layers)) in cases.into_iter().enumerate() {
        let case = Case { room, live, p, layers };
        let (got, exact) = (run::<bf16>(&kernel_device(number as u64), &case), run::<f64>(&cpu(), &case));
        assert_eq!(got.len(), exact.len());
        for ((name, got), (_, exact)) in got.iter().zip(&exact) {
            let error = relative_rms(got, exact);
            // Roundings of z, g dy, x~ and of the results, 1.7e-3 each.
            let most = if name.starts_with("dA") || name.starts_with("dB") { 5e-3 } else { 4.5e-3 };
            assert!(
                error <= most,
                "{live} of {room} rows, dropout {p}, {layers:?}: {name} is off by {error:e}"
            );
        }
    }
}

#[test]
fn without_a_row_nothing_happens() {
    for p in [0.0, 0.25] {
        let none = run::<bf16>(&kernel_device(1), &Case { room: 20, live: 0, p, layers: &[0, 1, 2] });
        assert!(none.iter().all(|(_, values)| values.iter().all(|&x| x == 0.0)));
    }
}
