//! The optimizer step on a GPU: norm, clipping and update of all tensors in three launches, see `kernels/adamw.cu`.
//!
//! The table of tensors is built once per run ([`Tensors`]); each step writes ten scalars ([`StepScalars`]);
//! the norm and the clipping factor stay on the device until they are read ([`Outcome`]). So a CUDA graph can
//! hold the step. For the same clipping factor the update is bit-identical to the CPU's; the factor itself
//! comes from a norm that is summed in another order.

use half::bf16;

use super::{AdamW, OP, Trained};
use crate::device::kernels::Kernel;
use crate::device::kernels::params::{AdamWBlock, AdamWParams, AdamWScalars, AdamWTensor};
use crate::device::{Device, Launch, PendingCopy, Table, Tensor, Work};
use crate::error::{Error, Result};
use crate::ops::{Runner, runner};
use crate::tensor::Real;

/// Elements per block.
const BLOCK: usize = 4096;

/// The addresses of all trained tensors, for kernels. The tensors must not move.
#[derive(Debug)]
pub struct Tensors {
    tensors: Table<AdamWTensor>,
    blocks: Table<AdamWBlock>,
    partial: Tensor<f64>,
    num_params: usize,
}

impl Tensors {
    /// The table of `trained`, each with a shadow.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes of a tensor differ or it has no shadow; those of the device.
    pub fn new<T: Real>(device: &Device, trained: &[Trained<'_, T>]) -> Result<Self> {
        let (mut tensors, mut blocks, mut num_params) = (Vec::new(), Vec::new(), 0);
        for (tensor, one) in trained.iter().enumerate() {
            one.check()?;
            let Some(shadow) = &one.shadow else {
                return Err(Error::shape(OP, "shadow", one.param.shape(), "none"));
            };
            let len = one.param.len();
            tensors.push(AdamWTensor {
                param: one.param.ptr(),
                shadow: shadow.ptr(),
                grad: one.grad.ptr(),
                exp_avg: one.exp_avg.ptr(),
                exp_avg_sq: one.exp_avg_sq.ptr(),
                decays: i64::from(one.decays),
            });
            blocks.extend((0..len).step_by(BLOCK).map(|first| AdamWBlock {
                tensor: tensor as i32,
                count: BLOCK.min(len - first) as i32,
                first: first as i64,
            }));
            num_params += len;
        }
        Ok(Self {
            tensors: Table::new(device, &tensors)?,
            partial: device.empty(blocks.len(), 1)?,
            blocks: Table::new(device, &blocks)?,
            num_params,
        })
    }

    /// Total number of elements.
    pub fn num_params(&self) -> usize {
        self.num_params
    }
}

/// The scalars of a step, in device memory.
#[derive(Debug)]
pub struct StepScalars {
    table: Table<AdamWScalars>,
}

impl StepScalars {
    /// Empty. Write before the first step.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { table: Table::with_capacity(device, 1)? })
    }

    /// Writes the scalars of the next step, rounded to f32 as on the CPU. A gradient whose norm exceeds
    /// `max_grad_norm` is clipped; the device computes the factor itself, so [`AdamW::clip`] is not used.
    ///
    /// # Errors
    /// Those of the device.
    pub fn write(&mut self, device: &Device, adamw: &AdamW, max_grad_norm: Option<f64>) -> Result<()> {
        let factors = adamw.factors();
        let max_norm = max_grad_norm.unwrap_or(f64::INFINITY);
        let rounded = max_norm as f32;
        let scalars = AdamWScalars {
            max_norm: rounded,
            max_norm_rest: if rounded.is_finite() { (max_norm - f64::from(rounded)) as f32 } else { 0.0 },
            step_size: factors.step_size as f32,
            root: factors.root as f32,
            decay: factors.decay as f32,
            beta1: factors.beta1 as f32,
            rest1: factors.rest1 as f32,
            beta2: factors.beta2 as f32,
            rest2: factors.rest2 as f32,
            epsilon: factors.epsilon as f32,
        };
        self.table.write(device, &[scalars])
    }
}

/// The outcome of a step, in device memory.
#[derive(Debug)]
pub struct Outcome {
    numbers: Tensor<f64>,
}

/// An [`Outcome`], copied to the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Factor that the gradient was multiplied with.
    pub clip: f64,
    /// False where the norm is not finite: then only the gradients were changed, to zero.
    pub was_applied: bool,
}

impl From<[f64; 3]> for Step {
    fn from([norm, clip, applied]: [f64; 3]) -> Self {
        Self { norm, clip, was_applied: applied != 0.0 }
    }
}

impl Outcome {
    /// Reads the outcome, after all work queued so far. Zeros on a dry device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&self, device: &Device) -> Result<Step> {
        let mut numbers = [0.0; 3];
        device.read_into(&self.numbers, &mut numbers)?;
        Ok(numbers.into())
    }

    /// Starts the copy to the host, for [`Outcome::take`].
    ///
    /// # Errors
    /// Those of the device.
    pub fn send(&self, copy: &mut PendingCopy) -> Result<()> {
        copy.send(&self.numbers, self.numbers.len())
    }

    /// Waits for the copy that [`Outcome::send`] started.
    ///
    /// # Errors
    /// Those of the device.
    pub fn take(copy: &mut PendingCopy) -> Result<Step> {
        let numbers = copy.take::<f64>()?;
        let numbers: Result<[f64; 3], _> = numbers.try_into();
        numbers.map(Step::from).map_err(|other: Vec<f64>| Error::shape(OP, "outcome", 3, other.len()))
    }
}

/// Clips the gradients by their global norm, updates parameters, moments and shadows, and sets the gradients
/// to zero. If the norm is not finite, it only sets the gradients to zero.
///
/// The norm is summed in f64 from f32 sums of four squares: within 1e-7 of the exact one, as long as the squares are f32 numbers.
///
/// # Errors
/// Those of the device.
pub fn clip_and_update(device: &Device, tensors: &Tensors, scalars: &StepScalars) -> Result<Outcome> {
    let outcome = Outcome { numbers: device.empty(1, 3)? };
    if runner::<bf16>(device, OP)? == Runner::Cpu {
        return Err(Error::shape(OP, "device", "a GPU", device.label()));
    }
    let elements = tensors.num_params as u64;
    let params = AdamWParams {
        tensors: tensors.tensors.ptr(),
        blocks: tensors.blocks.ptr(),
        scalars: scalars.table.ptr(),
        partial: tensors.partial.ptr(),
        outcome: outcome.numbers.ptr(),
        num_blocks: tensors.blocks.capacity() as i32,
        reserved: 0,
    };
    let blocks = tensors.blocks.capacity() as u32;
    let launch = |kernel, blocks| Launch { kernel, grid: [blocks, 1, 1], dynamic_smem: 0 };
    device.record("grad_norm", Work::new(2 * elements, 4 * elements));
    if blocks > 0 {
        device.launch(&launch(Kernel::GradNormPartial, blocks), &params)?;
    }
    device.launch(&launch(Kernel::GradNormTotal, 1), &params)?;
    // Per element: four reads, four writes, and the write of the shadow.
    device.record(OP, Work::new(14 * elements, 34 * elements));
    if blocks > 0 {
        device.launch(&launch(Kernel::Adamw, blocks), &params)?;
    }
    Ok(outcome)
}
