//! Graphs: launches that are recorded once and replayed many times, with one driver call for all of them.
//!
//! [`Device::capture`] runs code whose launches and fills are recorded instead of started; [`Device::replay`]
//! starts them all, in order. Addresses and grids are those of the recording, so data that changes between
//! replays must be in device memory: tables ([`super::Table`]) and their numbers of entries. On a card this
//! is a CUDA graph. The emulator repeats the calls, so everything except the driver is tested without a card.
//!
//! A replay uses the places in the reserved memory ([`Device::reserve`]) that the temporary tensors of the
//! recorded code had. Tensors that existed before the recording keep their places. A tensor that is created
//! after the recording and still alive at a replay may overlap such a place; then the replay is refused.

use std::sync::Arc;

use super::Device;
use super::gpu::Gpu;
use super::ledger::Ledger;
use super::recording::Recording;
use crate::error::{Error, Result};

/// See the module documentation.
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
    /// Runs `work` and records its launches and fills instead of starting them. Copies between host and
    /// device are refused meanwhile.
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
        // An error of the recorded code is the one to report, even if ending the recording fails too.
        let result = result?;
        Ok((graph?, result))
    }

    /// Starts a recorded graph, after all work queued so far.
    ///
    /// # Errors
    /// [`Error::Device`] if the graph belongs to another device, if a tensor created since overlaps its
    /// memory, or if the driver failed.
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
        // The driver keeps the error and returns it from the next call.
        let _ = self.gpu.forget(&self.recording);
    }
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod gpu_tests;
