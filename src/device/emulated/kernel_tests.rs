//! The emulator on the correct kernels of kernels/simt/tests/: against plain references, on shapes that fit no tile, in every mode.

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::{Emulator, EmulatorOptions, Schedule};
use crate::device::kernels::DevicePtr;
use crate::error::Result;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GemmParams {
    a: DevicePtr,
    b: DevicePtr,
    c: DevicePtr,
    m: i32,
    n: i32,
    k: i32,
    unused: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct AddParams {
    pub(super) x: DevicePtr,
    pub(super) y: DevicePtr,
    pub(super) z: DevicePtr,
    pub(super) count: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormParams {
    x: DevicePtr,
    weight: DevicePtr,
    y: DevicePtr,
    rows: i32,
    columns: i32,
    eps: f32,
    unused: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TransposeParams {
    x: DevicePtr,
    y: DevicePtr,
    rows: i32,
    columns: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RowsParams {
    x: DevicePtr,
    y: DevicePtr,
    rows: i64,
    columns: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SumParams {
    x: DevicePtr,
    partial: DevicePtr,
    total: DevicePtr,
    tickets: DevicePtr,
    count: i64,
}

/// A launch of a test kernel, by what it computes and on which shape.
#[derive(Debug, Clone, Copy)]
pub(super) enum Task {
    /// m, n, k.
    Gemm(usize, usize, usize),
    /// Elements.
    Add(usize),
    /// Rows, columns.
    Norm(usize, usize),
    /// Rows, columns.
    Transpose(usize, usize),
    /// Elements, blocks.
    Sum(usize, usize),
    /// Rows, columns.
    LastRow(usize, usize),
}

/// What a kernel computed.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) bytes: Vec<u8>,
    /// True if the result matches the reference.
    pub(super) is_right: bool,
}

impl Task {
    /// Runs `symbol`, the correct kernel of this task or one with a planted bug, and compares its result.
    pub(super) fn run(self, emulator: &Emulator, symbol: &str) -> Result<Outcome> {
        match self {
            Self::Gemm(m, n, k) => gemm(emulator, symbol, [m, n, k], 3 * 16384),
            Self::Add(len) => add(emulator, symbol, len),
            Self::Norm(rows, columns) => norm(emulator, symbol, rows, columns),
            Self::Transpose(rows, columns) => transpose(emulator, symbol, rows, columns),
            Self::Sum(len, blocks) => sum(emulator, symbol, len, blocks),
            Self::LastRow(rows, columns) => last_row(emulator, symbol, rows, columns),
        }
    }

    /// The name of the correct kernel.
    pub(super) fn symbol(self) -> &'static str {
        match self {
            Self::Gemm(..) => "test_gemm",
            Self::Add(_) => "test_add",
            Self::Norm(..) => "test_norm",
            Self::Transpose(..) => "test_transpose",
            Self::Sum(..) => "test_sum",
            Self::LastRow(..) => "test_last_row",
        }
    }
}

pub(super) fn gemm(
    emulator: &Emulator,
    symbol: &str,
    [m, n, k]: [usize; 3],
    dynamic_smem: u32,
) -> Result<Outcome> {
    let (a, b) = (halves(m * k, 1), halves(n * k, 2));
    let params = GemmParams {
        a: upload(emulator, &a),
        b: upload(emulator, &b),
        c: emulator.alloc(m * n * 2)?,
        m: int(m),
        n: int(n),
        k: int(k),
        unused: 0,
    };
    let grid = [blocks(n, 128), blocks(m, 128), 1];
    emulator.launch(symbol, grid, 256, dynamic_smem, bytemuck::bytes_of(&params))?;
    let c = download::<bf16>(emulator, params.c, m * n);
    let want =
        |at: usize| -> f64 { (0..k).map(|i| a[at / n * k + i].to_f64() * b[at % n * k + i].to_f64()).sum() };
    // A rounding to bf16 is off by 2^-9 at most; the sums are of numbers below 1.
    let is_right =
        (0..m * n).all(|at| (c[at].to_f64() - want(at)).abs() <= want(at).abs() / 256.0 + 1e-6 * k as f64);
    Ok(Outcome { bytes: bytemuck::cast_slice(&c).to_vec(), is_right })
}

fn add(emulator: &Emulator, symbol: &str, len: usize) -> Result<Outcome> {
    let (x, y) = (numbers(len, 3), numbers(len, 4));
    let params = AddParams {
        x: upload(emulator, &x),
        y: upload(emulator, &y),
        z: emulator.alloc(len * 4)?,
        count: len as i64,
    };
    emulator.launch(symbol, [blocks(len, 256), 1, 1], 256, 0, bytemuck::bytes_of(&params))?;
    let z = download::<f32>(emulator, params.z, len);
    let is_right = (0..len).all(|i| z[i] == x[i] + y[i]);
    Ok(Outcome { bytes: bytemuck::cast_slice(&z).to_vec(), is_right })
}

fn norm(emulator: &Emulator, symbol: &str, rows: usize, columns: usize) -> Result<Outcome> {
    let (x, weight) = (halves(rows * columns, 5), halves(columns, 6));
    let params = NormParams {
        x: upload(emulator, &x),
        weight: upload(emulator, &weight),
        y: emulator.alloc(rows * columns * 2)?,
        rows: int(rows),
        columns: int(columns),
        eps: 1e-6,
        unused: 0,
    };
    emulator.launch(symbol, [blocks(rows, 1), 1, 1], 128, 0, bytemuck::bytes_of(&params))?;
    let y = download::<bf16>(emulator, params.y, rows * columns);
    let is_right = (0..rows * columns).all(|at| {
        let row = &x[at / columns * columns..][..columns];
        let mean = row.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / columns as f64;
        let want = x[at].to_f64() / (mean + 1e-6).sqrt() * weight[at % columns].to_f64();
        (y[at].to_f64() - want).abs() <= want.abs() / 256.0 + 1e-6
    });
    Ok(Outcome { bytes: bytemuck::cast_slice(&y).to_vec(), is_right })
}

fn transpose(emulator: &Emulator, symbol: &str, rows: usize, columns: usize) -> Result<Outcome> {
    let x = numbers(rows * columns, 7);
    let params = TransposeParams {
        x: upload(emulator, &x),
        y: emulator.alloc(rows * columns * 4)?,
        rows: int(rows),
        columns: int(columns),
    };
    let grid = [blocks(columns, 128), blocks(rows, 64), 1];
    emulator.launch(symbol, grid, 128, 0, bytemuck::bytes_of(&params))?;
    let y = download::<f32>(emulator, params.y, rows * columns);
    let is_right = (0..rows * columns).all(|at| y[at] == x[at % rows * columns + at / rows]);
    Ok(Outcome { bytes: bytemuck::cast_slice(&y).to_vec(), is_right })
}

fn sum(emulator: &Emulator, symbol: &str, len: usize, blocks: usize) -> Result<Outcome> {
    let x = numbers(len, 8);
    let params = SumParams {
        x: upload(emulator, &x),
        partial: emulator.alloc(blocks * 4)?,
        total: upload(emulator, &[0.0_f32]),
        tickets: upload(emulator, &[0_u32]),
        count: len as i64,
    };
    let grid = [u32::try_from(blocks).unwrap(), 1, 1];
    emulator.launch(symbol, grid, 128, 0, bytemuck::bytes_of(&params))?;
    let total = download::<f32>(emulator, params.total, 1);
    let want: f64 = x.iter().map(|x| f64::from(*x)).sum();
    let tickets = download::<u32>(emulator, params.tickets, 1);
    let is_right = (f64::from(total[0]) - want).abs() < 1e-3 && tickets == [0];
    Ok(Outcome { bytes: bytemuck::cast_slice(&total).to_vec(), is_right })
}

fn last_row(emulator: &Emulator, symbol: &str, rows: usize, columns: usize) -> Result<Outcome> {
    let row = numbers(columns, 9);
    let x = emulator.alloc(rows * columns * 4)?;
    emulator.write(DevicePtr(x.0 + ((rows - 1) * columns * 4) as u64), bytemuck::cast_slice(&row))?;
    let y = emulator.alloc(columns * 4)?;
    let params = RowsParams { x, y, rows: rows as i64, columns: columns as i64 };
    emulator.launch(symbol, [blocks(columns, 256), 1, 1], 256, 0, bytemuck::bytes_of(&params))?;
    let y = download::<f32>(emulator, y, columns);
    emulator.free(x)?;
    Ok(Outcome { bytes: bytemuck::cast_slice(&y).to_vec(), is_right: y == row })
}

pub(super) fn upload<T: Pod>(emulator: &Emulator, values: &[T]) -> DevicePtr {
    let buffer = emulator.alloc(size_of_val(values)).unwrap();
    emulator.write(buffer, bytemuck::cast_slice(values)).unwrap();
    buffer
}

pub(super) fn download<T: Pod>(emulator: &Emulator, buffer: DevicePtr, len: usize) -> Vec<T> {
    let mut values = vec![T::zeroed(); len];
    emulator.read(buffer, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

/// Numbers in [-1, 1).
pub(super) fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn halves(len: usize, seed: u32) -> Vec<bf16> {
    numbers(len, seed).into_iter().map(bf16::from_f32).collect()
}

fn blocks(size: usize, tile: usize) -> u32 {
    u32::try_from(size.div_ceil(tile)).unwrap()
}

fn int(size: usize) -> i32 {
    i32::try_from(size).unwrap()
}

const FAST: EmulatorOptions = EmulatorOptions {
    check: false,
    stats: false,
    schedule: Schedule::Fixed,
    threads: 1,
    watchdog_secs: 60.0,
    truncates_mma: false,
};

#[test]
fn results_match_on_ragged_shapes_in_every_mode() {
    let tasks = [
        Task::Gemm(128, 128, 32),
        Task::Gemm(1, 8, 8),
        Task::Gemm(130, 136, 72),
        Task::Gemm(77, 131, 200),
        Task::Add(1),
        Task::Add(1000),
        Task::Norm(1, 8),
        Task::Norm(3, 1032),
        Task::Norm(2, 4096),
        Task::Transpose(32, 128),
        Task::Transpose(1, 1),
        Task::Transpose(100, 131),
        Task::Sum(1, 1),
        Task::Sum(5000, 7),
        Task::LastRow(3, 256),
    ];
    for options in [
        FAST,
        EmulatorOptions { threads: 2, ..FAST },
        EmulatorOptions { schedule: Schedule::Random(1), threads: 2, ..FAST },
        EmulatorOptions { check: true, ..FAST },
        EmulatorOptions { stats: true, ..FAST },
    ] {
        let emulator = Emulator::new(options).unwrap();
        for task in tasks {
            let outcome = task.run(&emulator, task.symbol()).unwrap();
            assert!(outcome.is_right, "{task:?} with {options:?}");
        }
    }
}

#[test]
fn correct_kernels_raise_no_alarm_and_give_the_same_bits_in_60_schedules() {
    let tasks = [
        Task::Gemm(130, 136, 104),
        Task::Add(600),
        Task::Norm(3, 1032),
        Task::Transpose(70, 131),
        Task::Sum(3000, 5),
    ];
    for task in tasks {
        let emulator = Emulator::new(EmulatorOptions { check: true, ..FAST }).unwrap();
        let want = task.run(&emulator, task.symbol()).unwrap();
        assert!(want.is_right, "{task:?}");
        for seed in 0..60 {
            emulator.set_options(EmulatorOptions { check: true, schedule: Schedule::Random(seed), ..FAST });
            let outcome = task.run(&emulator, task.symbol()).unwrap();
            assert!(outcome.bytes == want.bytes, "{task:?} with seed {seed}");
        }
    }
}

#[test]
fn correct_kernels_waste_no_memory_traffic() {
    let emulator = Emulator::new(EmulatorOptions { stats: true, ..FAST }).unwrap();
    let tasks = [Task::Gemm(256, 128, 96), Task::Add(1024), Task::Norm(2, 2048), Task::Transpose(64, 128)];
    for task in tasks {
        task.run(&emulator, task.symbol()).unwrap();
    }
    let counters = emulator.take_counters();
    for task in tasks {
        let kernel = counters.kernel(task.symbol());
        assert!(kernel.total.ideal_sectors > 0 && kernel.lines.len() >= 2, "{task:?}: {kernel:?}");
        assert_eq!(kernel.worst_shared_ratio(), 1.0, "{task:?}: {kernel:#?}");
        assert_eq!(kernel.worst_sector_ratio(), 1.0, "{task:?}: {kernel:#?}");
    }
    let gemm = counters.kernel("test_gemm").total;
    assert_eq!(gemm.mma_flops(), 2 * 256 * 128 * 96);
    // Two tile rows: a once, b twice, c once.
    assert_eq!(gemm.global_bytes, 2 * (256 * 96 + 2 * 128 * 96 + 256 * 128));
    assert!(emulator.take_counters().kernels.is_empty());
}
