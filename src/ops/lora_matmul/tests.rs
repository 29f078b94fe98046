//! LoRA linear against its formula and against central differences: ranks, ragged rows, several adapters, dropout, DoRA.

use super::group::LayerRows;
use super::*;
use crate::batch::{AdapterRows, Batch};
use crate::ops::testing::{cast, check_gradient, cpu, inner, random, relative_rms};

const IN: usize = 19;
const OUT: usize = 23;

/// A group of one layer.
fn forward_one<T: Real>(
    device: &Device,
    one: &LayerRows<'_, T>,
    x: &Tensor<T>,
    y: &mut Tensor<T>,
    xa: &mut Tensor<T>,
) -> Result<()> {
    let layers = [*one.layer];
    forward(device, &Group::new(&layers, one.rows), x, &mut [Forward { y, xa }])
}

/// Tensors of one adapter; rank 0 stands for "no adapter".
struct Adapter {
    a: Tensor<f64>,
    b: Tensor<f64>,
    magnitude: Option<Tensor<f64>>,
}

/// A layer with adapters of the given ranks on 4 + 3 + 4 rows (adapters 0, 2, 1 in this order).
struct Case {
    device: Device,
    weight: Tensor<f64>,
    bias: Tensor<f64>,
    adapters: Vec<Option<Adapter>>,
    rows: Vec<AdapterRows>,
    keys: RowKeys,
    p: f64,
    x: Tensor<f64>,
    dy: Tensor<f64>,
}

fn case(ranks: [usize; 3], dora: bool, p: f64) -> Case {
    let device = cpu();
    let mut batch = Batch::default();
    for (len, adapter) in [(4, 0), (3, 2), (4, 1)] {
        batch.push_segment(&vec![0; len], None, adapter);
    }
    let adapter = |i: usize, r: usize| Adapter {
        a: random(&device, r, IN, 10 + i as u32),
        b: random(&device, OUT, r, 20 + i as u32),
        magnitude: dora.then(|| random(&device, 1, OUT, 30 + i as u32)),
    };
    Case {
        weight: random(&device, OUT, IN, 0),
        bias: random(&device, 1, OUT, 1),
        adapters: ranks.iter().enumerate().map(|(i, &r)| (r > 0).then(|| adapter(i, r))).collect(),
        rows: batch.adapter_rows(),
        keys: RowKeys::new(&batch.segments),
        p,
        x: random(&device, 11, IN, 2),
        dy: random(&device, 11, OUT, 3),
        device,
    }
}

impl Case {
    /// Norms of the DoRA adapters, as constants.
    fn norms(&self) -> Vec<Option<Tensor<f64>>> {
        let norm = |l: &Adapter| {
            let mut norm = self.device.empty(1, OUT).unwrap();
            let merged = Merged { weight: &self.weight, a: &l.a, b: &l.b, scaling: 0.7 };
            dora_norm(&self.device, merged, &mut norm).unwrap();
            norm
        };
        self.adapters.iter().map(|l| l.as_ref().filter(|l| l.magnitude.is_some()).map(norm)).collect()
    }

    fn with_layer<R>(&self, norms: &[Option<Tensor<f64>>], f: impl FnOnce(&LayerRows<'_, f64>) -> R) -> R {
        let loras: Vec<Option<Lora<'_, f64>>> = self
            .adapters
            .iter()
            .zip(norms)
            .map(|(l, norm)| {
                l.as_ref().map(|l| Lora {
                    a: &l.a,
                    b: &l.b,
                    scaling: 0.7,
                    dora: l
                        .magnitude
                        .as_ref()
                        .zip(norm.as_ref())
                        .map(|(magnitude, norm)| Dora { magnitude, norm }),
                })
            })
            .collect();
        let layer = Layer {
            weight: &self.weight,
            bias: Some(&self.bias),
            loras: &loras,
            adapters: None,
            magnitudes: None,
            dropout: Dropout::new(self.p, 1, 2, 3),
        };
        let rows = self.rows_of(&self.rows).unwrap();
        f(&LayerRows { layer: &layer, rows: &rows })
    }

    fn rows_of(&self, runs: &[AdapterRows]) -> Result<Rows> {
        Rows::new(&self.device, self.x.rows(), runs, Some(&self.keys))
    }

    fn forward(&self, norms: &[Option<Tensor<f64>>]) -> (Tensor<f64>, Tensor<f64>) {
        self.with_layer(norms, |one| {
            let mut y = self.device.empty(self.x.rows(), OUT).unwrap();
            let mut xa = self.device.empty(self.x.rows(), one.layer.max_rank()).unwrap();
            forward_one(&self.device, one, &self.x, &mut y, &mut xa).unwrap();
            (y, xa)
        })
    }

    /// `dx`, and `(dA, dB, d magnitude)` per adapter; gradients start from zero.
    fn backward(&self, norms: &[Option<Tensor<f64>>]) -> (Tensor<f64>, Vec<Option<Adapter>>) {
        let mut grads = zero_grads(self);
        let xa = self.forward(norms).1;
        let mut dx = self.device.empty(self.x.rows(), IN).unwrap();
        self.with_layer(norms, |one| {
            let mut views: Vec<_> = grads.iter_mut().map(view).collect();
            let (layers, dx) = ([*one.layer], Some(&mut dx));
            let of_layer = LayerBackward { dy: &self.dy, xa: &xa, grads: &mut views };
            let args = Backward { x: &self.x, dx, layers: &mut [of_layer] };
            backward(&self.device, &Group::new(&layers, one.rows), args).unwrap();
        });
        (dx, grads)
    }

    fn loss(&self, norms: &[Option<Tensor<f64>>]) -> f64 {
        inner(self.forward(norms).0.data(), self.dy.data())
    }
}

#[test]
fn forward_follows_the_formula() {
    for dora in [false, true] {
        let case = case([4, 0, 1], dora, 0.0);
        let norms = case.norms();
        let (y, _) = case.forward(&norms);
        for run in &case.rows {
            for t in run.rows.clone() {
                for j in 0..OUT {
                    let mut merged = case.weight.row(j).to_vec();
                    let mut gain = 1.0;
                    if let Some(l) = &case.adapters[run.adapter] {
                        for (i, w) in merged.iter_mut().enumerate() {
                            *w += 0.7 * (0..l.a.rows()).map(|k| l.b.row(j)[k] * l.a.row(k)[i]).sum::<f64>();
                        }
                        if let Some(m) = &l.magnitude {
                            gain = m.data()[j] / merged.iter().map(|w| w * w).sum::<f64>().sqrt();
                        }
                    }
                    let expected = gain * inner(&merged, case.x.row(t)) + case.bias.data()[j];
                    assert!((y.row(t)[j] - expected).abs() < 1e-10, "{dora} {t} {j}");
                }
            }
        }
    }
}

#[test]
fn backward_is_the_gradient_with_three_adapters_dropout_and_dora() {
    /// Part 0 is A, 1 is B, 2 the magnitude.
    fn part(adapter: &mut Adapter, which: usize) -> Option<&mut Tensor<f64>> {
        match which {
            0 => Some(&mut adapter.a),
            1 => Some(&mut adapter.b),
            _ => adapter.magnitude.as_mut(),
        }
    }
    for (ranks, dora, p) in
        [([4, 2, 3], false, 0.0), ([4, 0, 3], false, 0.4), ([1, 2, 0], true, 0.0), ([4, 2, 3], true, 0.4)]
    {
        let mut case = case(ranks, dora, p);
        // PEFT treats the norm as a constant: it is computed once, before the differences.
        let norms = case.norms();
        let (dx, mut grads) = case.backward(&norms);
        let device = case.device.clone();
        let at = cast(&device, &case.x);
        let cell = std::cell::RefCell::new(&mut case);
        check_gradient(&device, "x", &at, dx.data(), |x| {
            cell.borrow_mut().x = cast(&device, x);
            cell.borrow().loss(&norms)
        });
        cell.borrow_mut().x = at;
        for (i, which) in (0..9).map(|n| (n / 3, n % 3)) {
            let Some(grad) = grads[i].as_mut().and_then(|g| part(g, which)) else { continue };
            // Replaces a tensor and returns the previous one.
            let set = |to: &Tensor<f64>| {
                let mut case = cell.borrow_mut();
                let tensor = case.adapters[i].as_mut().and_then(|a| part(a, which)).unwrap();
                std::mem::replace(tensor, cast(&device, to))
            };
            let at = set(grad);
            check_gradient(&device, ["a", "b", "magnitude"][which], &at, grad.data(), |moved| {
                set(moved);
                cell.borrow().loss(&norms)
            });
            set(&at);
        }
    }
}

#[test]
fn adapters_in_one_batch_equal_adapters_one_by_one() {
    let case = case([4, 2, 3], false, 0.3);
    let norms = case.norms();
    let (y, _) = case.forward(&norms);
    let (dx, grads) = case.backward(&norms);
    for run in &case.rows {
        let only = std::slice::from_ref(run);
        let (mut y1, mut dx1) = (case.device.empty(11, OUT).unwrap(), case.device.empty(11, IN).unwrap());
        let zeros = |t: &Tensor<f64>| case.device.zeros(t.rows(), t.cols()).unwrap();
        let adapter = case.adapters[run.adapter].as_ref().unwrap();
        let (mut da, mut db) = (zeros(&adapter.a), zeros(&adapter.b));
        let rows = &case.rows_of(only).unwrap();
        case.with_layer(&norms, |&LayerRows { layer, .. }| {
            let mut xa = case.device.empty(11, layer.max_rank()).unwrap();
            let one = LayerRows { layer, rows };
            forward_one(&case.device, &one, &case.x, &mut y1, &mut xa).unwrap();
            let mut views: Vec<_> = (0..3).map(|_| None).collect();
            views[run.adapter] = Some(LoraGrad { a: &mut da, b: &mut db, magnitude: None });
            let loras: Vec<_> = (0..3).map(|i| layer.loras[i].filter(|_| i == run.adapter)).collect();
            let layer = Layer { loras: &loras, ..*layer };
            let mut xa = case.device.empty(11, layer.max_rank()).unwrap();
            let one = LayerRows { layer: &layer, rows };
            forward_one(&case.device, &one, &case.x, &mut y1, &mut xa).unwrap();
            let of_layer = LayerBackward { dy: &case.dy, xa: &xa, grads: &mut views };
            let args = Backward { x: &case.x, dx: Some(&mut dx1), layers: &mut [of_layer] };
            backward(&case.device, &Group::new(&[layer], rows), args).unwrap();
        });
        for t in run.rows.clone() {
            assert_eq!(y.row(t), y1.row(t));
            assert_eq!(dx.row(t), dx1.row(t));
        }
        let grad = grads[run.adapter].as_ref().unwrap();
        assert_eq!(grad.a.data(), da.data());
        assert_eq!(grad.b.data(), db.data());
    }
}

#[test]
fn f32_stays_near_f64() {
    let device = cpu();
    let (x, w) = (random::<f32>(&device, 65, 2048, 0), random::<f32>(&device, 300, 2048, 1));
    let (a, b) = (random::<f32>(&device, 16, 2048, 2), random::<f32>(&device, 300, 16, 3));
    fn run<T: Real>(
        device: &Device,
        x: &Tensor<T>,
        w: &Tensor<T>,
        a: &Tensor<T>,
        b: &Tensor<T>,
    ) -> Tensor<T> {
        let (mut y, mut xa) = (device.empty(65, 300).unwrap(), device.empty(65, 16).unwrap());
        let loras = [Some(Lora { a, b, scaling: T::Stat::from_f64(0.5), dora: None })];
        let layer =
            Layer { weight: w, bias: None, loras: &loras, adapters: None, magnitudes: None, dropout: None };
        let rows = Rows::new(device, 65, &[AdapterRows { adapter: 0, rows: 0..65 }], None).unwrap();
        let one = LayerRows { layer: &layer, rows: &rows };
        forward_one(device, &one, x, &mut y, &mut xa).unwrap();
        y
    }
    let y = run(&device, &x, &w, &a, &b);
    let up = |t: &Tensor<f32>| cast::<f32, f64>(&device, t);
    let error = relative_rms(y.data(), run(&device, &up(&x), &up(&w), &up(&a), &up(&b)).data());
    assert!(error < 2e-6, "{error:e}");
}

#[test]
fn wrong_ranks_and_rows_are_refused() {
    let case = case([4, 2, 3], false, 0.0);
    case.with_layer(&case.norms(), |one| {
        let mut y = case.device.empty(11, OUT).unwrap();
        let mut narrow = case.device.empty(11, 3).unwrap();
        assert!(forward_one(&case.device, one, &case.x, &mut y, &mut narrow).is_err());
        let mut xa = case.device.empty(11, 4).unwrap();
        let unknown = case.rows_of(&[AdapterRows { adapter: 3, rows: 0..11 }]).unwrap();
        let one = LayerRows { rows: &unknown, ..*one };
        let error = forward_one(&case.device, &one, &case.x, &mut y, &mut xa).unwrap_err().to_string();
        assert!(error.contains("argument \"adapter\": got 3, expected \"below 3\""), "{error}");
    });
    assert!(case.rows_of(&[AdapterRows { adapter: 0, rows: 0..12 }]).is_err());
    let run = |rows| AdapterRows { adapter: 0, rows };
    assert!(case.rows_of(&[run(4..6), run(5..7)]).is_err());
    let few = RowKeys::new(&[]);
    assert!(Rows::new(&case.device, 11, &[run(0..11)], Some(&few)).is_err());
}

#[test]
fn dropout_needs_keys_and_is_on_all_layers_of_a_group() {
    let case = case([4, 2, 3], false, 0.5);
    let without_keys = Rows::new(&case.device, 11, &case.rows, None).unwrap();
    case.with_layer(&case.norms(), |one| {
        let error = |layers: &[Layer<'_, f64>], rows: &Rows| {
            let group = Group::new(layers, rows);
            let tensors = |cols: usize| -> Vec<_> {
                layers.iter().map(|_| case.device.empty(11, cols).unwrap()).collect()
            };
            let (mut y, mut xa) = (tensors(OUT), tensors(4));
            let outputs = y.iter_mut().zip(&mut xa).map(|(y, xa)| Forward { y, xa });
            forward(&case.device, &group, &case.x, &mut outputs.collect::<Vec<_>>()).unwrap_err().to_string()
        };
        assert!(error(&[*one.layer], &without_keys).contains("keys of rows"));
        let plain = Layer { dropout: None, ..*one.layer };
        assert!(error(&[*one.layer, plain], one.rows).contains("on all layers or none"));
    });
}

#[test]
fn a_group_is_its_layers_one_after_the_other() {
    for (dora, p) in [(false, 0.0), (false, 0.4), (true, 0.4)] {
        let (first, mut second) = (case([4, 0, 1], dora, p), case([2, 3, 1], dora, p));
        let device = &first.device;
        second.weight = random(device, OUT, IN, 40);
        second.dy = random(device, 11, OUT, 41);
        let (norms, other_norms) = (first.norms(), second.norms());
        let alone = [first.forward(&norms), second.forward(&other_norms)];
        let [(dx, grads), (other_dx, other_grads)] = [first.backward(&norms), second.backward(&other_norms)];
        first.with_layer(&norms, |one| {
            second.with_layer(&other_norms, |two| {
                let layers = [*one.layer, *two.layer];
                let group = Group::new(&layers, one.rows);
                let outputs = || {
                    layers
                        .each_ref()
                        .map(|l| (device.empty(11, OUT).unwrap(), device.empty(11, l.max_rank()).unwrap()))
                };
                let (mut got, mut again) = (outputs(), outputs());
                let mut args = got.each_mut().map(|(y, xa)| Forward { y, xa });
                device.take_ledger();
                forward(device, &group, &first.x, &mut args).unwrap();
                let ledger = device.take_ledger();
                // One call, and the input counts once.
                let numbers = 11 * IN + 2 * (11 * OUT + OUT * IN + OUT);
                let (_, calls, work) = ledger.entries().find(|e| e.0 == "lora_matmul.forward").unwrap();
                assert_eq!((calls, work.bytes), (1, 8 * numbers as u64));

                let saved = again.iter_mut().zip(&got).map(|((y, _), (_, xa))| Apply { y, xa });
                recompute(device, &group, &first.x, &mut saved.collect::<Vec<_>>()).unwrap();
                for ((layer, (y, xa)), ((y2, xa2), (y1, xa1))) in
                    layers.iter().zip(&got).zip(again.iter_mut().zip(&alone))
                {
                    let alone = [*layer];
                    project(device, &Group::new(&alone, one.rows), &first.x, &mut [xa2]).unwrap();
                    assert!(y.data() == y1.data() && y.data() == y2.data(), "{dora} {p}");
                    assert!(xa.data() == xa1.data() && xa.data() == xa2.data(), "{dora} {p}");
                }

                let mut views = [zero_grads(&first), zero_grads(&second)];
                let mut grads_of = views.each_mut().map(|v| v.iter_mut().map(view).collect::<Vec<_>>());
                let [g1, g2] = &mut grads_of;
                let mut of_layers = [
                    LayerBackward { dy: &first.dy, xa: &got[0].1, grads: g1 },
                    LayerBackward { dy: &second.dy, xa: &got[1].1, grads: g2 },
                ];
                let mut sum = device.empty(11, IN).unwrap();
                let to = Some(&mut sum);
                backward(device, &group, Backward { x: &first.x, dx: to, layers: &mut of_layers }).unwrap();
                let expected: Vec<f64> = dx.data().iter().zip(other_dx.data()).map(|(a, b)| a + b).collect();
                assert!(relative_rms(sum.data(), &expected) < 1e-14);
                for (got, expected) in views.iter().flatten().zip(grads.iter().chain(&other_grads)) {
                    let (Some(got), Some(expected)) = (got, expected) else { continue };
                    assert!(got.a.data() == expected.a.data() && got.b.data() == expected.b.data());
                }
            });
        });
    }
}

/// Gradients of zero for the adapters of a case.
fn zero_grads(case: &Case) -> Vec<Option<Adapter>> {
    let zeros = |t: &Tensor<f64>| case.device.zeros(t.rows(), t.cols()).unwrap();
    let of =
        |l: &Adapter| Adapter { a: zeros(&l.a), b: zeros(&l.b), magnitude: l.magnitude.as_ref().map(zeros) };
    case.adapters.iter().map(|l| l.as_ref().map(of)).collect()
}

/// Gradients in the form that the op takes.
fn view(grad: &mut Option<Adapter>) -> Option<LoraGrad<'_, f64>> {
    grad.as_mut().map(|g| LoraGrad { a: &mut g.a, b: &mut g.b, magnitude: g.magnitude.as_mut() })
}

#[test]
fn groups_of_other_counts_are_refused() {
    let case = case([4, 2, 3], false, 0.0);
    case.with_layer(&case.norms(), |one| {
        let layers = [*one.layer];
        let group = Group::new(&layers, one.rows);
        let error = forward(&case.device, &group, &case.x, &mut []).unwrap_err().to_string();
        assert!(error.contains("argument \"outputs\": got 0, expected 1"), "{error}");
        assert!(forward::<f64>(&case.device, &Group::new(&[], one.rows), &case.x, &mut []).is_err());
    });
}
