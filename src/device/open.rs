//! How devices are made: the processor, a card, the emulator, and dry ones in place of them.

use std::sync::Arc;

use super::arch::Chip;
use super::class::Class;
use super::gpu::Gpu;
use super::pool::Pool;
use super::{Backend, Device};
#[cfg(feature = "emulated")]
use super::{Counters, EmulatorOptions};
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
        Ok(Self::new(Backend::Cpu(Arc::new(pool))))
    }

    /// A device that records what the CPU would do, and computes nothing.
    pub fn dry() -> Self {
        Self::new(Backend::DryCpu)
    }

    /// The GPU with this index, with the kernels of this build. Every tensor has memory of its own until [`Device::reserve`].
    ///
    /// # Errors
    /// [`Error::Device`]: no driver, one that is too old, no such GPU, kernels that do not run on it, or an error of the driver.
    pub fn cuda(index: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self::of_gpu(Gpu::cuda(super::cuda::Cuda::open(index)?)));
        #[cfg(not(feature = "cuda"))]
        {
            let _ = index;
            Err(super::gpus::without_cuda())
        }
    }

    /// A device that records what a GPU of this architecture would do: ops plan their kernels, launches are counted, and
    /// tensors get addresses in an arena without end, whose high-water mark is what [`Device::reserve`] needs.
    pub fn dry_gpu(chip: Chip) -> Self {
        Self::of_gpu(Gpu::dry(chip))
    }

    /// The kernels on the processor, under checks if `options` ask for them. Plans are those of an RTX 3080.
    ///
    /// # Errors
    /// [`Error::Device`] if the system gives no memory or threads.
    #[cfg(feature = "emulated")]
    pub fn emulated(options: EmulatorOptions) -> Result<Self> {
        let emulator = super::emulated::Emulator::new(options)?;
        Ok(Self::of_gpu(Gpu::emulated(emulator, Chip::RTX_3080)))
    }

    /// Changes how later launches run, if this is an emulated device.
    #[cfg(feature = "emulated")]
    pub fn set_emulator_options(&self, options: EmulatorOptions) {
        if let Some(emulator) = self.gpu().and_then(|gpu| gpu.emulator()) {
            emulator.set_options(options);
        }
    }

    /// What the launches under [`EmulatorOptions::stats`] asked of memory since the last call; nothing on other devices.
    #[cfg(feature = "emulated")]
    pub fn take_counters(&self) -> Counters {
        self.gpu().and_then(|gpu| gpu.emulator()).map(|e| e.take_counters()).unwrap_or_default()
    }

    fn of_gpu(gpu: Gpu) -> Self {
        Self::new(Backend::Gpu(Arc::new(gpu)))
    }

    fn new(backend: Backend) -> Self {
        let pool = Arc::new(Pool::new(backend.machine().granularity()));
        Self { backend, class: Class::Temporary, pool, ledger: Arc::default() }
    }
}
