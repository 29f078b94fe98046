//! Graphs, asynchronous copies to the host, and timing on a GPU.

use super::context::Cuda;
use super::staging::Buffer;
use super::{Fault, Handle};
use crate::device::kernels::DevicePtr;
use crate::error::Result;

/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: calls that would break a capture are refused in this thread only.
const THREAD_LOCAL: i32 = 1;

/// `CU_EVENT_DEFAULT`: with timing.
const WITH_TIMING: u32 = 0;

/// An instantiated graph.
#[derive(Debug)]
pub(in crate::device) struct GraphHandle(Handle);

impl Cuda {
    /// Begins a capture: launches and fills are recorded, not started.
    pub(in crate::device) fn begin_capture(&self) -> Result<()> {
        self.ours(|cuda| {
            cuda.load_kernels()?;
            cuda.call("cuStreamBeginCapture_v2", |driver| {
                // SAFETY: the handle is the stream of this context.
                unsafe { (driver.cuStreamBeginCapture_v2)(cuda.stream(), THREAD_LOCAL) }
            })
        })
    }

    /// Ends a capture, instantiates the graph and uploads it to the GPU, so that its first run takes no
    /// longer than the others.
    pub(in crate::device) fn end_capture(&self) -> Result<GraphHandle> {
        self.ours(|cuda| {
            let (mut graph, mut ready) = (0, 0);
            cuda.call("cuStreamEndCapture", |driver| {
                // SAFETY: writes the handle that the pointer points to; the stream is that of `begin_capture`.
                unsafe { (driver.cuStreamEndCapture)(cuda.stream(), &mut graph) }
            })?;
            let made = cuda.call("cuGraphInstantiateWithFlags", |driver| {
                // SAFETY: writes the handle that the pointer points to; the graph was just made.
                unsafe { (driver.cuGraphInstantiateWithFlags)(&mut ready, graph, 0) }
            });
            // SAFETY: the graph was made above; the one that is ready to run is a copy.
            let destroyed = cuda.call("cuGraphDestroy", |driver| unsafe { (driver.cuGraphDestroy)(graph) });
            made?;
            let uploaded = destroyed.and_then(|()| {
                cuda.call("cuGraphUpload", |driver| {
                    // SAFETY: the graph was made above, and the stream is that of this context.
                    unsafe { (driver.cuGraphUpload)(ready, cuda.stream()) }
                })
            });
            if let Err(fault) = uploaded {
                // The error to report is the first one.
                let _ = cuda.destroy(ready);
                return Err(fault);
            }
            Ok(GraphHandle(ready))
        })
    }

    fn destroy(&self, ready: Handle) -> Result<(), Fault> {
        self.wait()?;
        self.call("cuGraphExecDestroy", |driver| {
            // SAFETY: the callers, both in this file, pass what `end_capture` made, once, and its last run was waited for.
            unsafe { (driver.cuGraphExecDestroy)(ready) }
        })
    }

    /// Launches a graph.
    pub(in crate::device) fn launch_graph(&self, graph: &GraphHandle) -> Result<()> {
        self.ours(|cuda| {
            cuda.call("cuGraphLaunch", |driver| {
                // SAFETY: the handle was made by `end_capture` and not destroyed; memory that its kernels use is reserved.
                unsafe { (driver.cuGraphLaunch)(graph.0, cuda.stream()) }
            })?;
            // An error does not say which kernel of the graph it comes from.
            cuda.forget_last_launch();
            Ok(())
        })
    }

    /// Destroys a graph, after its last run.
    pub(in crate::device) fn destroy_graph(&self, graph: &GraphHandle) -> Result<()> {
        self.ours(|cuda| cuda.destroy(graph.0))
    }

    /// Starts a copy of `bytes` bytes to the host, into `buffer`, which is allocated with `room` bytes if it
    /// is missing or too small.
    pub(in crate::device) fn post(
        &self,
        buffer: &mut Option<Buffer>,
        from: DevicePtr,
        bytes: usize,
        room: usize,
    ) -> Result<()> {
        self.ours(|cuda| {
            if let Some(small) = buffer.take_if(|buffer| buffer.capacity() < bytes) {
                small.free(cuda)?;
            }
            let buffer = match buffer {
                Some(buffer) => buffer,
                None => buffer.insert(Buffer::new(cuda, bytes.max(room).max(1))?),
            };
            buffer.wait(cuda)?;
            buffer.fetch(cuda, from.0, bytes)
        })
    }

    /// Waits for the copy of [`Cuda::post`].
    pub(in crate::device) fn receive(&self, buffer: &mut Buffer, bytes: usize) -> Result<Vec<u8>> {
        self.ours(|cuda| {
            let mut data = vec![0; bytes];
            buffer.take(cuda, &mut data)?;
            Ok(data)
        })
    }

    /// Frees a buffer of [`Cuda::post`].
    pub(in crate::device) fn free_buffer(&self, buffer: Buffer) -> Result<()> {
        self.ours(|cuda| buffer.free(cuda))
    }

    /// Runs `work` and returns the GPU time of the calls inside, in seconds.
    pub(in crate::device) fn time<R>(&self, work: impl FnOnce() -> R) -> Result<(R, f64)> {
        let events = self.ours(|cuda| {
            let events = [cuda.event(WITH_TIMING)?, cuda.event(WITH_TIMING)?];
            cuda.record(events[0])?;
            Ok(events)
        })?;
        let result = work();
        let secs = self.ours(|cuda| {
            let [first, last] = events;
            cuda.record(last)?;
            cuda.wait()?;
            let mut milliseconds = 0.0;
            cuda.call("cuEventElapsedTime", |driver| {
                // SAFETY: writes the number that the pointer points to; both events were recorded and have happened.
                unsafe { (driver.cuEventElapsedTime)(&mut milliseconds, first, last) }
            })?;
            for event in events {
                // SAFETY: the event was made above and is not used again.
                cuda.call("cuEventDestroy_v2", |driver| unsafe { (driver.cuEventDestroy_v2)(event) })?;
            }
            Ok(f64::from(milliseconds) / 1e3)
        })?;
        Ok((result, secs))
    }
}
