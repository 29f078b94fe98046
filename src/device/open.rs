//! Constructors of devices: the processor, a card, the emulator, and dry ones.

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
    /// [`Error::Device`] if the system cannot create threads.
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

    /// A dry CPU: it records the work and computes nothing.
    pub fn dry() -> Self {
        Self::new(Backend::DryCpu)
    }

    /// The GPU with this index, with the kernels of this build. Every tensor is a separate allocation until
    /// [`Device::reserve`].
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

    /// A dry GPU of this architecture: ops plan their kernels, launches are counted, and tensors get
    /// addresses in an unlimited arena. Its high-water mark is the size to pass to [`Device::reserve`].
    pub fn dry_gpu(chip: Chip) -> Self {
        Self::of_gpu(Gpu::dry(chip))
    }

    /// The emulator: kernels on the processor, checked if `options` say so. Plans are those of an RTX 3080.
    ///
    /// # Errors
    /// [`Error::Device`] if the system has no memory or cannot create threads.
    #[cfg(feature = "emulated")]
    pub fn emulated(options: EmulatorOptions) -> Result<Self> {
        let emulator = super::emulated::Emulator::new(options)?;
        Ok(Self::of_gpu(Gpu::emulated(emulator, Chip::RTX_3080)))
    }

    /// Changes the options of later launches, if this is an emulated device.
    #[cfg(feature = "emulated")]
    pub fn set_emulator_options(&self, options: EmulatorOptions) {
        if let Some(emulator) = self.gpu().and_then(|gpu| gpu.emulator()) {
            emulator.set_options(options);
        }
    }

    /// Counters of memory accesses of the launches under [`EmulatorOptions::stats`] since the last call;
    /// empty on other devices.
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
