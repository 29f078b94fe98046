//! Memory for the tensors of a GPU.
//!
//! Memory is allocated in two ways. By default every tensor has an allocation of its own, which the emulator
//! and compute-sanitizer can guard. After [`Gpu::reserve`] all tensors are in one block whose size a dry run
//! has found: no allocation within a step, and the same addresses in every run. Freed memory is reused at
//! once, although work on it may still be queued. That is safe, because launches and copies go through one
//! stream: the next use is queued after it.

#![cfg_attr(
    not(any(feature = "cuda", feature = "emulated")),
    allow(unreachable_patterns, reason = "such a build only plans")
)]

use std::sync::{Arc, MutexGuard, PoisonError};

use super::arena::{Arena, ArenaUse};
#[cfg(feature = "emulated")]
use super::gpu::to_usize;
use super::gpu::{Driver, Gpu};
use super::kernels::DevicePtr;
#[cfg(feature = "emulated")]
use super::recording::Call;
use crate::error::{Error, Result};

/// First address of a dry device: not null.
const DRY_BASE: u64 = 1 << 40;

/// One block of memory for many tensors.
#[derive(Debug)]
pub(super) struct Region {
    base: DevicePtr,
    pub(super) arena: Arena,
}

/// Memory of one tensor, freed on drop.
#[derive(Debug)]
pub(super) struct Block {
    gpu: Arc<Gpu>,
    ptr: DevicePtr,
    /// Offset in the region; `None` if it is a separate allocation.
    offset: Option<u64>,
}

impl Region {
    /// Addresses without memory, in unlimited number.
    pub(super) fn dry() -> Self {
        Self { base: DevicePtr(DRY_BASE), arena: Arena::without_end() }
    }
}

impl Gpu {
    /// Reserves `bytes` for all tensors from here on; 0 frees the reserved block.
    ///
    /// # Errors
    /// If memory runs out, or there are tensors in the block reserved before.
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

    /// Usage of the reserved block; `None` if every tensor is a separate allocation.
    pub(super) fn arena(&self) -> Option<ArenaUse> {
        self.region().as_ref().map(|region| region.arena.usage())
    }

    /// Memory for `bytes` bytes of a tensor. In builds with debug assertions all its bits are set, so every
    /// real number is NaN; a separate allocation of the emulator has this content anyway, and counts as
    /// unwritten until the first write.
    ///
    /// # Errors
    /// [`Error::Device`] with the needed bytes, the free bytes, and the options to lower.
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
            // The content of an earlier tensor must not be mistaken for valid. A new allocation is in this
            // state already.
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

    pub(super) fn region(&self) -> MutexGuard<'_, Option<Region>> {
        self.region.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How to use less memory.
pub(super) const LOWER: &str =
    "lower --max-tokens-per-pass, --max-seq-length or --lora-r, or choose a smaller model";

/// Bytes for messages: exact where they are few, else in MiB, rounded up.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{bytes} bytes"),
        _ => format!("{} MiB", bytes.div_ceil(1 << 20)),
    }
}

impl Block {
    /// Address of the memory.
    pub(super) fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// GPU of the memory.
    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        match (self.offset, self.gpu.region().as_mut()) {
            (Some(offset), Some(region)) => region.arena.give(offset),
            // The driver keeps the error and returns it from the next call.
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
