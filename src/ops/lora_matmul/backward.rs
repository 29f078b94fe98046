//! The way back through linear layers, step by step: `dxa`, `dx`, the gradients of the adapters.

use super::{LoraGrad, LoraMatmul, OP, check_count, cpu, dispatch, gpu, work, xa_cols};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::gemm::Write;
use crate::ops::{Runner, check_shape, runner};
use crate::tensor::Real;

/// As [`projection`](super::projection), the products that give `dxa`, for the kernel that makes `dy`.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module.
pub fn projection_back<T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    dxa: &[&Tensor<T>],
) -> Result<Option<gpu::Project>> {
    check_count("dxa", layers, dxa.len())?;
    if layers.iter().any(LoraMatmul::has_dora) || runner::<T>(device, OP)? != Runner::Gpu {
        return Ok(None);
    }
    work::record_project_back(device, layers, &[]);
    dispatch::projection_back(layers, dxa)
}

/// Writes `dxa` of every layer of a group.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module.
pub fn project_back<T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    dy: &[&Tensor<T>],
    dxa: &mut [&mut Tensor<T>],
) -> Result<()> {
    check_back(device, layers, dy, dxa.iter().map(|dxa| &**dxa))?;
    work::record_project_back(device, layers, dy);
    match runner::<T>(device, OP)? {
        Runner::Gpu => dispatch::project_back(device, layers, dy, dxa),
        Runner::Cpu | Runner::Nobody => layers
            .iter()
            .zip(dy)
            .zip(dxa)
            .try_for_each(|((layer, dy), dxa)| cpu::project_back(device, layer, dy, dxa)),
    }
}

/// Writes `dx`, the sum over the layers of a group, given `dxa`.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module.
pub fn backward_input<T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    dy: &[&Tensor<T>],
    dxa: &[&Tensor<T>],
    dx: &mut Tensor<T>,
) -> Result<()> {
    check_back(device, layers, dy, dxa.iter().copied())?;
    for (layer, dy) in layers.iter().zip(dy) {
        check_shape(OP, "dx", dx, [dy.rows(), layer.frozen.weight.cols()])?;
    }
    work::record_backward_input(device, layers, dx.rows());
    match runner::<T>(device, OP)? {
        Runner::Gpu => dispatch::backward_input(device, layers, dy, dxa, dx),
        Runner::Cpu | Runner::Nobody => {
            for (i, (layer, (dy, dxa))) in layers.iter().zip(dy.iter().zip(dxa)).enumerate() {
                // The layers after the first one add to what it left.
                let write = if i == 0 { Write::Overwrite } else { Write::Add };
                cpu::backward_input(device, layer, dy, dxa, (dx, write))?;
            }
            Ok(())
        }
    }
}

/// What the gradients of one layer's adapters are made of, and where they go.
#[derive(Debug)]
pub struct GradJob<'a, 'g, T: Real> {
    /// The layer.
    pub layer: LoraMatmul<'a, T>,
    /// Input of the forward pass, `[rows, in_features]`.
    pub x: &'a Tensor<T>,
    /// Gradient of the output, `[rows, out_features]`.
    pub dy: &'a Tensor<T>,
    /// Saved by the forward pass.
    pub xa: &'a Tensor<T>,
    /// Of [`project_back`].
    pub dxa: &'a Tensor<T>,
    /// Gradients by adapter index, as long as `loras`. A GPU finds them through [`OnGpu::adapters`](super::OnGpu::adapters).
    pub grads: &'a mut [Option<LoraGrad<'g, T::Stat>>],
}

/// Adds to the gradients of the adapters of several layers.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module.
pub fn gradients<T: Real>(device: &Device, jobs: &mut [GradJob<'_, '_, T>]) -> Result<()> {
    for job in &*jobs {
        let [out_features, in_features] = job.layer.frozen.weight.shape();
        check_shape(OP, "x", job.x, [job.x.rows(), in_features])?;
        check_shape(OP, "dy", job.dy, [job.x.rows(), out_features])?;
        check_shape(OP, "dxa", job.dxa, job.xa.shape())?;
        job.layer.check_grads(device, job.grads)?;
    }
    work::record_gradients(device, jobs);
    match runner::<T>(device, OP)? {
        Runner::Gpu => dispatch::gradients(device, jobs),
        Runner::Cpu | Runner::Nobody => jobs.iter_mut().try_for_each(|job| cpu::gradients(device, job)),
    }
}

/// What the backward pass reads and writes for one layer of a group.
#[derive(Debug)]
pub struct LayerBackward<'a, 'g, T: Real> {
    /// Gradient of the output, `[rows, out_features]`.
    pub dy: &'a Tensor<T>,
    /// Saved by the forward pass.
    pub xa: &'a Tensor<T>,
    /// Gradients by adapter index, as long as `loras`.
    pub grads: &'a mut [Option<LoraGrad<'g, T::Stat>>],
}

/// What the backward pass of a group reads and writes beside its layers.
#[derive(Debug)]
pub struct Backward<'a, 'g, T: Real> {
    /// Input of the forward pass, `[rows, in_features]`.
    pub x: &'a Tensor<T>,
    /// Where `dx` goes; none where nobody needs it.
    pub dx: Option<&'a mut Tensor<T>>,
    /// By layer.
    pub layers: &'a mut [LayerBackward<'a, 'g, T>],
}

/// Adds to the adapters' gradients of a group and writes `dx`: [`project_back`], [`backward_input`] and [`gradients`].
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module.
pub fn backward<T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    args: Backward<'_, '_, T>,
) -> Result<()> {
    let Backward { x, dx, layers: of_layers } = args;
    check_count("layers", layers, of_layers.len())?;
    let dy: Vec<&Tensor<T>> = of_layers.iter().map(|args| args.dy).collect();
    let dxa: Result<Vec<_>> =
        (0..layers.len()).map(|i| device.empty(x.rows(), xa_cols(device, layers, i))).collect();
    let mut dxa: Vec<Tensor<T>> = dxa?;
    project_back(device, layers, &dy, &mut dxa.iter_mut().collect::<Vec<_>>())?;
    if let Some(dx) = dx {
        backward_input(device, layers, &dy, &dxa.iter().collect::<Vec<_>>(), dx)?;
    }
    let jobs = layers.iter().zip(of_layers).zip(&dxa).map(|((layer, args), dxa)| GradJob {
        layer: *layer,
        x,
        dy: args.dy,
        xa: args.xa,
        dxa,
        grads: &mut *args.grads,
    });
    gradients(device, &mut jobs.collect::<Vec<_>>())
}

fn check_back<'t, T: Real>(
    device: &Device,
    layers: &[LoraMatmul<'_, T>],
    dy: &[&Tensor<T>],
    dxa: impl ExactSizeIterator<Item = &'t Tensor<T>>,
) -> Result<()> {
    check_count("dy", layers, dy.len())?;
    check_count("dxa", layers, dxa.len())?;
    for (i, ((layer, dy), dxa)) in layers.iter().zip(dy).zip(dxa).enumerate() {
        check_shape(OP, "dy", dy, [dy.rows(), layer.frozen.weight.rows()])?;
        layer.check(device, dy.rows(), dxa, xa_cols(device, layers, i))?;
    }
    Ok(())
}
