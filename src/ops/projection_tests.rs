//! Kernels that make down-projections of their output give the bits of the plain kernel with the down-projections after it.

#![cfg(feature = "emulated")]

use half::bf16;

use super::FusedProjection;
use crate::batch::{AdapterRows, Batch};
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::DropoutKey;
use crate::device::{Device, Table, Tensor};
use crate::kinds::RopeSpec;
use crate::ops::LiveRows;
use crate::ops::activation::{self, Activation, Input, InputMut};
use crate::ops::lora_matmul::gpu::{Factors, LayerAdapters, dropout_keys};
use crate::ops::lora_matmul::{
    Dropout, Group, Layer, Lora, RowKeys, Rows, project, project_back, projection, projection_back,
};
use crate::ops::norm::{self, Norm, NormKind};
use crate::ops::qk_norm_rope::{self, HeadNorm, QkNormRope, RopeBackwardJob, RopeRow, RopeTable};
use crate::ops::testing::{assert_repeats, at_scale, bf16_numbers, kernel_device, live_count, with_room};

/// Rows, ranks by adapter (0: the adapter targets no layer) and dropout probability.
#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    ranks: [usize; 3],
    p: f64,
}

const SCALING: [f32; 3] = [0.5, 1.0, 0.25];

const CASES: [Case; 8] = [
    Case { rows: 77, ranks: [16, 16, 16], p: 0.0 },
    Case { rows: 129, ranks: [7, 16, 3], p: 0.25 },
    Case { rows: 1, ranks: [16, 16, 16], p: 0.0 },
    Case { rows: 40, ranks: [0, 16, 0], p: 0.0 },
    Case { rows: 33, ranks: [64, 17, 5], p: 0.0 },
    Case { rows: 50, ranks: [40, 0, 100], p: 0.1 },
    Case { rows: 64, ranks: [32, 32, 20], p: 0.0 },
    Case { rows: 0, ranks: [16, 16, 16], p: 0.0 },
];

/// The adapters of some layers on a device, and rows with spare capacity for two more.
struct Fixture {
    device: Device,
    case: Case,
    weights: Vec<Tensor<bf16>>,
    tables: Vec<Option<LayerAdapters>>,
    rows: Rows,
    keys: Table<DropoutKey>,
    count: Tensor<u32>,
    /// `A` and `B` transposed, by layer and adapter.
    factors: Vec<(Tensor<bf16>, Tensor<bf16>)>,
}

impl Fixture {
    /// Layers `[out_features, in_features]`, of which those at `plain` have no adapters.
    fn new(device: &Device, case: Case, shapes: &[[usize; 2]], plain: Option<usize>) -> Self {
        let Case { rows, ranks, .. } = case;
        let cuts = [0, rows / 3, rows / 3 + rows / 8, rows - rows / 4, rows];
        let run = |(adapter, cut): (usize, usize)| AdapterRows { adapter, rows: cuts[cut]..cuts[cut + 1] };
        let runs: Vec<_> = [(1, 0), (0, 2), (2, 3)].into_iter().map(run).collect();
        let mut batch = Batch::default();
        batch.push_segment(&vec![0; rows.div_ceil(2)], None, 0);
        batch.push_segment(&vec![0; rows / 2], None, 0);
        let keys = RowKeys::new(&batch.segments);
        let count = live_count(device, rows);
        let mut of_device = Rows::with_capacity(device, rows + 2, 3, true).unwrap();
        of_device = of_device.counted(LiveRows::at(count.ptr()));
        of_device.write(device, rows, runs, Some(keys)).unwrap();
        let (mut weights, mut tables, mut factors) = (vec![], vec![], vec![]);
        for (l, &[out, input]) in shapes.iter().enumerate() {
            weights.push(device.zeros(out, input).unwrap());
            for (i, &r) in ranks.iter().enumerate() {
                let index = (100 + 10 * l + i) as u32;
                let a = with_room(device, r, input, &bf16_numbers(r * input, 0.1, index));
                let b_t = with_room(device, r, out, &bf16_numbers(r * out, 0.1, index + 50));
                factors.push((a, b_t));
            }
            let of_layer = &factors[3 * l..];
            let adapter = |i: usize| {
                let (a, b_t) = &of_layer[i];
                (ranks[i] > 0).then_some(Factors { a, b_t, grads: None, scaling: SCALING[i] })
            };
            let adapters: Vec<_> = (0..3).map(adapter).collect();
            tables.push(
                (plain != Some(l)).then(|| LayerAdapters::new(device, [out, input], &adapters).unwrap()),
            );
        }
        let keys = dropout_keys(device, &[[1, 2], [3, 4], [5, 6]]).unwrap();
        Self { device: device.clone(), case, weights, tables, rows: of_device, keys, count, factors }
    }

    fn live_rows(&self) -> LiveRows {
        LiveRows::at(self.count.ptr())
    }

    /// Calls `f` with the group of the layers.
    fn with_group<R>(&self, f: impl FnOnce(&Group<'_, bf16>) -> R) -> R {
        let lora = |l: usize, i: usize| {
            let (a, b) = &self.factors[3 * l + i];
            (self.case.ranks[i] > 0).then_some(Lora { a, b, scaling: SCALING[i], dora: None })
        };
        let loras: Vec<Vec<_>> = (0..self.weights.len())
            .map(|l| self.tables[l].as_ref().map_or(vec![], |_| (0..3).map(|i| lora(l, i)).collect()))
            .collect();
        let layer = |l: usize| {
            let key = DevicePtr(self.keys.ptr().0 + (l * size_of::<DropoutKey>()) as u64);
            Layer {
                weight: &self.weights[l],
                bias: None,
                loras: &loras[l],
                adapters: self.tables[l].as_ref(),
                magnitudes: None,
                dropout: Dropout::new(self.case.p, 1, 2, l as u32).map(|dropout| dropout.with_key_at(key)),
            }
        };
        let layers: Vec<_> = (0..self.weights.len()).map(layer).collect();
        f(&Group::new(&layers, &self.rows))
    }

    /// A tensor with the capacity of the rows, filled with random numbers of stream `index` or with 7.
    fn tensor(&self, cols: usize, index: Option<u32>) -> Tensor<bf16> {
        let numbers = index.map_or(vec![], |index| bf16_numbers(self.case.rows * cols, 1.0, index));
        with_room(&self.device, self.case.rows + 2, cols, &numbers)
    }

    /// Outputs of the down-projections.
    fn narrow(&self) -> Vec<Tensor<bf16>> {
        let cols = |l: usize| self.with_group(|group| group.xa_cols(l));
        (0..self.weights.len()).map(|l| self.tensor(cols(l), None)).collect()
    }

    fn read(&self, tensors: &[&Tensor<bf16>]) -> Vec<Vec<u16>> {
        tensors
            .iter()
            .map(|t| self.device.read(t).unwrap().into_iter().map(bf16::to_bits).collect())
            .collect()
    }

    /// `xa` of `x`, or `dxa` of one gradient for each layer, in a separate launch.
    fn project(&self, inputs: &[&Tensor<bf16>], back: bool) -> Vec<Vec<u16>> {
        let mut outputs = self.narrow();
        let mut to: Vec<_> = outputs.iter_mut().collect();
        self.with_group(|group| match back {
            false => project(&self.device, group, inputs[0], &mut to).unwrap(),
            true => project_back(&self.device, group, inputs, &mut to).unwrap(),
        });
        self.read(&outputs.iter().collect::<Vec<_>>())
    }

    /// The same, fused into the launch of `launch`.
    fn fused(&self, back: bool, launch: impl FnOnce(FusedProjection)) -> Vec<Vec<u16>> {
        let outputs = self.narrow();
        let to: Vec<_> = outputs.iter().collect();
        let project = self.with_group(|group| match back {
            false => projection(&self.device, group, &to).unwrap().unwrap(),
            true => projection_back(&self.device, group, &to).unwrap().unwrap(),
        });
        launch(project);
        self.read(&to)
    }
}

/// All outputs of both variants, the separate one first.
type Both = [Vec<Vec<u16>>; 2];

fn rms_norm_forward(device: &Device, case: Case, cols: usize, layers: usize) -> Both {
    let f = Fixture::new(
        device,
        case,
        &[[24, cols], [16, cols], [16, cols]][..layers],
        (layers == 3).then_some(1),
    );
    let weight = with_room(device, 1, cols, &bf16_numbers(cols, 1.0, 9));
    let norm = Norm { kind: NormKind::Rms, weight: &weight, bias: None, eps: 1e-6 };
    let residual = f.tensor(cols, Some(1));
    [false, true].map(|is_fused| {
        let (mut x, mut y) = (f.tensor(cols, Some(0)), f.tensor(cols, None));
        let mut rstd = device.tensor(x.rows(), 1, &vec![7.0f32; x.rows()]).unwrap();
        let mut run = |projection: Option<FusedProjection>| {
            let args = norm::Forward {
                x: &mut x,
                residual: Some(&residual),
                norm,
                y: &mut y,
                rstd: &mut rstd,
                live_rows: f.live_rows(),
                projection,
            };
            norm::forward(&f.device, args).unwrap();
        };
        let narrow = if is_fused {
            f.fused(false, |project| run(Some(project)))
        } else {
            run(None);
            f.project(&[&y], false)
        };
        let rstd = device.read(&rstd).unwrap();
        let rstd = rstd.into_iter().flat_map(|r| [r.to_bits() as u16, (r.to_bits() >> 16) as u16]).collect();
        [f.read(&[&x, &y]), vec![rstd], narrow].concat()
    })
}

fn rms_norm_backward(device: &Device, case: Case, cols: usize) -> Both {
    let f = Fixture::new(device, case, &[[cols, 24]], None);
    let weight = with_room(device, 1, cols, &bf16_numbers(cols, 1.0, 9));
    let norm = Norm { kind: NormKind::Rms, weight: &weight, bias: None, eps: 1e-6 };
    let [dy, s, d_in] = [0, 1, 2].map(|i| f.tensor(cols, Some(i)));
    let rstd = device.tensor(s.rows(), 1, &vec![0.8f32; s.rows()]).unwrap();
    [false, true].map(|is_fused| {
        let (mut ds, mut normed) = (f.tensor(cols, None), f.tensor(cols, None));
        let mut run = |projection: Option<FusedProjection>| {
            let args = norm::Backward {
                dy: &dy,
                s: &s,
                norm,
                rstd: &rstd,
                d_in: Some(&d_in),
                ds: &mut ds,
                normed: Some(&mut normed),
                live_rows: f.live_rows(),
                projection,
            };
            norm::backward(&f.device, args).unwrap();
        };
        let narrow = if is_fused {
            f.fused(true, |project| run(Some(project)))
        } else {
            run(None);
            f.project(&[&ds], true)
        };
        [f.read(&[&ds, &normed]), narrow].concat()
    })
}

fn swiglu_forward(device: &Device, case: Case, cols: usize) -> Both {
    let f = Fixture::new(device, case, &[[24, cols]], None);
    let [gate, up] = [0, 1].map(|i| f.tensor(cols, Some(i)));
    [false, true].map(|is_fused| {
        let mut h = f.tensor(cols, None);
        let mut run = |projection: Option<FusedProjection>| {
            let (gate, up, h, live_rows) = (&gate, &up, &mut h, f.live_rows());
            activation::forward(
                &f.device,
                activation::Forward {
                    act: Activation::Silu,
                    input: Input::Gated { gate, up },
                    h,
                    live_rows,
                    projection,
                },
            )
            .unwrap();
        };
        let narrow = if is_fused {
            f.fused(false, |project| run(Some(project)))
        } else {
            run(None);
            f.project(&[&h], false)
        };
        [f.read(&[&h]), narrow].concat()
    })
}

fn swiglu_backward(device: &Device, case: Case, cols: usize, plain: Option<usize>) -> Both {
    let f = Fixture::new(device, case, &[[cols, 24], [cols, 24]], plain);
    [false, true].map(|is_fused| {
        let [mut gate, mut up, mut dh] = [0, 1, 2].map(|i| f.tensor(cols, Some(i)));
        let mut run = |projection: Option<FusedProjection>| {
            let (dh, gate, up, live_rows) = (&mut dh, &mut gate, &mut up, f.live_rows());
            activation::backward(
                &f.device,
                activation::Backward {
                    act: Activation::Silu,
                    dh,
                    input: InputMut::Gated { gate, up },
                    live_rows,
                    projection,
                },
            )
            .unwrap();
        };
        let narrow = if is_fused {
            f.fused(true, |project| run(Some(project)))
        } else {
            run(None);
            f.project(&[&gate, &up], true)
        };
        [f.read(&[&dh, &gate, &up]), narrow].concat()
    })
}

fn qk_norm_rope_backward(device: &Device, case: Case, head_dim: usize, plain: Option<usize>) -> Both {
    let cols = [5 * head_dim, head_dim, head_dim];
    let f = Fixture::new(device, case, &cols.map(|cols| [cols, 24]), plain);
    let mut table =
        RopeTable::with_capacity(device, case.rows + 2, 50, head_dim, RopeSpec::unscaled(1e4)).unwrap();
    table
        .write(device, &(0..case.rows).map(|t| RopeRow { position: t * 7 % 50, len: 50 }).collect::<Vec<_>>())
        .unwrap();
    let weight = with_room(device, 1, head_dim, &bf16_numbers(head_dim, 1.0, 9));
    let op = QkNormRope { norm: Some(HeadNorm { weight: &weight, eps: 1e-6 }), table: &table, head_dim };
    let [q, k] = [0, 1].map(|i: usize| f.tensor(cols[i], Some(i as u32)));
    let dv = f.tensor(cols[2], Some(4));
    [false, true].map(|is_fused| {
        let [mut dq, mut dk] = [0, 1].map(|i: usize| f.tensor(cols[i], Some(2 + i as u32)));
        let mut run = |projection: Option<FusedProjection>| {
            let q_job = RopeBackwardJob { x: (&q).into(), op, dy: &mut dq };
            let mut jobs = [q_job, RopeBackwardJob { x: (&k).into(), op, dy: &mut dk }];
            let args = qk_norm_rope::Backward { jobs: &mut jobs, projection, complete: &[&dv] };
            qk_norm_rope::backward(&f.device, args).unwrap();
        };
        let narrow = if is_fused {
            f.fused(true, |project| run(Some(project)))
        } else {
            run(None);
            f.project(&[&dq, &dk, &dv], true)
        };
        [f.read(&[&dq, &dk]), narrow].concat()
    })
}

fn same(name: &str, case: Case, [plain, fused]: Both) {
    for (i, (plain, fused)) in plain.iter().zip(&fused).enumerate() {
        let differs = plain.iter().zip(fused).position(|(a, b)| a != b);
        assert!(
            plain.len() == fused.len() && differs.is_none(),
            "{name}, {case:?}: tensor {i} at {differs:?}"
        );
    }
    assert_eq!(plain.len(), fused.len());
}

#[test]
fn norms_project_to_the_same_bits() {
    let device = kernel_device(3);
    for (i, case) in CASES.into_iter().enumerate() {
        let cols = [136, 1024, 264, 72][i % 4];
        same("rms_norm forward", case, rms_norm_forward(&device, case, cols, 1 + i % 3));
        same("rms_norm backward", case, rms_norm_backward(&device, case, cols));
    }
    // More columns than shared memory keeps.
    for p in [0.0, 0.25] {
        let case = Case { rows: 35, ranks: [16, 8, 16], p };
        same("rms_norm forward", case, rms_norm_forward(&device, case, 2056, 3));
        same("rms_norm backward", case, rms_norm_backward(&device, case, 2056));
    }
}

#[test]
fn swiglu_projects_to_the_same_bits() {
    let device = kernel_device(4);
    for (i, case) in CASES.into_iter().enumerate() {
        let cols = [136, 1032, 264, 72][i % 4];
        same("swiglu forward", case, swiglu_forward(&device, case, cols));
        same("swiglu backward", case, swiglu_backward(&device, case, cols, [None, Some(0), Some(1)][i % 3]));
    }
}

#[test]
fn queries_and_keys_project_to_the_same_bits() {
    let device = kernel_device(5);
    for (i, case) in CASES.into_iter().enumerate() {
        let (head_dim, plain) = ([128, 64, 32, 16][i % 4], [None, Some(0), Some(1), Some(2)][i / 2]);
        same("qk_norm_rope", case, qk_norm_rope_backward(&device, case, head_dim, plain));
    }
}

#[test]
fn a_product_of_another_shape_is_refused() {
    let device = kernel_device(0);
    let case = CASES[0];
    let f = Fixture::new(&device, case, &[[24, 136]], None);
    let (gate, mut h) = (f.tensor(128, Some(0)), f.tensor(128, None));
    let narrow = f.narrow();
    let project = f.with_group(|group| projection(&f.device, group, &[&narrow[0]]).unwrap().unwrap());
    let (live_rows, projection) = (f.live_rows(), Some(project));
    let args = activation::Forward {
        act: Activation::Silu,
        input: Input::Gated { gate: &gate, up: &gate },
        h: &mut h,
        live_rows,
        projection,
    };
    assert!(activation::forward(&f.device, args).is_err());
    assert_eq!(f.count.rows(), 1);
}

#[test]
fn gpu_repeats_have_the_same_bits() {
    let case = Case { rows: 45, ranks: [16, 7, 3], p: 0.25 };
    assert_repeats(30, |device| {
        [
            rms_norm_forward(device, case, 264, 3),
            rms_norm_backward(device, case, 264),
            swiglu_forward(device, case, 264),
            swiglu_backward(device, case, 264, None),
            qk_norm_rope_backward(device, case, 32, None),
        ]
    });
}

#[test]
fn real_shapes() {
    let device = kernel_device(6);
    let [rows, hidden, intermediate] = at_scale([2176, 1024, 3072], [70, 256, 384]);
    let head_dim = at_scale(128, 64);
    for (ranks, p) in [([16, 16, 16], 0.0), ([64, 17, 16], 0.05)] {
        let case = Case { rows, ranks, p };
        same("rms_norm forward", case, rms_norm_forward(&device, case, hidden, 3));
        same("rms_norm backward", case, rms_norm_backward(&device, case, hidden));
        same("swiglu forward", case, swiglu_forward(&device, case, intermediate));
        same("swiglu backward", case, swiglu_backward(&device, case, intermediate, None));
        same("qk_norm_rope", case, qk_norm_rope_backward(&device, case, head_dim, None));
    }
    let case = Case { rows: rows - 9, ranks: [16, 7, 0], p: 0.0 };
    same("rms_norm forward", case, rms_norm_forward(&device, case, 4 * hidden, 3));
    same("rms_norm backward", case, rms_norm_backward(&device, case, 4 * hidden));
    same("swiglu forward", case, swiglu_forward(&device, case, 4 * intermediate));
}

/// Tests that only the emulator can run.
mod emulator {
    use super::*;
    use crate::device::EmulatorOptions;

    #[test]
    fn shared_memory_is_free_of_conflicts_and_sectors_are_used_in_full() {
        let device = Device::emulated(EmulatorOptions { stats: true, ..EmulatorOptions::default() }).unwrap();
        for p in [0.0, 0.25] {
            let case = Case { rows: 64, ranks: [16; 3], p };
            rms_norm_forward(&device, case, 1024, 3);
            rms_norm_backward(&device, case, 1024);
            swiglu_forward(&device, case, 256);
            swiglu_backward(&device, case, 256, None);
            qk_norm_rope_backward(&device, case, 128, None);
        }
        let mut seen = 0;
        for (symbol, counters) in device.take_counters().kernels {
            seen += usize::from(symbol.contains("lora") && !symbol.contains("matmul"));
            assert_eq!(counters.worst_shared_ratio(), 1.0, "{symbol}: {counters:?}");
            // Tables of angles, runs and rows are read by parts of sectors: they stay in the caches.
            let tables = ["qk_norm_rope.cuh", "lora_matmul.cuh"];
            let of_rows =
                counters.lines.iter().filter(|(place, _)| !tables.iter().any(|t| place.0.ends_with(t)));
            let (sectors, ideal) =
                of_rows.fold((0, 0), |sum, (_, c)| (sum.0 + c.sectors, sum.1 + c.ideal_sectors));
            assert!(sectors as f64 <= 1.05 * ideal as f64, "{symbol}: {sectors} of {ideal}: {counters:?}");
        }
        assert_eq!(seen, 7);
    }
}
