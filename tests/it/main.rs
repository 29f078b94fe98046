//! The integration tests: one binary, one module per file.

mod cases;
mod check_runner;
mod cli;
mod device;
mod devices_agree;
mod drivers;
mod golden;
mod kernel_benches;
mod kernel_table;
mod kernels;
mod kill;
mod plan;
mod score;
mod sol;
mod source;
mod stub_cuda;
mod tidy;
mod tidy_gpu_tests;
mod tidy_kernels;
mod train;
mod unlucky;
