//! The fuzz targets as a library: cargo-fuzz runs them with libFuzzer, and the tests of tanren run them with a mutator of their own.

pub mod targets;
