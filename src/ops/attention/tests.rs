//! Attention against the definition (one query at a time, f64), its gradients, and prefix links against whole sequences.

use proptest::prelude::*;

use super::*;
use crate::batch::{Batch, Segment};
use crate::ops::testing::{cast, check_gradient, cpu, inner, random, relative_rms};

const HEADS: Heads =
    Heads { num_attention_heads: 4, num_key_value_heads: 2, head_dim: 6, softmax_scale: 0.4 };

/// A batch of `(length, prefix)` segments.
pub(super) fn segments(parts: &[(usize, Option<usize>)]) -> Vec<Segment> {
    let mut batch = Batch::default();
    for &(len, prefix) in parts {
        batch.push_segment(&vec![0; len], prefix, 0);
    }
    batch.segments
}

/// The rows that `row` sees, by following the links.
pub(super) fn seen(segments: &[Segment], row: usize) -> Vec<usize> {
    let own = segments.iter().find(|s| s.rows().contains(&row)).unwrap();
    let mut rows: Vec<usize> = (own.start..=row).collect();
    let mut prefix = own.prefix;
    while let Some(p) = prefix {
        rows.extend(segments[p].rows());
        prefix = segments[p].prefix;
    }
    rows
}

struct Case {
    device: Device,
    q: Tensor<f64>,
    k: Tensor<f64>,
    v: Tensor<f64>,
}

fn case(query_rows: usize, key_rows: usize) -> Case {
    let device = cpu();
    Case {
        q: random(&device, query_rows, HEADS.q_cols(), 0),
        k: random(&device, key_rows, HEADS.kv_cols(), 1),
        v: random(&device, key_rows, HEADS.kv_cols(), 2),
        device,
    }
}

impl Case {
    fn forward(&self, plan: &AttentionPlan) -> (Tensor<f64>, Tensor<f64>) {
        let mut o = self.device.empty(self.q.rows(), HEADS.q_cols()).unwrap();
        let mut lse = self.device.empty(self.q.rows(), HEADS.num_attention_heads).unwrap();
        let args =
            Attention { q: (&self.q).into(), k: (&self.k).into(), v: (&self.v).into(), heads: HEADS, plan };
        forward(&self.device, &args, &mut o, &mut lse).unwrap();
        (o, lse)
    }

    fn backward(&self, plan: &AttentionPlan, d_o: &Tensor<f64>) -> [Tensor<f64>; 3] {
        let (o, lse) = self.forward(plan);
        let like = |t: &Tensor<f64>| self.device.empty(t.rows(), t.cols()).unwrap();
        let (mut dq, mut dk, mut dv) = (like(&self.q), like(&self.k), like(&self.v));
        let args =
            Attention { q: (&self.q).into(), k: (&self.k).into(), v: (&self.v).into(), heads: HEADS, plan };
        let grads =
            Backward { d_o, o: &o, lse: &lse, grads: Grads::Split { dq: &mut dq, dk: &mut dk, dv: &mut dv } };
        backward(&self.device, &args, grads).unwrap();
        [dq, dk, dv]
    }

    /// The definition for one query.
    fn expected(&self, query: usize, head: usize, rows: &[usize]) -> (Vec<f64>, f64) {
        let d = HEADS.head_dim;
        let part = |t: &Tensor<f64>, row: usize, h: usize| t.row(row)[h * d..(h + 1) * d].to_vec();
        let kv = head / HEADS.group();
        let q = part(&self.q, query, head);
        let scores: Vec<f64> =
            rows.iter().map(|&j| (HEADS.softmax_scale * inner(&q, &part(&self.k, j, kv))).exp()).collect();
        let total: f64 = scores.iter().sum();
        let mut o = vec![0.0; d];
        for (s, &j) in scores.iter().zip(rows) {
            for (o, v) in o.iter_mut().zip(part(&self.v, j, kv)) {
                *o += s / total * v;
            }
        }
        (o, total.ln())
    }
}

#[test]
fn forward_follows_the_definition_for_all_rows_and_for_some() {
    for parts in [
        vec![(1, None)],
        vec![(5, None), (130, None), (1, None), (64, None)],
        vec![(70, None), (3, Some(0)), (65, Some(0)), (2, Some(2)), (4, None)],
    ] {
        let segments = segments(&parts);
        let total = segments.last().unwrap().rows().end;
        let some: Vec<usize> = (0..total).filter(|r| r % 3 == 1 || *r + 1 == total).collect();
        for rows in [(0..total).collect(), some] {
            let case = case(rows.len(), total);
            let (o, lse) =
                case.forward(&AttentionPlan::for_rows(AttnMask::Causal, &segments, &rows).unwrap());
            for (query, &row) in rows.iter().enumerate() {
                for head in 0..HEADS.num_attention_heads {
                    let (expected, expected_lse) = case.expected(query, head, &seen(&segments, row));
                    let got = &o.row(query)[head * HEADS.head_dim..(head + 1) * HEADS.head_dim];
                    assert!(relative_rms(got, &expected) < 1e-12, "{parts:?} row {row} head {head}");
                    assert!((lse.row(query)[head] - expected_lse).abs() < 1e-12);
                }
            }
        }
    }
}

#[test]
fn bidirectional_rows_see_their_whole_segment() {
    let segments = segments(&[(3, None), (70, None)]);
    let case = case(73, 73);
    let (o, _) = case.forward(&AttentionPlan::of_all(AttnMask::Full, &segments).unwrap());
    for (row, seen) in [(0, 0..3), (2, 0..3), (3, 3..73), (72, 3..73)] {
        let (expected, _) = case.expected(row, 1, &seen.collect::<Vec<_>>());
        assert!(relative_rms(&o.row(row)[6..12], &expected) < 1e-12, "row {row}");
    }
}

#[test]
fn rows_see_windows_of_their_segment() {
    let segments = segments(&[(3, None), (150, None), (1, None)]);
    for reach in [0, 1, 5, 64, 200] {
        for rows in [(0..154).collect::<Vec<_>>(), vec![0, 2, 3, 80, 152, 153]] {
            let case = case(rows.len(), 154);
            let plan = AttentionPlan::for_rows(AttnMask::Window(reach), &segments, &rows).unwrap();
            let (o, _) = case.forward(&plan);
            for (query, &row) in rows.iter().enumerate() {
                let own = segments.iter().find(|s| s.rows().contains(&row)).unwrap();
                let seen: Vec<usize> = own.rows().filter(|key| key.abs_diff(row) <= reach).collect();
                let (expected, _) = case.expected(query, 1, &seen);
                assert!(relative_rms(&o.row(query)[6..12], &expected) < 1e-12, "{reach} row {row}");
            }
        }
    }
    let linked = super::tests::segments(&[(3, None), (4, Some(0))]);
    assert!(AttentionPlan::of_all(AttnMask::Full, &linked).is_err(), "a prefix would see what continues it");
}

#[test]
fn runs_of_columns_are_tensors_of_their_own() {
    let segments = segments(&[(5, None), (70, None)]);
    let rows: Vec<usize> = (0..75).filter(|row| row % 7 == 2).collect();
    for (mask, rows) in [(AttnMask::Full, (0..75).collect()), (AttnMask::Window(9), rows)] {
        let plan = AttentionPlan::for_rows(mask, &segments, &rows).unwrap();
        let case = case(rows.len(), 75);
        let d_o = random::<f64>(&case.device, rows.len(), HEADS.q_cols(), 3);
        let (o, lse) = case.forward(&plan);
        let [dq, dk, dv] = case.backward(&plan, &d_o);
        let (q_end, k_end) = (HEADS.q_cols(), HEADS.q_cols() + HEADS.kv_cols());
        let is_whole = rows.len() == 75;
        let row = |row: usize| {
            let q = if is_whole { case.q.row(row).to_vec() } else { vec![0.5; q_end] };
            [&q[..], case.k.row(row), case.v.row(row)].concat()
        };
        let qkv = case.device.tensor(75, k_end + HEADS.kv_cols(), &(0..75).flat_map(row).collect::<Vec<_>>());
        let qkv = qkv.unwrap();
        let cols = |columns| Cols::new(&qkv, columns).unwrap();
        let args = Attention {
            q: if is_whole { cols(0..q_end) } else { (&case.q).into() },
            k: cols(q_end..k_end),
            v: cols(k_end..qkv.cols()),
            heads: HEADS,
            plan: &plan,
        };
        let (mut o2, mut lse2) = (cast(&case.device, &o), cast(&case.device, &lse));
        forward(&case.device, &args, &mut o2, &mut lse2).unwrap();
        assert_eq!((o2.data(), lse2.data()), (o.data(), lse.data()));
        let mut dqkv = case.device.tensor(75, qkv.cols(), &vec![0.25; qkv.len()]).unwrap();
        let mut own_dq = case.device.zeros(rows.len(), q_end).unwrap();
        let grads = Grads::Fused { dqkv: &mut dqkv, dq: (!is_whole).then_some(&mut own_dq) };
        backward(&case.device, &args, Backward { d_o: &d_o, o: &o, lse: &lse, grads }).unwrap();
        for key in 0..75 {
            assert_eq!(&dqkv.row(key)[q_end..k_end], dk.row(key));
            assert_eq!(&dqkv.row(key)[k_end..], dv.row(key));
            let expected = if is_whole { dq.row(key) } else { &[0.25; 24][..] };
            assert_eq!(&dqkv.row(key)[..q_end], expected, "left alone where some rows are queries");
        }
        assert!(is_whole || own_dq.data() == dq.data());
    }
}

#[test]
fn backward_is_the_gradient() {
    for (mask, parts, rows) in [
        (AttnMask::Causal, vec![(3, None), (70, None)], None),
        (AttnMask::Causal, vec![(5, None), (2, Some(0)), (66, Some(0)), (3, Some(1)), (4, None)], None),
        (AttnMask::Causal, vec![(5, None), (2, Some(0)), (3, Some(0))], Some(vec![4, 6, 8, 9])),
        (AttnMask::Full, vec![(3, None), (70, None)], None),
        (AttnMask::Full, vec![(3, None), (7, None)], Some(vec![0, 3])),
        (AttnMask::Window(4), vec![(3, None), (70, None)], None),
    ] {
        let segments = segments(&parts);
        let total = segments.last().unwrap().rows().end;
        let rows: Vec<usize> = rows.unwrap_or_else(|| (0..total).collect());
        let plan = AttentionPlan::for_rows(mask, &segments, &rows).unwrap();
        let case = case(rows.len(), total);
        let d_o = random::<f64>(&case.device, rows.len(), HEADS.q_cols(), 3);
        let [dq, dk, dv] = case.backward(&plan, &d_o);
        let device = case.device.clone();
        let copy = |t: &Tensor<f64>| cast::<f64, f64>(&device, t);
        let loss = |q: &Tensor<f64>, k: &Tensor<f64>, v: &Tensor<f64>| {
            let moved = Case { device: device.clone(), q: copy(q), k: copy(k), v: copy(v) };
            inner(moved.forward(&plan).0.data(), d_o.data())
        };
        check_gradient(&device, "q", &case.q, dq.data(), |q| loss(q, &case.k, &case.v));
        check_gradient(&device, "k", &case.k, dk.data(), |k| loss(&case.q, k, &case.v));
        check_gradient(&device, "v", &case.v, dv.data(), |v| loss(&case.q, &case.k, v));
    }
}

#[test]
fn f32_stays_near_f64_with_large_scores() {
    let device = cpu();
    let segments = segments(&[(300, None)]);
    let plan = AttentionPlan::causal(&segments);
    let heads = Heads { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 64, softmax_scale: 1.0 };
    fn run<T: Real>(
        device: &Device,
        [q, k, v]: [&Tensor<T>; 3],
        heads: Heads,
        plan: &AttentionPlan,
    ) -> Tensor<T> {
        let (mut o, mut lse) =
            (device.empty(q.rows(), q.cols()).unwrap(), device.empty(q.rows(), 2).unwrap());
        forward(device, &Attention { q: q.into(), k: k.into(), v: v.into(), heads, plan }, &mut o, &mut lse)
            .unwrap();
        o
    }
    let inputs = [
        random::<f32>(&device, 300, 128, 0),
        random::<f32>(&device, 300, 64, 1),
        random::<f32>(&device, 300, 64, 2),
    ];
    let wide: Vec<Tensor<f64>> = inputs.iter().map(|t| cast(&device, t)).collect();
    let o = run(&device, [&inputs[0], &inputs[1], &inputs[2]], heads, &plan);
    let error = relative_rms(o.data(), run(&device, [&wide[0], &wide[1], &wide[2]], heads, &plan).data());
    assert!(error < 5e-6, "{error:e}");
}

/// Up to five segments, some with prefixes that may have prefixes, and some of their rows.
pub(super) fn linked_segments() -> impl Strategy<Value = (Vec<Segment>, Vec<usize>)> {
    let part = (1usize..150, any::<prop::sample::Index>(), any::<bool>());
    let keep = prop::collection::vec(any::<bool>(), 1..20);
    (prop::collection::vec(part, 1..6), keep).prop_map(|(parts, keep)| {
        let link = |i, prefix: &prop::sample::Index| (i > 0).then(|| prefix.index(i));
        let parts: Vec<(usize, Option<usize>)> = parts
            .iter()
            .enumerate()
            .map(|(i, (len, prefix, linked))| (*len, link(i, prefix).filter(|_| *linked)))
            .collect();
        let segments = segments(&parts);
        let total = segments.last().map_or(0, |segment| segment.rows().end);
        (segments, (0..total).filter(|r| keep[r % keep.len()]).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Tiles cover every query once and in order, and contain exactly the pairs of the links.
    #[test]
    fn a_plan_shows_every_row_what_its_links_say((segments, rows) in linked_segments()) {
        let plan = AttentionPlan::for_rows(AttnMask::Causal, &segments, &rows).unwrap();
        let mut next = 0;
        for tile in plan.tiles() {
            prop_assert_eq!(tile.rows.start, next);
            next = tile.rows.end;
            for query in tile.rows.clone() {
                let mut got: Vec<usize> = tile
                    .keys
                    .iter()
                    .flat_map(|r| plan.visible(query, r).map(|key| r.rows.start + key))
                    .collect();
                let mut expected = seen(&segments, rows[query]);
                got.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(got, expected);
            }
        }
        prop_assert_eq!(next, rows.len());
        // Groups tile the keys, and no tile sees keys outside its group.
        let mut next = 0;
        for group in plan.groups() {
            prop_assert_eq!(group.key_rows.start, next);
            next = group.key_rows.end;
            for tile in &plan.tiles()[group.tiles.clone()] {
                for range in &tile.keys {
                    prop_assert!(range.rows.start >= group.key_rows.start);
                    prop_assert!(range.rows.end <= group.key_rows.end);
                }
            }
        }
        prop_assert_eq!(next, segments.last().unwrap().rows().end);
    }
}

#[test]
fn a_gpu_needs_one_launch_forward_and_two_backward() {
    use half::bf16;

    let device = Device::dry_gpu(crate::device::arch::Chip::RTX_3080);
    let heads = Heads { head_dim: 64, ..HEADS };
    let mut plan = AttentionPlan::causal(&segments(&[(300, None), (17, None)]));
    plan.upload(&device).unwrap();
    let rows = |cols: usize| device.empty::<bf16>(317, cols).unwrap();
    let (q, k, v) = (rows(heads.q_cols()), rows(heads.kv_cols()), rows(heads.kv_cols()));
    let args = Attention { q: (&q).into(), k: (&k).into(), v: (&v).into(), heads, plan: &plan };
    let (mut o, mut lse) = (rows(heads.q_cols()), device.empty(317, heads.num_attention_heads).unwrap());
    forward(&device, &args, &mut o, &mut lse).unwrap();
    let (mut dq, mut dk, mut dv) = (rows(heads.q_cols()), rows(heads.kv_cols()), rows(heads.kv_cols()));
    let grads =
        Backward { d_o: &o, o: &o, lse: &lse, grads: Grads::Split { dq: &mut dq, dk: &mut dk, dv: &mut dv } };
    backward(&device, &args, grads).unwrap();
    let ledger = device.take_ledger();
    let launches: Vec<u64> = ledger.entries().map(|(_, _, work)| work.launches).collect();
    assert_eq!(launches, [2, 1], "backward, forward");
}
