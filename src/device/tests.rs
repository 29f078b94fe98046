//! Tensors on every kind of device, the arena behind them, and invalid launches.

use super::*;

#[test]
fn a_dry_tensor_counts_and_has_no_memory() {
    let dry = Device::dry();
    let huge = dry.zeros::<f32>(1 << 30, 1 << 10).unwrap();
    assert_eq!(dry.memory().live_bytes, 1 << 42);
    drop(huge);
    assert_eq!(dry.memory(), MemoryUse { live_bytes: 0, peak_bytes: 1 << 42, borrowed_bytes: 0 });
}

#[test]
fn freed_memory_serves_the_next_tensor_of_about_its_size() {
    let cpu = Device::cpu(1).unwrap();
    let first = cpu.zeros::<f32>(100, 100).unwrap();
    let address = first.data().as_ptr();
    drop(first);
    let second = cpu.zeros::<f32>(99, 100).unwrap();
    assert_eq!(second.data().as_ptr(), address);
    assert_eq!(cpu.memory().live_bytes, 4 * 9900);
}

#[test]
fn fresh_tensors_are_poisoned_in_debug_builds() {
    let cpu = Device::cpu(1).unwrap();
    if cfg!(debug_assertions) {
        assert!(cpu.empty::<f32>(2, 2).unwrap().data().iter().all(|x| x.is_nan()));
    }
}

#[test]
fn borrowed_tensors_are_copied_before_they_change() {
    let cpu = Device::cpu(1).unwrap();
    let data: HostData<f32> = Arc::new(vec![1.0, 2.0]);
    let mut tensor = cpu.borrowed(1, 2, data.clone()).unwrap();
    tensor.data_mut()[0] = 5.0;
    assert_eq!(tensor.data(), [5.0, 2.0]);
    assert_eq!(data.as_ref().as_ref(), [1.0, 2.0]);
}

#[test]
fn the_peak_is_known_by_class_and_a_gpu_rounds_up() {
    let dry = Device::dry_gpu(Chip::RTX_3080);
    let weights = dry.class(Class::Weights).empty::<half::bf16>(3, 50).unwrap();
    let first = dry.zeros::<u32>(1, 64).unwrap();
    let more = dry.class(Class::Qkv).empty::<u8>(1, 257).unwrap();
    drop((first, more));
    let later = dry.class(Class::Logits).empty::<u8>(1, 256).unwrap();
    let peak = dry.peak_by_class();
    assert_eq!(
        peak.iter().collect::<Vec<_>>(),
        [(Class::Weights, 512), (Class::Qkv, 512), (Class::Temporary, 256)]
    );
    assert_eq!((peak.total(), dry.memory().live_bytes), (dry.memory().peak_bytes, 512 + 256));
    drop((weights, later));
    assert_eq!(dry.memory().live_bytes, 0);
}

#[test]
fn launches_count_to_the_op_that_was_noted_before_them() {
    let device = Device::dry_gpu(Chip::RTX_3080);
    let launch = Launch { kernel: kernels::Kernel::SelfTest, grid: [1, 1, 1], dynamic_smem: 0 };
    let params = <kernels::params::SelfTestParams as bytemuck::Zeroable>::zeroed();
    let work = Work::new(8, 2);
    device.record("a", work);
    device.record("b", work);
    for _ in 0..2 {
        device.launch(&launch, &params).unwrap();
    }
    device.record("a", work);
    let ledger = device.take_ledger();
    let of: Vec<_> = ledger.entries().map(|(op, calls, work)| (op, calls, work.launches)).collect();
    assert_eq!(of, [("a", 2, 0), ("b", 1, 2)]);
    assert_eq!(ledger.total(), Work { flops: 24, bytes: 6, launches: 2 });
}

#[test]
fn the_cpu_passes_its_self_test() {
    let findings = self_test::self_test(&Device::cpu(1).unwrap()).unwrap();
    assert!(findings.iter().all(|finding| finding.outcome != self_test::Outcome::Failed), "{findings:?}");
}

#[test]
fn sizes_that_no_machine_has_are_errors() {
    for device in [Device::cpu(1).unwrap(), Device::dry(), Device::dry_gpu(Chip::RTX_3080)] {
        for (rows, cols) in [(usize::MAX, 2), (1 << 40, 1 << 30), (usize::MAX, usize::MAX)] {
            let error = device.empty::<f32>(rows, cols).unwrap_err().to_string();
            assert!(error.contains(device.label()) && error.contains("out of memory"), "{error}");
        }
        assert_eq!(device.memory().live_bytes, 0);
    }
    // The system refuses this allocation, and nothing is counted.
    let cpu = Device::cpu(1).unwrap();
    assert!(cpu.zeros::<u8>(1 << 31, 1 << 31).is_err());
    assert_eq!(cpu.memory(), MemoryUse::default());
}

#[test]
fn contents_go_up_and_down_on_the_cpu_and_nowhere_on_a_dry_device() {
    let cpu = Device::cpu(1).unwrap();
    let mut tensor = cpu.tensor(2, 2, &[1u32, 2, 3, 4]).unwrap();
    cpu.write(&mut tensor, &[5, 6, 7, 8]).unwrap();
    assert_eq!(cpu.read(&tensor).unwrap(), [5, 6, 7, 8]);
    assert_eq!(tensor.ptr(), kernels::DevicePtr(0));
    assert!(matches!(cpu.write(&mut tensor, &[1]), Err(Error::Shape { .. })));
    assert!(matches!(cpu.read_into(&tensor, &mut [1]), Err(Error::Shape { .. })));
    assert!(matches!(cpu.tensor(2, 3, &[1u32]), Err(Error::Shape { .. })));
    for dry in [Device::dry(), Device::dry_gpu(Chip::RTX_3080)] {
        let tensor = dry.tensor(2, 2, &[1u32, 2, 3, 4]).unwrap();
        assert_eq!((dry.read(&tensor).unwrap(), tensor.data().len()), (vec![0; 4], 0));
    }
}

#[test]
fn a_plan_has_the_addresses_and_the_size_of_the_arena() {
    let dry = Device::dry_gpu(Chip::RTX_3080);
    let [a, b] = [300, 1].map(|cols| dry.empty::<u8>(1, cols).unwrap());
    assert_eq!((a.ptr().0 % 256, b.ptr().0 - a.ptr().0), (0, 512));
    drop(a);
    let c = dry.empty::<u8>(2, 256).unwrap();
    assert_eq!(b.ptr().0 - c.ptr().0, 512);
    let usage = dry.arena().unwrap();
    assert_eq!((usage.used_bytes, usage.high_water_bytes), (768, 768));
    assert!(dry.reserve(1 << 20).is_err(), "tensors are there");
    drop((b, c));
    dry.reserve(512).unwrap();
    let error = dry.empty::<u8>(3, 256).unwrap_err().to_string();
    for part in [
        "768 bytes needed",
        "largest free piece is 512 bytes",
        "512 bytes of 512 bytes are free",
        "fix: lower",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(Device::dry().arena(), None);
}

/// A valid launch of the kernel `self_test`, with its params.
fn launch() -> (Launch, kernels::params::SelfTestParams) {
    let launch = Launch { kernel: kernels::Kernel::SelfTest, grid: [3, 2, 1], dynamic_smem: 512 };
    (launch, bytemuck::Zeroable::zeroed())
}

#[test]
fn launches_are_recorded_on_a_dry_gpu() {
    let dry = Device::dry_gpu(Chip::RTX_3080);
    let (launch, params) = launch();
    for grid in [[3, 2, 1], [1, 1, 1], [3, 2, 1]] {
        dry.launch(&Launch { grid, ..launch }, &params).unwrap();
    }
    let ledger = dry.take_ledger();
    let counts: Vec<_> = ledger.launches().map(|(launch, count)| (launch.grid, count)).collect();
    assert_eq!(counts, [([1, 1, 1], 1), ([3, 2, 1], 2)]);
    assert_eq!(dry.take_ledger().launches().count(), 0);
}

#[test]
fn a_wrong_launch_is_refused_with_kernel_grid_and_device() {
    let (good, params) = launch();
    let error = |device: &Device, launch: Launch| {
        let error = device.launch(&launch, &params).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert_eq!(device.take_ledger(), Ledger::default());
        error.to_string()
    };
    let dry = Device::dry_gpu(Chip::RTX_3080);
    for (grid, part) in [
        ([0, 1, 1], "0 blocks in x"),
        ([1 << 31, 1, 1], "2147483648 blocks in x, expected 1 to 2147483647"),
        ([1, 65_536, 1], "65536 blocks in y, expected 1 to 65535"),
        ([1, 1, 70_000], "70000 blocks in z"),
    ] {
        let text = error(&dry, Launch { grid, ..good });
        for part in [part, "self_test", &format!("{} x {} x {} blocks", grid[0], grid[1], grid[2]), "plan of"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    for dynamic_smem in [61_953, 101_377, u32::MAX] {
        let text = error(&dry, Launch { dynamic_smem, ..good });
        assert!(text.contains("shared memory") && text.contains("README.md allows 61952"), "{text}");
    }
    let text = error(&Device::cpu(1).unwrap(), good);
    assert!(text.contains("cpu") && text.contains("runs no kernels"), "{text}");
    assert!(Device::dry().launch(&good, &params).is_err());
}

#[test]
fn params_of_another_kernel_are_refused() {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct Other([u64; 5]);
    impl kernels::Params for Other {
        const NAME: &'static str = "OtherParams";
    }
    let error = Device::dry_gpu(Chip::RTX_3080).launch(&launch().0, &Other([0; 5])).unwrap_err().to_string();
    assert!(error.contains("got OtherParams of 40 bytes, expected SelfTestParams of 40 bytes"), "{error}");
}

#[cfg(feature = "emulated")]
mod emulated {
    use super::self_test::{Case, Outcome, self_test};
    use super::*;

    const CASE: Case = Case { grid: [4, 3, 2], stride: 3, factor: 5, addend: 6, offset: -7 };

    fn device() -> Device {
        Device::emulated(EmulatorOptions { check: true, ..EmulatorOptions::default() }).unwrap()
    }

    #[test]
    fn the_self_test_passes_under_all_checks() {
        let findings = self_test(&device()).unwrap();
        assert!(findings.iter().all(|finding| finding.outcome == Outcome::Passed), "{findings:?}");
    }

    #[test]
    fn mapped_memory_is_copied_up_and_tensors_have_no_content_here() {
        let device = device();
        let data: HostData<f32> = Arc::new(vec![1.0, 2.0, 3.0]);
        let mut tensor = device.borrowed(1, 3, data).unwrap();
        assert_eq!((tensor.data().len(), tensor.data_mut().len()), (0, 0));
        assert_eq!(device.read(&tensor).unwrap(), [1.0, 2.0, 3.0]);
        assert_ne!(tensor.ptr(), kernels::DevicePtr(0));
        assert_eq!(device.memory().live_bytes, 256);
        let empty = device.tensor::<f32>(0, 5, &[]).unwrap();
        assert!(device.read(&empty).unwrap().is_empty());
        assert_ne!(empty.ptr(), kernels::DevicePtr(0));
    }

    #[test]
    fn fresh_tensors_are_poisoned_in_reserved_memory_too() {
        let device = device();
        for reserved in [0, 4096] {
            device.reserve(reserved).unwrap();
            drop(device.tensor(1, 7, &[0.0f32; 7]).unwrap());
            let again = device.empty::<f32>(1, 7).unwrap();
            if cfg!(debug_assertions) {
                assert!(device.read(&again).unwrap().iter().all(|x| x.is_nan()));
            }
        }
    }

    #[test]
    fn the_addresses_of_a_run_are_those_of_its_plan() {
        let (dry, run) = (Device::dry_gpu(Chip::RTX_3080), device());
        let addresses = |device: &Device| -> Vec<u64> {
            let make = |cols| device.empty::<u8>(1, cols).unwrap();
            let (a, b, c) = (make(1000), make(10), make(5000));
            drop(b);
            let (d, e) = (make(200), make(300));
            let first = a.ptr().0;
            [a, c, d, e].iter().map(|tensor| tensor.ptr().0 - first).collect()
        };
        let planned = addresses(&dry);
        run.reserve(dry.arena().unwrap().high_water_bytes).unwrap();
        assert_eq!(addresses(&run), planned);
        assert_eq!(run.arena().unwrap().high_water_bytes, dry.arena().unwrap().high_water_bytes);
    }

    #[test]
    fn a_kernel_that_writes_outside_is_an_error_that_names_it() {
        let device = device();
        let x = vec![1; CASE.len()];
        assert_eq!(CASE.run(&device, &x, 0).unwrap(), CASE.expected(&x));
        let error = CASE.run(&device, &x, 1).unwrap_err();
        let text = error.to_string();
        assert!(error.exit_code() == 5 && text.contains("self_test"), "{text}");
        assert!(text.contains("self_test.cu"), "{text}");
        // Unlike a GPU, the emulator is usable after an error.
        assert_eq!(CASE.run(&device, &x, 0).unwrap(), CASE.expected(&x));
    }

    #[test]
    fn content_that_was_never_written_is_noticed() {
        let device = device();
        let [x, y] = [0, 1].map(|_| device.empty(1, CASE.len()).unwrap());
        let (launch, params) = CASE.launch(&x, &y, 0);
        let error = device.launch(&launch, &params).unwrap_err().to_string();
        assert!(error.contains("never written") || error.contains("uninitialised"), "{error}");
    }

    #[test]
    fn schedules_change_no_result() {
        let device = device();
        let x: Vec<u32> = (0..CASE.len() as u32).collect();
        for seed in 0..8 {
            let schedule = Schedule::Random(seed);
            device.set_emulator_options(EmulatorOptions {
                check: true,
                schedule,
                ..EmulatorOptions::default()
            });
            assert_eq!(CASE.run(&device, &x, 0).unwrap(), CASE.expected(&x), "seed {seed}");
        }
    }

    #[test]
    fn an_emulator_has_no_clock_and_no_card() {
        let device = device();
        assert_eq!(device.time(|| 7).unwrap(), (7, None));
        assert_eq!(device.card_memory().unwrap(), None);
        device.synchronize().unwrap();
    }
}
