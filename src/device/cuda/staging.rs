//! Two pinned buffers through which everything goes to the GPU and back.
//!
//! The GPU copies from pinned memory by itself. While it moves one buffer, the processor fills or empties the other one, straight
//! from or to the caller's memory, which may be a mapped file. The buffers are made at the first copy and kept.

use std::ffi::c_void;

use super::context::Cuda;
use super::{Address, Fault, Handle};

/// Bytes of a buffer: large enough that starting a copy costs nothing beside it, small enough to stay in a processor's cache.
const BUFFER_BYTES: usize = 8 << 20;

/// `CU_EVENT_DISABLE_TIMING`: cheaper, and all that waiting needs.
const DISABLE_TIMING: u32 = 2;

/// See the module text.
#[derive(Debug)]
pub(super) struct Staging {
    buffers: [Buffer; 2],
    /// The buffer whose turn it is.
    next: usize,
}

/// Pinned memory of the host.
#[derive(Debug)]
pub(in crate::device) struct Buffer {
    /// Address of `capacity` pinned bytes on the host, as a number so that threads may hand it on.
    host: usize,
    capacity: usize,
    /// Happens when the last copy from or to it is done.
    done: Handle,
    /// Whether a copy may still be under way.
    busy: bool,
}

impl Staging {
    /// Makes the buffers.
    pub(super) fn new(cuda: &Cuda) -> Result<Self, Fault> {
        let buffers = [Buffer::new(cuda, BUFFER_BYTES)?, Buffer::new(cuda, BUFFER_BYTES)?];
        Ok(Self { buffers, next: 0 })
    }

    /// Copies `data` to `to`. Everything is on its way when this returns, and `data` is no longer needed.
    pub(super) fn write(&mut self, cuda: &Cuda, to: Address, data: &[u8]) -> Result<(), Fault> {
        let mut to = to;
        for chunk in data.chunks(BUFFER_BYTES) {
            let buffer = self.next();
            buffer.wait(cuda)?;
            buffer.bytes(chunk.len()).copy_from_slice(chunk);
            let host = buffer.host as *const c_void;
            cuda.call("cuMemcpyHtoDAsync_v2", |driver| {
                // SAFETY: the buffer holds `chunk.len()` bytes and is not touched before `done`; that `to` is an allocation of
                // at least as many bytes is what the callers of `Cuda::write` see to, and the driver checks it.
                unsafe { (driver.cuMemcpyHtoDAsync_v2)(to, host, chunk.len(), cuda.stream()) }
            })?;
            buffer.started(cuda)?;
            to += chunk.len() as u64;
        }
        Ok(())
    }

    /// Copies from `from` to `data`, and returns when it is there.
    pub(super) fn read(&mut self, cuda: &Cuda, from: Address, data: &mut [u8]) -> Result<(), Fault> {
        let mut from = from;
        // The chunk that is on its way, and in which buffer.
        let mut coming: Option<(usize, &mut [u8])> = None;
        for chunk in data.chunks_mut(BUFFER_BYTES) {
            let index = self.next;
            let buffer = self.next();
            buffer.wait(cuda)?;
            buffer.fetch(cuda, from, chunk.len())?;
            from += chunk.len() as u64;
            if let Some((index, earlier)) = coming.replace((index, chunk)) {
                self.buffers[index].take(cuda, earlier)?;
            }
        }
        match coming {
            Some((index, chunk)) => self.buffers[index].take(cuda, chunk),
            None => Ok(()),
        }
    }

    /// Gives everything back.
    pub(super) fn free(self, cuda: &Cuda) -> Result<(), Fault> {
        self.buffers.into_iter().try_for_each(|buffer| buffer.free(cuda))
    }

    fn next(&mut self) -> &mut Buffer {
        let index = self.next;
        self.next = 1 - index;
        &mut self.buffers[index]
    }
}

impl Buffer {
    /// A buffer of `capacity` bytes. The context is current.
    pub(super) fn new(cuda: &Cuda, capacity: usize) -> Result<Self, Fault> {
        let mut host = std::ptr::null_mut();
        cuda.call("cuMemHostAlloc", |driver| {
            // SAFETY: writes the pointer that the pointer points to.
            unsafe { (driver.cuMemHostAlloc)(&mut host, capacity, 0) }
        })?;
        // SAFETY: the driver has just given these bytes, and nobody else knows of them.
        unsafe { host.cast::<u8>().write_bytes(0, capacity) };
        let done = cuda.event(DISABLE_TIMING)?;
        Ok(Self { host: host as usize, capacity, done, busy: false })
    }

    /// Its first `len` bytes; the caller has waited.
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        debug_assert!(!self.busy);
        let len = len.min(self.capacity);
        // SAFETY: `host` is the start of `capacity` bytes that belong to this value until `free`, and `len` is not larger; `new` has initialised them. `&mut self` makes the slice the only one, and no copy of the GPU is
        // under way, because the caller has waited.
        unsafe { std::slice::from_raw_parts_mut(self.host as *mut u8, len) }
    }

    /// Bytes that there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Starts a copy of `len` bytes from the GPU; the caller has waited, and there is room.
    pub(super) fn fetch(&mut self, cuda: &Cuda, from: Address, len: usize) -> Result<(), Fault> {
        let (host, len) = (self.host as *mut c_void, len.min(self.capacity));
        cuda.call("cuMemcpyDtoHAsync_v2", |driver| {
            // SAFETY: the buffer has room for `len` bytes and is not touched before `done`; that `from` is an allocation of at
            // least as many bytes is what the callers see to, and the driver checks it.
            unsafe { (driver.cuMemcpyDtoHAsync_v2)(host, from, len, cuda.stream()) }
        })?;
        self.started(cuda)
    }

    /// Gives everything back, after the last copy.
    pub(super) fn free(mut self, cuda: &Cuda) -> Result<(), Fault> {
        self.wait(cuda)?;
        // SAFETY: the event was made by `Buffer::new` and is not used again.
        cuda.call("cuEventDestroy_v2", |driver| unsafe { (driver.cuEventDestroy_v2)(self.done) })?;
        cuda.call("cuMemFreeHost", |driver| {
            // SAFETY: the memory was given by `cuMemHostAlloc`; the last copy was waited for, and no slice of it is alive.
            unsafe { (driver.cuMemFreeHost)(self.host as *mut c_void) }
        })
    }

    /// Notes that a copy was started.
    fn started(&mut self, cuda: &Cuda) -> Result<(), Fault> {
        self.busy = true;
        cuda.record(self.done)
    }

    pub(super) fn wait(&mut self, cuda: &Cuda) -> Result<(), Fault> {
        if self.busy {
            // SAFETY: the event was made by `Buffer::new` and recorded by `started`.
            cuda.call("cuEventSynchronize", |driver| unsafe { (driver.cuEventSynchronize)(self.done) })?;
            self.busy = false;
        }
        Ok(())
    }

    /// Waits, and copies what arrived to `data`.
    pub(super) fn take(&mut self, cuda: &Cuda, data: &mut [u8]) -> Result<(), Fault> {
        self.wait(cuda)?;
        data.copy_from_slice(self.bytes(data.len()));
        Ok(())
    }
}
