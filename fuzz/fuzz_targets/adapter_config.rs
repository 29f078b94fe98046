//! Runs the target `adapter_config` with libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tanren_fuzz::targets::run("adapter_config", bytes));
