//! The backward pass of linear layers, in steps: `dxa`, `dx`, the gradients of the adapters.

use super::group::LayerRows;
use super::{Group, Layer, LoraGrad, OP, Rows, cpu, gpu, work};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::projection::FusedProjection;
use crate::ops::{Runner, check_shape, runner};
use crate::tensor::Real;

/// As [`projection`](super::projection), for `dxa`: the projection to fuse into the kernel that produces
/// `dy`.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module.
pub fn projection_back<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    dxa: &[&Tensor<T>],
) -> Result<Option<FusedProjection>> {
    group.check_count("dxa", dxa.len())?;
    if group.has_dora() || runner::<T>(device, OP)? != Runner::Gpu {
        return Ok(None);
    }
    work::record_project_back(device, group, false);
    gpu::projection_back(group, dxa)
}

/// Writes `dxa` of every layer of a group.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module; errors of the device.
pub fn project_back<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    dy: &[&Tensor<T>],
    dxa: &mut [&mut Tensor<T>],
) -> Result<()> {
    check_back(group, dy, dxa.iter().map(|dxa| &**dxa))?;
    work::record_project_back(device, group, true);
    match runner::<T>(device, OP)? {
        Runner::Gpu => gpu::project_back(device, group, dy, dxa),
        Runner::Cpu | Runner::Skip => cpu::project_back(device, group, dy, dxa),
    }
}

/// Inputs and output of [`backward_input`]; lists go by layer.
#[derive(Debug)]
pub struct InputGradient<'a, T: Real> {
    /// Gradients of the outputs, `[rows, out_features]` each.
    pub dy: &'a [&'a Tensor<T>],
    /// From [`project_back`].
    pub dxa: &'a [&'a Tensor<T>],
    /// `[rows, in_features]`, overwritten.
    pub dx: &'a mut Tensor<T>,
}

/// Writes `dx`, the sum over the layers of a group, given `dxa`.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module; errors of the device.
pub fn backward_input<T: Real>(
    device: &Device,
    group: &Group<'_, T>,
    args: InputGradient<'_, T>,
) -> Result<()> {
    check_back(group, args.dy, args.dxa.iter().copied())?;
    check_shape(OP, "dx", args.dx, [group.rows.capacity(), group.in_features()])?;
    work::record_backward_input(device, group);
    match runner::<T>(device, OP)? {
        Runner::Gpu => gpu::backward_input(device, group, args),
        Runner::Cpu | Runner::Skip => cpu::backward_input(device, group, args),
    }
}

/// Inputs and outputs of [`gradients`] for one layer.
#[derive(Debug)]
pub struct GradJob<'a, 'g, T: Real> {
    /// The layer.
    pub layer: Layer<'a, T>,
    /// The rows that go through the layer.
    pub rows: &'a Rows,
    /// Input of the forward pass, `[rows, in_features]`.
    pub x: &'a Tensor<T>,
    /// Gradient of the output, `[rows, out_features]`.
    pub dy: &'a Tensor<T>,
    /// Saved by the forward pass.
    pub xa: &'a Tensor<T>,
    /// From [`project_back`].
    pub dxa: &'a Tensor<T>,
    /// Gradients by adapter index, as long as `loras`. A GPU finds them through [`Layer::adapters`].
    pub grads: &'a mut [Option<LoraGrad<'g, T::Stat>>],
}

impl<T: Real> GradJob<'_, '_, T> {
    pub(super) fn layer_rows(&self) -> LayerRows<'_, T> {
        LayerRows { layer: &self.layer, rows: self.rows }
    }
}

/// Adds to the gradients of the adapters of several layers.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module; errors of the device.
pub fn gradients<T: Real>(device: &Device, jobs: &mut [GradJob<'_, '_, T>]) -> Result<()> {
    for job in &*jobs {
        let rows = job.rows.capacity();
        check_shape(OP, "x", job.x, [rows, job.layer.in_features()])?;
        check_shape(OP, "dy", job.dy, [rows, job.layer.out_features()])?;
        check_shape(OP, "dxa", job.dxa, job.xa.shape())?;
        job.layer_rows().check_grads(job.grads)?;
    }
    work::record_gradients(device, jobs);
    match runner::<T>(device, OP)? {
        Runner::Gpu => gpu::gradients(device, jobs),
        Runner::Cpu | Runner::Skip => cpu::gradients(device, jobs),
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
    /// Where `dx` goes; `None` if it is not needed.
    pub dx: Option<&'a mut Tensor<T>>,
    /// By layer.
    pub layers: &'a mut [LayerBackward<'a, 'g, T>],
}

/// Adds to the adapters' gradients of a group and writes `dx`: [`project_back`], [`backward_input`] and [`gradients`].
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) if the shapes do not follow the table of the module; errors of the device.
pub fn backward<T: Real>(device: &Device, group: &Group<'_, T>, args: Backward<'_, '_, T>) -> Result<()> {
    let Backward { x, dx, layers: of_layers } = args;
    group.check_count("layers", of_layers.len())?;
    let dy: Vec<&Tensor<T>> = of_layers.iter().map(|args| args.dy).collect();
    let dxa: Result<Vec<_>> =
        (0..group.layers.len()).map(|i| device.empty(x.rows(), group.xa_cols(i))).collect();
    let mut dxa: Vec<Tensor<T>> = dxa?;
    project_back(device, group, &dy, &mut dxa.iter_mut().collect::<Vec<_>>())?;
    if let Some(dx) = dx {
        let dxa = dxa.iter().collect::<Vec<_>>();
        backward_input(device, group, InputGradient { dy: &dy, dxa: &dxa, dx })?;
    }
    let jobs = group.layers.iter().zip(of_layers).zip(&dxa).map(|((layer, args), dxa)| GradJob {
        layer: *layer,
        rows: group.rows,
        x,
        dy: args.dy,
        xa: args.xa,
        dxa,
        grads: &mut *args.grads,
    });
    gradients(device, &mut jobs.collect::<Vec<_>>())
}

fn check_back<'t, T: Real>(
    group: &Group<'_, T>,
    dy: &[&Tensor<T>],
    dxa: impl ExactSizeIterator<Item = &'t Tensor<T>>,
) -> Result<()> {
    group.check_count("dy", dy.len())?;
    group.check_count("dxa", dxa.len())?;
    for (layer, dy) in group.layers.iter().zip(dy) {
        check_shape(OP, "dy", dy, [group.rows.capacity(), layer.out_features()])?;
    }
    group.check(dxa)
}
