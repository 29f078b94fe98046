//! The head on a GPU: up to four launches for every chunk of rows, see `kernels/linear_cross_entropy.cu`.

use super::plan::{self, Plan, Problem, Wanted};
use super::targets::Targets;
use super::{OP, record};
use crate::device::kernels::params::{
    CrossEntropyDxParams, CrossEntropyLogitsParams, CrossEntropyScoreParams,
};
use crate::device::kernels::{DevicePtr, Kernel};
use crate::device::{Class, Device, Launch, Tensor};
use crate::error::{Error, Result};
use crate::ops::LiveRows;
use crate::tensor::Real;

/// What the kernels read and write; see [`super::Forward`].
pub(super) struct Operands<'a, T: Real> {
    pub(super) x: &'a Tensor<T>,
    pub(super) weight: &'a Tensor<T>,
    pub(super) targets: &'a Targets,
    /// `[room for targets, 2]`: log-probability, and whether no token has a larger logit.
    pub(super) scores: &'a mut Tensor<f32>,
    pub(super) dx: Option<&'a mut Tensor<T>>,
}

/// See [`super::forward`].
pub(super) fn forward<T: Real>(device: &Device, operands: Operands<'_, T>) -> Result<()> {
    let problem = problem(operands.x, operands.weight)?;
    let plan = plan::plan(&problem, Wanted::default(), device.chip()?);
    run(device, &plan, operands)
}

/// [`forward`] with a given plan.
pub(super) fn run<T: Real>(device: &Device, plan: &Plan, operands: Operands<'_, T>) -> Result<()> {
    let Operands { x, weight, targets, scores, dx } = operands;
    let tables = targets.tables()?;
    if x.rows() == 0 {
        return Ok(());
    }
    let logits = match dx {
        Some(_) => device.class(Class::Logits).empty::<T>(plan.chunk_rows, plan.stride)?,
        None => device.empty(0, 0)?,
    };
    let partial: Tensor<f32> = device.empty(plan.logits.tiles_n * plan.chunk_rows, 2)?;
    let parts: Tensor<f32> = match dx {
        Some(_) => device.empty(plan.splits * plan.chunk_rows, x.cols())?,
        None => device.empty(0, 0)?,
    };
    let logits_ptr = dx.as_ref().map_or(DevicePtr(0), |_| logits.ptr());
    let live_rows = tables.rows.count_ptr();
    for first_row in (0..x.rows()).step_by(plan.chunk_rows) {
        let mut params = logits_params(plan, x, weight);
        params.logits = logits_ptr;
        params.partial = partial.ptr();
        params.scores = scores.ptr();
        params.row_table = tables.rows.ptr();
        params.targets = tables.targets.ptr();
        params.live_rows = live_rows;
        params.first_row = first_row as i32;
        device.launch(&logits_launch(plan), &params)?;

        let score = CrossEntropyScoreParams {
            logits: logits_ptr,
            partial: partial.ptr(),
            scores: scores.ptr(),
            row_table: tables.rows.ptr(),
            targets: tables.targets.ptr(),
            live_rows,
            rows: x.rows() as i32,
            first_row: first_row as i32,
            chunk_rows: plan.chunk_rows as i32,
            stride: plan.stride as i32,
            tiles_n: plan.logits.tiles_n as i32,
            vocab_size: weight.rows() as i32,
        };
        let grid = [plan.chunk_rows as u32, 1, 1];
        device.launch(&Launch { kernel: Kernel::LinearCrossEntropyScore, grid, dynamic_smem: 0 }, &score)?;

        let Some(dx) = &dx else { continue };
        let product = CrossEntropyDxParams {
            dz: logits_ptr,
            weight: weight.ptr(),
            partial: parts.ptr(),
            dx: dx.ptr(),
            live_rows,
            rows: x.rows() as i32,
            first_row: first_row as i32,
            chunk_rows: plan.chunk_rows as i32,
            hidden_size: x.cols() as i32,
            vocab_size: weight.rows() as i32,
            stride: plan.stride as i32,
            tiles_m: plan.dx.tiles_m as i32,
            tiles_n: plan.dx.tiles_n as i32,
            group: plan.dx.group as i32,
            splits: plan.splits as i32,
            split_tokens: plan.split_tokens as i32,
            reserved: 0,
        };
        let grid = [(plan.dx.tiles_m * plan.dx.tiles_n) as u32, plan.splits as u32, 1];
        let dynamic_smem = plan.dx.dynamic_smem;
        device.launch(&Launch { kernel: plan.dx.kernel, grid, dynamic_smem }, &product)?;
        let grid = [plan.reduce_blocks as u32, 1, 1];
        let reduce = Launch { kernel: Kernel::LinearCrossEntropyReduce, grid, dynamic_smem: 0 };
        device.launch(&reduce, &product)?;
    }
    Ok(())
}

/// See [`super::logits`].
pub(super) fn logits<T: Real>(
    device: &Device,
    x: &Tensor<T>,
    weight: &Tensor<T>,
    z: &mut Tensor<T>,
) -> Result<()> {
    let problem = problem(x, weight)?;
    let wanted = Wanted { chunk_rows: Some(x.rows()), ..Wanted::default() };
    let plan = plan::plan(&problem, wanted, device.chip()?);
    record(device, x, weight, false);
    if z.is_empty() {
        return Ok(());
    }
    // Rows whose size is not a multiple of 16 bytes are computed into padded rows and copied through the
    // host. Only generation takes this path, for a few rows.
    let padded = match plan.stride == z.cols() {
        true => None,
        false => Some(device.zeros::<T>(z.rows(), plan.stride)?),
    };
    let mut params = logits_params(&plan, x, weight);
    params.logits = padded.as_ref().unwrap_or(z).ptr();
    params.live_rows = LiveRows::ALL.ptr();
    device.launch(&logits_launch(&plan), &params)?;
    let Some(padded) = padded else { return Ok(()) };
    let (values, cols) = (device.read(&padded)?, z.cols());
    let rows = values.chunks_exact(plan.stride).flat_map(|row| &row[..cols]);
    device.write(z, &rows.copied().collect::<Vec<T>>())
}

fn problem<T: Real>(x: &Tensor<T>, weight: &Tensor<T>) -> Result<Problem> {
    if !x.cols().is_multiple_of(8) {
        return Err(Error::shape(OP, "x", "a multiple of 8 columns", x.shape()));
    }
    Ok(Problem { rows: x.rows(), hidden_size: x.cols(), vocab_size: weight.rows() })
}

/// Parameters without targets.
fn logits_params<T: Real>(plan: &Plan, x: &Tensor<T>, weight: &Tensor<T>) -> CrossEntropyLogitsParams {
    CrossEntropyLogitsParams {
        x: x.ptr(),
        weight: weight.ptr(),
        rows: x.rows() as i32,
        chunk_rows: plan.chunk_rows as i32,
        hidden_size: x.cols() as i32,
        vocab_size: weight.rows() as i32,
        stride: plan.stride as i32,
        tiles_m: plan.logits.tiles_m as i32,
        tiles_n: plan.logits.tiles_n as i32,
        group: plan.logits.group as i32,
        ..bytemuck::Zeroable::zeroed()
    }
}

fn logits_launch(plan: &Plan) -> Launch {
    let grid = [(plan.logits.tiles_m * plan.logits.tiles_n) as u32, 1, 1];
    Launch { kernel: plan.logits.kernel, grid, dynamic_smem: plan.logits.dynamic_smem }
}
