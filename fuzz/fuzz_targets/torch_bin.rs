//! Runs the target `torch_bin` with libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tanren_fuzz::targets::run("torch_bin", bytes));
