//! The benchmarks of one op: random inputs, and rates from the ledger of the device.
//!
//! A rate needs a numerator that nobody types by hand: each operation runs once before it is timed, and what the ledger
//! recorded becomes the throughput. Criterion prints it as `Gelem/s` (10^9 floating-point operations per second) for products
//! and as `GB/s` (operands, each counted once) for element-wise work.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput};
use tanren::batch::{Batch, Segment};
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::rng::{Purpose, Stream};

/// Columns of the residual stream of Qwen3-0.6B, as all shapes here.
pub(crate) const HIDDEN_SIZE: usize = 1024;
/// Columns of gate and up.
pub(crate) const INTERMEDIATE_SIZE: usize = 3072;
/// Query heads.
pub(crate) const NUM_ATTENTION_HEADS: usize = 16;
/// Key heads.
pub(crate) const NUM_KEY_VALUE_HEADS: usize = 8;
/// Elements of a head.
pub(crate) const HEAD_DIM: usize = 128;
/// A tensor of small random numbers; its shape is also its seed.
///
/// # Errors
/// None of its own.
pub(crate) fn random(device: &Device, rows: usize, cols: usize) -> Result<Tensor<f32>> {
    let mut stream = Stream::new(cols as u64, Purpose::ModelInit, rows as u32);
    let values: Vec<f32> = (0..rows * cols).map(|_| stream.uniform() - 0.5).collect();
    device.tensor(rows, cols, &values)
}

/// `count` rows of `len` tokens, packed.
pub(crate) fn packed_rows(count: usize, len: usize) -> Vec<Segment> {
    let mut batch = Batch::default();
    for _ in 0..count {
        batch.push_segment(&vec![0; len], None, 0);
    }
    batch.segments
}

/// The benchmarks of one op.
pub(crate) struct Bench<'a> {
    criterion: &'a mut Criterion,
    device: &'a Device,
    op: &'static str,
}

impl<'a> Bench<'a> {
    /// Benchmarks that are printed as `op/name`.
    pub(crate) fn new(criterion: &'a mut Criterion, device: &'a Device, op: &'static str) -> Self {
        Self { criterion, device, op }
    }

    /// Times `run`, with floating-point operations as its rate.
    ///
    /// # Errors
    /// The error of the first run.
    pub(crate) fn flops(&mut self, name: &str, mut run: impl FnMut() -> Result<()> + Send) -> Result<()> {
        self.device.take_ledger();
        self.device.run(&mut run)?;
        let flops = self.device.take_ledger().total().flops;
        self.measure(name, Throughput::Elements(flops), run);
        Ok(())
    }

    /// Times `run`, with the bytes of its operands as its rate.
    ///
    /// # Errors
    /// The error of the first run.
    pub(crate) fn bytes(&mut self, name: &str, mut run: impl FnMut() -> Result<()> + Send) -> Result<()> {
        self.device.take_ledger();
        self.device.run(&mut run)?;
        let bytes = self.device.take_ledger().total().bytes;
        self.measure(name, Throughput::BytesDecimal(bytes), run);
        Ok(())
    }

    /// As [`Bench::bytes`] for an op that overwrites its inputs: `restore` brings them back before every run and is not timed.
    /// Without it the values would run into the slow range of denormal numbers.
    ///
    /// # Errors
    /// The error of the first run.
    pub(crate) fn bytes_in_place<S: Send>(
        &mut self,
        name: &str,
        mut state: S,
        restore: impl Fn(&mut S) + Sync,
        run: impl Fn(&mut S) -> Result<()> + Sync,
    ) -> Result<()> {
        self.device.take_ledger();
        self.device.run(|| run(&mut state))?;
        let bytes = self.device.take_ledger().total().bytes;
        let device = self.device;
        let mut group = self.criterion.benchmark_group(self.op);
        group.sampling_mode(SamplingMode::Flat).throughput(Throughput::BytesDecimal(bytes));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                device.run(|| {
                    let mut total = Duration::ZERO;
                    for _ in 0..times {
                        restore(&mut state);
                        let start = Instant::now();
                        let _ = black_box(run(&mut state));
                        total += start.elapsed();
                    }
                    total
                })
            });
        });
        group.finish();
        Ok(())
    }

    /// Times `run` with a rate that the caller knows.
    pub(crate) fn measure<R>(
        &mut self,
        name: &str,
        throughput: Throughput,
        mut run: impl FnMut() -> R + Send,
    ) {
        let device = self.device;
        let mut group = self.criterion.benchmark_group(self.op);
        group.sampling_mode(SamplingMode::Flat).throughput(throughput);
        group.bench_function(name, |bencher| {
            // The threads of the device are entered once, as a training pass does.
            bencher.iter_custom(|times| {
                device.run(|| {
                    let start = Instant::now();
                    for _ in 0..times {
                        black_box(run());
                    }
                    start.elapsed()
                })
            });
        });
        group.finish();
    }
}
