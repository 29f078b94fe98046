//! The integration tests: one binary, one module per file.

mod golden;
mod source;
mod tidy;
mod train;
