//! The kernels against the definition in f64: ragged segments, prefixes, grouped heads, some rows as queries.
//!
//! All elements of all results are compared, at the shapes of models too.

#![cfg(feature = "emulated")]

use half::bf16;
use rayon::prelude::*;

use super::*;
use crate::batch::Segment;
use crate::ops::attention::tests::{seen, segments};
use crate::ops::attention::{self, AttnMask, Heads, PlanCapacity};
use crate::ops::cols::Cols;
use crate::ops::testing::{assert_as_good, assert_repeats, at_scale, cut_off, drawn, kernel_device, rounded};
use crate::rng::{Purpose, Stream};

/// Initial content of outputs; rows beyond the batch must still have it afterwards.
const BEFORE: f32 = 7.0;

/// The inputs, as f64 numbers that are exact in bf16.
struct Case {
    heads: Heads,
    segments: Vec<Segment>,
    /// Packed rows of the queries.
    rows: Vec<usize>,
    mask: AttnMask,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_o: Vec<f64>,
}

/// Results, by name.
#[derive(Debug, PartialEq)]
struct Outcome {
    o: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

fn heads(num_key_value_heads: usize, group: usize, head_dim: usize) -> Heads {
    let softmax_scale = 1.0 / (head_dim as f64).sqrt();
    Heads { num_attention_heads: num_key_value_heads * group, num_key_value_heads, head_dim, softmax_scale }
}

fn random(len: usize, index: u32) -> Vec<f64> {
    drawn(Stream::new(31, Purpose::ModelInit, index), len, 1.0)
}

impl Case {
    /// All rows are queries, causal.
    fn new(heads: Heads, parts: &[(usize, Option<usize>)]) -> Self {
        Self::for_rows(heads, parts, |_| true)
    }

    fn for_rows(heads: Heads, parts: &[(usize, Option<usize>)], keep: impl Fn(usize) -> bool) -> Self {
        let segments = segments(parts);
        let total = segments.last().map_or(0, |s| s.start + s.len);
        let rows: Vec<usize> = (0..total).filter(|&row| keep(row)).collect();
        let (of_queries, of_keys) = (rows.len() * heads.q_cols(), total * heads.kv_cols());
        let (q, d_o) = (random(of_queries, 0), random(of_queries, 1));
        let (k, v) = (random(of_keys, 2), random(of_keys, 3));
        Self { heads, segments, rows, mask: AttnMask::Causal, q, k, v, d_o }
    }

    fn total(&self) -> usize {
        self.segments.last().map_or(0, |s| s.start + s.len)
    }

    fn plan(&self) -> AttentionPlan {
        AttentionPlan::for_rows(self.mask, &self.segments, &self.rows).unwrap()
    }

    fn seen(&self, row: usize) -> Vec<usize> {
        let own = || self.segments.iter().find(|s| s.rows().contains(&row)).unwrap().rows();
        match self.mask {
            AttnMask::Causal => seen(&self.segments, row),
            AttnMask::Full => own().collect(),
            AttnMask::Window(reach) => own().filter(|key| key.abs_diff(row) <= reach).collect(),
        }
    }

    fn name(&self) -> String {
        let Heads { num_attention_heads, num_key_value_heads, head_dim, .. } = self.heads;
        let lens: Vec<usize> = self.segments.iter().map(|s| s.len).collect();
        format!("heads {num_attention_heads}/{num_key_value_heads}x{head_dim} rows {lens:?}")
    }

    /// The definition, one query after another, the heads side by side. `bf16` rounds where PyTorch does: probabilities and their
    /// gradients before the products, and every result.
    fn expected(&self, bf16: bool) -> Outcome {
        let Heads { num_attention_heads, head_dim: d, .. } = self.heads;
        let (queries, total) = (self.rows.len(), self.total());
        let of_heads: Vec<Outcome> =
            (0..num_attention_heads).into_par_iter().map(|head| self.of_head(head, bf16)).collect();
        let mut out = Outcome {
            o: Vec::new(),
            lse: Vec::new(),
            dq: Vec::new(),
            dk: vec![0.0; self.k.len()],
            dv: vec![0.0; self.v.len()],
        };
        for query in 0..queries {
            for head in &of_heads {
                out.o.extend_from_slice(&head.o[query * d..][..d]);
                out.dq.extend_from_slice(&head.dq[query * d..][..d]);
                out.lse.push(head.lse[query]);
            }
        }
        for (head, of_head) in of_heads.iter().enumerate() {
            for key in 0..total {
                let at = key * self.heads.kv_cols() + head / self.heads.group() * d;
                add(&mut out.dk[at..][..d], 1.0, &of_head.dk[key * d..][..d]);
                add(&mut out.dv[at..][..d], 1.0, &of_head.dv[key * d..][..d]);
            }
        }
        if bf16 {
            (out.dq, out.dk, out.dv) = (rounded(&out.dq), rounded(&out.dk), rounded(&out.dv));
        }
        out
    }

    /// One query head: `[rows, head_dim]` of everything, and its part of dk and dv.
    fn of_head(&self, head: usize, bf16: bool) -> Outcome {
        let round = |x: f64| if bf16 { half::bf16::from_f64(x).to_f64() } else { x };
        let Heads { head_dim: d, softmax_scale, .. } = self.heads;
        let (q_cols, kv_cols) = (self.heads.q_cols(), self.heads.kv_cols());
        let (queries, keys) = (self.rows.len(), self.total());
        let mut out = Outcome {
            o: vec![0.0; queries * d],
            lse: Vec::new(),
            dq: vec![0.0; queries * d],
            dk: vec![0.0; keys * d],
            dv: vec![0.0; keys * d],
        };
        for (query, &row) in self.rows.iter().enumerate() {
            let keys = self.seen(row);
            let of_query = |values: &'_ [f64]| values[query * q_cols + head * d..][..d].to_vec();
            let (q, d_o) = (of_query(&self.q), of_query(&self.d_o));
            let at = |key: usize| key * kv_cols + head / self.heads.group() * d;
            let scores: Vec<f64> =
                keys.iter().map(|&j| softmax_scale * dot(&q, &self.k[at(j)..][..d])).collect();
            let lse = scores.iter().map(|s| s.exp()).sum::<f64>().ln();
            out.lse.push(lse);
            let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
            let o = &mut out.o[query * d..][..d];
            for (&j, p) in keys.iter().zip(&p) {
                add(o, round(*p), &self.v[at(j)..][..d]);
            }
            o.iter_mut().for_each(|x| *x = round(*x));
            let delta = dot(o, &d_o);
            for (&j, p) in keys.iter().zip(&p) {
                let ds = softmax_scale * round(p * (dot(&d_o, &self.v[at(j)..][..d]) - delta));
                add(&mut out.dq[query * d..][..d], ds, &self.k[at(j)..][..d]);
                add(&mut out.dk[j * d..][..d], ds, &q);
                add(&mut out.dv[j * d..][..d], round(*p), &d_o);
            }
        }
        out
    }
}

/// In eight sums side by side, which a compiler can put into vectors.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

fn add(to: &mut [f64], factor: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// Runs both directions with `plan`, which has the lists of the case. Tensors have the capacity of the plan
/// in rows; inputs beyond the batch are unwritten memory, so the emulator's checks report reads of it.
fn run_with(case: &Case, device: &Device, plan: &AttentionPlan) -> Result<Outcome> {
    let [query_rows, key_rows] = plan.tensor_rows();
    let (q_cols, kv_cols) = (case.heads.q_cols(), case.heads.kv_cols());
    let input = |values: &[f64], rows: usize, cols: usize| -> Result<Tensor<bf16>> {
        let mut tensor = device.empty(rows, cols)?;
        let values: Vec<bf16> = values.iter().map(|&x| bf16::from_f64(x)).collect();
        device.write_start(&mut tensor, &values)?;
        Ok(tensor)
    };
    let output = |rows: usize, cols: usize| -> Result<Tensor<bf16>> {
        device.tensor(rows, cols, &vec![bf16::from_f32(BEFORE); rows * cols])
    };
    let (q, d_o) = (input(&case.q, query_rows, q_cols)?, input(&case.d_o, query_rows, q_cols)?);
    let (k, v) = (input(&case.k, key_rows, kv_cols)?, input(&case.v, key_rows, kv_cols)?);
    let args = Attention { q: (&q).into(), k: (&k).into(), v: (&v).into(), heads: case.heads, plan };
    let mut o = output(query_rows, q_cols)?;
    let num_heads = case.heads.num_attention_heads;
    let mut lse = device.tensor(query_rows, num_heads, &vec![BEFORE; query_rows * num_heads])?;
    attention::forward(device, &args, &mut o, &mut lse)?;
    let (mut dq, mut dk) = (output(query_rows, q_cols)?, output(key_rows, kv_cols)?);
    let mut dv = output(key_rows, kv_cols)?;
    let to = Backward {
        d_o: &d_o,
        o: &o,
        lse: &lse,
        grads: Grads::Split { dq: &mut dq, dk: &mut dk, dv: &mut dv },
    };
    attention::backward(device, &args, to)?;

    let read = |tensor: &Tensor<bf16>, len: usize| -> Result<Vec<f64>> {
        let values: Vec<f64> = device.read(tensor)?.into_iter().map(bf16::to_f64).collect();
        assert!(values[len..].iter().all(|&x| x == f64::from(BEFORE)), "written beyond the batch");
        Ok(values[..len].to_vec())
    };
    let lse: Vec<f64> = device.read(&lse)?.into_iter().map(f64::from).collect();
    let live = case.rows.len() * num_heads;
    assert!(lse[live..].iter().all(|&x| x == f64::from(BEFORE)), "lse written beyond the batch");
    Ok(Outcome {
        o: read(&o, case.q.len())?,
        lse: lse[..live].to_vec(),
        dq: read(&dq, case.q.len())?,
        dk: read(&dk, case.k.len())?,
        dv: read(&dv, case.v.len())?,
    })
}

fn run(case: &Case, device: &Device) -> Outcome {
    let mut plan = case.plan();
    plan.upload(device).unwrap();
    run_with(case, device, &plan).unwrap_or_else(|e| panic!("{}: {e}", case.name()))
}

fn compare(case: &Case, got: &Outcome) {
    let (exact, reference) = (case.expected(false), case.expected(true));
    let name = case.name();
    for (what, got, exact, reference, k) in [
        ("o", &got.o, &exact.o, &reference.o, 2.0),
        ("dq", &got.dq, &exact.dq, &reference.dq, 3.0),
        ("dk", &got.dk, &exact.dk, &reference.dk, 3.0),
        ("dv", &got.dv, &exact.dv, &reference.dv, 3.0),
    ] {
        assert_as_good(&format!("{name}: {what}"), got, exact, reference, k);
    }
    assert_eq!(got.lse.len(), exact.lse.len());
    // A row with one or two keys depends on single scores, whose sums tensor cores truncate. Scores are
    // normal with a standard deviation of 1, so partial sums stay below 4.
    let cut_off = at_scale(cut_off(case.heads.head_dim, 4.0), 0.0);
    for (got, exact) in got.lse.iter().zip(&exact.lse) {
        assert!(
            (got - exact).abs() < (2e-6 * exact.abs().max(1.0)).max(cut_off),
            "{name}: lse {got}, exactly {exact}"
        );
    }
}

const RAGGED: [(usize, Option<usize>); 7] =
    [(1, None), (17, None), (127, None), (128, None), (129, None), (300, None), (507, None)];

/// Two levels of prefixes, several continuations of each.
const PREFIXES: [(usize, Option<usize>); 8] = [
    (70, None),
    (64, None),
    (33, Some(0)),
    (5, Some(0)),
    (100, Some(2)),
    (1, Some(2)),
    (66, Some(1)),
    (129, None),
];

#[test]
fn ragged_segments_agree_with_f64_for_every_head_dim() {
    let of_powers = [(1, 2, 128), (1, 2, 64), (1, 1, 32), (2, 1, 16)];
    let others = [(1, 2, 48), (2, 1, 72), (1, 1, 80), (1, 2, 96), (1, 1, 112)];
    for (seed, (kv, group, d)) in of_powers.into_iter().chain(others).enumerate() {
        let case = Case::new(heads(kv, group, d), &RAGGED);
        compare(&case, &run(&case, &kernel_device(seed as u64)));
    }
}

#[test]
fn every_group_of_heads_agrees() {
    let groups =
        [(1, 7, 128), (2, 1, 128), (1, 4, 128), (1, 7, 64), (2, 2, 64), (1, 4, 64), (1, 4, 32), (2, 7, 16)];
    for (seed, (kv, group, d)) in groups.into_iter().enumerate() {
        let case = Case::new(heads(kv, group, d), &[(65, None), (31, None)]);
        compare(&case, &run(&case, &kernel_device(seed as u64)));
    }
}

#[test]
fn prefixes_are_seen_by_all_that_continue_them() {
    for (seed, (kv, group, d)) in [(1, 2, 128), (2, 2, 64), (1, 1, 32), (1, 2, 16)].into_iter().enumerate() {
        let case = Case::new(heads(kv, group, d), &PREFIXES);
        compare(&case, &run(&case, &kernel_device(10 + seed as u64)));
    }
}

#[test]
fn bidirectional_rows_see_their_whole_segment() {
    for (seed, (kv, group, d)) in [(1, 2, 64), (1, 1, 128), (1, 1, 72), (1, 2, 80)].into_iter().enumerate() {
        let mut case = Case::new(heads(kv, group, d), &[(1, None), (17, None), (129, None), (64, None)]);
        case.mask = AttnMask::Full;
        compare(&case, &run(&case, &kernel_device(20 + seed as u64)));
    }
}

#[test]
fn rows_see_windows_of_every_reach_whichever_rows_are_queries() {
    for (seed, (reach, (kv, group, d))) in [
        (2, (1, 1, 16)),
        (1, (1, 2, 64)),
        (31, (1, 1, 32)),
        (64, (2, 1, 64)),
        (100, (1, 1, 128)),
        (600, (1, 1, 64)),
        (40, (1, 2, 48)),
        (5, (1, 1, 72)),
        (90, (1, 1, 80)),
        (33, (2, 1, 96)),
        (70, (1, 1, 112)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut case = Case::new(heads(kv, group, d), &[(1, None), (17, None), (129, None), (300, None)]);
        case.mask = AttnMask::Window(reach);
        compare(&case, &run(&case, &kernel_device(70 + seed as u64)));
        // Queries far apart in one tile: some see nothing of the first keys.
        let keep = |row: usize| row == 0 || row % 9 == 4 || (200..220).contains(&row) || row == 446;
        let mut case =
            Case::for_rows(heads(kv, group, d), &[(1, None), (17, None), (129, None), (300, None)], keep);
        case.mask = AttnMask::Window(reach);
        compare(&case, &run(&case, &kernel_device(80 + seed as u64)));
    }
}

/// Queries, keys and values that one layer made side by side, with gradients side by side: the same bits.
#[test]
fn runs_of_columns_give_the_bits_of_tensors_of_their_own() {
    for (seed, (mask, all)) in
        [(AttnMask::Causal, true), (AttnMask::Full, true), (AttnMask::Window(20), false)]
            .into_iter()
            .enumerate()
    {
        let device = kernel_device(90 + seed as u64);
        let mut case =
            Case::for_rows(heads(1, 2, 64), &[(70, None), (5, None), (129, None)], |row| all || row % 7 == 2);
        case.mask = mask;
        let plain = run(&case, &device);
        let mut plan = case.plan();
        plan.upload(&device).unwrap();
        let (total, q_cols, kv_cols) = (case.total(), case.heads.q_cols(), case.heads.kv_cols());
        let cols = q_cols + 2 * kv_cols;
        let mut values = vec![bf16::from_f32(BEFORE); total * cols];
        for row in 0..total {
            let own = &mut values[row * cols..(row + 1) * cols];
            if let Some(query) = case.rows.iter().position(|&of| of == row) {
                put(&mut own[..q_cols], &case.q[query * q_cols..]);
            }
            put(&mut own[q_cols..q_cols + kv_cols], &case.k[row * kv_cols..]);
            put(&mut own[q_cols + kv_cols..], &case.v[row * kv_cols..]);
        }
        let qkv = device.tensor(total, cols, &values).unwrap();
        let rows = case.rows.len();
        let tensor = |values: &[f64], cols: usize| {
            let values: Vec<bf16> = values.iter().map(|&x| bf16::from_f64(x)).collect();
            device.tensor(values.len() / cols, cols, &values).unwrap()
        };
        let picked = tensor(&case.q, q_cols);
        let run = |end: usize, from: usize| Cols::new(&qkv, from..end).unwrap();
        let args = Attention {
            q: if all { run(q_cols, 0) } else { (&picked).into() },
            k: run(q_cols + kv_cols, q_cols),
            v: run(cols, q_cols + kv_cols),
            heads: case.heads,
            plan: &plan,
        };
        let mut o = device.empty(rows, q_cols).unwrap();
        let mut lse = device.empty(rows, case.heads.num_attention_heads).unwrap();
        attention::forward(&device, &args, &mut o, &mut lse).unwrap();
        let d_o = tensor(&case.d_o, q_cols);
        let mut dqkv = device.tensor(total, cols, &values).unwrap();
        let mut dq = device.zeros::<bf16>(rows, q_cols).unwrap();
        let grads = Grads::Fused { dqkv: &mut dqkv, dq: (!all).then_some(&mut dq) };
        attention::backward(&device, &args, Backward { d_o: &d_o, o: &o, lse: &lse, grads }).unwrap();
        let read = |tensor: &Tensor<bf16>| -> Vec<f64> {
            device.read(tensor).unwrap().into_iter().map(bf16::to_f64).collect()
        };
        assert_eq!(read(&o), plain.o, "{mask:?}");
        let dqkv = read(&dqkv);
        let part = |first: usize, width: usize| -> Vec<f64> {
            dqkv.chunks_exact(cols).flat_map(|row| row[first..first + width].to_vec()).collect()
        };
        let dq = if all { part(0, q_cols) } else { read(&dq) };
        assert_eq!(dq, plain.dq, "{mask:?}");
        assert_eq!(part(q_cols, kv_cols), plain.dk, "{mask:?}");
        assert_eq!(part(q_cols + kv_cols, kv_cols), plain.dv, "{mask:?}");
    }
}

fn put(to: &mut [bf16], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::from_f64(*from));
}

/// A few rows of a batch are queries: some segments have none, and some prefixes are seen only from other
/// segments.
#[test]
fn some_rows_may_be_the_queries() {
    let keep =
        |row: usize| (60..64).contains(&row) || (134..240).contains(&row) || row % 50 == 7 || row == 467;
    for (seed, (kv, group, d)) in [(1, 2, 128), (1, 4, 64), (2, 1, 16)].into_iter().enumerate() {
        let case = Case::for_rows(heads(kv, group, d), &PREFIXES, keep);
        assert!(case.rows.len() > 64 && case.rows.len() < 150);
        let got = run(&case, &kernel_device(30 + seed as u64));
        compare(&case, &got);
        // No query sees keys after the last of its segment: they get zeros.
        let kv_cols = case.heads.kv_cols();
        let unseen =
            (0..case.total()).filter(|key| !case.rows.iter().any(|&row| case.seen(row).contains(key)));
        for key in unseen {
            assert!(
                got.dk[key * kv_cols..][..kv_cols]
                    .iter()
                    .chain(&got.dv[key * kv_cols..][..kv_cols])
                    .all(|&x| x == 0.0)
            );
        }
    }
}

#[test]
fn without_queries_there_are_no_launches_for_them_and_keys_get_zeros() {
    let case = Case::for_rows(heads(1, 2, 64), &[(70, None), (3, Some(0))], |_| false);
    let device = kernel_device(40);
    device.take_ledger();
    let got = run(&case, &device);
    assert_eq!(device.take_ledger().launches().count(), 1);
    assert!(got.o.is_empty() && got.dk.iter().chain(&got.dv).all(|&x| x == 0.0));
}

/// One plan with spare capacity serves several batches, as in a recorded graph.
#[test]
fn a_plan_with_room_serves_one_batch_after_another() {
    let device = kernel_device(50);
    let capacity = PlanCapacity { query_rows: 500, key_rows: 500, segments: 9, ranges: 40, visits: 100 };
    let heads = heads(1, 2, 64);
    let mut plan = AttentionPlan::with_capacity(&device, AttnMask::Causal, capacity).unwrap();
    let address = plan.tables().unwrap().tiles.ptr();
    let cases = [
        Case::new(heads, &PREFIXES),
        Case::new(heads, &[]),
        Case::for_rows(heads, &[(129, None), (300, None)], |row| row % 3 == 0),
        Case::for_rows(heads, &[(40, None)], |_| false),
        Case::new(heads, &[(17, None), (1, None), (128, None)]),
    ];
    for case in cases {
        plan.replace(&device, case.plan()).unwrap();
        let got = run_with(&case, &device, &plan).unwrap_or_else(|e| panic!("{}: {e}", case.name()));
        compare(&case, &got);
        assert_eq!(plan.tables().unwrap().tiles.ptr(), address);
    }
}

#[test]
fn what_does_not_fit_is_an_error_and_changes_nothing() {
    let device = kernel_device(0);
    let capacity = PlanCapacity { query_rows: 100, key_rows: 100, segments: 60, ranges: 61, visits: 61 };
    let mut plan = AttentionPlan::with_capacity(&device, AttnMask::Causal, capacity).unwrap();
    plan.replace(&device, AttentionPlan::causal(&segments(&[(100, None)]))).unwrap();
    let chain: Vec<_> = (0..60).map(|i: usize| (1, i.checked_sub(1))).collect();
    for parts in [vec![(101, None)], vec![(1, None); 61], chain] {
        let error = plan.replace(&device, AttentionPlan::causal(&segments(&parts))).unwrap_err();
        assert!(error.to_string().contains("at most"), "{error}");
        assert_eq!((plan.num_query_rows(), plan.tensor_rows()), (100, [100, 100]));
    }
    // A plan without lists on the GPU, and a head size without kernels.
    let case = Case::new(heads(1, 1, 64), &[(3, None)]);
    let error = run_with(&case, &device, &case.plan()).unwrap_err();
    assert!(error.exit_code() == 5 && error.to_string().contains("upload"), "{error}");
    let case = Case::new(heads(1, 1, 88), &[(3, None)]);
    let mut plan = case.plan();
    plan.upload(&device).unwrap();
    let error = run_with(&case, &device, &plan).unwrap_err();
    assert!(
        error.to_string().contains("head_dim of 88, only for 16, 32, 48, 64, 72, 80, 96, 112, 128"),
        "{error}"
    );
}

#[test]
fn gpu_repeats_have_the_same_bits() {
    for (d, schedules) in [(64, 30), (128, 8)] {
        let case = Case::for_rows(heads(1, 2, d), &[(40, None), (3, Some(0)), (66, Some(0))], |row| row != 5);
        assert_repeats(schedules, |device| run(&case, device));
    }
}

/// The heads of Qwen3-0.6B, Qwen3-8B and Qwen2.5-0.5B over 2,176 packed rows, some of them queries.
#[test]
fn real_shapes() {
    let of_300: Vec<(usize, Option<usize>)> = [vec![(300, None); 7], vec![(76, None)]].concat();
    let prefixes = [(1024, None), (300, Some(0)), (300, Some(0)), (300, Some(1)), (252, None)];
    let long = at_scale(vec![(1152, None), (1024, None)], vec![(150, None), (130, None)]);
    let short = at_scale(of_300, vec![(70, None), (50, None)]);
    let linked = at_scale(prefixes.to_vec(), vec![(130, None), (20, Some(0)), (30, Some(1))]);
    let every = |row: usize| row % 10 != 3;
    for (number, (heads, parts, is_whole)) in [
        (at_scale(heads(8, 2, 128), heads(2, 2, 128)), &short, true),
        (at_scale(heads(8, 2, 128), heads(1, 2, 128)), &long, true),
        (at_scale(heads(8, 4, 128), heads(1, 4, 128)), &linked, false),
        (at_scale(heads(2, 7, 64), heads(1, 7, 64)), &short, false),
    ]
    .into_iter()
    .enumerate()
    {
        let case = Case::for_rows(heads, parts, |row| is_whole || every(row));
        compare(&case, &run(&case, &kernel_device(60 + number as u64)));
    }
}

/// Tests that only the emulator can run.
mod emulator {
    use super::*;
    use crate::device::EmulatorOptions;
    use crate::device::kernels::Kernel;
    use crate::ops::testing::truncating_emulator;

    #[test]
    fn shared_memory_is_free_of_conflicts_and_sectors_are_used_in_full() {
        let mut seen = std::collections::BTreeSet::new();
        let masks = [AttnMask::Causal, AttnMask::Window(40)];
        for (d, mask) in
            [16, 32, 48, 64, 72, 80, 96, 112, 128].into_iter().flat_map(|d| masks.map(|mask| (d, mask)))
        {
            let case = Case { mask, ..Case::new(heads(2, 2, d), &[(128, None)]) };
            let device = Device::emulated(EmulatorOptions { stats: true, ..Default::default() }).unwrap();
            run(&case, &device);
            for (symbol, counters) in device.take_counters().kernels {
                let total = counters.total;
                assert_eq!(counters.worst_shared_ratio(), 1.0, "{symbol}: {counters:?}");
                // The statistics of a row take a separate sector, whose share is larger for shorter rows. Heads of 72 have 144 bytes, so
                // that every second one begins in the middle of a sector, and each of its pairs of pieces takes part of two.
                let limit = match d {
                    16 => 1.09,
                    72 => 1.65,
                    _ => 1.05,
                };
                assert!(total.sector_ratio() <= limit, "{symbol}: {counters:?}");
                seen.insert(symbol);
            }
        }
        for kernel in Kernel::ALL.iter().filter(|kernel| kernel.symbol().starts_with("attention")) {
            assert!(seen.contains(kernel.symbol()), "{} was not measured", kernel.symbol());
        }
    }

    #[test]
    fn sums_that_are_cut_off_stay_within_the_tolerances() {
        let case = Case::new(heads(1, 2, 128), &[(200, None), (30, Some(0))]);
        compare(&case, &run(&case, &truncating_emulator()));
    }
}
