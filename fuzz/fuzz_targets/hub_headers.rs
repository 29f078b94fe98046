//! Runs the target `hub_headers` with libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tanren_fuzz::targets::run("hub_headers", bytes));
