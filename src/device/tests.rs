//! Tensors on every kind of device, the arena behind them, and what a launch refuses.

use super::*;

#[test]
fn a_dry_tensor_counts_and_has_no_memory() {
    let dry = Device::dry();
    let huge = dry.try_zeros::<f32>(1 << 30, 1 << 10).unwrap();
    assert_eq!(dry.memory().live_bytes, 1 << 42);
    drop(huge);
    assert_eq!(dry.memory(), MemoryUse { live_bytes: 0, peak_bytes: 1 << 42, borrowed_bytes: 0 });
}

#[test]
fn freed_memory_serves_the_next_tensor_of_about_its_size() {
    let cpu = Device::cpu(1).unwrap();
    let first = cpu.try_zeros::<f32>(100, 100).unwrap();
    let address = first.data().as_ptr();
    drop(first);
    let second = cpu.try_zeros::<f32>(99, 100).unwrap();
    assert_eq!(second.data().as_ptr(), address);
    assert_eq!(cpu.memory().live_bytes, 4 * 9900);
}

#[test]
fn fresh_tensors_are_poisoned_in_debug_builds() {
    let cpu = Device::cpu(1).unwrap();
    if cfg!(debug_assertions) {
        assert!(cpu.try_empty::<f32>(2, 2).unwrap().data().iter().all(|x| x.is_nan()));
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
    let dry = Device::dry_for(Target::Gpu);
    let weights = dry.class(Class::Weights).try_empty::<half::bf16>(3, 50).unwrap();
    let first = dry.try_zeros::<u32>(1, 64).unwrap();
    let more = dry.class(Class::Qkv).try_empty::<u8>(1, 257).unwrap();
    drop((first, more));
    let later = dry.class(Class::Logits).try_empty::<u8>(1, 256).unwrap();
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
fn launches_count_on_a_gpu_only() {
    let work = Work::new(8, 2);
    for (device, launches) in [(Device::dry(), 0), (Device::dry_for(Target::Gpu), 2)] {
        device.record("a", work);
        device.record("a", work);
        assert_eq!(device.take_ledger().total(), Work { flops: 16, bytes: 4, launches });
    }
}

#[test]
fn the_cpu_passes_its_self_test() {
    let findings = self_test::self_test(&Device::cpu(1).unwrap()).unwrap();
    assert!(findings.iter().all(|finding| finding.outcome != self_test::Outcome::Failed), "{findings:?}");
}
