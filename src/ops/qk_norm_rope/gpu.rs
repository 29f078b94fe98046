//! QK-norm and rotation on a GPU: queries and keys in one launch, 128 columns of a row in a quad of lanes.

use super::{OP, QkNormRope, RopeBackwardJob, RopeJob};
use crate::device::kernels::params::{QkNormRopeJob, QkNormRopeParams};
use crate::device::kernels::{DevicePtr, Kernel};
use crate::device::{Device, Launch, Tensor};
use crate::error::{Error, Result};
use crate::ops::check_pieces;
use crate::tensor::Real;

/// Columns of a quad.
const STRETCH: usize = 128;
/// Quads of a block.
const QUADS: usize = 64;
/// Sizes of heads that divide a stretch.
const HEADS: [usize; 4] = [16, 32, 64, 128];
/// Jobs of a launch.
const MAX_JOBS: usize = 2;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(device: &Device, jobs: &[RopeJob<'_, T>]) -> Result<()> {
    let jobs: Vec<_> = jobs.iter().map(|job| (job.x, &job.op, &*job.y)).collect();
    launch(device, Kernel::QkNormRopeFwdBf16, &jobs)
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(device: &Device, jobs: &[RopeBackwardJob<'_, T>]) -> Result<()> {
    let jobs: Vec<_> = jobs.iter().map(|job| (job.x, &job.op, &*job.dy)).collect();
    launch(device, Kernel::QkNormRopeBwdBf16, &jobs)
}

/// Blocks for `rows` rows of `cols` columns.
pub(super) fn blocks(rows: usize, cols: usize) -> usize {
    (rows * cols.div_ceil(STRETCH)).div_ceil(QUADS)
}

/// Input, parameters, and output or gradient.
type Job<'a, T> = (&'a Tensor<T>, &'a QkNormRope<'a, T>, &'a Tensor<T>);

fn launch<T: Real>(device: &Device, kernel: Kernel, jobs: &[Job<'_, T>]) -> Result<()> {
    let head_dim = jobs.first().map_or(HEADS[0], |job| job.1.head_dim);
    if jobs.len() > MAX_JOBS || !HEADS.contains(&head_dim) || jobs.iter().any(|j| j.1.head_dim != head_dim) {
        let expected = format!("at most {MAX_JOBS} tensors with heads of 16, 32, 64 or 128");
        return Err(Error::shape(OP, "head_dim", expected, head_dim));
    }
    let mut params = QkNormRopeParams {
        jobs: [bytemuck::Zeroable::zeroed(); MAX_JOBS],
        num_jobs: 0,
        head_dim: head_dim as i32,
    };
    let mut first_block = 0;
    for (x, op, y) in jobs.iter().filter(|(x, ..)| !x.is_empty()) {
        check_pieces(OP, "x", x)?;
        let [positions, cos, sin] = op.table.ptrs();
        params.jobs[params.num_jobs as usize] = QkNormRopeJob {
            x: x.ptr(),
            y: y.ptr(),
            weight: op.norm.map_or(DevicePtr(0), |(weight, _)| weight.ptr()),
            positions,
            live_rows: op.table.live_rows(),
            cos,
            sin,
            rows: x.rows() as i32,
            cols: x.cols() as i32,
            eps: op.norm.map_or(0.0, |(_, eps)| eps.to_f64() as f32),
            first_block: first_block as i32,
        };
        params.num_jobs += 1;
        first_block += blocks(x.rows(), x.cols());
    }
    if first_block == 0 {
        return Ok(());
    }
    device.launch(&Launch { kernel, grid: [first_block as u32, 1, 1], dynamic_smem: 0 }, &params)
}
