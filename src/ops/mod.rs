//! The ops, one room each: `mod.rs` is the contract (formula, shapes, checks, dispatch), `cpu.rs` the implementation for f32
//! (runs) and f64 (the oracle of tests), `tests.rs` agreement and gradients.
//!
//! Ops are coarse and fused; this is no tensor library. Outputs and activations are overwritten, gradients of adapters
//! accumulate, frozen weights never get gradients.

pub mod adamw;
pub mod attention;
pub mod embedding;
mod few_rows;
pub mod gemm;
mod gemm_rate;
pub mod grad_norm;
pub mod linear_cross_entropy;
pub mod lora_matmul;
pub mod qk_norm_rope;
pub mod rms_norm;
pub mod rows;
pub mod simd;
pub mod swiglu;
#[cfg(test)]
pub(crate) mod testing;
mod tiles;

pub use gemm_rate::measured_gemm_rate;

use crate::device::{Device, Kind, Machine, Tensor};
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

/// Fails unless the rows of `tensor` are whole 16-byte pieces of bf16, and their number one that kernels can count.
fn check_pieces<T: Element>(op: &'static str, arg: &'static str, tensor: &Tensor<T>) -> Result<()> {
    let [rows, cols] = tensor.shape();
    if cols.is_multiple_of(8) && i32::try_from(rows.max(cols)).is_ok() {
        Ok(())
    } else {
        Err(Error::shape(op, arg, "columns in multiples of 8", tensor.shape()))
    }
}

/// Who does the work of an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    /// `cpu.rs`.
    Cpu,
    /// `gpu.rs`: allocates and launches, on a GPU, on the emulator, or on the dry double of a GPU, which only counts.
    Gpu,
    /// Nobody: the call was recorded, and that is all.
    Nobody,
}

/// Who does the work of `op` on numbers of type `T` on this device.
///
/// # Errors
/// [`Error::Device`] on a device that runs kernels, for numbers other than bf16.
fn runner<T: Element>(device: &Device, op: &'static str) -> Result<Runner> {
    match (device.kind(), device.machine()) {
        (Kind::Cpu, _) => Ok(Runner::Cpu),
        (_, Machine::Gpu) if T::DTYPE == DType::Bf16 => Ok(Runner::Gpu),
        (Kind::Dry, _) => Ok(Runner::Nobody),
        (Kind::Cuda | Kind::Emulated, _) => Err(Error::Device {
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
        use super::swiglu;
        use crate::device::{Device, EmulatorOptions};

        let device = Device::emulated(EmulatorOptions::default()).unwrap();
        let tensor = || device.zeros::<f32>(4, 16).unwrap();
        let (mut gate, mut up, mut h) = (tensor(), tensor(), tensor());
        let error = swiglu::forward(&device, &gate, &up, &mut h).unwrap_err();
        assert!(error.exit_code() == 5 && error.to_string().contains("swiglu computes in bf16"), "{error}");
        assert!(swiglu::backward(&device, &mut h, &mut gate, &mut up).is_err());
    }

    #[test]
    fn the_device_and_the_numbers_decide_who_works() {
        use super::{Runner, runner};
        use crate::device::{Device, Machine};
        use half::bf16;

        let (cpu, dry, gpu) = (Device::cpu(1).unwrap(), Device::dry(), Device::dry_for(Machine::Gpu));
        assert_eq!(runner::<f32>(&cpu, "swiglu").unwrap(), Runner::Cpu);
        assert_eq!(runner::<bf16>(&dry, "swiglu").unwrap(), Runner::Nobody);
        assert_eq!(runner::<bf16>(&gpu, "swiglu").unwrap(), Runner::Gpu);
        assert_eq!(runner::<f32>(&gpu, "swiglu").unwrap(), Runner::Nobody);
    }
}
