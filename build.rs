//! Turns `src/config/variants/*.toml` into constants and a registry.
fn main() {}
