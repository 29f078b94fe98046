//! What the benchmarks of all kernels share: which of them run, buffers that no cache holds, timing by the GPU's clock, and rows of
//! a table.
//!
//! A benchmark is a closure that makes a set of buffers and one that launches on it. Nothing is made before the filter has let its
//! name through. Then as many sets are made as put [`ROTATION_BYTES`] of traffic between two uses of the same bytes, which is three
//! times the largest L2 cache there is; one recording launches on each of them in turn, so that neither the cache nor the host's
//! launches flatter or spoil a time.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use half::bf16;
use tanren::device::{Card, Device, Graph, Tensor};
use tanren::error::Result;
use tanren::rng::{Purpose, Stream};

use super::cublaslt::{Blas, Product};
use super::shapes::Mode;

/// Traffic between two uses of the same bytes: three times the 60 MB of L2 of an H200.
pub(crate) const ROTATION_BYTES: u64 = 180_000_000;

/// The first two rows of the table.
pub(crate) const HEADER: &str = "| kernel | ms | TFLOP/s | GB/s | % of floor | % of cuBLAS |\n\
                                 |---|---:|---:|---:|---:|---:|";

/// What one call has to compute and to move, by its formula.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) flops: u64,
    pub(crate) bytes: u64,
}

impl Cost {
    /// Sets of buffers that put `rotation` bytes of traffic between two uses of one of them.
    pub(crate) fn sets(self, rotation: u64) -> usize {
        if self.bytes >= rotation { 1 } else { 1 + rotation.div_ceil(self.bytes.max(1)) as usize }
    }
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) seconds: f64,
    pub(crate) flops: u64,
    pub(crate) bytes: u64,
    /// Seconds that the card needs at its peaks.
    pub(crate) floor: Option<f64>,
    /// Seconds of cuBLASLt for the same products.
    pub(crate) bar: Option<f64>,
    /// Sets of buffers that were used in turn.
    #[allow(dead_code, reason = "for the tests")]
    pub(crate) sets: usize,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, seconds, flops, bytes, floor, bar, .. } = self;
        let percent = |of: &Option<f64>| of.map_or("-".into(), |of| format!("{:.1}", 100.0 * of / seconds));
        let (rate, traffic) = (*flops as f64 / seconds / 1e12, *bytes as f64 / seconds / 1e9);
        let (floor, bar) = (percent(floor), percent(bar));
        write!(f, "| {name} | {:.4} | {rate:.1} | {traffic:.0} | {floor} | {bar} |", 1e3 * seconds)
    }
}

/// Everything that benchmarks run with, and the rows that they have given so far.
pub(crate) struct Bench<'c> {
    pub(crate) device: Device,
    pub(crate) mode: Mode,
    /// Parts of names, of which a benchmark has to have one; none: all run.
    filters: Vec<String>,
    /// Its samples come beside the row, but not in short modes.
    criterion: Option<&'c mut Criterion>,
    card: Option<&'static Card>,
    blas: std::result::Result<Blas, String>,
    rows: Vec<Row>,
}

impl<'c> Bench<'c> {
    pub(crate) fn new(device: &Device, mode: Mode, filters: &[String], criterion: &'c mut Criterion) -> Self {
        let blas = match mode {
            Mode::Smoke => Err("none on an emulator".into()),
            Mode::Full | Mode::Quick => Blas::open(),
        };
        Self {
            device: device.clone(),
            mode,
            filters: filters.to_vec(),
            criterion: (mode == Mode::Full).then_some(criterion),
            card: Card::of_label(device.label()),
            blas,
            rows: Vec::new(),
        }
    }

    /// What will be missing in the table, and why.
    pub(crate) fn missing(&self) -> Vec<String> {
        let card =
            self.card.is_none().then(|| format!("no peak rates are known for {}", self.device.label()));
        let blas = self.blas.as_ref().err().map(|reason| format!("no cuBLASLt to compare with: {reason}"));
        card.into_iter().chain(blas).collect()
    }

    /// Whether a benchmark of this name runs.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|part| name.contains(part.as_str()))
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Measures `call` on sets of buffers that `make` makes, by their number, if the filter wants `name`. `bar` are the products
    /// that cuBLASLt does for comparison.
    pub(crate) fn run<S>(
        &mut self,
        name: &str,
        cost: Cost,
        bar: &[Product],
        make: impl Fn(&Device, usize) -> Result<S>,
        mut call: impl FnMut(&Device, &mut S) -> Result<()>,
    ) -> Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let device = self.device.clone();
        let count = cost.sets(self.mode.rotation_bytes());
        let mut sets: Vec<S> = (0..count).map(|i| make(&device, i)).collect::<Result<_>>()?;
        // Once by hand: what a launch refuses is said here, and lazily loaded kernels are loaded.
        sets.iter_mut().try_for_each(|set| call(&device, set))?;
        let (graph, ()) = device.capture(|| sets.iter_mut().try_for_each(|set| call(&device, set)))?;
        let round = Rounds { device: &device, graph: &graph, calls: count as u64 };
        let once = round.seconds(1)?;
        // A sample takes milliseconds, beside which the clock's half microsecond is nothing.
        let rounds = (self.mode.sample_secs() / once.max(1e-9)).ceil().clamp(1.0, 1000.0) as u64;
        let mut samples: Vec<f64> =
            (0..self.mode.samples()).map(|_| round.per_call(rounds)).collect::<Result<_>>()?;
        samples.sort_by(f64::total_cmp);
        let seconds = samples[samples.len() / 2];
        self.sample(name, cost, &round)?;
        drop(graph);
        drop(sets);
        let bar = match &self.blas {
            Ok(blas) if !bar.is_empty() => match blas.seconds(bar, ROTATION_BYTES) {
                Ok(seconds) => Some(seconds),
                Err(reason) => {
                    println!("cuBLASLt, {name}: {reason}");
                    None
                }
            },
            _ => None,
        };
        let floor = self.card.map(|card| card.floor_secs(cost.flops, cost.bytes));
        let Cost { flops, bytes } = cost;
        let row = Row { name: name.to_owned(), seconds, flops, bytes, floor, bar, sets: count };
        println!("{row}");
        self.rows.push(row);
        Ok(())
    }

    /// Criterion's own samples.
    fn sample(&mut self, name: &str, cost: Cost, round: &Rounds<'_>) -> Result<()> {
        let Some(criterion) = &mut self.criterion else { return Ok(()) };
        let failure = RefCell::new(None);
        let (group, of_group) = name.split_once('/').unwrap_or(("kernels", name));
        let mut group = criterion.benchmark_group(group);
        group.throughput(Throughput::Elements(cost.flops));
        group.bench_function(of_group, |b| {
            b.iter_custom(|calls| match round.per_call(calls.div_ceil(round.calls)) {
                Ok(seconds) => Duration::from_secs_f64(seconds * calls as f64),
                Err(error) => {
                    failure.replace(Some(error));
                    Duration::ZERO
                }
            });
        });
        group.finish();
        failure.into_inner().map_or(Ok(()), Err)
    }
}

/// One launch on each set of buffers, recorded.
struct Rounds<'a> {
    device: &'a Device,
    graph: &'a Graph,
    calls: u64,
}

impl Rounds<'_> {
    /// Seconds of so many rounds: of the GPU, and by the clock on the wall where there is none.
    fn seconds(&self, rounds: u64) -> Result<f64> {
        let start = Instant::now();
        let (result, seconds) =
            self.device.time(|| (0..rounds).try_for_each(|_| self.device.replay(self.graph)))?;
        result?;
        Ok(seconds.unwrap_or_else(|| start.elapsed().as_secs_f64()))
    }

    fn per_call(&self, rounds: u64) -> Result<f64> {
        Ok(self.seconds(rounds)? / (rounds * self.calls) as f64)
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
    const PERIOD: usize = 1_048_573;
    static DRAWN: std::sync::OnceLock<Vec<f32>> = std::sync::OnceLock::new();
    let drawn = DRAWN.get_or_init(|| {
        let mut stream = Stream::new(1, Purpose::ModelInit, 0);
        (0..PERIOD).map(|_| stream.normal()).collect()
    });
    let first = index as usize * 7919 % PERIOD;
    let in_turn = drawn[first..].iter().chain(&drawn[..first]);
    let period: Vec<bf16> = in_turn.take(len).map(|x| bf16::from_f32(size * x)).collect();
    let mut numbers = Vec::with_capacity(len);
    while numbers.len() < len {
        numbers.extend_from_slice(&period[..period.len().min(len - numbers.len())]);
    }
    numbers
}
