//! The kernels' benchmarks on the emulator at tiny shapes: that they run, that the filter skips allocations,
//! and how many sets of buffers are used in turn.

#![cfg(feature = "emulated")]
#![allow(clippy::unwrap_used, reason = "tests")]

use tanren::device::{Device, EmulatorOptions};

use benches::common::names;
use benches::harness::{Bench, Cost, HEADER, ROTATION_BYTES, Row};
use benches::libraries::folders;
use benches::run;
use benches::shapes::Mode;

#[allow(dead_code, reason = "the program around the benchmarks is not for tests")]
#[path = "../../benches/kernels.rs"]
mod benches;

fn device() -> Device {
    Device::emulated(EmulatorOptions::default()).unwrap()
}

#[test]
fn all_benchmarks_run_at_tiny_shapes() {
    let rows = run(&device(), Mode::Smoke, &[], &mut criterion::Criterion::default()).unwrap();
    let of = |op: &str| rows.iter().filter(|row| row.name.starts_with(&format!("{op}/"))).count();
    let ops = ["lora_matmul", "linear_cross_entropy", "attention", "activation", "norm", "qk_norm_rope"];
    assert_eq!(ops.map(of), [12, 2, 14, 4, 5, 3]);
    assert_eq!(["adamw", "rows", "embedding", "dora", "label_head"].map(of), [1, 2, 1, 4, 4]);
    for row in &rows {
        assert!(row.seconds > 0.0 && row.seconds.is_finite(), "{row:?}");
        assert_eq!(row.sets, Cost { flops: row.flops, bytes: row.bytes }.sets(30_000), "{row:?}");
    }
    assert!(rows.iter().any(|row| row.sets > 2) && rows.iter().any(|row| row.sets == 1));
}

#[test]
fn the_filter_decides_before_anything_is_made() {
    let device = device();
    let mut criterion = criterion::Criterion::default();
    device.reserve(64 << 20).unwrap();
    let mut bench = Bench::new(&device, Mode::Smoke, &["b/second".to_owned()], &mut criterion);
    let cost = Cost { flops: 1, bytes: 12_000 };
    for name in ["a/first", "b/second", "b/third"] {
        let made = std::cell::RefCell::new(Vec::new());
        let make = |device: &Device, set: usize| {
            made.borrow_mut().push(set);
            device.zeros::<u32>(1, 64)
        };
        let mut used = Vec::new();
        bench
            .run(name, cost, &[], make, |_, tensor| {
                used.push(tensor.ptr());
                Ok(())
            })
            .unwrap();
        let expected: &[usize] = if name == "b/second" { &[0, 1, 2, 3] } else { &[] };
        assert_eq!(*made.borrow(), expected, "{name}");
        // Once by hand and once in the recording, each in turn.
        assert_eq!(used.len(), 2 * expected.len());
        assert!(used.iter().take(expected.len()).eq(used.iter().skip(expected.len())), "{used:?}");
    }
    assert_eq!(bench.rows().len(), 1);
}

#[test]
fn enough_sets_of_buffers_go_round() {
    let sets = |bytes| Cost { flops: 0, bytes }.sets(ROTATION_BYTES);
    assert_eq!([sets(1_000_000), sets(100_000_000), sets(179_000_000), sets(200_000_000)], [181, 3, 3, 1]);
    for bytes in [1, 4_456_448, 60_000_000] {
        assert!((sets(bytes) as u64 - 1) * bytes >= ROTATION_BYTES);
    }
}

#[test]
fn a_row_has_the_columns_of_the_header() {
    let row = Row {
        name: "a/b".into(),
        seconds: 2e-3,
        flops: 4_000_000_000,
        bytes: 6_000_000,
        floor: Some(1e-3),
        bar: None,
        sets: 3,
    };
    assert_eq!(row.to_string(), "| a/b | 2.0000 | 2.0 | 3 | 50.0 | - |");
    assert_eq!(HEADER.lines().next().unwrap().matches('|').count(), row.to_string().matches('|').count());
}

#[test]
fn names_are_what_is_no_option() {
    let names = |line: &str| names(line.split(' ').map(str::to_owned));
    assert_eq!(names("--bench lora"), ["lora"]);
    assert_eq!(names("--bench --sample-size 20 attention --noplot"), ["attention"]);
    assert_eq!(names("--save-baseline=x -n"), [""; 0]);
}

#[test]
fn libraries_of_pytorch_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let site = |name: &str| dir.path().join(name);
    let lib = |name: &str, file: &str| {
        let folder = site(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(file), "").unwrap();
        folder
    };
    lib("first/nvidia/nccl/lib", "libnccl.so.2");
    let blas = lib("second/nvidia/cublas/lib", "libcublasLt.so.12");
    let nvrtc = lib("second/nvidia/cuda_nvrtc/lib", "libnvrtc.so.12");
    assert_eq!(folders(&[site("none"), site("first"), site("second")]), [blas, nvrtc]);
    assert_eq!(folders(&[site("first")]).len(), 0);
}
