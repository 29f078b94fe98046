//! QK-norm and rotary position embedding of queries and keys, in one pass.
//!
//! Per row `t` and head: `n = x * rstd * weight` with `rstd = 1 / sqrt(mean(x^2) + eps)` over the head (left out without a
//! weight), then pairs `(i, i + d/2)` turn by the angle `position[t] * theta^(-2i/d)`:
//! `y[i] = n[i] cos - n[i + d/2] sin`, `y[i + d/2] = n[i + d/2] cos + n[i] sin`.
//!
//! | argument | shape | |
//! |---|---|---|
//! | `x` | `[rows, num_heads * head_dim]` | output of the projection; kept for the backward pass |
//! | `weight` | `[1, head_dim]` | optional, frozen, shared by all heads |
//! | `y` | `[rows, num_heads * head_dim]` | overwritten |
//!
//! Backward turns the gradient back and goes through the norm, whose statistics it computes again from `x`.
//! Sources: Su et al., "RoFormer", 2021 (half-split form of GPT-NeoX and transformers); QK-norm as in Qwen3.

mod cpu;
mod gpu;
#[cfg(test)]
mod gpu_tests;
mod table;
#[cfg(test)]
mod tests;

pub use table::{RopeRow, RopeTable};

use super::cols::Cols;
use super::{Runner, check_shape, runner};
use crate::device::{Device, Tensor, Work};
use crate::error::{Error, Result};
use crate::ops::projection::FusedProjection;
use crate::tensor::Real;

const OP: &str = "qk_norm_rope";

/// The parameters of one call.
#[derive(Debug, Clone, Copy)]
pub struct QkNormRope<'a, T: Real> {
    /// `None` for models without QK-norm.
    pub norm: Option<HeadNorm<'a, T>>,
    /// Angles of the rows.
    pub table: &'a RopeTable<T::Stat>,
    /// Elements of one head.
    pub head_dim: usize,
}

/// The frozen parameters of QK-norm.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorm<'a, T: Real> {
    /// `[1, head_dim]`.
    pub weight: &'a Tensor<T>,
    /// Added to the mean square.
    pub eps: T::Stat,
}

impl<T: Real> QkNormRope<'_, T> {
    fn check(&self, x: Cols<'_, T>) -> Result<()> {
        if !x.cols().is_multiple_of(self.head_dim) {
            return Err(Error::shape(OP, "x", format!("heads of {}", self.head_dim), x.shape()));
        }
        let table = [self.table.capacity(), self.table.head_dim()];
        if table != [x.rows(), self.head_dim] {
            return Err(Error::shape(OP, "table", [x.rows(), self.head_dim], table));
        }
        match self.norm {
            Some(norm) => check_shape(OP, "weight", norm.weight, [1, self.head_dim]),
            None => Ok(()),
        }
    }
}

/// The forward job of the queries or the keys.
#[derive(Debug)]
pub struct RopeJob<'a, T: Real> {
    /// Output of the projection, or some of its columns.
    pub x: Cols<'a, T>,
    /// Norm, angles and head.
    pub op: QkNormRope<'a, T>,
    /// Overwritten, in the shape of `x`.
    pub y: &'a mut Tensor<T>,
}

/// The backward job of the queries or the keys.
#[derive(Debug)]
pub struct RopeBackwardJob<'a, T: Real> {
    /// Input of the forward pass.
    pub x: Cols<'a, T>,
    /// Norm, angles and head.
    pub op: QkNormRope<'a, T>,
    /// Becomes `dx`: its first columns, as many as `x` has. Others are left alone.
    pub dy: &'a mut Tensor<T>,
}

/// Writes `y` of one or two jobs, in one launch. The table of a job holds its number of rows.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module; errors of the device.
pub fn forward<T: Real>(device: &Device, jobs: &mut [RopeJob<'_, T>]) -> Result<()> {
    for job in &*jobs {
        job.op.check(job.x)?;
        check_shape(OP, "y", job.y, job.x.shape())?;
    }
    record(device, "qk_norm_rope.forward", jobs.iter().map(|job| job.x), 2);
    match runner::<T>(device, OP)? {
        Runner::Cpu => jobs.iter_mut().for_each(|job| cpu::forward(job.x, &job.op, job.y)),
        Runner::Gpu => gpu::forward(device, jobs)?,
        Runner::Skip => {}
    }
    Ok(())
}

/// What [`backward`] reads and writes.
#[derive(Debug)]
pub struct Backward<'a, 'j, T: Real> {
    /// One or two.
    pub jobs: &'a mut [RopeBackwardJob<'j, T>],
    /// The projection of the layers that take these gradients as `dy`: those of the jobs, then those of
    /// `complete`. `None` on a CPU.
    pub projection: Option<FusedProjection>,
    /// Gradients that are complete already (that of the values); only the projection reads them.
    pub complete: &'a [&'a Tensor<T>],
}

/// Replaces `dy` by `dx` in one or two jobs, in one launch.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not follow the table of the module; errors of the device.
pub fn backward<T: Real>(device: &Device, args: Backward<'_, '_, T>) -> Result<()> {
    for job in &*args.jobs {
        job.op.check(job.x)?;
        check_shape(OP, "dy", job.dy, [job.x.rows(), job.dy.cols().max(job.x.cols())])?;
        if args.projection.is_some() && job.dy.cols() != job.x.cols() {
            return Err(Error::shape(OP, "projection", "none of a part of the columns", "one"));
        }
    }
    record(device, "qk_norm_rope.backward", args.jobs.iter().map(|job| job.x), 3);
    match runner::<T>(device, OP)? {
        Runner::Cpu => args.jobs.iter_mut().for_each(|job| cpu::backward(job.x, &job.op, job.dy)),
        Runner::Gpu => gpu::backward(device, args)?,
        Runner::Skip => {}
    }
    Ok(())
}

fn record<'t, T: Real>(
    device: &Device,
    op: &'static str,
    tensors: impl Iterator<Item = Cols<'t, T>>,
    passes: usize,
) {
    let elements: usize = tensors.map(|x| x.len()).sum();
    device.record(op, Work::new(10 * elements as u64, (passes * elements * size_of::<T>()) as u64));
}
