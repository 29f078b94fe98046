//! The integration tests: one binary, one module per file.
//!
//! Those that start the program, and those that use something of them, need it: without the feature `cli` they are left out.

#[cfg(feature = "cli")]
mod advice;
mod cases;
mod check_runner;
#[cfg(feature = "cli")]
mod cli;
#[cfg(feature = "cli")]
mod coming_from;
#[cfg(feature = "cli")]
mod device;
mod devices_agree;
#[cfg(feature = "cli")]
mod drivers;
mod fuzzing;
mod golden;
mod golden_dropout;
mod golden_heads;
mod golden_rope;
mod kernel_benches;
mod kernel_table;
mod kernels;
#[cfg(feature = "cli")]
mod kill;
mod labels;
#[cfg(feature = "cli")]
mod plan;
#[cfg(feature = "cli")]
mod refused_paths;
mod score;
#[cfg(feature = "cli")]
mod sol;
mod source;
#[cfg(feature = "cli")]
mod stub_cuda;
mod tidy;
mod tidy_gpu_tests;
mod tidy_kernels;
mod tidy_licences;
mod tidy_ops;
mod tidy_surface;
mod train;
#[cfg(feature = "cli")]
mod unlucky;
