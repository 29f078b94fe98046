//! The emulator on correct kernels (kernels/simt/tests/), against plain references, on shapes that fit no tile.

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::{Emulator, EmulatorOptions, Schedule};
use crate::device::kernels::DevicePtr;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
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
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct AddParams {
    x: DevicePtr,
    y: DevicePtr,
    z: DevicePtr,
    count: i64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
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
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct TransposeParams {
    x: DevicePtr,
    y: DevicePtr,
    rows: i32,
    columns: i32,
}

fn upload<T: Pod>(emulator: &Emulator, values: &[T]) -> DevicePtr {
    let buffer = emulator.alloc(size_of_val(values)).unwrap();
    emulator.write(buffer, bytemuck::cast_slice(values)).unwrap();
    buffer
}

fn download<T: Pod>(emulator: &Emulator, buffer: DevicePtr, len: usize) -> Vec<T> {
    let mut values = vec![T::zeroed(); len];
    emulator.read(buffer, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

/// Numbers in [-1, 1) that differ.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
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

/// Options of every mode that runs the correct kernels.
fn modes() -> Vec<EmulatorOptions> {
    let fast = EmulatorOptions::default();
    vec![
        fast,
        EmulatorOptions { schedule: Schedule::Random(1), threads: 2, ..fast },
        EmulatorOptions { check: true, ..fast },
        EmulatorOptions { check: true, schedule: Schedule::Random(2), ..fast },
    ]
}

fn run_gemm(emulator: &Emulator, [m, n, k]: [usize; 3]) -> Vec<bf16> {
    let params = GemmParams {
        a: upload(emulator, &halves(m * k, 1)),
        b: upload(emulator, &halves(n * k, 2)),
        c: emulator.alloc(m * n * 2).unwrap(),
        m: i32::try_from(m).unwrap(),
        n: i32::try_from(n).unwrap(),
        k: i32::try_from(k).unwrap(),
        unused: 0,
    };
    let grid = [blocks(n, 128), blocks(m, 128), 1];
    emulator.launch("test_gemm", grid, 256, 3 * 16384, bytemuck::bytes_of(&params)).unwrap();
    download(emulator, params.c, m * n)
}

#[test]
fn products_match_on_ragged_shapes() {
    for options in modes() {
        for shape in [[128, 128, 32], [1, 8, 8], [130, 136, 72], [77, 131, 200], [257, 24, 96]] {
            let [m, n, k] = shape;
            let emulator = Emulator::new(options).unwrap();
            let got = run_gemm(&emulator, shape);
            let (a, b) = (halves(m * k, 1), halves(n * k, 2));
            for (at, &got) in got.iter().enumerate() {
                let (row, column) = (at / n, at % n);
                let want: f64 = (0..k).map(|i| a[row * k + i].to_f64() * b[column * k + i].to_f64()).sum();
                let limit = 0.004 * want.abs() + 1e-3;
                assert!(
                    (got.to_f64() - want).abs() < limit,
                    "{shape:?} at {row}, {column}: {got} for {want}"
                );
            }
        }
    }
}

#[test]
fn sums_match_bit_for_bit() {
    for options in modes() {
        for len in [1, 31, 256, 1000, 4097] {
            let emulator = Emulator::new(options).unwrap();
            let (x, y) = (numbers(len, 3), numbers(len, 4));
            let z = emulator.alloc(len * 4).unwrap();
            let params =
                AddParams { x: upload(&emulator, &x), y: upload(&emulator, &y), z, count: len as i64 };
            emulator
                .launch("test_add", [blocks(len, 256), 1, 1], 256, 0, bytemuck::bytes_of(&params))
                .unwrap();
            let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            assert_eq!(download::<f32>(&emulator, z, len), want);
        }
    }
}

#[test]
fn norms_match() {
    for options in modes() {
        for (rows, columns) in [(1, 8), (3, 1024), (5, 1032), (2, 4096)] {
            let emulator = Emulator::new(options).unwrap();
            let (x, weight) = (halves(rows * columns, 5), halves(columns, 6));
            let params = NormParams {
                x: upload(&emulator, &x),
                weight: upload(&emulator, &weight),
                y: emulator.alloc(rows * columns * 2).unwrap(),
                rows: i32::try_from(rows).unwrap(),
                columns: i32::try_from(columns).unwrap(),
                eps: 1e-6,
                unused: 0,
            };
            let grid = [blocks(rows, 1), 1, 1];
            emulator.launch("test_norm", grid, 128, 0, bytemuck::bytes_of(&params)).unwrap();
            let got = download::<bf16>(&emulator, params.y, rows * columns);
            for (row, got) in got.chunks(columns).enumerate() {
                let x = &x[row * columns..][..columns];
                let mean = x.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / columns as f64;
                for i in 0..columns {
                    let want = x[i].to_f64() / (mean + 1e-6).sqrt() * weight[i].to_f64();
                    assert!((got[i].to_f64() - want).abs() <= 0.004 * want.abs() + 1e-6, "{row}, {i}");
                }
            }
        }
    }
}

#[test]
fn transposes_match() {
    for options in modes() {
        for (rows, columns) in [(32, 128), (1, 1), (45, 133), (100, 31)] {
            let emulator = Emulator::new(options).unwrap();
            let x = numbers(rows * columns, 7);
            let params = TransposeParams {
                x: upload(&emulator, &x),
                y: emulator.alloc(rows * columns * 4).unwrap(),
                rows: i32::try_from(rows).unwrap(),
                columns: i32::try_from(columns).unwrap(),
            };
            let grid = [blocks(columns, 128), blocks(rows, 32), 1];
            emulator.launch("test_transpose", grid, 128, 0, bytemuck::bytes_of(&params)).unwrap();
            let got = download::<f32>(&emulator, params.y, rows * columns);
            assert!((0..rows * columns).all(|at| got[at] == x[at % rows * columns + at / rows]));
        }
    }
}

#[test]
fn launches_beyond_the_limits_are_refused() {
    let emulator = Emulator::new(EmulatorOptions::default()).unwrap();
    let params = [0_u8; 32];
    for (symbol, grid, threads, smem, params, want) in [
        ("test_nothing", [1, 1, 1], 256, 0, &params[..], "no kernel of this name"),
        ("test_add", [1, 1, 1], 256, 0, &params[..24], "called with 24 bytes of params, it takes 32"),
        ("test_add", [1, 1, 1], 128, 0, &params, "launched with 128 threads, it is made for 256"),
        ("test_add", [0, 1, 1], 256, 0, &params, "grid of (0, 1, 1)"),
        ("test_add", [1, 65536, 1], 256, 0, &params, "grid of (1, 65536, 1)"),
        ("test_add", [1, 1, 1], 256, 100 * 1024, &params, "102400 bytes of dynamic shared memory"),
    ] {
        let error = emulator.launch(symbol, grid, threads, smem, params).unwrap_err().to_string();
        assert!(error.contains(want) && error.contains(symbol), "{error}");
    }
}
