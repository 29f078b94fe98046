//! Runs the target `manifest` with libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tanren_fuzz::targets::run("manifest", bytes));
