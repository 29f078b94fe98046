//! LoRA matmul on a GPU: the launches of both directions for layers that share their input.
//!
//! Numbers are bf16, gradients f32. Unlike on the CPU, `B` is kept transposed, `[r, out_features]`, and so is its gradient; the columns
//! of `xa` and `dxa` are the largest rank rounded up to 16. A group takes one launch each for `xa`, for `y`, for `dxa` and for `dx`; the
//! gradients of all factors of several groups take one launch together ([`gradients`]). What each kernel does is said in its file
//! below `kernels/`.

mod backward;
mod check;
pub mod dora;
mod project;
#[cfg(test)]
mod project_tests;
mod tables;
#[cfg(test)]
mod tests;

pub use backward::{Backward, GradJob, backward, backward_input, gradients, project_back};
pub use check::self_test;
pub(in crate::ops) use project::BLOCK_ROWS;
pub use project::Project;
pub use tables::{FactorGrads, Factors, LayerAdapters, LayerFactors, Rows, dropout_keys};

use super::OP;
use super::plan::{self, MAX_LAYERS, Problem};
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{
    LoraDownLayer, LoraDropout, LoraFwdLayer, LoraMatmulDownParams, LoraMatmulFwdParams,
};
use crate::device::{Device, Launch, Tensor};
use crate::error::{Error, Result};
use crate::ops::check_shape;
use crate::tensor::Real;

/// One layer of a group.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a, T: Real> {
    /// `[out_features, in_features]`, both multiples of 8.
    pub weight: &'a Tensor<T>,
    /// `[1, out_features]`.
    pub bias: Option<&'a Tensor<T>>,
    /// Its adapters; none where no adapter has the layer as a target.
    pub adapters: Option<&'a LayerAdapters>,
    /// Address of the key of its dropout masks ([`dropout_keys`]); null without dropout.
    pub key: DevicePtr,
}

/// Dropout on the adapters' input, the same for all layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutRate {
    /// Drop probability in units of 1/65536.
    pub threshold: u16,
}

impl DropoutRate {
    /// `1 / (1 - p)`.
    fn keep(self) -> f32 {
        (1.0 / (1.0 - f64::from(self.threshold) / 65536.0)) as f32
    }
}

/// One to three layers that share their input (q, k, v; gate, up), and the rows that go through them.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a, T: Real> {
    /// The layers.
    pub layers: &'a [Layer<'a, T>],
    /// The rows.
    pub rows: &'a Rows,
    /// Dropout; none in evaluation.
    pub dropout: Option<DropoutRate>,
    /// The tile to use instead of the plan's choice: for benchmarks and tests.
    pub tile: Option<[usize; 2]>,
}

impl<T: Real> Group<'_, T> {
    /// The shapes that plans are made of.
    pub fn problem(&self) -> Problem {
        Problem {
            rows: self.rows.capacity,
            in_features: self.layers.first().map_or(0, |l| l.weight.cols()),
            out_features: self.layers.iter().map(|l| l.weight.rows()).collect(),
            rank: self.layers.iter().filter_map(|l| l.adapters).map(|a| a.max_rank).max().unwrap_or(0),
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
            if adapters > 0 && self.rows.adapters_named > adapters {
                let named = self.rows.adapters_named - 1;
                return Err(Error::shape(OP, "adapter", format!("below {adapters}"), named));
            }
            let is_masked = self.dropout.is_some() && layer.adapters.is_some();
            let has_keys = self.rows.keys.is_some() && layer.key != DevicePtr(0);
            if is_masked && !has_keys {
                return Err(Error::shape(OP, "dropout", "keys of layers and rows", "none"));
            }
        }
        Ok(())
    }

    /// Columns of the `xa` or `dxa` of adapted layers: at least those of this group, and more where a larger one made them.
    pub(super) fn xa_stride(&self, problem: &Problem, arg: &'static str, xa: &[&Tensor<T>]) -> Result<usize> {
        let is_adapted = |layer: &Layer<'_, T>| layer.adapters.is_some_and(|a| a.max_rank > 0);
        let with = self.layers.iter().zip(xa).filter(|(layer, _)| is_adapted(layer));
        let stride = with.map(|(_, xa)| xa.cols()).max().unwrap_or(0).max(problem.rank_stride());
        let cols = stride.next_multiple_of(plan::RANK_UNIT);
        let shape = |layer: &Layer<'_, T>| [problem.rows, if is_adapted(layer) { cols } else { 0 }];
        check_each(arg, xa.iter().copied(), self, shape)?;
        Ok(cols)
    }

    pub(super) fn dropout(&self) -> LoraDropout {
        LoraDropout {
            row_keys: self.rows.row_keys(),
            threshold: self.dropout.map_or(0, |d| u32::from(d.threshold)),
            keep: self.dropout.map_or(1.0, DropoutRate::keep),
        }
    }

    pub(super) fn key(&self, layer: &Layer<'_, T>) -> DevicePtr {
        if self.dropout.is_some() { layer.key } else { DevicePtr(0) }
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
        let mut params = LoraMatmulDownParams {
            layers: [bytemuck::Zeroable::zeroed(); MAX_LAYERS],
            runs: self.rows.runs.ptr(),
            num_runs: self.rows.runs.count_ptr(),
            live_rows: device.live_rows(),
            dropout: self.dropout(),
            rows: problem.rows as i32,
            stride: problem.rank_stride() as i32,
            rank_stride: problem.rank_stride() as i32,
            rank_chunks: plan.rank_chunks as i32,
        };
        for (slot, (layer, features)) in params.layers.iter_mut().zip(layers) {
            *slot = LoraDownLayer { features: *features as i64, ..*layer };
        }
        device.launch(&launch(&plan), &params)
    }
}

/// Writes `xa` and `y` of every layer of `group`: [`project`] and [`apply`].
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit; errors of the device.
pub fn forward<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    y: &mut [&mut Tensor<T>],
    xa: &mut [&mut Tensor<T>],
) -> Result<()> {
    project(device, group, x, xa)?;
    apply(device, group, x, &xa.iter().map(|xa| &**xa).collect::<Vec<_>>(), y)
}

/// Writes `xa` (`[rows, rank rounded up to 16]`) of every adapted layer of `group`: `scaling * dropout(x) A^T`, and 0 for rows
/// without adapter.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit; errors of the device.
pub fn project<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    xa: &mut [&mut Tensor<T>],
) -> Result<()> {
    let problem = group.problem();
    group.check(&problem)?;
    check_shape(OP, "x", x, [problem.rows, problem.in_features])?;
    check_each("xa", xa.iter().map(|t| &**t), group, |layer| problem.xa_shape(layer))?;
    let adapted = group.layers.iter().zip(&*xa).filter_map(|(layer, xa)| {
        let factors = layer.adapters.filter(|a| a.max_rank > 0)?.a;
        let key = group.key(layer);
        let down = LoraDownLayer { input: x.ptr(), output: xa.ptr(), factors, key, features: 0 };
        Some((down, problem.in_features))
    });
    group.down(device, &problem, &adapted.collect::<Vec<_>>(), problem.dropout)
}

/// Writes `y` (`[rows, out_features]`) of every layer of `group`, given `xa`.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit; errors of the device.
pub fn apply<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    x: &Tensor<T>,
    xa: &[&Tensor<T>],
    y: &mut [&mut Tensor<T>],
) -> Result<()> {
    let problem = group.problem();
    group.check(&problem)?;
    check_shape(OP, "x", x, [problem.rows, problem.in_features])?;
    check_each("y", y.iter().map(|t| &**t), group, |layer| [problem.rows, layer.weight.rows()])?;
    let xa_stride = group.xa_stride(&problem, "xa", xa)?;
    if problem.rows == 0 {
        return Ok(());
    }
    let plan = plan::forward(&problem, device.chip()?);
    let mut params = LoraMatmulFwdParams {
        x: x.ptr(),
        layers: [bytemuck::Zeroable::zeroed(); MAX_LAYERS],
        runs: group.rows.runs.ptr(),
        num_runs: group.rows.runs.count_ptr(),
        live_rows: device.live_rows(),
        num_layers: group.layers.len() as i32,
        rows: problem.rows as i32,
        in_features: problem.in_features as i32,
        xa_stride: xa_stride as i32,
        tiles_m: plan.tiles_m as i32,
        tiles_n: plan.tiles_n as i32,
        group: plan.group as i32,
        reserved: 0,
    };
    let mut first_tile = 0;
    let tensors = y.iter().zip(xa);
    for (slot, (layer, (y, xa))) in params.layers.iter_mut().zip(group.layers.iter().zip(tensors)) {
        *slot = LoraFwdLayer {
            weight: layer.weight.ptr(),
            bias: layer.bias.map_or(DevicePtr(0), Tensor::ptr),
            y: y.ptr(),
            xa: xa.ptr(),
            factors: layer.adapters.map_or(DevicePtr(0), |a| a.b_t),
            out_features: layer.weight.rows() as i32,
            first_tile,
        };
        first_tile += layer.weight.rows().div_ceil(plan.tile[1]) as i32;
    }
    device.launch(&tiled(&plan), &params)
}

impl Problem {
    /// Shape of `xa` and `dxa` of a layer.
    fn xa_shape<T: Real>(&self, layer: &Layer<'_, T>) -> [usize; 2] {
        let is_adapted = layer.adapters.is_some_and(|a| a.max_rank > 0);
        [self.rows, if is_adapted { self.rank_stride() } else { 0 }]
    }
}

pub(super) fn check_each<'t, T: Real>(
    arg: &'static str,
    tensors: impl ExactSizeIterator<Item = &'t Tensor<T>>,
    group: &Group<'_, T>,
    shape: impl Fn(&Layer<'_, T>) -> [usize; 2],
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
