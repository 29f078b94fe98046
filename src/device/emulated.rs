//! The emulator as a device driver: runs the GPU kernels on the CPU, one fiber per thread, and can check every access.
//!
//! The work is done in C++ (kernels/simt/), because the kernels are the same `.cu` files that nvcc compiles.
//! This file owns the memory it allocates, serialises launches, and turns code addresses into `file:line`. It
//! exists for tests.

#![allow(unsafe_code, reason = "calls into C++, which the type system cannot check")]

#[cfg(test)]
mod bug_tests;
mod counters;
#[cfg(test)]
mod kernel_tests;
mod places;
#[cfg(test)]
mod tests;

pub use counters::{Counters, Counts, KernelCounters};
pub use places::Place;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::kernels::DevicePtr;
use crate::error::{Error, Result};

/// Scheduling order of threads and blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Ascending; each thread runs until it has to wait.
    Fixed,
    /// Any order that CUDA permits, by a seed: random picks (seed % 4 = 0 or 2), one thread as far as possible (1), one lane of
    /// every warp as late as possible (3). The same seed gives the same order.
    Random(u64),
}

/// Options for running kernels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmulatorOptions {
    /// Check every access to memory: bounds, alignment, unwritten reads, races. 3 to 20 times slower, on one thread.
    pub check: bool,
    /// Count bank conflicts, memory sectors and matrix products by source line. On one thread.
    pub stats: bool,
    /// The order of execution.
    pub schedule: Schedule,
    /// OS threads for blocks where nothing is checked or counted; 0 means all.
    pub threads: usize,
    /// Seconds after which a launch is an error; 0 means never.
    pub watchdog_secs: f64,
    /// Truncate the sums of matrix products as tensor cores do, instead of rounding them: eight products and
    /// the running sum lose all bits below the 25 leading bits of the largest of them, and the result is
    /// truncated to f32.
    pub truncates_mma: bool,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        Self {
            check: false,
            stats: false,
            schedule: Schedule::Fixed,
            threads: 0,
            watchdog_secs: 60.0,
            truncates_mma: false,
        }
    }
}

/// The layout of `simt::Options`.
#[repr(C)]
struct RawOptions {
    check: u32,
    stats: u32,
    is_random: u32,
    threads: u32,
    truncates_mma: u32,
    reserved: u32,
    seed: u64,
    watchdog_secs: f64,
}

impl From<EmulatorOptions> for RawOptions {
    fn from(options: EmulatorOptions) -> Self {
        let (is_random, seed) = match options.schedule {
            Schedule::Fixed => (0, 0),
            Schedule::Random(seed) => (1, seed),
        };
        Self {
            check: options.check.into(),
            stats: options.stats.into(),
            is_random,
            threads: u32::try_from(options.threads).unwrap_or(u32::MAX),
            truncates_mma: options.truncates_mma.into(),
            reserved: 0,
            seed,
            watchdog_secs: options.watchdog_secs,
        }
    }
}

#[repr(C)]
struct Machine {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn simt_open() -> *mut Machine;
    fn simt_close(machine: *mut Machine);
    fn simt_error(text: *mut c_char, size: usize) -> usize;
    fn simt_alloc(machine: *mut Machine, bytes: usize, checks: c_int, address: *mut u64) -> c_int;
    fn simt_free(machine: *mut Machine, address: u64) -> c_int;
    fn simt_write(machine: *mut Machine, to: u64, from: *const c_void, bytes: usize) -> c_int;
    fn simt_read(machine: *mut Machine, from: u64, to: *mut c_void, bytes: usize) -> c_int;
    fn simt_set(machine: *mut Machine, to: u64, byte: c_int, bytes: usize) -> c_int;
    fn simt_poison(machine: *mut Machine, to: u64, bytes: usize) -> c_int;
    fn simt_counts(
        machine: *const Machine,
        index: usize,
        symbol: *mut *const c_char,
        pc: *mut usize,
        counts: *mut Counts,
    ) -> bool;
    fn simt_clear_counts(machine: *mut Machine);
    fn simt_launch(
        machine: *mut Machine,
        options: *const RawOptions,
        symbol: *const c_char,
        grid: *const u32,
        threads: u32,
        dynamic_smem: u32,
        params: *const c_void,
        params_size: usize,
    ) -> c_int;
}

/// An emulated device: memory, and kernels by name. One call at a time touches it; several emulators run side by side.
#[derive(Debug)]
pub(crate) struct Emulator {
    machine: NonNull<Machine>,
    options: Mutex<EmulatorOptions>,
    /// Held during every call that enters C++.
    busy: Mutex<()>,
}

// SAFETY: the machine belongs to this value alone, and C++ keeps nothing about the thread that made it.
unsafe impl Send for Emulator {}

// SAFETY: every call into C++ holds `busy`, so the machine is never used by two threads at once.
unsafe impl Sync for Emulator {}

impl Emulator {
    /// A device without memory in use.
    ///
    /// # Errors
    /// [`Error::Device`] if the system gives no memory.
    pub(crate) fn new(options: EmulatorOptions) -> Result<Self> {
        // SAFETY: takes nothing; the result is checked.
        let machine = unsafe { simt_open() };
        let machine = NonNull::new(machine).ok_or_else(|| failed("the emulator cannot start".into()))?;
        Ok(Self { machine, options: Mutex::new(options), busy: Mutex::new(()) })
    }

    /// Allocates a buffer of `bytes` bytes, 256-byte aligned, at addresses that no buffer has had before. Its
    /// content is 0xFF (NaN in every float format), and under `check` counts as never written.
    ///
    /// # Errors
    /// [`Error::Device`] if the system gives no memory.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        let _busy = self.enter();
        let mut address = 0;
        let checks = c_int::from(self.options().check);
        // SAFETY: the machine is open, and `address` is a valid place for the result.
        check(unsafe { simt_alloc(self.machine.as_ptr(), bytes, checks, &raw mut address) })?;
        Ok(DevicePtr(address))
    }

    /// Frees a buffer. Later uses of its addresses are errors.
    ///
    /// # Errors
    /// [`Error::Device`] if `ptr` is not the start of a live buffer of this emulator.
    pub(crate) fn free(&self, ptr: DevicePtr) -> Result<()> {
        let _busy = self.enter();
        // SAFETY: the machine is open; any address is checked by the callee.
        check(unsafe { simt_free(self.machine.as_ptr(), ptr.0) })
    }

    /// Copies host memory to the device.
    ///
    /// # Errors
    /// [`Error::Device`] if the destination is not inside one live buffer.
    pub(crate) fn write(&self, dst: DevicePtr, bytes: &[u8]) -> Result<()> {
        let _busy = self.enter();
        let from = bytes.as_ptr().cast();
        // SAFETY: the machine is open, `from` holds `len` bytes, and the callee checks the destination.
        check(unsafe { simt_write(self.machine.as_ptr(), dst.0, from, bytes.len()) })
    }

    /// Copies device memory to the host.
    ///
    /// # Errors
    /// [`Error::Device`] if the source is not inside one live buffer.
    pub(crate) fn read(&self, src: DevicePtr, out: &mut [u8]) -> Result<()> {
        let _busy = self.enter();
        let to = out.as_mut_ptr().cast();
        // SAFETY: the machine is open, `to` has room for `len` bytes, and the callee checks the source.
        check(unsafe { simt_read(self.machine.as_ptr(), src.0, to, out.len()) })
    }

    /// Sets `len` bytes to `byte`.
    ///
    /// # Errors
    /// [`Error::Device`] if the destination is not inside one live buffer.
    pub(crate) fn set(&self, dst: DevicePtr, byte: u8, len: usize) -> Result<()> {
        let _busy = self.enter();
        // SAFETY: the machine is open; the callee checks the destination.
        check(unsafe { simt_set(self.machine.as_ptr(), dst.0, c_int::from(byte), len) })
    }

    /// Resets memory to the state of a new buffer: 0xFF, and counted as never written.
    ///
    /// # Errors
    /// [`Error::Device`] if the bytes are not inside one live buffer.
    pub(crate) fn poison(&self, dst: DevicePtr, len: usize) -> Result<()> {
        let _busy = self.enter();
        // SAFETY: the machine is open; the callee checks the destination.
        check(unsafe { simt_poison(self.machine.as_ptr(), dst.0, len) })
    }

    /// Runs a kernel to its end. `params` are the bytes of its params struct.
    ///
    /// # Errors
    /// [`Error::Device`] if the launch breaks a limit, or if a check, a trap or the time limit ended it; the
    /// message names kernel, block, thread and line. Writes made until then remain.
    pub(crate) fn launch(
        &self,
        symbol: &str,
        grid: [u32; 3],
        threads: u32,
        dynamic_smem: u32,
        params: &[u8],
    ) -> Result<()> {
        let _busy = self.enter();
        let options = RawOptions::from(*self.options());
        let name = CString::new(symbol).map_err(|_| failed(format!("kernel {symbol:?}: not a name")))?;
        // Params structs hold pointers; the bytes passed in may be less aligned than that.
        let mut aligned = vec![0_u64; params.len().div_ceil(size_of::<u64>())];
        bytemuck::cast_slice_mut(&mut aligned)[..params.len()].copy_from_slice(params);
        // SAFETY: the machine is open, all pointers are to live values of the stated sizes, and C++ keeps none of them. The kernel
        // itself touches only device memory, or ends in an error or a trap that the callee catches.
        check(unsafe {
            simt_launch(
                self.machine.as_ptr(),
                &raw const options,
                name.as_ptr(),
                grid.as_ptr(),
                threads,
                dynamic_smem,
                aligned.as_ptr().cast(),
                params.len(),
            )
        })
    }

    /// Changes the options of later calls.
    pub(crate) fn set_options(&self, options: EmulatorOptions) {
        *self.options() = options;
    }

    /// Counters of memory accesses of kernels that ran under `stats`, since the last call.
    pub(crate) fn take_counters(&self) -> Counters {
        let _busy = self.enter();
        let mut counters = Counters::default();
        for index in 0.. {
            let (mut symbol, mut pc, mut counts) = (std::ptr::null(), 0, Counts::default());
            let machine = self.machine.as_ptr();
            // SAFETY: the machine is open, and the three places for results are valid.
            let is_one =
                unsafe { simt_counts(machine, index, &raw mut symbol, &raw mut pc, &raw mut counts) };
            if !is_one {
                break;
            }
            // SAFETY: names of kernels are literals of the program.
            let symbol = unsafe { CStr::from_ptr(symbol) };
            let place = places::place(pc).unwrap_or_else(|| ("unknown".into(), 0));
            counters.add(&symbol.to_string_lossy(), place, &counts);
        }
        // SAFETY: the machine is open.
        unsafe { simt_clear_counts(self.machine.as_ptr()) };
        counters
    }

    fn options(&self) -> MutexGuard<'_, EmulatorOptions> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> MutexGuard<'_, ()> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // SAFETY: there is no other reference to the machine, and it is closed once.
        unsafe { simt_close(self.machine.as_ptr()) };
    }
}

/// Turns a code of C++ into a result, with the text that belongs to it.
fn check(code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut text = vec![0_u8; 8192];
    // SAFETY: `text` has room for the stated number of bytes.
    let length = unsafe { simt_error(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(length);
    Err(failed(places::resolve_all(&String::from_utf8_lossy(&text))))
}

fn failed(what: String) -> Error {
    Error::Device { what, fix: "see kernels/simt/README.md for what the emulator checks".into() }
}
