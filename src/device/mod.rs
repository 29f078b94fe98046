//! Where numbers live and who computes: the device, its buffers, and the ledger of what a step costs.
//!
//! A `cpu` computes with the code of the ops; a GPU runs kernels, on the card (`cuda`) or on the processor under checks
//! (`emulated`). A dry device does everything but compute, in place of a CPU or of a GPU: its buffers have sizes and no memory,
//! and ops and launches are recorded instead of run. So the plan of a step comes from the code that runs it.

pub mod arch;
pub mod card;
pub mod gpus;
pub mod image;
pub mod kernels;
pub mod primitives;
pub mod self_test;

mod arena;
mod buffers;
mod class;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "emulated")]
mod emulated;
mod gpu;
mod graph;
mod host;
mod launch;
mod ledger;
mod mailbox;
mod open;
mod pool;
mod recording;
mod table;
mod tensor;

pub use arena::ArenaUse;
pub use card::Card;
pub use class::{ByClass, Class};
#[cfg(feature = "emulated")]
pub use emulated::{Counters, Counts, EmulatorOptions, KernelCounters, Place, Schedule};
pub use gpu::GpuMemory;
pub use graph::Graph;
pub use host::available_memory;
pub use launch::Launch;
pub use ledger::{Ledger, Work};
pub use mailbox::Mailbox;
pub use pool::MemoryUse;
pub use table::Table;
pub use tensor::{HostData, Tensor};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::arch::{Arch, Chip};
use self::gpu::Gpu;
use self::kernels::DevicePtr;
use self::pool::Pool;
use crate::error::{Error, Result};

/// What a device does with an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Computes on the threads of this process.
    Cpu,
    /// Runs kernels on a GPU.
    Cuda,
    /// Runs kernels on the processor, and checks what they do.
    Emulated,
    /// Records, and computes nothing.
    Dry,
}

/// Whose memory and work are counted, and whose code an op runs or plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// The processor: buffers of any size, no launches.
    Cpu,
    /// A GPU: buffers in multiples of 256 bytes, and ops that keep their intermediate values on the chip.
    Gpu,
}

impl Machine {
    /// Bytes that the size of a buffer is a multiple of.
    pub fn granularity(self) -> u64 {
        match self {
            Self::Cpu => 1,
            Self::Gpu => arena::ALIGNMENT,
        }
    }
}

/// A device: who computes, the memory its tensors come from, and the ledger. Clones are handles of the same device.
#[derive(Debug, Clone)]
pub struct Device {
    kind: Kind,
    class: Class,
    pool: Arc<Pool>,
    ledger: Arc<Mutex<Ledger>>,
    threads: Option<Arc<rayon::ThreadPool>>,
    /// Of devices that run kernels, and of their dry double.
    gpu: Option<Arc<Gpu>>,
    live_rows: DevicePtr,
}

impl Device {
    /// A handle of this device whose buffers are for `class`.
    pub fn class(&self, class: Class) -> Self {
        Self { class, ..self.clone() }
    }

    /// A handle of this device for ops on tensors that are not full: how many of their rows there are stands at this address (an
    /// i32) in the memory of the GPU, where a graph of launches finds another number every time it runs. Null: all rows.
    pub fn with_live_rows(&self, live_rows: DevicePtr) -> Self {
        Self { live_rows, ..self.clone() }
    }

    /// For params of kernels; see [`Device::with_live_rows`].
    pub fn live_rows(&self) -> DevicePtr {
        self.live_rows
    }

    /// Whose memory and work are counted, and whose code an op runs or plans.
    pub fn machine(&self) -> Machine {
        if self.gpu.is_some() { Machine::Gpu } else { Machine::Cpu }
    }

    /// What this device does with an op.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// True where ops are recorded but not run.
    pub fn is_dry(&self) -> bool {
        self.kind == Kind::Dry
    }

    /// The architecture that kernels are planned for; `None` of a CPU.
    pub fn arch(&self) -> Option<Arch> {
        self.gpu.as_ref().map(|gpu| gpu.chip().arch)
    }

    /// What plans of kernels go by.
    ///
    /// # Errors
    /// [`Error::Device`] of a CPU, which runs none.
    pub fn chip(&self) -> Result<Chip> {
        self.gpu.as_ref().map(|gpu| gpu.chip()).ok_or_else(|| Error::Device {
            what: format!("{}: the device runs no kernels", self.label()),
            fix: "this is a mistake in tanren: please report the message and the command".into(),
        })
    }

    /// True where launches run and have results: on the emulator, and on a GPU in a build with kernels.
    pub fn runs_kernels(&self) -> bool {
        match self.kind {
            Kind::Cpu | Kind::Dry => false,
            Kind::Cuda => !kernels::IMAGES.is_empty(),
            Kind::Emulated => true,
        }
    }

    /// What messages call it: `cpu`, `cuda:0 (NVIDIA GeForce RTX 3080)`.
    pub fn label(&self) -> &str {
        match (&self.gpu, self.kind) {
            (Some(gpu), _) => gpu.label(),
            (None, Kind::Dry) => "plan of the cpu",
            (None, _) => "cpu",
        }
    }

    /// Number of threads that compute.
    pub fn num_threads(&self) -> usize {
        self.threads.as_ref().map_or(0, |t| t.current_num_threads())
    }

    /// Runs `work` on the device's threads: every parallel loop inside uses them and no others.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.threads {
            Some(threads) => threads.install(work),
            None => work(),
        }
    }

    /// Takes one block of `bytes` bytes for all tensors from here on, if this is a GPU: no allocation in a step, and the same
    /// addresses in every run. How much a run needs is the [`ArenaUse::high_water_bytes`] of its plan. Tensors that are there
    /// stay where they are. 0 gives the block back.
    ///
    /// # Errors
    /// [`Error::Device`] if there is not so much memory, or if tensors lie in what was reserved before.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        self.gpu.as_ref().map_or(Ok(()), |gpu| gpu.reserve(bytes))
    }

    /// How full the reserved block is; `None` without one.
    pub fn arena(&self) -> Option<ArenaUse> {
        self.gpu.as_ref().and_then(|gpu| gpu.arena())
    }

    /// Free and total memory of the card; `None` where there is no card.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver failed.
    pub fn card_memory(&self) -> Result<Option<GpuMemory>> {
        self.gpu.as_ref().map_or(Ok(None), |gpu| gpu.memory())
    }

    /// Waits until everything that was started is done.
    ///
    /// # Errors
    /// [`Error::Device`] if something of it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.gpu.as_ref().map_or(Ok(()), |gpu| gpu.synchronize())
    }

    /// Runs `work` and gives its result with the seconds that the GPU took for it, by the GPU's clock; `None` on other devices.
    ///
    /// # Errors
    /// [`Error::Device`] if something of it, or before it, failed.
    pub fn time<R>(&self, work: impl FnOnce() -> R) -> Result<(R, Option<f64>)> {
        match &self.gpu {
            Some(gpu) => gpu.time(work),
            None => Ok((work(), None)),
        }
    }

    /// Bytes in use now and at most since [`Device::reset_peak`].
    pub fn memory(&self) -> MemoryUse {
        self.pool.memory()
    }

    /// What was in use by class when the most was in use.
    pub fn peak_by_class(&self) -> ByClass {
        self.pool.peak_by_class()
    }

    /// Starts a new maximum from what is in use now.
    pub fn reset_peak(&self) {
        self.pool.reset_peak();
    }

    /// Changes how later launches run, if this is an emulated device.
    #[cfg(feature = "emulated")]
    pub fn set_emulator_options(&self, options: EmulatorOptions) {
        if let Some(emulator) = self.gpu.as_ref().and_then(|gpu| gpu.emulator()) {
            emulator.set_options(options);
        }
    }

    /// What the launches under [`EmulatorOptions::stats`] asked of memory since the last call; nothing on other devices.
    #[cfg(feature = "emulated")]
    pub fn take_counters(&self) -> Counters {
        self.gpu.as_ref().and_then(|gpu| gpu.emulator()).map(|e| e.take_counters()).unwrap_or_default()
    }

    /// Notes that `op` runs with this cost; the launches that follow are its own.
    pub fn record(&self, op: &'static str, work: Work) {
        self.lock().add(op, work);
    }

    /// The ledger so far, and an empty one from here on.
    pub fn take_ledger(&self) -> Ledger {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
