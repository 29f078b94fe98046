//! What the benchmarks of all kernels share: random tensors, timing by the GPU's clock, and the floor to hold times against.

use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use half::bf16;
use tanren::device::{Card, Device, Tensor};
use tanren::error::Result;
use tanren::rng::{Purpose, Stream};

/// What one call has to compute and to move, by its formula.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) flops: u64,
    pub(crate) bytes: u64,
}

/// A group of benchmarks on one GPU.
pub(crate) struct Bench<'c> {
    group: BenchmarkGroup<'c, WallTime>,
    pub(crate) device: Device,
    card: Option<&'static Card>,
}

impl<'c> Bench<'c> {
    pub(crate) fn new(criterion: &'c mut Criterion, device: &Device, name: &str) -> Self {
        let card = Card::of_label(device.label());
        if card.is_none() {
            println!("no peak rates are known for {}: no floors are printed", device.label());
        }
        Self { group: criterion.benchmark_group(name), device: device.clone(), card }
    }

    /// Measures `call`; returns the median seconds of one call.
    pub(crate) fn run(
        &mut self,
        name: &str,
        cost: Cost,
        mut call: impl FnMut() -> Result<()>,
    ) -> Result<f64> {
        let device = self.device.clone();
        let mut failure = None;
        let mut seconds = |calls: u64| {
            let timed = device.time(|| (0..calls).try_for_each(|_| call()));
            match timed.and_then(|(result, seconds)| result.map(|()| seconds)) {
                Ok(seconds) => seconds.unwrap_or(0.0),
                Err(error) => {
                    failure = Some(error);
                    0.0
                }
            }
        };
        seconds(3);
        let mut samples: Vec<f64> = (0..21).map(|_| seconds(5) / 5.0).collect();
        samples.sort_by(f64::total_cmp);
        let median = samples[samples.len() / 2];
        self.group.throughput(Throughput::Elements(cost.flops));
        self.group.bench_function(name, |b| {
            b.iter_custom(|calls| Duration::from_secs_f64(seconds(calls)));
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        self.print(name, cost, median);
        Ok(median)
    }

    fn print(&self, name: &str, cost: Cost, seconds: f64) {
        let rate = cost.flops as f64 / seconds / 1e12;
        let floor = self.card.map_or(String::new(), |card| {
            let floor = card.floor_secs(cost.flops, cost.bytes);
            format!(", {:5.1} % of the floor of {:.3} ms", 100.0 * floor / seconds, 1e3 * floor)
        });
        println!("{name:60} {:9.3} ms {rate:7.1} TFLOP/s{floor}", 1e3 * seconds);
    }
}

/// Standard normal numbers times `size`, as bf16.
pub(crate) fn random(
    device: &Device,
    rows: usize,
    cols: usize,
    size: f32,
    index: u32,
) -> Result<Tensor<bf16>> {
    device.tensor(rows, cols, &numbers(rows * cols, size, index))
}

/// The numbers of [`random`].
pub(crate) fn numbers(len: usize, size: f32, index: u32) -> Vec<bf16> {
    // A million numbers over and over: drawing a gigabyte of them would take longer than the benchmark.
    let mut stream = Stream::new(1, Purpose::ModelInit, index);
    let period: Vec<bf16> = (0..len.min(1_048_573)).map(|_| bf16::from_f32(size * stream.normal())).collect();
    period.iter().copied().cycle().take(len).collect()
}
