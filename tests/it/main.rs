//! The integration tests: one binary, one module per file.

mod source;
mod tidy;
