//! Attention on the CPU: the scores of one tile and head are a small matrix that stays in the cache.

use std::ops::Range;

use rayon::prelude::*;

use super::plan::{Group, KvRange, QueryTile};
use super::{Attention, Backward, Grads};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::cols::Cols;
use crate::ops::gemm::{Mat, MatMut, Write, gemm};
use crate::ops::simd;
use crate::tensor::Real;

/// See [`super::forward`]. Tiles run in parallel; each owns its rows of `o` and `lse`.
pub(super) fn forward<T: Real>(args: &Attention<'_, T>, o: &mut Tensor<T>, lse: &mut Tensor<T::Stat>) {
    let (q_cols, heads) = (args.heads.q_cols(), args.heads.num_attention_heads);
    let (mut o_rest, mut lse_rest) = (o.data_mut(), lse.data_mut());
    let mut tasks = Vec::new();
    for tile in args.plan.tiles() {
        let (o, rest) = o_rest.split_at_mut(tile.rows.len() * q_cols);
        o_rest = rest;
        let (lse, rest) = lse_rest.split_at_mut(tile.rows.len() * heads);
        lse_rest = rest;
        tasks.push((tile, o, lse));
    }
    tasks.into_par_iter().for_each_init(Vec::new, |scores, (tile, o, lse)| {
        for head in 0..heads {
            forward_head(args, tile, head, scores, o, lse);
        }
    });
}

fn forward_head<T: Real>(
    args: &Attention<'_, T>,
    tile: &QueryTile,
    head: usize,
    scores: &mut Vec<T>,
    o: &mut [T],
    lse: &mut [T::Stat],
) {
    let (m, n) = (tile.rows.len(), num_keys(tile));
    let (d, q_cols) = (args.heads.head_dim, args.heads.q_cols());
    scores.resize(m * n, T::ZERO);
    let scale = T::from_f64(args.heads.softmax_scale);
    let q = query(args, args.q, tile, head);
    let mut first = 0;
    for range in &tile.keys {
        let k = keys(args, args.k, range, head);
        gemm(
            MatMut::strided(&mut scores[first..], m, range.rows.len(), n),
            Write::Overwrite,
            scale,
            q,
            k.t(),
        );
        first += range.rows.len();
    }
    for (i, row) in scores.chunks_exact_mut(n).enumerate() {
        lse[i * args.heads.num_attention_heads + head] = softmax(args, tile, i, row).to_stat();
    }
    let mut first = 0;
    for (at, range) in tile.keys.iter().enumerate() {
        let p = Mat::strided(&scores[first..], m, range.rows.len(), n);
        let write = if at == 0 { Write::Overwrite } else { Write::Add };
        let o = MatMut::strided(&mut o[head * d..], m, d, q_cols);
        gemm(o, write, T::ONE, p, keys(args, args.v, range, head));
        first += range.rows.len();
    }
}

/// Softmax of the scores that query `i` of the tile sees, zero for the others; returns the log of the sum.
fn softmax<T: Real>(args: &Attention<'_, T>, tile: &QueryTile, i: usize, row: &mut [T]) -> T {
    let query = tile.rows.start + i;
    simd::run(
        #[inline(always)]
        || {
            let mut largest = T::NEG_INFINITY;
            let mut first = 0;
            for range in &tile.keys {
                let visible = args.plan.visible(query, range);
                largest = largest.max(simd::max(&row[first + visible.start..first + visible.end]));
                first += range.rows.len();
            }
            let mut total = T::ZERO;
            let mut first = 0;
            for range in &tile.keys {
                let visible = args.plan.visible(query, range);
                let row = &mut row[first..first + range.rows.len()];
                row[..visible.start].fill(T::ZERO);
                row[visible.end..].fill(T::ZERO);
                let seen = &mut row[visible];
                for s in seen.iter_mut() {
                    *s = (*s - largest).exp();
                }
                total += simd::sum(seen, |p| p);
                first += range.rows.len();
            }
            let inverse = T::ONE / total;
            for s in row.iter_mut() {
                *s *= inverse;
            }
            largest + total.ln()
        },
    )
}

/// See [`super::backward`]. A task is one key head of one group of tiles; no two tasks share a key row.
pub(super) fn backward<T: Real>(
    device: &Device,
    args: &Attention<'_, T>,
    grads: Backward<'_, T>,
) -> Result<()> {
    let Backward { d_o, o, lse, grads } = grads;
    let kv_heads = args.heads.num_key_value_heads;
    let (d, group_cols) = (args.heads.head_dim, args.heads.group() * args.heads.head_dim);
    let mut tasks: Vec<(&Group, usize, [Tensor<T>; 3])> = Vec::new();
    for group in args.plan.groups() {
        for kv_head in 0..kv_heads {
            let local = [
                device.empty(group.query_rows.len(), group_cols)?,
                device.empty(group.key_rows.len(), d)?,
                device.empty(group.key_rows.len(), d)?,
            ];
            tasks.push((group, kv_head, local));
        }
    }
    if device.is_dry() {
        return Ok(());
    }
    let context = Context { args, d_o, o, lse };
    tasks.par_iter_mut().for_each_init(Scratch::default, |scratch, (group, kv_head, [dq, dk, dv])| {
        dk.data_mut().fill(T::ZERO);
        dv.data_mut().fill(T::ZERO);
        for tile in &args.plan.tiles()[group.tiles.clone()] {
            for head in *kv_head * args.heads.group()..(*kv_head + 1) * args.heads.group() {
                context.tile(group, tile, head, scratch, dq, dk, dv);
            }
        }
    });
    // Rows that no tile covers get no gradient.
    let widths = [group_cols, d, d];
    match grads {
        Grads::Split { dq, dk, dv } => {
            for (part, whole) in [dq, dk, dv].into_iter().enumerate() {
                let columns = 0..whole.cols();
                scatter(whole, columns, widths[part], &tasks, part);
            }
        }
        Grads::Fused { dqkv, dq } => {
            let (q_end, k_end) = (args.q.cols(), args.q.cols() + args.k.cols());
            match dq {
                Some(dq) => scatter(dq, 0..q_end, group_cols, &tasks, 0),
                None => scatter(dqkv, 0..q_end, group_cols, &tasks, 0),
            }
            scatter(dqkv, q_end..k_end, d, &tasks, 1);
            scatter(dqkv, k_end..k_end + args.v.cols(), d, &tasks, 2);
        }
    }
    Ok(())
}

/// Copies the columns of every task to their place among `columns`.
fn scatter<T: Real>(
    whole: &mut Tensor<T>,
    columns: Range<usize>,
    width: usize,
    tasks: &[(&Group, usize, [Tensor<T>; 3])],
    part: usize,
) {
    let cols = whole.cols();
    let heads = columns.len() / width;
    let mut rest = whole.data_mut();
    let mut pieces = Vec::new();
    for tasks in tasks.chunks_exact(heads) {
        let rows = tasks[0].2[part].rows();
        let (piece, tail) = rest.split_at_mut(rows * cols);
        rest = tail;
        pieces.push((piece, tasks));
    }
    for (piece, tasks) in pieces {
        piece.par_chunks_mut(cols).enumerate().for_each(|(row, piece)| {
            for (piece, task) in piece[columns.clone()].chunks_exact_mut(width).zip(tasks) {
                piece.copy_from_slice(task.2[part].row(row));
            }
        });
    }
}

/// Scores and their gradients of one tile, head and range.
struct Scratch<T> {
    p: Vec<T>,
    ds: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self { p: Vec::new(), ds: Vec::new() }
    }
}

struct Context<'a, T: Real> {
    args: &'a Attention<'a, T>,
    d_o: &'a Tensor<T>,
    o: &'a Tensor<T>,
    lse: &'a Tensor<T::Stat>,
}

impl<T: Real> Context<'_, T> {
    /// Adds the contribution of one tile and query head to the local gradients of their task.
    #[allow(clippy::too_many_arguments, reason = "three outputs of one task and its scratch")]
    fn tile(
        &self,
        group: &Group,
        tile: &QueryTile,
        head: usize,
        scratch: &mut Scratch<T>,
        dq: &mut Tensor<T>,
        dk: &mut Tensor<T>,
        dv: &mut Tensor<T>,
    ) {
        let args = self.args;
        let (m, d, group_cols) = (tile.rows.len(), args.heads.head_dim, dq.cols());
        let scale = T::from_f64(args.heads.softmax_scale);
        let (q, d_o) = (query(args, args.q, tile, head), query(args, self.d_o.into(), tile, head));
        let dq_start = (tile.rows.start - group.query_rows.start) * group_cols;
        let dq_start = dq_start + head % args.heads.group() * d;
        for (at, range) in tile.keys.iter().enumerate() {
            let n = range.rows.len();
            let (k, v) = (keys(args, args.k, range, head), keys(args, args.v, range, head));
            scratch.p.resize(m * n, T::ZERO);
            scratch.ds.resize(m * n, T::ZERO);
            gemm(MatMut::new(&mut scratch.p, m, n), Write::Overwrite, scale, q, k.t());
            gemm(MatMut::new(&mut scratch.ds, m, n), Write::Overwrite, T::ONE, d_o, v.t());
            let rows = scratch.p.chunks_exact_mut(n).zip(scratch.ds.chunks_exact_mut(n));
            for (i, (p, ds)) in rows.enumerate() {
                self.row(tile.rows.start + i, range, head, p, ds);
            }
            let (p, ds) = (Mat::new(&scratch.p, m, n), Mat::new(&scratch.ds, m, n));
            let write = if at == 0 { Write::Overwrite } else { Write::Add };
            let dq = MatMut::strided(&mut dq.data_mut()[dq_start..], m, d, group_cols);
            gemm(dq, write, scale, ds, k);
            let keys =
                (range.rows.start - group.key_rows.start) * d..(range.rows.end - group.key_rows.start) * d;
            gemm(MatMut::new(&mut dk.data_mut()[keys.clone()], n, d), Write::Add, scale, ds.t(), q);
            gemm(MatMut::new(&mut dv.data_mut()[keys], n, d), Write::Add, T::ONE, p.t(), d_o);
        }
    }

    /// Turns scores into probabilities, and `dO V^T` into `dS`, for one query; zero for masked keys.
    fn row(&self, query: usize, range: &KvRange, head: usize, p: &mut [T], ds: &mut [T]) {
        let args = self.args;
        let d = args.heads.head_dim;
        let lse = T::from_stat(self.lse.row(query)[head]);
        let (o, d_o) =
            (&self.o.row(query)[head * d..(head + 1) * d], &self.d_o.row(query)[head * d..(head + 1) * d]);
        let visible = args.plan.visible(query, range);
        simd::run(
            #[inline(always)]
            || {
                let delta = simd::dot(o, d_o);
                for hidden in [0..visible.start, visible.end..p.len()] {
                    p[hidden.clone()].fill(T::ZERO);
                    ds[hidden].fill(T::ZERO);
                }
                for (p, ds) in p[visible.clone()].iter_mut().zip(&mut ds[visible.clone()]) {
                    *p = (*p - lse).exp();
                    *ds = *p * (*ds - delta);
                }
            },
        );
    }
}

/// Keys that a tile attends to, over all its ranges.
fn num_keys(tile: &QueryTile) -> usize {
    tile.keys.iter().map(|r| r.rows.len()).sum()
}

/// One head of the tile's rows of a tensor with query heads.
fn query<'a, T: Real>(
    args: &Attention<'_, T>,
    tensor: Cols<'a, T>,
    tile: &QueryTile,
    head: usize,
) -> Mat<'a, T> {
    let (d, cols) = (args.heads.head_dim, tensor.row_stride());
    Mat::strided(&tensor.data()[tile.rows.start * cols + head * d..], tile.rows.len(), d, cols)
}

/// The key head that belongs to query head `head`, for the rows of a range.
fn keys<'a, T: Real>(
    args: &Attention<'_, T>,
    tensor: Cols<'a, T>,
    range: &KvRange,
    head: usize,
) -> Mat<'a, T> {
    let (d, cols) = (args.heads.head_dim, tensor.row_stride());
    let start = range.rows.start * cols + head / args.heads.group() * d;
    Mat::strided(&tensor.data()[start..], range.rows.len(), d, cols)
}
