//! Launches that were recorded once and run again and again, with one call of the driver for all of them.
//!
//! [`Device::capture`] runs code whose launches and fills are noted instead of started; [`Device::replay`] starts them all, in their
//! order. Addresses and grids are those of the recording, so whatever changes between runs stands in the memory of the device:
//! tables ([`super::Table`]) and numbers of rows ([`Device::with_live_rows`]). On a card this is a CUDA graph; the emulator repeats
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
        let Some(gpu) = &self.gpu else { return Err(self.mistake("only a GPU records launches")) };
        if gpu.arena().is_none() {
            return Err(self.mistake("launches are recorded only where memory is reserved"));
        }
        let before = self.take_ledger();
        gpu.begin_recording()?;
        let result = work();
        let recording = gpu.end_recording();
        let ledger = self.take_ledger();
        self.lock().merge(&before);
        // What went wrong in the recorded code is the reason, whatever became of the recording.
        let result = result?;
        Ok((Graph { gpu: gpu.clone(), recording: recording?, ledger }, result))
    }

    /// Starts what was recorded, after everything that was started before.
    ///
    /// # Errors
    /// [`Error::Device`] if the graph is another device's, if a tensor that was made since lies in its memory, or if the driver failed.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        let gpu = match &self.gpu {
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
mod tests {
    #![cfg(feature = "emulated")]

    use crate::device::{Device, EmulatorOptions};
    use crate::ops::testing::kernel_device;

    #[test]
    fn nothing_is_recorded_without_reserved_memory_or_on_a_cpu() {
        let cpu = Device::cpu(1).unwrap();
        assert!(cpu.capture(|| Ok(())).unwrap_err().to_string().contains("only a GPU"));
        let device = Device::emulated(EmulatorOptions::default()).unwrap();
        assert!(device.capture(|| Ok(())).unwrap_err().to_string().contains("reserved"));
    }

    #[test]
    fn fills_wait_for_the_replay_and_come_again_with_each() {
        let device = kernel_device(0);
        device.reserve(1 << 16).unwrap();
        let mut tensor = device.tensor(1, 4, &[1u32, 2, 3, 4]).unwrap();
        let (graph, kept) = device.capture(|| device.zeros::<u32>(1, 4)).unwrap();
        for _ in 0..2 {
            device.replay(&graph).unwrap();
            assert_eq!(device.read(&kept).unwrap(), [0; 4]);
        }
        device.write(&mut tensor, &[5, 6, 7, 8]).unwrap();
        assert_eq!(device.read(&tensor).unwrap(), [5, 6, 7, 8]);
    }

    #[test]
    fn copies_are_refused_within_and_a_newcomer_in_its_memory_stops_a_replay() {
        let device = kernel_device(0);
        device.reserve(1 << 16).unwrap();
        let mut tensor = device.tensor(1, 1, &[1u32]).unwrap();
        let error = device.capture(|| device.write(&mut tensor, &[2])).unwrap_err();
        assert!(error.to_string().contains("while launches are recorded"), "{error}");
        // The temporary tensor is gone after the recording, and its place is given to the next one.
        let (graph, ()) = device.capture(|| device.zeros::<u32>(1, 4).map(drop)).unwrap();
        device.replay(&graph).unwrap();
        let newcomer = device.tensor(1, 4, &[0u32; 4]).unwrap();
        let error = device.replay(&graph).unwrap_err();
        assert!(error.to_string().contains("made after launches were recorded"), "{error}");
        drop(newcomer);
        device.replay(&graph).unwrap();
    }
}
