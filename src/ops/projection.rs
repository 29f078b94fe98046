//! A LoRA down-projection (`x A^T` or `dy B`) fused into the kernel that produces its input.
//!
//! Such a product spends nearly all its time reading a whole tensor. RMSNorm, SwiGLU and RoPE have every
//! finished row of their output in registers, so their kernels take a [`FusedProjection`] and multiply there.
//! The result has the same bits as a separate launch after the plain kernel. `lora_matmul` builds the value
//! ([`projection`](super::lora_matmul::projection), [`projection_back`](super::lora_matmul::projection_back))
//! and this file is all that the two sides know of each other.

use crate::device::Tensor;
use crate::device::kernels::DevicePtr;
use crate::device::kernels::params::{LoraDownLayer, LoraProject};
use crate::error::{Error, Result};
use crate::tensor::Real;

const OP: &str = "projection";

/// Rows per block of the kernels that take a [`FusedProjection`].
pub(in crate::ops) const BLOCK_ROWS: usize = 32;

/// The products to compute from the output of another op: addresses and sizes, valid as long as the tensors
/// of the layers live.
#[derive(Debug, Clone, Copy)]
pub struct FusedProjection {
    params: LoraProject,
    rows: usize,
    is_masked: bool,
}

impl FusedProjection {
    /// The products in `params`, of inputs with `rows` rows. `features` of a layer is the width of its input,
    /// and 0 if the layer has no adapters. `is_masked`: every layer applies a dropout mask of its own to the
    /// input.
    pub(in crate::ops) fn new(params: LoraProject, rows: usize, is_masked: bool) -> Self {
        Self { params, rows, is_masked }
    }

    /// True if every layer applies a dropout mask of its own.
    pub(in crate::ops) fn is_masked(&self) -> bool {
        self.is_masked
    }

    /// The parameters for a kernel with one output `[rows, cols]`, which all layers share.
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

    /// The parameters for a kernel with one output `[rows, cols]` per layer. The last of them may be tensors
    /// that the kernel only reads.
    ///
    /// # Errors
    /// [`Error::Shape`] if the products are of other shapes.
    pub(in crate::ops) fn of_each<T: Real>(&self, outputs: &[&Tensor<T>]) -> Result<LoraProject> {
        let mut params = self.params;
        if outputs.len() != params.num_layers as usize {
            return Err(Error::shape(OP, "outputs", params.num_layers, outputs.len()));
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

    /// The layers with adapters.
    fn adapted(&self) -> impl Iterator<Item = LoraDownLayer> {
        self.params.layers.into_iter().filter(|layer| layer.features > 0)
    }

    fn check<T: Real>(&self, layer: &LoraDownLayer, output: &Tensor<T>) -> Result<()> {
        let expected = [self.rows, layer.features as usize];
        if output.shape() == expected {
            Ok(())
        } else {
            Err(Error::shape(OP, "output", expected, output.shape()))
        }
    }
}

#[cfg(test)]
#[path = "projection_tests.rs"]
mod gpu_tests;
