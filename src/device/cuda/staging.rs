//! Two pinned buffers through which everything goes to the GPU and back.
//!
//! The GPU copies from pinned memory by itself. While it moves one buffer, the processor fills or empties the other one, straight
//! from or to the caller's memory. Small copies to the GPU lie one behind the other in a buffer, so
//! that none waits for the one before: that may be queued behind the work of a whole step. The buffers are made at the first
//! copy and kept.

use std::ffi::c_void;

use super::context::Cuda;
use super::{Address, Fault, Handle};

/// Bytes of a buffer: large enough that starting a copy costs nothing beside it, small enough to stay in a processor's cache.
const BUFFER_BYTES: usize = 8 << 20;

/// Copies start at multiples of this many bytes of a buffer: a line of the processor's cache.
const COPY_ALIGNMENT: usize = 64;

/// `CU_EVENT_DISABLE_TIMING`: cheaper, and all that waiting needs.
const DISABLE_TIMING: u32 = 2;

/// See the module text.
#[derive(Debug)]
pub(super) struct Staging {
    buffers: [Buffer; 2],
    /// The buffer whose turn it is.
    current: usize,
}

/// Pinned memory of the host.
#[derive(Debug)]
pub(in crate::device) struct Buffer {
    /// Address of `capacity` pinned bytes on the host, as a number so that threads may hand it on.
    host: usize,
    capacity: usize,
    /// Bytes from its start that copies may still read.
    used: usize,
    /// Happens when the last copy from or to it is done.
    done: Handle,
    /// Whether a copy may still be under way.
    busy: bool,
}

impl Staging {
    /// Makes the buffers.
    pub(super) fn new(cuda: &Cuda) -> Result<Self, Fault> {
        let first = Buffer::new(cuda, BUFFER_BYTES)?;
        match Buffer::new(cuda, BUFFER_BYTES) {
            Ok(second) => Ok(Self { buffers: [first, second], current: 0 }),
            Err(fault) => {
                // What matters is why the second one is missing.
                let _ = first.free(cuda);
                Err(fault)
            }
        }
    }

    /// Copies `data` to `to`. Everything is on its way when this returns, and `data` is no longer needed.
    pub(super) fn write(&mut self, cuda: &Cuda, to: Address, data: &[u8]) -> Result<(), Fault> {
        let (mut to, mut data) = (to, data);
        while !data.is_empty() {
            if self.buffers[self.current].free_bytes() == 0 {
                self.turn();
                self.buffers[self.current].wait(cuda)?;
            }
            let buffer = &mut self.buffers[self.current];
            let (chunk, rest) = data.split_at(data.len().min(buffer.free_bytes()));
            let start = buffer.capacity - buffer.free_bytes();
            buffer.bytes(start, chunk.len()).copy_from_slice(chunk);
            let host = (buffer.host + start) as *const c_void;
            cuda.call("cuMemcpyHtoDAsync_v2", |driver| {
                // SAFETY: the buffer holds `chunk.len()` bytes from `start` on, and they are not touched before `done`; that `to` is
                // an allocation of at least as many bytes is what the callers of `Cuda::write` see to, and the driver checks it.
                unsafe { (driver.cuMemcpyHtoDAsync_v2)(to, host, chunk.len(), cuda.stream()) }
            })?;
            buffer.started(cuda, start + chunk.len())?;
            to += chunk.len() as u64;
            data = rest;
        }
        Ok(())
    }

    /// Copies from `from` to `data`, and returns when it is there.
    pub(super) fn read(&mut self, cuda: &Cuda, from: Address, data: &mut [u8]) -> Result<(), Fault> {
        let mut from = from;
        // The chunk that is on its way, and in which buffer.
        let mut coming: Option<(usize, &mut [u8])> = None;
        for chunk in data.chunks_mut(BUFFER_BYTES) {
            let index = self.turn();
            let buffer = &mut self.buffers[index];
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

    /// The other buffer's turn; which one that is.
    fn turn(&mut self) -> usize {
        self.current = 1 - self.current;
        self.current
    }
}

/// Gives pinned memory back, which no copy touches and no slice shows any more.
fn free_pinned(cuda: &Cuda, host: *mut c_void) -> Result<(), Fault> {
    cuda.call_waiting("cuMemFreeHost", |driver| {
        // SAFETY: the callers, both in this file, pass what `cuMemHostAlloc` gave them, once, after the last copy.
        unsafe { (driver.cuMemFreeHost)(host) }
    })
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
        match cuda.event(DISABLE_TIMING) {
            Ok(done) => Ok(Self { host: host as usize, capacity, used: 0, done, busy: false }),
            Err(fault) => {
                // What matters is why there is no event.
                let _ = free_pinned(cuda, host);
                Err(fault)
            }
        }
    }

    /// Bytes behind those that copies may still read.
    fn free_bytes(&self) -> usize {
        self.capacity - self.used.next_multiple_of(COPY_ALIGNMENT).min(self.capacity)
    }

    /// `len` of its bytes from `start` on, none of which a copy may still read or write.
    fn bytes(&mut self, start: usize, len: usize) -> &mut [u8] {
        assert!(self.used <= start && start <= self.capacity && len <= self.capacity - start);
        // SAFETY: `host` is the start of `capacity` bytes that belong to this value until `free`, and `start + len` is not
        // larger; `new` has initialised them. `&mut self` makes the slice the only one, and copies of the GPU that are under way
        // touch bytes below `used` only, which `start` is not.
        unsafe { std::slice::from_raw_parts_mut((self.host + start) as *mut u8, len) }
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
        self.started(cuda, len)
    }

    /// Gives everything back, after the last copy.
    pub(super) fn free(mut self, cuda: &Cuda) -> Result<(), Fault> {
        self.wait(cuda)?;
        // SAFETY: the event was made by `Buffer::new` and is not used again.
        cuda.call("cuEventDestroy_v2", |driver| unsafe { (driver.cuEventDestroy_v2)(self.done) })?;
        free_pinned(cuda, self.host as *mut c_void)
    }

    /// Notes that a copy was started which touches bytes up to `end`. Copies end in their order, so `done` speaks for all.
    fn started(&mut self, cuda: &Cuda, end: usize) -> Result<(), Fault> {
        self.used = end;
        self.busy = true;
        cuda.record(self.done)
    }

    pub(super) fn wait(&mut self, cuda: &Cuda) -> Result<(), Fault> {
        if self.busy {
            // SAFETY: the event was made by `Buffer::new` and recorded by `started`.
            cuda.call_waiting("cuEventSynchronize", |driver| unsafe {
                (driver.cuEventSynchronize)(self.done)
            })?;
            self.busy = false;
        }
        self.used = 0;
        Ok(())
    }

    /// Waits, and copies what arrived to `data`.
    pub(super) fn take(&mut self, cuda: &Cuda, data: &mut [u8]) -> Result<(), Fault> {
        self.wait(cuda)?;
        data.copy_from_slice(self.bytes(0, data.len()));
        Ok(())
    }
}
