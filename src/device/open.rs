//! The devices there are: the processor, a GPU, the emulator, and the dry doubles that plan for them.

use std::sync::Arc;

use super::arch::Chip;
#[cfg(feature = "cuda")]
use super::cuda;
use super::gpu::Gpu;
#[cfg(not(feature = "cuda"))]
use super::gpus;
use super::kernels::DevicePtr;
use super::pool::Pool;
use super::{Class, Device, Kind, Machine};
#[cfg(feature = "emulated")]
use super::{EmulatorOptions, emulated};
use crate::error::{Error, Result};

impl Device {
    /// The CPU with `threads` threads; 0 means all of them. Results do not depend on the number.
    ///
    /// # Errors
    /// [`Error::Device`] if the system gives no threads.
    pub fn cpu(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("tanren-{i}"))
            .build()
            .map_err(|e| Error::Device {
                what: format!("cannot start {threads} threads: {e}"),
                fix: "pass a smaller --threads".into(),
            })?;
        Ok(Self { threads: Some(Arc::new(pool)), ..Self::new(Kind::Cpu, None) })
    }

    /// The GPU with this index, with the kernels of this build. Every tensor has memory of its own until [`Device::reserve`].
    ///
    /// # Errors
    /// [`Error::Device`]: no driver, one that is too old, no such GPU, kernels that do not run on it, or an error of the driver.
    pub fn cuda(index: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self::new(Kind::Cuda, Some(Gpu::cuda(cuda::Cuda::open(index)?))));
        #[cfg(not(feature = "cuda"))]
        {
            let _ = index;
            Err(gpus::without_cuda())
        }
    }

    /// A device that records what the CPU would do, and computes nothing.
    pub fn dry() -> Self {
        Self::dry_for(Machine::Cpu)
    }

    /// The kernels on the processor, under checks if `options` ask for them. Plans are those of an RTX 3080.
    ///
    /// # Errors
    /// [`Error::Device`] if the system gives no memory or threads.
    #[cfg(feature = "emulated")]
    pub fn emulated(options: EmulatorOptions) -> Result<Self> {
        let emulator = emulated::Emulator::new(options)?;
        Ok(Self::new(Kind::Emulated, Some(Gpu::emulated(emulator, Chip::RTX_3080))))
    }

    /// A device that records what `machine` would do, and computes nothing. A GPU is the smallest that is planned for.
    pub fn dry_for(machine: Machine) -> Self {
        match machine {
            Machine::Cpu => Self::new(Kind::Dry, None),
            Machine::Gpu => Self::dry_gpu(Chip::RTX_3080),
        }
    }

    /// A device that records what a GPU of this architecture would do: ops plan their kernels, launches are counted, and
    /// tensors get addresses in an arena without end, whose high-water mark is what [`Device::reserve`] needs.
    pub fn dry_gpu(chip: Chip) -> Self {
        Self::new(Kind::Dry, Some(Gpu::dry(chip)))
    }

    fn new(kind: Kind, gpu: Option<Gpu>) -> Self {
        let machine = if gpu.is_some() { Machine::Gpu } else { Machine::Cpu };
        let pool = Arc::new(Pool::new(machine.granularity()));
        let gpu = gpu.map(Arc::new);
        Self {
            kind,
            class: Class::Temporary,
            pool,
            ledger: Arc::default(),
            threads: None,
            gpu,
            live_rows: DevicePtr(0),
        }
    }
}
