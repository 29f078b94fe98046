//! The integration tests: one binary, one module per file.

mod golden;
mod score;
mod source;
mod tidy;
