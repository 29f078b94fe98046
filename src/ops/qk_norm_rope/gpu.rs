//! QK-norm and rotation on a GPU: queries and keys in one launch, 128 columns of a row in a quad of lanes.

use super::{Backward, OP, QkNormRope, RopeJob};
use crate::device::kernels::params::{QkNormRopeBwdLoraParams, QkNormRopeJob, QkNormRopeParams};
use crate::device::kernels::{DevicePtr, Kernel};
use crate::device::{Device, Launch, Tensor};
use crate::error::{Error, Result};
use crate::ops::cols::Cols;
use crate::ops::projection::BLOCK_ROWS;
use crate::ops::{LiveRows, check_pieces};
use crate::tensor::Real;

/// Columns per quad.
const STRETCH: usize = 128;
/// Quads per block.
const QUADS: usize = 64;
/// Supported `head_dim`: the sizes that divide the columns of a quad.
const HEADS: [usize; 4] = [16, 32, 64, 128];
/// Jobs per launch.
const MAX_JOBS: usize = 2;

/// See [`super::forward`].
pub(super) fn forward<T: Real>(device: &Device, jobs: &[RopeJob<'_, T>]) -> Result<()> {
    let jobs: Vec<_> = jobs.iter().map(|job| (job.x, &job.op, &*job.y)).collect();
    let (params, blocks) = params(&jobs)?;
    launch(device, Kernel::QkNormRopeFwdBf16, &params, blocks)
}

/// See [`super::backward`].
pub(super) fn backward<T: Real>(device: &Device, args: Backward<'_, '_, T>) -> Result<()> {
    let Backward { jobs, projection, complete } = args;
    let jobs: Vec<_> = jobs.iter().map(|job| (job.x, &job.op, &*job.dy)).collect();
    let (params, blocks) = params(&jobs)?;
    let Some(projection) = projection else {
        return launch(device, Kernel::QkNormRopeBwdBf16, &params, blocks);
    };
    let outputs: Vec<&Tensor<T>> = jobs.iter().map(|job| job.2).chain(complete.iter().copied()).collect();
    let rows = outputs.first().map_or(0, |output| output.rows());
    if rows == 0 {
        return Ok(());
    }
    let params = QkNormRopeBwdLoraParams {
        jobs: params.jobs,
        project: projection.of_each(&outputs)?,
        live_rows: jobs.last().map_or(LiveRows::ALL, |job| job.1.table.live_rows()).ptr(),
        rows: rows as i32,
        num_jobs: jobs.len() as i32,
        head_dim: params.head_dim,
        reserved: 0,
    };
    let grid = [rows.div_ceil(BLOCK_ROWS) as u32, outputs.len() as u32, 1];
    device.launch(&Launch { kernel: Kernel::QkNormRopeBwdBf16Lora, grid, dynamic_smem: 0 }, &params)
}

/// Blocks for `rows` rows of `cols` columns.
pub(super) fn blocks(rows: usize, cols: usize) -> usize {
    (rows * cols.div_ceil(STRETCH)).div_ceil(QUADS)
}

/// Input, parameters, and output or gradient.
type Job<'a, T> = (Cols<'a, T>, &'a QkNormRope<'a, T>, &'a Tensor<T>);

/// The params of one launch, and its number of blocks. Jobs without rows have no blocks.
fn params<T: Real>(jobs: &[Job<'_, T>]) -> Result<(QkNormRopeParams, usize)> {
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
    for (x, op, y) in jobs {
        x.check_pieces(OP, "x")?;
        check_pieces(OP, "y", y)?;
        let [positions, cos, sin] = op.table.ptrs();
        params.jobs[params.num_jobs as usize] = QkNormRopeJob {
            x: x.ptr(),
            y: y.ptr(),
            weight: op.norm.map_or(DevicePtr(0), |norm| norm.weight.ptr()),
            positions,
            live_rows: op.table.live_rows().ptr(),
            cos,
            sin,
            rows: x.rows() as i32,
            cols: x.cols() as i32,
            eps: op.norm.map_or(0.0, |norm| norm.eps.to_f64() as f32),
            first_block: first_block as i32,
            x_stride: x.row_stride() as i32,
            y_stride: y.cols() as i32,
        };
        params.num_jobs += 1;
        first_block += blocks(x.rows(), x.cols());
    }
    Ok((params, first_block))
}

fn launch(device: &Device, kernel: Kernel, params: &QkNormRopeParams, blocks: usize) -> Result<()> {
    if blocks == 0 {
        return Ok(());
    }
    device.launch(&Launch { kernel, grid: [blocks as u32, 1, 1], dynamic_smem: 0 }, params)
}
