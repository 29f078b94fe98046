//! Attention on a GPU: one launch forward, two backward, over the work lists of the plan.
//!
//! `head_dim` is 72 or a multiple of 16 up to 128. The first kernel of the backward pass computes dq, and `lse` and `D` of
//! every query for the second one, which computes dk and dv. The files in `kernels/` describe the kernels.
//! The work lists come from [`AttentionPlan::upload`] or
//! [`AttentionPlan::replace`](super::AttentionPlan::replace); grids are sized for their capacity.

mod plan;
mod tables;
#[cfg(test)]
mod tests;

pub(crate) use tables::Tables;

use super::{Attention, AttentionPlan, Backward, Grads, OP};
use crate::device::kernels::params::{
    AttentionBwdDkvParams, AttentionBwdDqParams, AttentionFwdParams, AttentionQueries,
};
use crate::device::kernels::{DevicePtr, Kernel};
use crate::device::{Device, Launch, Tensor};
use crate::error::{Error, Result};
use crate::ops::cols::at_column;
use crate::tensor::Real;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(
    device: &Device,
    args: &Attention<'_, T>,
    o: &mut Tensor<T>,
    lse: &mut Tensor<T::Stat>,
) -> Result<()> {
    let tables = tables_of(args.plan)?;
    check_pieces(args)?;
    let kernels = plan::kernels(device, args.heads.head_dim, args.plan.has_window())?;
    let Some(launch) = plan::forward(kernels, &args.heads, tables.tile_capacity()) else { return Ok(()) };
    let params = AttentionFwdParams {
        q: args.q.ptr(),
        k: args.k.ptr(),
        v: args.v.ptr(),
        o: o.ptr(),
        lse: lse.ptr(),
        queries: queries(tables),
        num_heads: args.heads.num_attention_heads as i32,
        group: args.heads.group() as i32,
        scale_log2: scale_log2(args),
        q_stride: args.q.row_stride() as i32,
        k_stride: args.k.row_stride() as i32,
        v_stride: args.v.row_stride() as i32,
    };
    device.launch(&launch, &params)
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(
    device: &Device,
    args: &Attention<'_, T>,
    grads: Backward<'_, T>,
) -> Result<()> {
    let tables = tables_of(args.plan)?;
    check_pieces(args)?;
    let kernels = plan::kernels(device, args.heads.head_dim, args.plan.has_window())?;
    let heads = args.heads.num_attention_heads;
    // lse and D by tile and head, a pair for each of its queries.
    let stats = device.empty::<f32>(tables.tile_capacity().tiles * heads, 2 * plan::TILE)?;
    let to = Places::of(args, &grads.grads);
    if let Some(launch) = plan::dq(kernels, &args.heads, tables.tile_capacity()) {
        device.launch(&launch, &dq_params(args, &grads, (tables, &stats), &to))?;
    }
    let Some(launch) = plan::dkv(kernels, &args.heads, tables.tile_capacity()) else { return Ok(()) };
    let params = AttentionBwdDkvParams {
        q: args.q.ptr(),
        k: args.k.ptr(),
        v: args.v.ptr(),
        d_o: grads.d_o.ptr(),
        stats: stats.ptr(),
        dk: to.dk,
        dv: to.dv,
        queries: queries(tables),
        tiles: tables.key_tiles.ptr(),
        num_key_tiles: tables.key_tiles.count_ptr(),
        visits: tables.visits.ptr(),
        num_heads: heads as i32,
        group: args.heads.group() as i32,
        scale: args.heads.softmax_scale as f32,
        scale_log2: scale_log2(args),
        q_stride: args.q.row_stride() as i32,
        k_stride: args.k.row_stride() as i32,
        v_stride: args.v.row_stride() as i32,
        dk_stride: to.dk_stride,
        reach: args.plan.reach() as i32,
        reserved: 0,
    };
    device.launch(&launch, &params)
}

/// Where gradients go, and their row strides.
struct Places {
    dq: DevicePtr,
    dk: DevicePtr,
    dv: DevicePtr,
    dq_stride: i32,
    dk_stride: i32,
}

impl Places {
    fn of<T: Real>(args: &Attention<'_, T>, grads: &Grads<'_, T>) -> Self {
        let stride = |tensor: &Tensor<T>| tensor.cols() as i32;
        match grads {
            Grads::Split { dq, dk, dv } => Self {
                dq: dq.ptr(),
                dk: dk.ptr(),
                dv: dv.ptr(),
                dq_stride: stride(dq),
                dk_stride: stride(dk),
            },
            Grads::Fused { dqkv, dq } => {
                let (q_end, k_end) = (args.q.cols(), args.q.cols() + args.k.cols());
                let dq = dq.as_deref().unwrap_or(dqkv);
                Self {
                    dq: dq.ptr(),
                    dk: at_column(dqkv, q_end),
                    dv: at_column(dqkv, k_end),
                    dq_stride: stride(dq),
                    dk_stride: stride(dqkv),
                }
            }
        }
    }
}

/// Pieces of 16 bytes of all inputs are aligned.
fn check_pieces<T: Real>(args: &Attention<'_, T>) -> Result<()> {
    args.q.check_pieces(OP, "q")?;
    args.k.check_pieces(OP, "k")?;
    args.v.check_pieces(OP, "v")
}

fn dq_params<T: Real>(
    args: &Attention<'_, T>,
    grads: &Backward<'_, T>,
    (tables, stats): (&Tables, &Tensor<f32>),
    to: &Places,
) -> AttentionBwdDqParams {
    AttentionBwdDqParams {
        q: args.q.ptr(),
        k: args.k.ptr(),
        v: args.v.ptr(),
        o: grads.o.ptr(),
        d_o: grads.d_o.ptr(),
        lse: grads.lse.ptr(),
        stats: stats.ptr(),
        dq: to.dq,
        queries: queries(tables),
        num_heads: args.heads.num_attention_heads as i32,
        group: args.heads.group() as i32,
        scale: args.heads.softmax_scale as f32,
        scale_log2: scale_log2(args),
        q_stride: args.q.row_stride() as i32,
        k_stride: args.k.row_stride() as i32,
        v_stride: args.v.row_stride() as i32,
        dq_stride: to.dq_stride,
    }
}

fn queries(tables: &Tables) -> AttentionQueries {
    AttentionQueries {
        tiles: tables.tiles.ptr(),
        num_tiles: tables.tiles.count_ptr(),
        ranges: tables.ranges.ptr(),
        packed_rows: tables.packed_rows.ptr(),
    }
}

fn scale_log2<T: Real>(args: &Attention<'_, T>) -> f32 {
    (args.heads.softmax_scale * std::f64::consts::LOG2_E) as f32
}

fn tables_of(plan: &AttentionPlan) -> Result<&Tables> {
    plan.tables().ok_or_else(|| Error::Device {
        what: format!("{OP}: the plan is not in the memory of the GPU"),
        fix: "call AttentionPlan::upload before".into(),
    })
}

/// A launch of `blocks` blocks; no launch if `blocks` is 0.
fn launch(kernel: Kernel, blocks: usize, dynamic_smem: usize) -> Option<Launch> {
    let grid = [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1];
    (blocks > 0).then_some(Launch { kernel, grid, dynamic_smem: dynamic_smem as u32 })
}
