//! LoRA matmul on a GPU: the launches of both directions for a group of layers.
//!
//! Numbers are bf16, gradients f32. Unlike on the CPU, `B` and its gradient are stored transposed, `[r,
//! out_features]`; `xa` and `dxa` have the largest rank rounded up to 16 as their number of columns. A group
//! takes one launch each for `xa`, `y`, `dxa` and `dx`; the gradients of all factors of several groups take
//! one launch together (`super::gradients`). The files in `kernels/` describe the kernels. Groups with DoRA launch
//! their kernels several times (`with_dora.rs`).

mod backward;
mod check;
pub mod dora;
mod forward;
mod tables;
#[cfg(test)]
mod tests;
mod with_dora;

pub(super) use backward::{backward_input, gradients, project_back, projection_back};
pub use check::self_test;
pub(super) use forward::{apply, project, projection};
pub use tables::{FactorGrads, Factors, LayerAdapters, LayerFactors, dropout_keys};

use super::plan::{self, MAX_LAYERS, Problem};
use super::{Dropout, Group, Layer, OP, Rows};
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{LoraDownLayer, LoraDropout, LoraMatmulDownParams, LoraProject};
use crate::device::{Device, Launch, Tensor};
use crate::error::{Error, Result};
use crate::ops::check_shape;
use crate::ops::projection::FusedProjection;
use crate::tensor::Real;

/// The projection `output = scaling * dropout(input) factors^T` of one layer.
type Down = LoraDownLayer;

impl<T: Real> Group<'_, T> {
    /// The shapes that plans depend on.
    fn problem(&self) -> Problem {
        Problem {
            rows: self.rows.capacity(),
            in_features: self.in_features(),
            out_features: self.layers.iter().map(Layer::out_features).collect(),
            rank: self.layers.iter().filter_map(|l| l.adapters).map(|a| a.max_rank).max().unwrap_or(0),
            dropout: self.dropout().is_some(),
            tile: self.tile,
        }
    }

    /// The checks that kernels need beyond [`Group::check`].
    fn check_for_kernels(&self) -> Result<()> {
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return Err(Error::shape(OP, "layers", format!("1 to {MAX_LAYERS}"), self.layers.len()));
        }
        for layer in self.layers {
            let (out_features, in_features) = (layer.out_features(), layer.in_features());
            if out_features % plan::FEATURE_UNIT != 0 || in_features % plan::FEATURE_UNIT != 0 {
                let expected = format!("multiples of {}", plan::FEATURE_UNIT);
                return Err(Error::shape(OP, "weight", expected, layer.weight.shape()));
            }
            let (rank, in_table) = (layer.max_rank(), layer.adapters.map_or(0, |a| a.max_rank));
            if rank != in_table {
                return Err(Error::shape(OP, "adapters", format!("a table of rank {rank}"), in_table));
            }
            let is_masked = layer.dropout.is_some() && layer.adapters.is_some();
            let has_keys = self.rows.has_key_table() && key(layer) != DevicePtr(0);
            if is_masked && !has_keys {
                return Err(Error::shape(OP, "dropout", "keys of layers and rows", "none"));
            }
        }
        Ok(())
    }

    /// Columns of the `xa` or `dxa` of adapted layers: at least those of this group; more if the buffers were
    /// allocated for a larger group.
    fn xa_stride(&self, arg: &'static str, xa: &[&Tensor<T>]) -> Result<usize> {
        let with = self.layers.iter().zip(xa).filter(|(layer, _)| adapted(layer).is_some());
        let own = self.problem().rank_stride();
        let cols =
            with.map(|(_, xa)| xa.cols()).max().unwrap_or(0).max(own).next_multiple_of(plan::RANK_UNIT);
        for (layer, xa) in self.layers.iter().zip(xa) {
            let cols = if adapted(layer).is_some() { cols } else { 0 };
            check_shape(OP, arg, xa, [self.rows.capacity(), cols])?;
        }
        Ok(cols)
    }

    /// The projections of the adapted layers, whose inputs have `features` columns, in one launch.
    fn down(&self, device: &Device, layers: &[Down], has_dropout: bool) -> Result<()> {
        let problem = self.problem();
        if layers.is_empty() || problem.rows == 0 {
            return Ok(());
        }
        let plan = plan::down(&problem, layers.len(), has_dropout);
        let [runs, num_runs] = self.rows.run_ptrs();
        let mut params = LoraMatmulDownParams {
            layers: [bytemuck::Zeroable::zeroed(); MAX_LAYERS],
            runs,
            num_runs,
            live_rows: self.rows.live().ptr(),
            dropout: lora_dropout(self.rows, self.dropout()),
            rows: problem.rows as i32,
            stride: problem.rank_stride() as i32,
            rank_stride: problem.rank_stride() as i32,
            rank_chunks: plan.rank_chunks as i32,
        };
        params.layers[..layers.len()].copy_from_slice(layers);
        device.launch(&narrow(&plan), &params)
    }

    /// The projections to fuse into the kernel that produces the inputs: one per layer, with 0 features if
    /// the layer is not adapted. `None` if no layer is adapted.
    fn fused(&self, layers: &[Down], is_masked: bool) -> Option<FusedProjection> {
        let problem = self.problem();
        let [runs, num_runs] = self.rows.run_ptrs();
        let mut params = LoraProject {
            layers: bytemuck::Zeroable::zeroed(),
            runs,
            num_runs,
            dropout: lora_dropout(self.rows, self.dropout()),
            num_layers: layers.len() as i32,
            stride: problem.rank_stride() as i32,
            rank_stride: problem.rank_stride() as i32,
            reserved: 0,
        };
        params.layers[..layers.len()].copy_from_slice(layers);
        (problem.rank > 0).then(|| FusedProjection::new(params, problem.rows, is_masked))
    }
}

/// The factors of a layer, if it has any.
fn adapted<'a, T: Real>(layer: &Layer<'a, T>) -> Option<&'a LayerAdapters> {
    layer.adapters.filter(|adapters| adapters.max_rank > 0)
}

/// Address of the key of a layer's masks; null without dropout.
fn key<T: Real>(layer: &Layer<'_, T>) -> DevicePtr {
    layer.dropout.map_or(DevicePtr(0), |dropout| dropout.key_ptr())
}

fn lora_dropout(rows: &Rows, dropout: Option<Dropout>) -> LoraDropout {
    LoraDropout {
        row_keys: rows.key_ptr(),
        threshold: dropout.map_or(0, |d| u32::from(d.threshold())),
        keep: dropout.map_or(1.0, |d| d.keep() as f32),
    }
}

fn narrow(plan: &plan::NarrowPlan) -> Launch {
    Launch { kernel: plan.kernel, grid: plan.grid, dynamic_smem: plan.dynamic_smem }
}

fn tiled(plan: &plan::TiledPlan) -> Launch {
    let grid = [(plan.tiles_m * plan.tiles_n) as u32, 1, 1];
    Launch { kernel: plan.kernel, grid, dynamic_smem: plan.dynamic_smem }
}
