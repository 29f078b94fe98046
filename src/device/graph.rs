//! Launches that were recorded once and run again and again, with one call of the driver for all of them.
//!
//! [`Device::capture`] runs code whose launches and fills are noted instead of started; [`Device::replay`] starts them all, in their
//! order. Addresses and grids are those of the recording, so whatever changes between runs stands in the memory of the device:
//! tables ([`super::Table`]), and how many entries these have. On a card this is a CUDA graph; the emulator repeats
//! the calls, so that everything about it but the driver is tested without one.
//!
//! Temporary tensors of the recorded code lie in the reserved memory ([`Device::reserve`]) at the places they had. Tensors that were
//! there before stay where they are; one that is made after the recording and still there at a replay may lie on such a place,
//! and the replay is refused.

use std::sync::Arc;

use super::Device;
use super::gpu::Gpu;
use super::ledger::Ledger;
use super::recording::Recording;
use crate::error::{Error, Result};

/// See the module text.
#[derive(Debug)]
pub struct Graph {
    gpu: Arc<Gpu>,
    recording: Recording,
    /// What one run computes.
    ledger: Ledger,
}

impl Graph {
    /// Kernels that one run starts.
    pub fn num_launches(&self) -> u64 {
        self.ledger.launches().map(|(_, count)| count).sum()
    }

    /// What one run computes.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

impl Device {
    /// Runs `work` and keeps its launches and fills instead of starting them. Copies between host and device are refused within.
    ///
    /// # Errors
    /// The error of `work`; [`Error::Device`] of a CPU, without reserved memory, or if the driver failed.
    pub fn capture<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
        let Some(gpu) = self.gpu() else { return Err(self.mistake("only a GPU records launches")) };
        if gpu.arena().is_none() {
            return Err(self.mistake("launches are recorded only where memory is reserved"));
        }
        let before = self.take_ledger();
        gpu.begin_recording()?;
        let result = work();
        let recording = gpu.end_recording();
        let ledger = self.take_ledger();
        self.lock().merge(&before);
        let graph = recording.map(|recording| Graph { gpu: gpu.clone(), recording, ledger });
        // What went wrong in the recorded code is the reason, whatever became of the recording.
        let result = result?;
        Ok((graph?, result))
    }

    /// Starts what was recorded, after everything that was started before.
    ///
    /// # Errors
    /// [`Error::Device`] if the graph is another device's, if a tensor that was made since lies in its memory, or if the driver failed.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        let gpu = match self.gpu() {
            Some(gpu) if Arc::ptr_eq(gpu, &graph.gpu) => gpu,
            _ => return Err(self.mistake("the launches were recorded on another device")),
        };
        gpu.replay(&graph.recording)?;
        self.lock().merge(&graph.ledger);
        Ok(())
    }

    fn mistake(&self, what: &str) -> Error {
        Error::Device {
            what: format!("{}: {what}", self.label()),
            fix: "this is a mistake in tanren: please report the message and the command".into(),
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // An error stays with the driver and comes out of the next call.
        let _ = self.gpu.forget(&self.recording);
    }
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod gpu_tests;
