//! The integration tests: one binary, one module per file.

mod cli;
mod golden;
mod kill;
mod plan;
mod score;
mod source;
mod tidy;
mod train;
