//! The narrow products of a group, for the kernel that makes their input.
//!
//! `xa` and `dxa` are products of a whole tensor with a few columns: nearly all they do is read that tensor. RMSNorm, SwiGLU and the
//! rotation of queries and keys have every row in registers when it is finished, so their kernels take a [`Project`] and multiply
//! there. The bits are those of [`super::project`] and [`super::project_back`] after the plain kernel.

use super::{Group, Layer, LayerAdapters, check_each};
use crate::device::Tensor;
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{LoraDownLayer, LoraProject};
use crate::error::{Error, Result};
use crate::ops::lora_matmul::OP;
use crate::tensor::Real;

/// Rows of a block of the kernels that take a [`Project`].
pub(in crate::ops) const BLOCK_ROWS: usize = 32;

/// Which products to make of the output of another op: addresses and numbers, which stay valid as long as the tensors of the
/// group do.
#[derive(Debug, Clone, Copy)]
pub struct Project {
    params: LoraProject,
    rows: usize,
    is_masked: bool,
}

impl Project {
    /// `xa = scaling * dropout(x) A^T` of all layers of `group`, for the kernel that makes `x`. None where no layer is adapted.
    ///
    /// # Errors
    /// [`Error::Shape`] if shapes do not fit.
    pub fn forward<T: Real>(group: &Group<'_, T>, xa: &[&Tensor<T>]) -> Result<Option<Self>> {
        Self::new(group, xa, group.dropout.is_some(), |layer, adapters| LoraDownLayer {
            factors: adapters.a,
            key: group.key(layer),
            features: layer.weight.cols() as i64,
            ..bytemuck::Zeroable::zeroed()
        })
    }

    /// `dxa = scaling * dy B` of all layers of `group`, for the kernel that makes `dy`. None where no layer is adapted.
    ///
    /// # Errors
    /// [`Error::Shape`] if shapes do not fit.
    pub fn backward<T: Real>(group: &Group<'_, T>, dxa: &[&Tensor<T>]) -> Result<Option<Self>> {
        Self::new(group, dxa, false, |layer, adapters| LoraDownLayer {
            factors: adapters.b_t,
            features: layer.weight.rows() as i64,
            ..bytemuck::Zeroable::zeroed()
        })
    }

    fn new<T: Real>(
        group: &Group<'_, T>,
        outputs: &[&Tensor<T>],
        is_masked: bool,
        down: impl Fn(&Layer<'_, T>, &LayerAdapters) -> LoraDownLayer,
    ) -> Result<Option<Self>> {
        let problem = group.problem();
        group.check(&problem)?;
        check_each("xa", outputs.iter().copied(), group, |layer| problem.xa_shape(layer))?;
        let mut params = LoraProject {
            layers: bytemuck::Zeroable::zeroed(),
            runs: group.rows.runs.ptr(),
            num_runs: group.rows.runs.count_ptr(),
            dropout: group.dropout(),
            num_layers: group.layers.len() as i32,
            stride: problem.rank_stride() as i32,
            rank_stride: problem.rank_stride() as i32,
            reserved: 0,
        };
        for (slot, (layer, output)) in params.layers.iter_mut().zip(group.layers.iter().zip(outputs)) {
            match layer.adapters.filter(|adapters| adapters.max_rank > 0) {
                Some(adapters) => *slot = LoraDownLayer { output: output.ptr(), ..down(layer, adapters) },
                None => slot.features = 0,
            }
        }
        Ok((problem.rank > 0).then_some(Self { params, rows: problem.rows, is_masked }))
    }

    /// True if every layer sees the input through a mask of its own.
    pub(in crate::ops) fn is_masked(&self) -> bool {
        self.is_masked
    }

    /// For a kernel with one output `[rows, cols]`, which all layers share.
    ///
    /// # Errors
    /// [`Error::Shape`] if the products are of another shape.
    pub(in crate::ops) fn of_one<T: Real>(&self, output: &Tensor<T>) -> Result<LoraProject> {
        let mut params = self.params;
        params.layers = bytemuck::Zeroable::zeroed();
        params.num_layers = 0;
        for layer in self.adapted() {
            self.check(&layer, output)?;
            params.layers[params.num_layers as usize] = layer;
            params.num_layers += 1;
        }
        Ok(params)
    }

    /// For a kernel with one output `[rows, cols]` for each layer; the last ones of them may be inputs that are there already.
    ///
    /// # Errors
    /// [`Error::Shape`] if the products are of other shapes.
    pub(in crate::ops) fn of_each<T: Real>(&self, outputs: &[&Tensor<T>]) -> Result<LoraProject> {
        let mut params = self.params;
        if outputs.len() != params.num_layers as usize {
            return Err(Error::shape(OP, "project", params.num_layers, outputs.len()));
        }
        for (layer, output) in params.layers.iter_mut().zip(outputs) {
            if layer.factors != DevicePtr(0) || layer.features > 0 {
                self.check(layer, output)?;
            }
            layer.input = output.ptr();
            layer.features = output.cols() as i64;
        }
        Ok(params)
    }

    /// The layers with adapters. Addresses are null on a dry device, so it is the features that tell.
    fn adapted(&self) -> impl Iterator<Item = LoraDownLayer> {
        self.params.layers.into_iter().filter(|layer| layer.features > 0)
    }

    fn check<T: Real>(&self, layer: &LoraDownLayer, output: &Tensor<T>) -> Result<()> {
        let expected = [self.rows, layer.features as usize];
        if output.shape() == expected {
            Ok(())
        } else {
            Err(Error::shape(OP, "project", expected, output.shape()))
        }
    }
}
