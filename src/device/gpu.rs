//! What stands behind a GPU device: a driver (CUDA, the emulator, or none in a plan) and the memory that its tensors live in.
//!
//! Memory comes in two ways. By default every tensor has an allocation of its own, which the emulator and compute-sanitizer can
//! guard. After [`Gpu::reserve`] tensors lie in one block whose size a dry run has found: no allocation inside a step, and the
//! same addresses in every run. Memory that is given back is used again at once, although work on it may still be under way:
//! launches and copies go through one stream, so whatever uses it next also comes next.

#![cfg_attr(
    not(any(feature = "cuda", feature = "emulated")),
    allow(unused_variables, unreachable_patterns, reason = "such a build only plans")
)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::arch::{Chip, Limits};
use super::arena::{Arena, ArenaUse};
#[cfg(feature = "cuda")]
use super::cuda::Cuda;
#[cfg(feature = "emulated")]
use super::emulated::Emulator;
use super::kernels::DevicePtr;
use super::launch::Launch;
use super::recording::Call;
use crate::error::{Error, Result};

/// Where addresses of a dry device begin: none of them is null.
const DRY_BASE: u64 = 1 << 40;

/// What runs launches and copies.
#[derive(Debug)]
pub(super) enum Driver {
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<Cuda>),
    /// The kernels on the processor, with checks.
    #[cfg(feature = "emulated")]
    Emulated(Emulator),
    /// Nothing: memory has addresses and no content, launches are counted.
    Dry,
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Gpu {
    pub(super) driver: Driver,
    chip: Chip,
    limits: Limits,
    /// What messages call it: `cuda:0 (NVIDIA GeForce RTX 3080)`.
    pub(super) label: String,
    region: Mutex<Option<Region>>,
    /// What was called since a recording began; none outside of one.
    pub(super) recording: Mutex<Option<Vec<Call>>>,
}

/// One block of memory for many tensors.
#[derive(Debug)]
pub(super) struct Region {
    base: DevicePtr,
    pub(super) arena: Arena,
}

/// Memory of one tensor, which goes back when this is dropped.
#[derive(Debug)]
pub(super) struct Block {
    gpu: Arc<Gpu>,
    ptr: DevicePtr,
    /// Where it lies in the region; `None` if it is an allocation of its own.
    offset: Option<u64>,
}

/// Memory of a GPU, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// Not in use by anybody.
    pub free_bytes: u64,
    /// In all.
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

    /// A plan, with as much memory as it takes.
    pub(super) fn dry(chip: Chip) -> Self {
        let region = Region { base: DevicePtr(DRY_BASE), arena: Arena::without_end() };
        let (limits, label) = (chip.arch.limits(), format!("plan of {}", chip.arch));
        Self {
            driver: Driver::Dry,
            chip,
            limits,
            label,
            region: Mutex::new(Some(region)),
            recording: Mutex::default(),
        }
    }

    /// What plans of kernels go by.
    pub(super) fn chip(&self) -> Chip {
        self.chip
    }

    /// What a block may have of a multiprocessor.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What messages call it.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// True of a card, which works on while the host does something else.
    pub(super) fn is_card(&self) -> bool {
        match self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(_) => true,
            #[cfg(feature = "emulated")]
            Driver::Emulated(_) => false,
            Driver::Dry => false,
        }
    }

    /// True of a plan: memory has addresses and no content, launches are counted.
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

    /// Takes `bytes` for all tensors from here on; 0 gives back what was taken.
    ///
    /// # Errors
    /// If memory runs out, or tensors lie in what was reserved before.
    pub(super) fn reserve(&self, bytes: u64) -> Result<()> {
        let mut region = self.region();
        if let Some(old) = region.as_ref().filter(|old| !old.arena.is_empty()) {
            return Err(Error::Device {
                what: format!(
                    "{}: cannot reserve memory while tensors take {} of what is reserved already",
                    self.label,
                    size(old.arena.usage().used_bytes)
                ),
                fix: "this is a mistake in tanren: please report the message and the command".into(),
            });
        }
        if let Some(old) = region.take()
            && !self.is_dry()
        {
            self.free(old.base)?;
        }
        let base = match self.driver {
            Driver::Dry => DevicePtr(DRY_BASE),
            _ if bytes == 0 => return Ok(()),
            _ => self.allocate(bytes)?,
        };
        *region = Some(Region { base, arena: Arena::new(bytes) });
        Ok(())
    }

    /// How full the reserved memory is; `None` if every tensor has memory of its own.
    pub(super) fn arena(&self) -> Option<ArenaUse> {
        self.region().as_ref().map(|region| region.arena.usage())
    }

    /// Memory for `bytes` bytes of a tensor. In builds with debug assertions all its bits are set, which makes NaN of every real
    /// number; an emulator's own allocation comes that way, and counts as never written until somebody writes it.
    ///
    /// # Errors
    /// [`Error::Device`] with what is needed, what is free, and what to lower.
    pub(super) fn block(self: &Arc<Self>, bytes: u64) -> Result<Block> {
        let mut region = self.region();
        let (ptr, offset) = match region.as_mut() {
            Some(Region { base, arena }) => {
                let offset = arena.take(bytes).map_err(|full| Error::Device {
                    what: format!(
                        "{}: out of reserved memory: {} needed in one piece, the largest free piece is {}, {} of {} are free",
                        self.label,
                        size(full.needed),
                        size(full.largest),
                        size(full.free),
                        size(full.capacity)
                    ),
                    fix: LOWER.into(),
                })?;
                (DevicePtr(base.0 + offset), Some(offset))
            }
            None => (self.allocate(bytes.max(1))?, None),
        };
        drop(region);
        let block = Block { gpu: self.clone(), ptr, offset };
        match &self.driver {
            // What the last tensor left must not pass for content. A new allocation is in this state already.
            #[cfg(feature = "emulated")]
            Driver::Emulated(_)
                if bytes > 0 && offset.is_some() && self.noted(|| Call::Poison(ptr, bytes)) => {}
            #[cfg(feature = "emulated")]
            Driver::Emulated(emulator) if bytes > 0 && offset.is_some() => {
                emulator.poison(ptr, to_usize(bytes))?;
            }
            #[cfg(feature = "emulated")]
            Driver::Emulated(_) => {}
            _ if cfg!(debug_assertions) => self.fill(ptr, 0xff, bytes)?,
            _ => {}
        }
        Ok(block)
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

    /// Copies to the device. `data` may be used for something else afterwards.
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

    /// Copies from the device, after everything that was started before. A dry device gives what `data` holds already.
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

    /// Starts a kernel. The caller has checked grid, shared memory and params.
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

    /// Waits until everything that was started is done.
    pub(super) fn synchronize(&self) -> Result<()> {
        match &self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.synchronize(),
            #[cfg(feature = "emulated")]
            Driver::Emulated(_) => Ok(()),
            Driver::Dry => Ok(()),
        }
    }

    /// Runs `work` and gives the seconds between its first and its last launch or copy, by the clock of the GPU.
    pub(super) fn time<R>(&self, work: impl FnOnce() -> R) -> Result<(R, Option<f64>)> {
        match &self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.time(work).map(|(result, secs)| (result, Some(secs))),
            _ => Ok((work(), None)),
        }
    }

    /// Memory of the card; `None` where there is none.
    pub(super) fn memory(&self) -> Result<Option<GpuMemory>> {
        match &self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.memory().map(Some),
            _ => Ok(None),
        }
    }

    /// An allocation of its own.
    fn allocate(&self, bytes: u64) -> Result<DevicePtr> {
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

    fn free(&self, ptr: DevicePtr) -> Result<()> {
        match &self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => cuda.free(ptr),
            #[cfg(feature = "emulated")]
            Driver::Emulated(emulator) => emulator.free(ptr),
            Driver::Dry => Ok(()),
        }
    }

    pub(super) fn region(&self) -> MutexGuard<'_, Option<Region>> {
        self.region.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What needs less memory.
pub(super) const LOWER: &str =
    "lower --max-tokens-per-pass, --max-seq-length or --lora-r, or choose a smaller model";

/// Bytes for messages: exact where they are few, else in MiB, rounded up.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{bytes} bytes"),
        _ => format!("{} MiB", bytes.div_ceil(1 << 20)),
    }
}

/// A size for the emulator, which fails on sizes that are no memory.
#[cfg(feature = "emulated")]
pub(super) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl Block {
    /// Its address.
    pub(super) fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// The GPU that it is on.
    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        match (self.offset, self.gpu.region().as_mut()) {
            (Some(offset), Some(region)) => region.arena.give(offset),
            // An error stays with the driver and comes out of the next call.
            _ => {
                let _ = self.gpu.free(self.ptr);
            }
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let region = self.region.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(region) = region {
            let _ = self.free(region.base);
        }
    }
}
