//! Tests of the emulator's checks: kernels with planted bugs (kernels/simt/tests/mutants.cuh) and how each
//! must be detected, in 8 schedules.
//!
//! The table in kernels/simt/README.md shows the same bugs with their results.

use super::kernel_tests::{AddParams, Task, gemm, numbers, upload};
use super::{Emulator, EmulatorOptions, Schedule};
use crate::device::kernels::DevicePtr;

/// How a bug is detected.
#[derive(Debug, Clone, Copy)]
enum Found {
    /// The checks end the launch with a message that contains one of these texts.
    Checks(&'static [&'static str]),
    /// The checks pass, but the result is wrong.
    Values,
    /// The result is right; a line of the kernel takes shared memory at least this many times as long as it must.
    Shared(f64),
    /// The result is right; a line of the kernel moves at least this many times as many sectors as it must.
    Sectors(f64),
}
use Found::{Checks, Sectors, Shared, Values};

const GEMM: Task = Task::Gemm(120, 128, 160);
const ADD: Task = Task::Add(1000);
const NORM: Task = Task::Norm(3, 1544);
const TRANSPOSE: Task = Task::Transpose(104, 136);
const SUM: Task = Task::Sum(3000, 5);

const UNWRITTEN: &str = "never written";
const RACE: &str = "race: ";
const ACROSS: &str = "race between blocks: ";
const IN_FLIGHT: &str = "is under way";
const GLOBAL: &str = "illegal global ";
const SMEM: &str = "illegal shared ";
const FOREIGN: &str = "not in device memory";
const FOR_EVER: &str = "wait for each other for ever";
const NOT_THE_SAME: &str = "all lanes must reach the same warp-wide call";

/// The name of the kernel without `bug_`, its task, and how the bug is detected.
const BUGS: [(&str, Task, Found); 54] = [
    ("no_loop_barrier", GEMM, Checks(&[UNWRITTEN, RACE, IN_FLIGHT])),
    ("wait_off_by_one", GEMM, Checks(&[IN_FLIGHT])),
    ("no_commit", GEMM, Checks(&[IN_FLIGHT])),
    ("prefetch_into_read", GEMM, Checks(&[IN_FLIGHT, RACE])),
    ("prefetch_before_barrier", GEMM, Checks(&[RACE, IN_FLIGHT])),
    ("no_reuse_barrier", GEMM, Checks(&[RACE])),
    ("no_result_barrier", GEMM, Checks(&[RACE, UNWRITTEN])),
    ("wrong_swizzle", GEMM, Values),
    ("swapped_fragments", GEMM, Values),
    ("transposed_fragment", GEMM, Values),
    ("no_swizzle", GEMM, Shared(4.0)),
    ("direct_stores", GEMM, Sectors(2.0)),
    ("no_row_bound", GEMM, Checks(&[GLOBAL])),
    ("no_result_bound", GEMM, Checks(&[GLOBAL])),
    ("stage_beyond_end", GEMM, Checks(&["illegal cp_async16", SMEM])),
    ("divergent_ldmatrix", GEMM, Checks(&[NOT_THE_SAME])),
    ("divergent_mma", GEMM, Checks(&[NOT_THE_SAME])),
    ("misaligned_copy", GEMM, Checks(&["misaligned cp_async16"])),
    ("one_past", ADD, Checks(&[GLOBAL])),
    ("no_bound", ADD, Checks(&[GLOBAL])),
    ("one_before", ADD, Checks(&["4 bytes before a buffer"])),
    ("far_write", ADD, Checks(&[FOREIGN])),
    ("same_element", ADD, Checks(&[RACE, ACROSS])),
    ("same_element_across_blocks", ADD, Checks(&[ACROSS])),
    ("in_place", ADD, Checks(&[ACROSS])),
    ("for_ever", ADD, Checks(&["the time limit of"])),
    ("waits_for_a_block", ADD, Checks(&[UNWRITTEN, ACROSS])),
    ("division_by_zero", ADD, Checks(&["division by zero"])),
    ("deep_stack", ADD, Checks(&["stack overflow"])),
    ("misaligned_word", ADD, Checks(&["misaligned 4-byte access"])),
    ("overflow", Task::LastRow(70_000, 40_960), Checks(&[UNWRITTEN, GLOBAL, FOREIGN])),
    ("no_barrier", NORM, Checks(&[UNWRITTEN, RACE])),
    ("unwritten_slot", NORM, Checks(&[UNWRITTEN])),
    ("reads_output", NORM, Checks(&[UNWRITTEN])),
    ("divergent_barrier", NORM, Checks(&[FOR_EVER, RACE, UNWRITTEN])),
    ("barrier_per_trip", NORM, Checks(&["not the __syncthreads", FOR_EVER])),
    ("two_barriers", NORM, Checks(&["not the __syncthreads"])),
    ("early_return", Task::Norm(2, 512), Checks(&[FOR_EVER])),
    ("divergent_shuffle", NORM, Checks(&[FOR_EVER])),
    ("misaligned_vector", NORM, Checks(&["misaligned 16-byte access"])),
    ("loop_one_past", NORM, Checks(&[GLOBAL, UNWRITTEN])),
    ("shared_one_past", NORM, Checks(&["offset 16 of a STATIC_SMEM array of 16 bytes", UNWRITTEN])),
    ("shared_far", NORM, Checks(&[SMEM])),
    ("no_syncwarp", TRANSPOSE, Checks(&[UNWRITTEN, RACE])),
    ("no_syncwarp_in_loop", TRANSPOSE, Checks(&[RACE])),
    ("unpadded", TRANSPOSE, Shared(16.0)),
    ("no_tile", TRANSPOSE, Sectors(8.0)),
    ("no_release_fence", SUM, Checks(&[ACROSS])),
    ("no_acquire_fence", SUM, Checks(&[ACROSS])),
    ("no_ticket_barrier", SUM, Checks(&[UNWRITTEN, RACE])),
    ("plain_ticket", SUM, Checks(&[ACROSS])),
    ("plain_total", SUM, Checks(&[ACROSS])),
    ("plain_total_in_block", SUM, Checks(&[RACE, ACROSS])),
    ("plain_shared_total", SUM, Checks(&[RACE])),
];

/// Schedules that every bug is run in: the plain one and all kinds of random ones.
fn schedules() -> impl Iterator<Item = EmulatorOptions> {
    let seeds = (0..7).map(|seed| Schedule::Random(100 + seed));
    // The longest of these kernels takes 10 ms, but for the one that never ends.
    [Schedule::Fixed].into_iter().chain(seeds).map(|schedule| EmulatorOptions {
        check: true,
        stats: false,
        schedule,
        threads: 1,
        watchdog_secs: 60.0,
        truncates_mma: false,
    })
}

/// The difference between the expected and the actual detection, if any.
fn fault(name: &str, task: Task, found: Found, options: EmulatorOptions) -> Option<String> {
    let options = match (name, found) {
        ("for_ever", _) => EmulatorOptions { watchdog_secs: 0.2, ..options },
        (_, Shared(_) | Sectors(_)) => EmulatorOptions { stats: true, ..options },
        _ => options,
    };
    let symbol = format!("bug_{name}");
    let emulator = Emulator::new(options).unwrap();
    let outcome = task.run(&emulator, &symbol);
    let counters = emulator.take_counters().kernel(&symbol);
    let is_good = match (found, &outcome) {
        (Checks(texts), Err(error)) => {
            let text = error.to_string();
            // Kernel, block, thread, and a line of a source.
            let names_the_place =
                text.contains(&format!("kernel {symbol}, block (")) && text.contains(".cuh:");
            names_the_place && texts.iter().any(|wanted| text.contains(wanted))
        }
        (Values, Ok(outcome)) => !outcome.is_right,
        (Shared(least), Ok(outcome)) => outcome.is_right && counters.worst_shared_ratio() >= least,
        (Sectors(least), Ok(outcome)) => outcome.is_right && counters.worst_sector_ratio() >= least,
        _ => false,
    };
    let outcome = outcome.map(|outcome| outcome.is_right);
    (!is_good).then(|| {
        format!("{name} with {:?}: expected {found:?}, got {outcome:?}, {counters:?}", options.schedule)
    })
}

#[test]
fn planted_bugs_are_found_in_every_schedule() {
    let faults: Vec<String> = BUGS
        .iter()
        .flat_map(|&(name, task, found)| {
            schedules().filter_map(move |options| fault(name, task, found, options))
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn wrong_launches_are_found() {
    for options in schedules() {
        let emulator = Emulator::new(options).unwrap();
        let x = numbers(256, 1);
        let device = upload(&emulator, &x);
        let run = |x: DevicePtr, params: usize, smem: u32| {
            let whole = AddParams { x, y: device, z: device, count: 256 };
            let bytes = &bytemuck::bytes_of(&whole)[..params];
            emulator.launch("test_add", [1, 1, 1], 256, smem, bytes).unwrap_err().to_string()
        };
        let freed = upload(&emulator, &x);
        emulator.free(freed).unwrap();
        assert!(run(freed, 32, 0).contains("freed buffer of 1024 bytes"));
        assert!(run(DevicePtr(x.as_ptr() as u64), 32, 0).contains("a pointer of the host"));
        assert!(run(DevicePtr(0), 32, 0).contains("not in device memory"));
        let other = Emulator::new(options).unwrap();
        assert!(run(upload(&other, &x), 32, 0).contains("of another emulator"));
        assert!(run(device, 24, 0).contains("24 bytes of params"));
        assert!(run(device, 32, 100 << 10).contains("102400 bytes of dynamic shared memory"));
        let little = gemm(&emulator, "test_gemm", [128, 128, 96], 2 * 16384).unwrap_err().to_string();
        assert!(little.contains("of 32768 bytes of dynamic shared memory"), "{little}");
    }
}
