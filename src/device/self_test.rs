//! The self-test of a device without a model: copies, fills, memory, and one kernel.
//!
//! The host knows the exact result of every check. `tanren inspect device --self-test` runs them on a new
//! machine, and the tests run them on every available device.

use std::time::Instant;

use super::kernels::params::SelfTestParams;
use super::kernels::{Kernel, NVCC};
use super::{Device, Launch, Tensor};
use crate::error::{Error, Result};
use crate::rng::philox;

/// The finding of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// The measurement, or the fault.
    pub detail: String,
    /// The outcome.
    pub outcome: Outcome,
}

/// Outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The result is correct.
    Passed,
    /// The result is wrong.
    Failed,
    /// The check does not apply to this device.
    Skipped,
}

/// Elements per block of the kernel `self_test`, one per thread.
const BLOCK: usize = Kernel::SelfTest.threads() as usize;

/// Runs all checks.
///
/// # Errors
/// [`Error::Device`] if the device itself fails. Wrong results are returned as findings, not as errors.
pub fn self_test(device: &Device) -> Result<Vec<Finding>> {
    [copies, fills, too_much, kernel, memory, speed].into_iter().map(|check| check(device)).collect()
}

fn finding(check: &'static str, wrong: Option<String>, detail: impl Into<String>) -> Finding {
    match wrong {
        Some(detail) => Finding { check, detail, outcome: Outcome::Failed },
        None => Finding { check, detail: detail.into(), outcome: Outcome::Passed },
    }
}

/// `len` random words, the same for the same `stream`.
fn words(stream: u32, len: usize) -> Vec<u32> {
    let blocks = u32::try_from(len.div_ceil(4)).unwrap_or(u32::MAX);
    let mut words: Vec<u32> = (0..blocks).flat_map(|block| philox([stream, 0], [block, 0, 0, 0])).collect();
    words.truncate(len);
    words
}

/// The first difference, in words.
fn difference(got: &[u32], expected: &[u32]) -> Option<String> {
    if got.len() != expected.len() {
        return Some(format!("got {} elements, expected {}", got.len(), expected.len()));
    }
    let at = got.iter().zip(expected).position(|(got, expected)| got != expected)?;
    let wrong = got.iter().zip(expected).filter(|(got, expected)| got != expected).count();
    Some(format!(
        "{wrong} of {} elements differ; element {at}: got {:#x}, expected {:#x}",
        got.len(),
        got[at],
        expected[at]
    ))
}

/// Copies to the device and back, with sizes around those of the staging buffers.
fn copies(device: &Device) -> Result<Finding> {
    const BUFFER: usize = 8 << 18;
    let mut wrong = None;
    let mut total = 0;
    for len in [1, 3, 1000, BUFFER - 1, BUFFER + 1, 2 * BUFFER + 77] {
        let up = words(100, len);
        let tensor = device.tensor(1, len, &up)?;
        let down = device.read(&tensor)?;
        wrong = wrong.or_else(|| difference(&down, &up).map(|what| format!("{len} words: {what}")));
        total += len;
    }
    Ok(finding("copies", wrong, format!("{total} words up and down are the same")))
}

/// Bandwidth of a large copy in each direction.
fn speed(device: &Device) -> Result<Finding> {
    let len: usize = if device.is_card() { 16 << 20 } else { 4 << 20 };
    let data = words(101, len);
    let mut tensor = device.empty(1, len)?;
    let rate = |copy: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
        // The first copy touches new pages, so it is not measured.
        copy()?;
        let start = Instant::now();
        copy()?;
        Ok((4 * len) as f64 / start.elapsed().as_secs_f64() / 1e9)
    };
    let up = rate(&mut || {
        device.write(&mut tensor, &data)?;
        device.synchronize()
    })?;
    let mut back = vec![0; len];
    let down = rate(&mut || device.read_into(&tensor, &mut back))?;
    let wrong = difference(&back, &data);
    let mib = len >> 18;
    Ok(finding("copy speed", wrong, format!("{up:.1} GB/s up, {down:.1} GB/s down ({mib} MiB)")))
}

/// A fill covers its tensor and nothing else.
fn fills(device: &Device) -> Result<Finding> {
    let mut wrong = None;
    for len in [1, 63, 64, 4099, 1 << 20] {
        let pattern = words(200, len);
        let before = device.tensor(1, len, &pattern)?;
        let zeros = device.zeros::<u32>(1, len)?;
        let after = device.tensor(1, len, &pattern)?;
        let again = device.zeros::<u32>(1, len)?;
        for (tensor, expected) in
            [(&before, &pattern), (&zeros, &vec![0; len]), (&after, &pattern), (&again, &vec![0; len])]
        {
            wrong = wrong.or(difference(&device.read(tensor)?, expected));
        }
    }
    Ok(finding("fills", wrong, "zeros where they belong, neighbours untouched"))
}

/// Many tensors that are allocated and freed in reserved memory, each with a pattern of its own.
fn memory(device: &Device) -> Result<Finding> {
    const RESERVED: u64 = 32 << 20;
    device.reserve(RESERVED)?;
    const ROUNDS: u32 = 200;
    let mut live: Vec<(u32, Tensor<u32>)> = Vec::new();
    let mut wrong = None;
    let mut take_back = |(stream, tensor): (u32, Tensor<u32>)| -> Result<()> {
        let got = device.read(&tensor)?;
        wrong = wrong.take().or_else(|| difference(&got, &words(stream, got.len())));
        Ok(())
    };
    for (round, random) in (0..ROUNDS).zip(words(500, ROUNDS as usize)) {
        let (stream, len) = (1000 + round, 1 + random as usize % 40_000);
        live.push((stream, device.tensor(1, len, &words(stream, len))?));
        if live.len() > 40 {
            take_back(live.swap_remove((random >> 16) as usize % live.len()))?;
        }
    }
    live.into_iter().try_for_each(take_back)?;
    let usage = device.arena();
    device.reserve(0)?;
    let detail = match usage {
        Some(usage) => format!("{ROUNDS} tensors in {} of {RESERVED} bytes", usage.high_water_bytes),
        None => format!("{ROUNDS} tensors, each with memory of its own"),
    };
    Ok(finding("memory", wrong, detail))
}

/// A request beyond the total memory gives an error and leaves the device usable.
fn too_much(device: &Device) -> Result<Finding> {
    let wrong = match device.empty::<u32>(1 << 30, 1 << 20) {
        Ok(_) => Some("got 4 PiB of memory, expected an error".to_owned()),
        Err(Error::Device { what, .. }) if what.contains("out of memory") => {
            let data = words(300, 1000);
            difference(&device.read(&device.tensor(1, 1000, &data)?)?, &data)
        }
        Err(other) => return Err(other),
    };
    Ok(finding("too much memory", wrong, "refused, and the device goes on"))
}

/// The kernel `self_test` over grids of one, two and three dimensions, with little and with much shared memory.
fn kernel(device: &Device) -> Result<Finding> {
    let skipped = |detail: String| Finding { check: "kernel", detail, outcome: Outcome::Skipped };
    match device.runs_kernels() {
        true => {}
        false if device.is_card() => return Ok(skipped(format!("this build has none: {NVCC}"))),
        false => return Ok(skipped(format!("the {} runs no kernels", device.label()))),
    }
    let mut wrong = None;
    let mut launches = 0;
    for (grid, stride) in [([1, 1, 1], 1), ([5, 1, 1], 121), ([2, 3, 1], 33), ([3, 2, 4], 1)] {
        let case = Case { grid, stride, factor: 0x9e37_79b1, addend: 12_345, offset: -77 };
        let x = words(400 + stride, case.len());
        let y = case.run(device, &x, 0)?;
        launches += 1;
        wrong =
            wrong.or_else(|| difference(&y, &case.expected(&x)).map(|what| format!("grid {grid:?}: {what}")));
    }
    Ok(finding("kernel", wrong, format!("{launches} launches, all elements as computed on the host")))
}

/// A launch of the kernel `self_test`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) grid: [u32; 3],
    pub(super) stride: u32,
    pub(super) factor: u32,
    pub(super) addend: u16,
    pub(super) offset: i64,
}

impl Case {
    /// Elements of `x` and `y`.
    pub(super) fn len(&self) -> usize {
        self.grid.iter().map(|&blocks| blocks as usize).product::<usize>() * BLOCK
    }

    /// The launch and its params.
    pub(super) fn launch(&self, x: &Tensor<u32>, y: &Tensor<u32>, fault: u32) -> (Launch, SelfTestParams) {
        let dynamic_smem = 4 * Kernel::SelfTest.threads() * self.stride;
        let launch = Launch { kernel: Kernel::SelfTest, grid: self.grid, dynamic_smem };
        let params = SelfTestParams {
            x: x.ptr(),
            y: y.ptr(),
            factor: self.factor,
            addend: f32::from(self.addend),
            offset: self.offset,
            stride: self.stride,
            fault,
        };
        (launch, params)
    }

    /// The result of the kernel for `x`.
    pub(super) fn run(&self, device: &Device, x: &[u32], fault: u32) -> Result<Vec<u32>> {
        let x = device.tensor(1, x.len(), x)?;
        let y = device.empty(1, x.len())?;
        let (launch, params) = self.launch(&x, &y, fault);
        device.launch(&launch, &params)?;
        device.read(&y)
    }

    /// The expected result, computed on the host.
    pub(super) fn expected(&self, x: &[u32]) -> Vec<u32> {
        let mut y = Vec::with_capacity(x.len());
        for (block, x) in x.chunks_exact(BLOCK).enumerate() {
            // Integers wrap as on the device.
            let added = u32::from(self.addend).wrapping_add(self.offset as u32).wrapping_add(block as u32);
            let z: Vec<u32> = x.iter().map(|x| self.factor.wrapping_mul(*x).wrapping_add(added)).collect();
            y.extend((0..BLOCK).map(|thread| z[BLOCK - 1 - thread] ^ z[BLOCK - 1 - (thread ^ 1)]));
        }
        y
    }
}
