//! Two pinned staging buffers for all copies to and from the GPU.
//!
//! The GPU copies pinned memory by DMA. While it transfers one buffer, the processor fills or empties the
//! other one, directly from or to the caller's memory. Small copies to the GPU are placed one behind the
//! other in a buffer, so that none waits for the previous one, which may be queued behind the work of a whole
//! step. The buffers are allocated at the first copy and kept.

use std::ffi::c_void;

use super::context::Cuda;
use super::{Address, Fault, Handle};

/// Bytes of a buffer: large enough that the overhead of starting a copy is negligible, small enough to stay
/// in the processor's cache.
const BUFFER_BYTES: usize = 8 << 20;

/// Alignment of copies within a buffer, in bytes: a cache line of the processor.
const COPY_ALIGNMENT: usize = 64;

/// `CU_EVENT_DISABLE_TIMING`: cheaper, and sufficient for waiting.
const DISABLE_TIMING: u32 = 2;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Staging {
    buffers: [Buffer; 2],
    /// Index of the next buffer to use.
    current: usize,
}

/// Pinned memory of the host.
#[derive(Debug)]
pub(in crate::device) struct Buffer {
    /// Address of `capacity` pinned bytes on the host, as an integer so that the type is `Send`.
    host: usize,
    capacity: usize,
    /// Length of the prefix that copies in flight may still read.
    used: usize,
    /// Event behind the last copy from or to the buffer.
    done: Handle,
    /// True if a copy may still be in flight.
    busy: bool,
}

impl Staging {
    /// Allocates the buffers.
    pub(super) fn new(cuda: &Cuda) -> Result<Self, Fault> {
        let first = Buffer::new(cuda, BUFFER_BYTES)?;
        match Buffer::new(cuda, BUFFER_BYTES) {
            Ok(second) => Ok(Self { buffers: [first, second], current: 0 }),
            Err(fault) => {
                // The error to report is that of the second buffer.
                let _ = first.free(cuda);
                Err(fault)
            }
        }
    }

    /// Copies `data` to `to`. When this returns all copies are queued, and `data` is no longer needed.
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

    /// Copies from `from` to `data`, and waits for the copy.
    pub(super) fn read(&mut self, cuda: &Cuda, from: Address, data: &mut [u8]) -> Result<(), Fault> {
        let mut from = from;
        // The chunk in flight, and its buffer.
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

    /// Frees the buffers.
    pub(super) fn free(self, cuda: &Cuda) -> Result<(), Fault> {
        self.buffers.into_iter().try_for_each(|buffer| buffer.free(cuda))
    }

    /// Switches to the other buffer and returns its index.
    fn turn(&mut self) -> usize {
        self.current = 1 - self.current;
        self.current
    }
}

/// Frees pinned memory that no copy and no slice uses any more.
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
        // SAFETY: the driver has just allocated these bytes, and there is no other reference to them.
        unsafe { host.cast::<u8>().write_bytes(0, capacity) };
        match cuda.event(DISABLE_TIMING) {
            Ok(done) => Ok(Self { host: host as usize, capacity, used: 0, done, busy: false }),
            Err(fault) => {
                // The error to report is that of the event.
                let _ = free_pinned(cuda, host);
                Err(fault)
            }
        }
    }

    /// Free bytes behind those that copies may still read.
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

    /// Capacity in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Starts a copy of `len` bytes from the GPU. The caller has waited for earlier copies and checked the
    /// capacity.
    pub(super) fn fetch(&mut self, cuda: &Cuda, from: Address, len: usize) -> Result<(), Fault> {
        let (host, len) = (self.host as *mut c_void, len.min(self.capacity));
        cuda.call("cuMemcpyDtoHAsync_v2", |driver| {
            // SAFETY: the buffer has room for `len` bytes and is not touched before `done`; that `from` is an allocation of at
            // least as many bytes is what the callers see to, and the driver checks it.
            unsafe { (driver.cuMemcpyDtoHAsync_v2)(host, from, len, cuda.stream()) }
        })?;
        self.started(cuda, len)
    }

    /// Frees buffer and event, after the last copy.
    pub(super) fn free(mut self, cuda: &Cuda) -> Result<(), Fault> {
        self.wait(cuda)?;
        // SAFETY: the event was made by `Buffer::new` and is not used again.
        cuda.call("cuEventDestroy_v2", |driver| unsafe { (driver.cuEventDestroy_v2)(self.done) })?;
        free_pinned(cuda, self.host as *mut c_void)
    }

    /// Records that a copy was started which uses bytes up to `end`. Copies complete in order, so `done`
    /// covers all of them.
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

    /// Waits for the copy, and moves its bytes to `data`.
    pub(super) fn take(&mut self, cuda: &Cuda, data: &mut [u8]) -> Result<(), Fault> {
        self.wait(cuda)?;
        data.copy_from_slice(self.bytes(0, data.len()));
        Ok(())
    }
}
