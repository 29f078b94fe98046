//! The ops, one room each: `mod.rs` is the contract (formula, shapes, checks, dispatch), `cpu.rs` the implementation for f32
//! (runs) and f64 (the oracle of tests), `tests.rs` agreement and gradients.
//!
//! Ops are coarse and fused; this is no tensor library. Outputs and activations are overwritten, gradients of adapters
//! accumulate, frozen weights never get gradients.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod cols;
pub mod embedding;
mod few_rows;
pub mod gemm;
mod gemm_rate;
pub mod grad_norm;
pub mod label_head;
pub mod linear_cross_entropy;
mod live_rows;
pub mod lora_matmul;
pub mod norm;
pub mod projection;
pub mod qk_norm_rope;
pub mod rows;
pub mod simd;
#[cfg(test)]
pub(crate) mod testing;
mod tiles;

pub use gemm_rate::measured_gemm_rate;
pub use live_rows::LiveRows;

use crate::device::{Device, Machine, Tensor};
use crate::error::{Error, Result};
use crate::tensor::{DType, Element};

/// Fails unless `tensor` has the shape that `op` expects of its argument `arg`.
fn check_shape<T: Element>(
    op: &'static str,
    arg: &'static str,
    tensor: &Tensor<T>,
    expected: [usize; 2],
) -> Result<()> {
    if tensor.shape() == expected { Ok(()) } else { Err(Error::shape(op, arg, expected, tensor.shape())) }
}

/// Fails unless the rows of `tensor` are a multiple of 16 bytes in bf16, and both dimensions fit an i32,
/// which kernels count with.
fn check_pieces<T: Element>(op: &'static str, arg: &'static str, tensor: &Tensor<T>) -> Result<()> {
    let [rows, cols] = tensor.shape();
    if cols.is_multiple_of(8) && i32::try_from(rows.max(cols)).is_ok() {
        Ok(())
    } else {
        Err(Error::shape(op, arg, "columns in multiples of 8", tensor.shape()))
    }
}

/// How the device executes one call of an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    /// `cpu.rs` computes.
    Cpu,
    /// `gpu.rs` allocates and launches: on a GPU, on the emulator, or on the dry model of a GPU, which only
    /// counts.
    Gpu,
    /// Nothing is computed: the call is in the ledger, and what `cpu.rs` would allocate is counted by ops with temporary tensors.
    Skip,
}

/// How this device executes `op` on elements of type `T`.
///
/// # Errors
/// [`Error::Device`] on a device that runs kernels, for numbers other than bf16.
fn runner<T: Element>(device: &Device, op: &'static str) -> Result<Runner> {
    match (device.machine(), device.is_dry()) {
        (Machine::Cpu, false) => Ok(Runner::Cpu),
        (Machine::Gpu, _) if T::DTYPE == DType::Bf16 => Ok(Runner::Gpu),
        (_, true) => Ok(Runner::Skip),
        (Machine::Gpu, false) => Err(Error::Device {
            what: format!("{}: {op} computes in bf16 there, and this is {}", device.label(), T::DTYPE),
            fix: "load the model as bf16, or compute on the cpu".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "emulated")]
    #[test]
    fn numbers_that_kernels_do_not_know_are_refused_and_not_skipped() {
        use super::LiveRows;
        use super::activation::{self, Activation, Input, InputMut};
        use crate::device::{Device, EmulatorOptions};

        let device = Device::emulated(EmulatorOptions::default()).unwrap();
        let tensor = || device.zeros::<f32>(4, 16).unwrap();
        let (mut gate, mut up, mut h) = (tensor(), tensor(), tensor());
        let act = Activation::Silu;
        let (input, live_rows) = (Input::Gated { gate: &gate, up: &up }, LiveRows::ALL);
        let args = activation::Forward { act, input, h: &mut h, live_rows, projection: None };
        let error = activation::forward(&device, args).unwrap_err();
        assert!(
            error.exit_code() == 5 && error.to_string().contains("activation computes in bf16"),
            "{error}"
        );
        let input = InputMut::Gated { gate: &mut gate, up: &mut up };
        let args = activation::Backward { act, dh: &mut h, input, live_rows, projection: None };
        assert!(activation::backward(&device, args).is_err());
    }

    #[test]
    fn the_device_and_the_numbers_decide_who_works() {
        use super::{Runner, runner};
        use crate::device::Device;
        use crate::device::arch::Chip;
        use half::bf16;

        let (cpu, dry) = (Device::cpu(1).unwrap(), Device::dry());
        let gpu = Device::dry_gpu(Chip::RTX_3080);
        assert_eq!(runner::<f32>(&cpu, "activation").unwrap(), Runner::Cpu);
        assert_eq!(runner::<bf16>(&dry, "activation").unwrap(), Runner::Skip);
        assert_eq!(runner::<bf16>(&gpu, "activation").unwrap(), Runner::Gpu);
        assert_eq!(runner::<f32>(&gpu, "activation").unwrap(), Runner::Skip);
    }
}
