//! The compute device, its buffers, and the ledger of the work of a step.
//!
//! A `cpu` computes with the code of the ops; a GPU runs kernels, on the card (`cuda`) or on the processor
//! under checks (`emulated`). A dry device stands in for a CPU or a GPU and does everything except compute:
//! its buffers have sizes but no memory, and ops and launches are recorded instead of run. So the plan of a
//! step comes from the code that runs it.
//!
//! Users of a device need two of its properties only: its [`Machine`], which decides which code an op runs,
//! which tables there are and how buffers are rounded; and whether it [is dry](Device::is_dry), which decides
//! whether results have values. The backend of a GPU (the driver, the emulator, or none in a plan) is known
//! in `gpu.rs` alone; elsewhere only clocks and messages differ ([`Device::is_card`], [`Device::label`]).

pub mod arch;
pub mod card;
pub mod gpus;
pub mod image;
pub mod kernels;
pub mod primitives;
pub mod self_test;

mod arena;
mod class;
mod content;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "emulated")]
mod emulated;
mod gpu;
mod graph;
mod host;
mod launch;
mod ledger;
mod open;
mod pending_copy;
mod pool;
mod recording;
mod region;
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
pub use pending_copy::PendingCopy;
pub use pool::MemoryUse;
pub use table::Table;
pub use tensor::{HostData, Tensor};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::arch::Chip;
use self::gpu::Gpu;
use self::pool::Pool;
use crate::error::{Error, Result};

/// The kind of machine: it selects the code of ops, and how memory and work are counted. A dry device stands
/// in for one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// The processor: buffers of any size, no launches.
    Cpu,
    /// A GPU: buffers in multiples of 256 bytes, and ops that keep their intermediate values on the chip.
    Gpu,
}

impl Machine {
    /// Granularity of buffer sizes, in bytes.
    pub fn granularity(self) -> u64 {
        match self {
            Self::Cpu => 1,
            Self::Gpu => arena::ALIGNMENT,
        }
    }
}

/// A device: the executor, the memory of its tensors, and the ledger. Clones are handles of the same device.
#[derive(Debug, Clone)]
pub struct Device {
    backend: Backend,
    class: Class,
    pool: Arc<Pool>,
    ledger: Arc<Mutex<Ledger>>,
}

/// The backend of a device.
#[derive(Debug, Clone)]
enum Backend {
    /// Threads of this process.
    Cpu(Arc<rayon::ThreadPool>),
    /// A dry CPU.
    DryCpu,
    /// A card, the emulator, or a dry GPU.
    Gpu(Arc<Gpu>),
}

impl Backend {
    fn machine(&self) -> Machine {
        match self {
            Self::Cpu(_) | Self::DryCpu => Machine::Cpu,
            Self::Gpu(_) => Machine::Gpu,
        }
    }
}

impl Device {
    /// A handle of this device whose buffers are for `class`.
    pub fn class(&self, class: Class) -> Self {
        Self { class, ..self.clone() }
    }

    /// The kind of machine that this device is or stands in for.
    pub fn machine(&self) -> Machine {
        self.backend.machine()
    }

    /// True if ops and launches are recorded but not run.
    pub fn is_dry(&self) -> bool {
        match &self.backend {
            Backend::Cpu(_) => false,
            Backend::DryCpu => true,
            Backend::Gpu(gpu) => gpu.is_dry(),
        }
    }

    /// True of a card, which works asynchronously to the host and has a clock and memory of its own.
    pub fn is_card(&self) -> bool {
        self.gpu().is_some_and(|gpu| gpu.is_card())
    }

    /// True if launches run: on the emulator, and on a card in a build with kernels.
    pub fn runs_kernels(&self) -> bool {
        self.machine() == Machine::Gpu && !self.is_dry() && !(self.is_card() && kernels::IMAGES.is_empty())
    }

    /// The chip that kernel plans depend on.
    ///
    /// # Errors
    /// [`Error::Device`] on a CPU, which runs no kernels.
    pub fn chip(&self) -> Result<Chip> {
        self.gpu().map(|gpu| gpu.chip()).ok_or_else(|| Error::Device {
            what: format!("{}: the device runs no kernels", self.label()),
            fix: "this is a mistake in tanren: please report the message and the command".into(),
        })
    }

    /// The name of the device in messages: `cpu`, `cuda:0 (NVIDIA GeForce RTX 3080)`.
    pub fn label(&self) -> &str {
        match &self.backend {
            Backend::Cpu(_) => "cpu",
            Backend::DryCpu => "plan of the cpu",
            Backend::Gpu(gpu) => gpu.label(),
        }
    }

    /// Number of compute threads; 0 if the processor does not compute.
    pub fn num_threads(&self) -> usize {
        match &self.backend {
            Backend::Cpu(threads) => threads.current_num_threads(),
            Backend::DryCpu | Backend::Gpu(_) => 0,
        }
    }

    /// Runs `work` on the device's threads: every parallel loop inside uses only these.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.backend {
            Backend::Cpu(threads) => threads.install(work),
            Backend::DryCpu | Backend::Gpu(_) => work(),
        }
    }

    /// On a GPU, reserves one block of `bytes` bytes for all tensors from here on: no allocation within a
    /// step, and the same addresses in every run. A run needs the [`ArenaUse::high_water_bytes`] of its plan.
    /// Existing tensors stay where they are. 0 frees the block.
    ///
    /// # Errors
    /// [`Error::Device`] if memory runs out, or if there are tensors in the block reserved before.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        self.gpu().map_or(Ok(()), |gpu| gpu.reserve(bytes))
    }

    /// Usage of the reserved block; `None` if none is reserved.
    pub fn arena(&self) -> Option<ArenaUse> {
        self.gpu().and_then(|gpu| gpu.arena())
    }

    /// Free and total memory of the card; `None` if the device is not a card.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver failed.
    pub fn card_memory(&self) -> Result<Option<GpuMemory>> {
        self.gpu().map_or(Ok(None), |gpu| gpu.memory())
    }

    /// Waits until all queued work is done.
    ///
    /// # Errors
    /// [`Error::Device`] if any of it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.gpu().map_or(Ok(()), |gpu| gpu.synchronize())
    }

    /// Runs `work` and returns its result with the seconds that it took by the clock of the card; `None` on
    /// other devices.
    ///
    /// # Errors
    /// [`Error::Device`] if any of it, or any work before it, failed.
    pub fn time<R>(&self, work: impl FnOnce() -> R) -> Result<(R, Option<f64>)> {
        match self.gpu() {
            Some(gpu) => gpu.time(work),
            None => Ok((work(), None)),
        }
    }

    /// Bytes in use now, and at the peak since [`Device::reset_peak`].
    pub fn memory(&self) -> MemoryUse {
        self.pool.memory()
    }

    /// Bytes by class at the peak.
    pub fn peak_by_class(&self) -> ByClass {
        self.pool.peak_by_class()
    }

    /// Resets the peak to the bytes in use now.
    pub fn reset_peak(&self) {
        self.pool.reset_peak();
    }

    /// Records a call of `op` with this cost; the launches that follow count to it.
    pub fn record(&self, op: &'static str, work: Work) {
        self.lock().add(op, work);
    }

    /// Returns the ledger so far, and starts an empty one.
    pub fn take_ledger(&self) -> Ledger {
        std::mem::take(&mut *self.lock())
    }

    fn gpu(&self) -> Option<&Arc<Gpu>> {
        match &self.backend {
            Backend::Cpu(_) | Backend::DryCpu => None,
            Backend::Gpu(gpu) => Some(gpu),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
