//! Recording of launches on a GPU, and asynchronous copies to the host.
//!
//! On a card the driver records the launches, as a CUDA graph. The emulator keeps a list of calls and repeats
//! them; a dry device has nothing to repeat.

#![cfg_attr(
    not(all(feature = "cuda", feature = "emulated")),
    allow(
        unused_variables,
        unreachable_patterns,
        dead_code,
        reason = "parts of a driver that the build has not"
    )
)]

#[cfg(feature = "cuda")]
use std::sync::Arc;
use std::sync::{MutexGuard, PoisonError};

use super::arena::Places;
#[cfg(any(feature = "cuda", feature = "emulated"))]
use super::gpu::Driver;
use super::gpu::Gpu;
#[cfg(feature = "emulated")]
use super::gpu::to_usize;
use super::kernels::DevicePtr;
use super::launch::Launch;
use crate::error::{Error, Result};

/// A recorded call.
#[derive(Debug, Clone)]
pub(super) enum Call {
    /// A kernel launch with its params.
    Launch(Launch, Vec<u8>),
    /// A fill of memory with one byte.
    Fill(DevicePtr, u8, u64),
    /// The end of the content of some memory.
    Poison(DevicePtr, u64),
}

/// The recorded calls, and the places of their tensors.
#[derive(Debug)]
pub(super) struct Recording {
    recorded: Recorded,
    places: Places,
}

#[derive(Debug)]
enum Recorded {
    /// A graph of the driver.
    #[cfg(feature = "cuda")]
    Cuda(super::cuda::GraphHandle),
    /// The calls to repeat; empty on a dry device.
    Calls(Vec<Call>),
}

impl Gpu {
    /// Begins a recording: launches and fills are recorded, not started.
    ///
    /// # Errors
    /// If a recording is active already, or the driver failed.
    pub(super) fn begin_recording(&self) -> Result<()> {
        self.refuse_in_recording("a recording")?;
        #[cfg(feature = "cuda")]
        if let Driver::Cuda(cuda) = &self.driver {
            cuda.begin_capture()?;
        }
        *self.recording() = Some(Vec::new());
        if let Some(region) = self.region().as_mut() {
            region.arena.begin_trace();
        }
        Ok(())
    }

    /// Ends a recording and returns it.
    ///
    /// # Errors
    /// If the driver failed.
    pub(super) fn end_recording(&self) -> Result<Recording> {
        let calls = self.recording().take().unwrap_or_default();
        let places = self.region().as_mut().map(|region| region.arena.end_trace()).unwrap_or_default();
        let recorded = match &self.driver {
            #[cfg(feature = "cuda")]
            Driver::Cuda(cuda) => Recorded::Cuda(cuda.end_capture()?),
            _ => Recorded::Calls(calls),
        };
        Ok(Recording { recorded, places })
    }

    /// Starts the recorded calls.
    ///
    /// # Errors
    /// If a live tensor overlaps the place of a recorded one, or a call failed.
    pub(super) fn replay(&self, recording: &Recording) -> Result<()> {
        let newcomer = self.region().as_ref().and_then(|region| region.arena.newcomer_on(&recording.places));
        if let Some(offset) = newcomer {
            return Err(Error::Device {
                what: format!(
                    "{}: a tensor that was made after launches were recorded lies in their memory, at {offset}",
                    self.label
                ),
                fix: "this is a mistake in tanren: please report the message and the command".into(),
            });
        }
        match (&recording.recorded, &self.driver) {
            #[cfg(feature = "cuda")]
            (Recorded::Cuda(graph), Driver::Cuda(cuda)) => cuda.launch_graph(graph),
            (Recorded::Calls(calls), _) => calls.iter().try_for_each(|call| self.repeat(call)),
            #[allow(unreachable_patterns, reason = "a build may have one kind of driver only")]
            _ => Ok(()),
        }
    }

    fn repeat(&self, call: &Call) -> Result<()> {
        match call {
            Call::Launch(launch, params) => self.launch(launch, params),
            Call::Fill(ptr, byte, bytes) => self.fill(*ptr, *byte, *bytes),
            Call::Poison(ptr, bytes) => match &self.driver {
                #[cfg(feature = "emulated")]
                Driver::Emulated(emulator) => emulator.poison(*ptr, to_usize(*bytes)),
                _ => Ok(()),
            },
        }
    }

    /// Frees the driver's resources of a recording.
    ///
    /// # Errors
    /// If the driver failed.
    pub(super) fn forget(&self, recording: &Recording) -> Result<()> {
        match (&recording.recorded, &self.driver) {
            #[cfg(feature = "cuda")]
            (Recorded::Cuda(graph), Driver::Cuda(cuda)) => cuda.destroy_graph(graph),
            _ => Ok(()),
        }
    }

    /// True if a recording is active and has taken the call.
    #[cfg(feature = "emulated")]
    pub(super) fn noted(&self, call: impl FnOnce() -> Call) -> bool {
        match self.recording().as_mut() {
            Some(calls) => {
                calls.push(call());
                true
            }
            None => false,
        }
    }

    pub(super) fn refuse_in_recording(&self, what: &str) -> Result<()> {
        if self.recording().is_none() {
            return Ok(());
        }
        Err(Error::Device {
            what: format!("{}: {what} while launches are recorded", self.label),
            fix: "this is a mistake in tanren: please report the message and the command".into(),
        })
    }

    fn recording(&self) -> MutexGuard<'_, Option<Vec<Call>>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a copy to the host, into the buffer of an earlier copy that was received, or into a new one of
    /// `room` bytes.
    ///
    /// # Errors
    /// If the driver failed.
    #[cfg(feature = "cuda")]
    pub(super) fn post(
        self: &Arc<Self>,
        old: Option<InFlight>,
        from: DevicePtr,
        bytes: usize,
        room: usize,
    ) -> Result<InFlight> {
        self.refuse_in_recording("a copy to the host")?;
        let mut in_flight = old.unwrap_or_else(|| InFlight { gpu: self.clone(), buffer: None, bytes: 0 });
        in_flight.bytes = bytes;
        if let Driver::Cuda(cuda) = &self.driver {
            cuda.post(&mut in_flight.buffer, from, bytes, room)?;
        }
        Ok(in_flight)
    }
}

/// A copy to the host that is in flight, or was received.
#[cfg(feature = "cuda")]
#[derive(Debug)]
pub(super) struct InFlight {
    gpu: Arc<Gpu>,
    buffer: Option<super::cuda::Buffer>,
    bytes: usize,
}

#[cfg(feature = "cuda")]
impl InFlight {
    /// Waits for the copy.
    ///
    /// # Errors
    /// If the copy or something before it failed.
    pub(super) fn receive(&mut self) -> Result<Vec<u8>> {
        match (&self.gpu.driver, &mut self.buffer) {
            (Driver::Cuda(cuda), Some(buffer)) => cuda.receive(buffer, self.bytes),
            _ => Ok(Vec::new()),
        }
    }
}

#[cfg(feature = "cuda")]
impl Drop for InFlight {
    fn drop(&mut self) {
        if let (Driver::Cuda(cuda), Some(buffer)) = (&self.gpu.driver, self.buffer.take()) {
            let _ = cuda.free_buffer(buffer);
        }
    }
}
