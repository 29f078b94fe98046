//! The backend of a GPU device: a driver (CUDA, the emulator, or none in a plan). Memory of tensors is in
//! `region.rs`, recording of launches in `recording.rs`.

#![cfg_attr(
    not(any(feature = "cuda", feature = "emulated")),
    allow(unused_variables, unreachable_patterns, reason = "such a build only plans")
)]

use std::sync::Mutex;

use super::arch::{Chip, Limits};
#[cfg(feature = "cuda")]
use super::cuda::Cuda;
#[cfg(feature = "emulated")]
use super::emulated::Emulator;
use super::kernels::DevicePtr;
use super::launch::Launch;
use super::recording::Call;
use super::region::Region;
#[cfg(feature = "emulated")]
use super::region::{LOWER, size};
use crate::error::{Error, Result};

/// The driver that runs launches and copies.
#[derive(Debug)]
pub(super) enum Driver {
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<Cuda>),
    /// The emulator: kernels on the processor, with checks.
    #[cfg(feature = "emulated")]
    Emulated(Emulator),
    /// A dry run: memory has addresses and no content, launches are counted.
    Dry,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Gpu {
    pub(super) driver: Driver,
    chip: Chip,
    limits: Limits,
    /// The name of the device in messages: `cuda:0 (NVIDIA GeForce RTX 3080)`.
    pub(super) label: String,
    pub(super) region: Mutex<Option<Region>>,
    /// The calls since the recording began; `None` if there is no recording.
    pub(super) recording: Mutex<Option<Vec<Call>>>,
}

/// Memory of a GPU, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// Free bytes.
    pub free_bytes: u64,
    /// Total bytes.
    pub total_bytes: u64,
}

impl Gpu {
    /// A GPU with its driver.
    #[cfg(feature = "cuda")]
    pub(super) fn cuda(cuda: Cuda) -> Self {
        let (chip, limits, label) = (cuda.chip(), cuda.limits(), cuda.label().to_owned());
        Self {
            driver: Driver::Cuda(Box::new(cuda)),
            chip,
            limits,
            label,
            region: Mutex::default(),
            recording: Mutex::default(),
        }
    }

    /// The emulator, as a GPU of this architecture.
    #[cfg(feature = "emulated")]
    pub(super) fn emulated(emulator: Emulator, chip: Chip) -> Self {
        let (limits, label) = (chip.arch.limits(), format!("emulated {}", chip.arch));
        Self {
            driver: Driver::Emulated(emulator),
            chip,
            limits,
            label,
            region: Mutex::default(),
            recording: Mutex::default(),
        }
    }

    /// A dry GPU for plans, with unlimited memory.
    pub(super) fn dry(chip: Chip) -> Self {
        let (limits, label) = (chip.arch.limits(), format!("plan of {}", chip.arch));
        Self {
            driver: Driver::Dry,
            chip,
            limits,
            label,
            region: Mutex::new(Some(Region::dry())),
            recording: Mutex::default(),
        }
    }

    /// The chip that kernel plans depend on.
    pub(super) fn chip(&self) -> Chip {
        self.chip
    }

    /// Limits of a block.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The name of the device in messages.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// True of a card, which works asynchronously to the host.
    pub(super) fn is_card(&self) -> bool {
        match self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(_) => true,
            #[cfg(feature = "emulated")]
            Driver::Emulated(_) => false,
            Driver::Dry => false,
        }
    }

    /// True of a dry run: memory has addresses and no content, launches are counted.
    pub(super) fn is_dry(&self) -> bool {
        matches!(self.driver, Driver::Dry)
    }

    /// The emulator, if it is one.
    #[cfg(feature = "emulated")]
    pub(super) fn emulator(&self) -> Option<&Emulator> {
        match &self.driver {
            Driver::Emulated(emulator) => Some(emulator),
            _ => None,
        }
    }

    /// Overwrites memory with a byte.
    pub(super) fn fill(&self, ptr: DevicePtr, byte: u8, bytes: u64) -> Result<()> {
        match &self.driver {
            _ if bytes == 0 => Ok(()),
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.fill(ptr, byte, bytes),
            #[cfg(feature = "emulated")]
            Driver::Emulated(_) if self.noted(|| Call::Fill(ptr, byte, bytes)) => Ok(()),
            #[cfg(feature = "emulated")]
            Driver::Emulated(emulator) => emulator.set(ptr, byte, to_usize(bytes)),
            Driver::Dry => Ok(()),
        }
    }

    /// Copies to the device. `data` can be reused when this returns.
    pub(super) fn write(&self, ptr: DevicePtr, data: &[u8]) -> Result<()> {
        self.refuse_in_recording("a copy to the device")?;
        match &self.driver {
            _ if data.is_empty() => Ok(()),
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.write(ptr, data),
            #[cfg(feature = "emulated")]
            Driver::Emulated(emulator) => emulator.write(ptr, data),
            Driver::Dry => Ok(()),
        }
    }

    /// Copies from the device, after all work queued so far. A dry device leaves `data` unchanged.
    pub(super) fn read(&self, ptr: DevicePtr, data: &mut [u8]) -> Result<()> {
        self.refuse_in_recording("a copy to the host")?;
        match &self.driver {
            _ if data.is_empty() => Ok(()),
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.read(ptr, data),
            #[cfg(feature = "emulated")]
            Driver::Emulated(emulator) => emulator.read(ptr, data),
            Driver::Dry => Ok(()),
        }
    }

    /// Launches a kernel. The caller has checked grid, shared memory and params.
    pub(super) fn launch(&self, launch: &Launch, params: &[u8]) -> Result<()> {
        match &self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.launch(launch, params),
            #[cfg(feature = "emulated")]
            Driver::Emulated(_) if self.noted(|| Call::Launch(*launch, params.to_vec())) => Ok(()),
            #[cfg(feature = "emulated")]
            Driver::Emulated(emulator) => {
                let Launch { kernel, grid, dynamic_smem } = *launch;
                emulator.launch(kernel.symbol(), grid, kernel.threads(), dynamic_smem, params)
            }
            Driver::Dry => Ok(()),
        }
    }

    /// Waits until all queued work is done.
    pub(super) fn synchronize(&self) -> Result<()> {
        match &self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.synchronize(),
            #[cfg(feature = "emulated")]
            Driver::Emulated(_) => Ok(()),
            Driver::Dry => Ok(()),
        }
    }

    /// Runs `work` and returns the seconds between its first and its last launch or copy, by the clock of the
    /// GPU.
    pub(super) fn time<R>(&self, work: impl FnOnce() -> R) -> Result<(R, Option<f64>)> {
        match &self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.time(work).map(|(result, secs)| (result, Some(secs))),
            _ => Ok((work(), None)),
        }
    }

    /// Memory of the card; `None` if the device is not a card.
    pub(super) fn memory(&self) -> Result<Option<GpuMemory>> {
        match &self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.memory().map(Some),
            _ => Ok(None),
        }
    }

    /// A separate allocation.
    pub(super) fn allocate(&self, bytes: u64) -> Result<DevicePtr> {
        match &self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.allocate(bytes),
            #[cfg(feature = "emulated")]
            Driver::Emulated(emulator) => emulator.alloc(to_usize(bytes)).map_err(|error| Error::Device {
                what: format!("{}: out of memory: {} needed: {error}", self.label, size(bytes)),
                fix: LOWER.into(),
            }),
            Driver::Dry => Err(Error::Device {
                what: format!("{}: {bytes} bytes outside of the plan", self.label),
                fix: "this is a mistake in tanren: please report the message and the command".into(),
            }),
        }
    }

    pub(super) fn free(&self, ptr: DevicePtr) -> Result<()> {
        match &self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.free(ptr),
            #[cfg(feature = "emulated")]
            Driver::Emulated(emulator) => emulator.free(ptr),
            Driver::Dry => Ok(()),
        }
    }
}

/// The size for the emulator, which refuses impossible sizes.
#[cfg(feature = "emulated")]
pub(super) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
