//! Attention over packed rows: variable lengths, grouped heads, causal masks, none or windows, and prefixes that several segments share.
//!
//! For query row `i` and head `h`, over the key rows `j` that the plan lets it see:
//! `s[j] = softmax_scale * q[i, h] . k[j, h / group]`, `p = softmax(s)`, `o[i, h] = sum_j p[j] v[j, h / group]`.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `q`, `o` | `[query_rows, num_attention_heads * head_dim]` | some rows of the batch, or all of them |
//! | `k`, `v` | `[total_tokens, num_key_value_heads * head_dim]` | |
//! | `dqkv` | `[total_tokens, q, k and v]` | gradients side by side, where one layer makes q, k and v |
//! | `lse` | `[query_rows, num_attention_heads]` | natural log of the sum of exponentials, saved for backward |
//!
//! The [`AttentionPlan`], built on the host, holds the mask: tiles of query rows with ranges of key rows.
//! Backward computes the probabilities again from `lse`, tile by tile: with `D[i, h] = dO[i, h] . O[i, h]`,
//! `dS = P * (dO V^T - D)`, `dQ = scale * dS K`, `dK = scale * dS^T Q`, `dV = P^T dO`. Every sum has a fixed
//! order. Source of the recomputation: Dao et al., "FlashAttention", 2022.
//!
//! On a GPU numbers are bf16, `head_dim` is 16, 32, 64 or 128, and the tensors may have more rows than the
//! batch, up to the capacity of the plan: rows beyond the batch are neither read nor written.

mod cpu;
mod gpu;
mod plan;
#[cfg(test)]
mod tests;

pub use plan::{AttentionPlan, KvRange, MaskKind, PlanCapacity, QueryTile};

use super::cols::Cols;
use super::{Runner, check_shape, runner};
use crate::device::{Device, Machine, Tensor, Work};
use crate::error::{Error, Result};
pub use crate::kinds::AttnMask;
use crate::tensor::Real;

const OP: &str = "attention";

/// Shape of the heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Heads of the queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub softmax_scale: f64,
}

impl Heads {
    /// Elements of a query row.
    pub fn q_cols(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Elements of a key row.
    pub fn kv_cols(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }
}

/// The inputs of both directions.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a, T: Real> {
    /// Queries, after norm and rotation.
    pub q: Cols<'a, T>,
    /// Keys, after norm and rotation.
    pub k: Cols<'a, T>,
    /// Values.
    pub v: Cols<'a, T>,
    /// Shape of the heads.
    pub heads: Heads,
    /// The mask: which keys each query sees.
    pub plan: &'a AttentionPlan,
}

impl<T: Real> Attention<'_, T> {
    fn check(&self) -> Result<()> {
        let Heads { num_attention_heads: q, num_key_value_heads: kv, .. } = self.heads;
        if kv == 0 || q % kv != 0 {
            return Err(Error::shape(OP, "heads", "query heads divisible by key heads", (q, kv)));
        }
        let [query_rows, key_rows] = self.plan.tensor_rows();
        let (q, kv) = ([query_rows, self.heads.q_cols()], [key_rows, self.heads.kv_cols()]);
        for (arg, got, expected) in
            [("q", self.q.shape(), q), ("k", self.k.shape(), kv), ("v", self.v.shape(), kv)]
        {
            if got != expected {
                return Err(Error::shape(OP, arg, expected, got));
            }
        }
        Ok(())
    }

    /// Records `products` matrix products over all (query, key) pairs, and the tensors shaped like `q` and
    /// like `k` that are read or written once.
    fn record(&self, device: &Device, op: &'static str, products: u64, [like_q, like_k]: [usize; 2]) {
        let pairs = self.plan.num_pairs() * self.heads.num_attention_heads as u64;
        let numbers = like_q * self.q.len() + like_k * self.k.len();
        let statistics = self.q.rows() * self.heads.num_attention_heads;
        let bytes = numbers * size_of::<T>() + statistics * size_of::<T::Stat>();
        device.record(op, Work::new(2 * products * pairs * self.heads.head_dim as u64, bytes as u64));
    }
}

/// Writes `o` and `lse`.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module; on a GPU [`Error::Device`] without kernels for the
/// `head_dim` or if the plan was not uploaded, and errors of the device.
pub fn forward<T: Real>(
    device: &Device,
    args: &Attention<'_, T>,
    o: &mut Tensor<T>,
    lse: &mut Tensor<T::Stat>,
) -> Result<()> {
    args.check()?;
    check_shape(OP, "o", o, args.q.shape())?;
    check_shape(OP, "lse", lse, [args.q.rows(), args.heads.num_attention_heads])?;
    // q and o; k and v.
    args.record(device, "attention.forward", 2, [2, 2]);
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::forward(args, o, lse),
        Runner::Gpu => gpu::forward(device, args, o, lse)?,
        Runner::Skip => {}
    }
    Ok(())
}

/// The saved tensors of the forward pass, and where the gradients go.
#[derive(Debug)]
pub struct Backward<'a, T: Real> {
    /// Gradient of `o`.
    pub d_o: &'a Tensor<T>,
    /// Output of the forward pass.
    pub o: &'a Tensor<T>,
    /// Saved by the forward pass.
    pub lse: &'a Tensor<T::Stat>,
    /// Where the gradients go.
    pub grads: Grads<'a, T>,
}

/// Where the gradients of queries, keys and values go.
#[derive(Debug)]
pub enum Grads<'a, T: Real> {
    /// Each to a tensor of its own.
    Split {
        /// Overwritten.
        dq: &'a mut Tensor<T>,
        /// Overwritten.
        dk: &'a mut Tensor<T>,
        /// Overwritten.
        dv: &'a mut Tensor<T>,
    },
    /// Side by side, in the order of q, k and v.
    Fused {
        /// Overwritten, but for the columns of q where `dq` is given.
        dqkv: &'a mut Tensor<T>,
        /// Overwritten: where only some rows are queries.
        dq: Option<&'a mut Tensor<T>>,
    },
}

impl<T: Real> Grads<'_, T> {
    fn check(&self, args: &Attention<'_, T>) -> Result<()> {
        match self {
            Self::Split { dq, dk, dv } => {
                check_shape(OP, "dq", dq, args.q.shape())?;
                check_shape(OP, "dk", dk, args.k.shape())?;
                check_shape(OP, "dv", dv, args.v.shape())
            }
            Self::Fused { dqkv, dq } => {
                let cols = args.q.cols() + 2 * args.k.cols();
                check_shape(OP, "dqkv", dqkv, [args.k.rows(), cols])?;
                match dq {
                    Some(dq) => check_shape(OP, "dq", dq, args.q.shape()),
                    None if args.q.rows() == args.k.rows() => Ok(()),
                    None => Err(Error::shape(OP, "dq", "a tensor for some rows", "none")),
                }
            }
        }
    }
}

/// Writes `dq`, `dk` and `dv`.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Real>(device: &Device, args: &Attention<'_, T>, grads: Backward<'_, T>) -> Result<()> {
    args.check()?;
    check_shape(OP, "d_o", grads.d_o, args.q.shape())?;
    check_shape(OP, "o", grads.o, args.q.shape())?;
    check_shape(OP, "lse", grads.lse, [args.q.rows(), args.heads.num_attention_heads])?;
    grads.grads.check(args)?;
    // q, o, dO and dQ; k, v, dK and dV.
    args.record(device, "attention.backward", 5, [4, 4]);
    match runner::<T>(device, OP)? {
        Runner::Cpu => cpu::backward(device, args, grads)?,
        Runner::Gpu => gpu::backward(device, args, grads)?,
        // The memory plan of a CPU counts its buffers.
        Runner::Skip if device.machine() == Machine::Cpu => cpu::backward(device, args, grads)?,
        Runner::Skip => {}
    }
    Ok(())
}
