//! Runs the target `trainer_state` with libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tanren_fuzz::targets::run("trainer_state", bytes));
