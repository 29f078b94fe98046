//! LoRA matmul on a GPU: the launches of both directions for layers that share their input.
//!
//! Numbers are bf16, gradients f32. Unlike on the CPU, `B` is kept transposed, `[r, out_features]`, and so is its gradient; the columns
//! of `xa` and `dxa` are the largest rank rounded up to 16. Forward is two launches for a whole group (xa, then y), backward four
//! (dxa, dx, sums of dA and dB, their reduction). DoRA has no kernels. What each kernel does is said in its file below `kernels/`.

mod backward;
mod check;
mod tables;
#[cfg(test)]
mod tests;

pub use backward::{Backward, backward};
pub use check::self_test;
pub use tables::{Factors, LayerAdapters, Rows, dropout_key};

use half::bf16;

use super::OP;
use super::plan::{self, MAX_LAYERS, Problem};
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{
    LoraDownLayer, LoraDropout, LoraFwdLayer, LoraMatmulDownParams, LoraMatmulFwdParams,
};
use crate::device::{Device, Launch, Tensor};
use crate::error::{Error, Result};
use crate::ops::check_shape;

/// One layer of a group.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// `[out_features, in_features]`, both multiples of 8.
    pub weight: &'a Tensor<bf16>,
    /// `[1, out_features]`.
    pub bias: Option<&'a Tensor<bf16>>,
    /// Its adapters; none where no adapter has the layer as a target.
    pub adapters: Option<&'a LayerAdapters>,
    /// The key of its dropout masks ([`dropout_key`]); none without dropout.
    pub key: Option<&'a Tensor<u32>>,
}

/// Dropout on the adapters' input, the same for all layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutRate {
    /// Drop probability in units of 1/65536.
    pub threshold: u16,
}

/// One to three layers that share their input (q, k, v; gate, up), and the rows that go through them.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// The layers.
    pub layers: &'a [Layer<'a>],
    /// The rows.
    pub rows: &'a Rows,
    /// Dropout; none in evaluation.
    pub dropout: Option<DropoutRate>,
    /// The tile to use instead of the plan's choice: for benchmarks and tests.
    pub tile: Option<[usize; 2]>,
}

impl Group<'_> {
    /// The shapes that plans are made of.
    pub fn problem(&self) -> Problem {
        let adapters = || self.layers.iter().filter_map(|l| l.adapters);
        Problem {
            rows: self.rows.num_rows,
            in_features: self.layers.first().map_or(0, |l| l.weight.cols()),
            out_features: self.layers.iter().map(|l| l.weight.rows()).collect(),
            rank: adapters().map(|a| a.max_rank).max().unwrap_or(0),
            num_adapters: adapters().map(|a| a.num_adapters).max().unwrap_or(0),
            dropout: self.dropout.is_some(),
            tile: self.tile,
        }
    }

    pub(super) fn check(&self, problem: &Problem) -> Result<()> {
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return Err(Error::shape(OP, "layers", format!("1 to {MAX_LAYERS}"), self.layers.len()));
        }
        for layer in self.layers {
            let [out_features, in_features] = layer.weight.shape();
            check_shape(OP, "weight", layer.weight, [out_features, problem.in_features])?;
            if out_features % plan::FEATURE_UNIT != 0 || in_features % plan::FEATURE_UNIT != 0 {
                let expected = format!("multiples of {}", plan::FEATURE_UNIT);
                return Err(Error::shape(OP, "weight", expected, layer.weight.shape()));
            }
            if let Some(bias) = layer.bias {
                check_shape(OP, "bias", bias, [1, out_features])?;
            }
            let adapters = layer.adapters.map_or(0, |a| a.num_adapters);
            if let Some(run) = self.rows.runs.iter().find(|r| adapters > 0 && r.adapter >= adapters) {
                return Err(Error::shape(OP, "adapter", format!("below {adapters}"), run.adapter));
            }
            if self.dropout.is_some()
                && layer.adapters.is_some()
                && (layer.key.is_none() || self.rows.keys.is_none())
            {
                return Err(Error::shape(OP, "dropout", "keys of layers and rows", "none"));
            }
        }
        Ok(())
    }

    pub(super) fn runs(&self) -> (DevicePtr, i32) {
        (self.rows.table.ptr(), self.rows.runs.len() as i32)
    }

    pub(super) fn dropout(&self) -> LoraDropout {
        let threshold = self.dropout.map_or(0, |d| u32::from(d.threshold));
        LoraDropout {
            row_keys: self.rows.keys.as_ref().map_or(DevicePtr::default(), Tensor::ptr),
            threshold,
            keep: (1.0 / (1.0 - f64::from(threshold) / 65536.0)) as f32,
        }
    }

    pub(super) fn key(&self, layer: &Layer<'_>) -> DevicePtr {
        layer.key.filter(|_| self.dropout.is_some()).map_or(DevicePtr::default(), Tensor::ptr)
    }

    /// The narrow products `out = scaling * dropout(in) factor^T` of all adapted layers, in one launch.
    pub(super) fn down(
        &self,
        device: &Device,
        problem: &Problem,
        layers: &[(LoraDownLayer, usize)],
        dropout: bool,
    ) -> Result<()> {
        if layers.is_empty() || problem.rows == 0 {
            return Ok(());
        }
        let plan = plan::down(problem, layers.len(), dropout);
        let (runs, num_runs) = self.runs();
        let mut params = LoraMatmulDownParams {
            layers: [bytemuck::Zeroable::zeroed(); MAX_LAYERS],
            runs,
            dropout: self.dropout(),
            rows: problem.rows as i32,
            stride: problem.rank_stride() as i32,
            rank_stride: problem.rank_stride() as i32,
            num_runs,
            rank_chunks: plan.rank_chunks as i32,
            reserved: 0,
        };
        for (slot, (layer, features)) in params.layers.iter_mut().zip(layers) {
            *slot = LoraDownLayer { features: *features as i64, ..*layer };
        }
        device.launch(&launch(&plan), &params)
    }
}

/// Writes `y` (`[rows, out_features]`) and `xa` (`[rows, rank rounded up to 16]`) of every layer of `group`; `xa` holds
/// `scaling * dropout(x) A^T` and is 0 for rows without adapter.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit; errors of the device.
pub fn forward(
    device: &Device,
    group: &Group<'_>,
    x: &Tensor<bf16>,
    y: &mut [&mut Tensor<bf16>],
    xa: &mut [&mut Tensor<bf16>],
) -> Result<()> {
    let problem = group.problem();
    group.check(&problem)?;
    check_shape(OP, "x", x, [problem.rows, problem.in_features])?;
    check_each("y", y.iter().map(|t| &**t), group, |layer| [problem.rows, layer.weight.rows()])?;
    check_each("xa", xa.iter().map(|t| &**t), group, |_| [problem.rows, problem.rank_stride()])?;
    if problem.rows == 0 {
        return Ok(());
    }
    let adapted = group.layers.iter().zip(&*xa).filter_map(|(layer, xa)| {
        let factors = layer.adapters.filter(|a| a.max_rank > 0)?.a.ptr();
        let key = group.key(layer);
        Some((
            LoraDownLayer { input: x.ptr(), output: xa.ptr(), factors, key, features: 0 },
            problem.in_features,
        ))
    });
    group.down(device, &problem, &adapted.collect::<Vec<_>>(), problem.dropout)?;

    let plan = plan::forward(&problem, device.chip()?);
    let (runs, num_runs) = group.runs();
    let mut params = LoraMatmulFwdParams {
        x: x.ptr(),
        layers: [bytemuck::Zeroable::zeroed(); MAX_LAYERS],
        runs,
        num_layers: group.layers.len() as i32,
        rows: problem.rows as i32,
        in_features: problem.in_features as i32,
        xa_stride: problem.rank_stride() as i32,
        num_runs,
        tiles_m: plan.tiles_m as i32,
        tiles_n: plan.tiles_n as i32,
        group: plan.group as i32,
    };
    let mut first_tile = 0;
    for (slot, (layer, (y, xa))) in params.layers.iter_mut().zip(group.layers.iter().zip(y.iter().zip(&*xa)))
    {
        *slot = LoraFwdLayer {
            weight: layer.weight.ptr(),
            bias: layer.bias.map_or(DevicePtr::default(), Tensor::ptr),
            y: y.ptr(),
            xa: xa.ptr(),
            factors: layer.adapters.map_or(DevicePtr::default(), |a| a.b_t.ptr()),
            out_features: layer.weight.rows() as i32,
            first_tile,
        };
        first_tile += layer.weight.rows().div_ceil(plan.tile[1]) as i32;
    }
    device.launch(&tiled(&plan), &params)
}

pub(super) fn check_each<'t>(
    arg: &'static str,
    tensors: impl ExactSizeIterator<Item = &'t Tensor<bf16>>,
    group: &Group<'_>,
    shape: impl Fn(&Layer<'_>) -> [usize; 2],
) -> Result<()> {
    if tensors.len() != group.layers.len() {
        return Err(Error::shape(OP, arg, group.layers.len(), tensors.len()));
    }
    group
        .layers
        .iter()
        .zip(tensors)
        .try_for_each(|(layer, tensor)| check_shape(OP, arg, tensor, shape(layer)))
}

pub(super) fn launch(plan: &plan::NarrowPlan) -> Launch {
    Launch { kernel: plan.kernel, grid: plan.grid, dynamic_smem: plan.dynamic_smem }
}

pub(super) fn tiled(plan: &plan::TiledPlan) -> Launch {
    let grid = [(plan.tiles_m * plan.tiles_n) as u32, 1, 1];
    Launch { kernel: plan.kernel, grid, dynamic_smem: plan.dynamic_smem }
}
