//! Memory, launches and traps of the emulator.

use super::kernel_tests::{Task, download, numbers, upload};
use super::{Emulator, EmulatorOptions, Schedule};
use crate::device::kernels::DevicePtr;

fn emulator(options: EmulatorOptions) -> Emulator {
    Emulator::new(options).unwrap()
}

fn fast() -> EmulatorOptions {
    EmulatorOptions { threads: 1, ..EmulatorOptions::default() }
}

fn checked() -> EmulatorOptions {
    EmulatorOptions { check: true, ..fast() }
}

#[test]
fn memory_is_fresh_aligned_and_bounded() {
    let emulator = emulator(checked());
    let buffer = emulator.alloc(100).unwrap();
    assert_eq!(buffer.0 % 256, 0);
    assert_eq!(download::<u8>(&emulator, buffer, 100), [0xff; 100]);
    emulator.write(DevicePtr(buffer.0 + 10), &[1, 2, 3]).unwrap();
    emulator.set(DevicePtr(buffer.0 + 12), 7, 2).unwrap();
    assert_eq!(download::<u8>(&emulator, buffer, 100)[9..15], [0xff, 1, 2, 7, 7, 0xff]);
    emulator.poison(buffer, 100).unwrap();
    assert_eq!(download::<u8>(&emulator, buffer, 100), [0xff; 100]);

    let refused = |result: crate::error::Result<()>, want: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(want), "{text}");
    };
    refused(
        emulator.write(DevicePtr(buffer.0 + 98), &[0; 3]),
        "3 bytes at offset 98 of a buffer of 100 bytes",
    );
    refused(emulator.read(DevicePtr(buffer.0 + 101), &mut []), "1 bytes past the end of a buffer");
    refused(emulator.set(DevicePtr(8), 0, 1), "not in device memory");
    refused(emulator.free(DevicePtr(buffer.0 + 1)), "not the start of a buffer");
    emulator.free(buffer).unwrap();
    refused(emulator.free(buffer), "freed buffer");
    refused(emulator.write(buffer, &[0]), "freed buffer of 100 bytes");
    let next = emulator.alloc(100).unwrap();
    assert!(next.0 > buffer.0, "addresses are used once");
    let nothing = emulator.alloc(0).unwrap();
    emulator.free(nothing).unwrap();
    assert!(emulator.alloc(1 << 60).is_err());
}

#[test]
fn launches_beyond_the_limits_are_refused() {
    let emulator = emulator(fast());
    let params = [0_u8; 32];
    for (symbol, grid, threads, smem, params, want) in [
        ("test_nothing", [1, 1, 1], 256, 0, &params[..], "no kernel of this name"),
        ("test_add", [1, 1, 1], 256, 0, &params[..24], "called with 24 bytes of params, it takes 32"),
        ("test_add", [1, 1, 1], 128, 0, &params, "launched with 128 threads, it is made for 256"),
        ("test_add", [0, 1, 1], 256, 0, &params, "grid of (0, 1, 1)"),
        ("test_add", [1, 65536, 1], 256, 0, &params, "grid of (1, 65536, 1)"),
        ("test_add", [1, 1, 65536], 256, 0, &params, "grid of (1, 1, 65536)"),
        ("test_add", [1, 1, 1], 256, 99 * 1024 + 1, &params, "101377 bytes of dynamic shared memory"),
        ("test_norm", [1, 1, 1], 128, 99 * 1024, &[0; 40], "too much shared memory: 16 bytes static"),
    ] {
        let error = emulator.launch(symbol, grid, threads, smem, params).unwrap_err().to_string();
        assert!(error.contains(want) && error.contains(symbol), "{error}");
    }
}

#[test]
fn traps_and_loops_without_end_are_errors_without_checks_too() {
    for schedule in [Schedule::Fixed, Schedule::Random(1), Schedule::Random(2)] {
        let emulator = emulator(EmulatorOptions { schedule, watchdog_secs: 0.2, threads: 2, ..fast() });
        for (name, task, want) in [
            ("no_row_bound", Task::Gemm(64, 128, 64), "illegal access: "),
            ("stage_beyond_end", Task::Gemm(128, 128, 160), "illegal cp_async16"),
            ("divergent_mma", Task::Gemm(128, 128, 32), "all lanes must reach the same"),
            ("one_before", Task::Add(1024), "4 bytes before a buffer"),
            ("for_ever", Task::Add(1024), "the time limit of 0.2 s is over"),
            ("division_by_zero", Task::Add(1024), "division by zero"),
            ("deep_stack", Task::Add(1024), "stack overflow"),
            ("divergent_barrier", Task::Norm(2, 1024), "wait for each other for ever"),
            ("early_return", Task::Norm(2, 512), "64 threads"),
            ("misaligned_vector", Task::Norm(2, 1024), "misaligned 16-byte access"),
        ] {
            let error = task.run(&emulator, &format!("bug_{name}")).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains(".cuh:"), "{name}: {error}");
        }
        // The emulator still works afterwards.
        assert!(Task::Gemm(130, 136, 72).run(&emulator, "test_gemm").unwrap().is_right);
    }
}

#[test]
fn emulators_run_side_by_side() {
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let options = EmulatorOptions { check: seed % 2 == 0, threads: 2, ..fast() };
                let emulator = emulator(options);
                for _ in 0..10 {
                    assert!(Task::Gemm(130, 136, 72).run(&emulator, "test_gemm").unwrap().is_right);
                    assert!(Task::Norm(4, 64).run(&emulator, "bug_divergent_barrier").is_err());
                    let text = Task::Add(1024).run(&emulator, "bug_one_before").unwrap_err().to_string();
                    assert!(text.contains("bug_one_before"), "{text}");
                }
            });
        }
    });
}

#[test]
fn one_emulator_serves_several_threads() {
    let emulator = emulator(fast());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                assert!(Task::Transpose(100, 131).run(&emulator, "test_transpose").unwrap().is_right)
            });
        }
    });
}

#[test]
fn the_same_seed_reports_the_same_thread() {
    let report = || {
        let emulator = emulator(EmulatorOptions { schedule: Schedule::Random(12), ..checked() });
        let text = Task::Norm(3, 1544).run(&emulator, "bug_no_barrier").unwrap_err().to_string();
        text.split(": ").next().unwrap().to_owned()
    };
    assert_eq!(report(), report());
}

#[test]
fn checks_may_begin_late() {
    let emulator = emulator(fast());
    let task = Task::Norm(3, 1032);
    let before = task.run(&emulator, "test_norm").unwrap();
    let kept = upload(&emulator, &numbers(10, 1));
    emulator.set_options(checked());
    assert_eq!(task.run(&emulator, "test_norm").unwrap().bytes, before.bytes);
    emulator.set_options(fast());
    task.run(&emulator, "test_norm").unwrap();
    assert_eq!(download::<f32>(&emulator, kept, 10), numbers(10, 1));
}
