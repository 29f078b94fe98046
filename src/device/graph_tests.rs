//! Recorded launches: when they run, and when a replay is refused.

#![cfg(feature = "emulated")]

use crate::device::Device;
use crate::ops::testing::kernel_device;

#[test]
fn nothing_is_recorded_without_reserved_memory_or_on_a_cpu() {
    let cpu = Device::cpu(1).unwrap();
    assert!(cpu.capture(|| Ok(())).unwrap_err().to_string().contains("only a GPU"));
    let device = kernel_device(0);
    assert!(device.capture(|| Ok(())).unwrap_err().to_string().contains("reserved"));
}

#[test]
fn fills_wait_for_the_replay_and_come_again_with_each() {
    let device = kernel_device(0);
    device.reserve(1 << 16).unwrap();
    let mut tensor = device.tensor(1, 4, &[1u32, 2, 3, 4]).unwrap();
    let (graph, kept) = device.capture(|| device.zeros::<u32>(1, 4)).unwrap();
    for _ in 0..2 {
        device.replay(&graph).unwrap();
        assert_eq!(device.read(&kept).unwrap(), [0; 4]);
    }
    device.write(&mut tensor, &[5, 6, 7, 8]).unwrap();
    assert_eq!(device.read(&tensor).unwrap(), [5, 6, 7, 8]);
}

#[test]
fn copies_are_refused_within_and_a_newcomer_in_its_memory_stops_a_replay() {
    let device = kernel_device(0);
    device.reserve(1 << 16).unwrap();
    let mut tensor = device.tensor(1, 1, &[1u32]).unwrap();
    let error = device.capture(|| device.write(&mut tensor, &[2])).unwrap_err();
    assert!(error.to_string().contains("while launches are recorded"), "{error}");
    // The temporary tensor is freed after the recording, and the next tensor gets its place.
    let (graph, ()) = device.capture(|| device.zeros::<u32>(1, 4).map(drop)).unwrap();
    device.replay(&graph).unwrap();
    let newcomer = device.tensor(1, 4, &[0u32; 4]).unwrap();
    let error = device.replay(&graph).unwrap_err();
    assert!(error.to_string().contains("made after launches were recorded"), "{error}");
    drop(newcomer);
    device.replay(&graph).unwrap();
}
