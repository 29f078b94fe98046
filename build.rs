//! The build script: constants from the variant files, the kernel table from the kernel sources, and the compiled kernels.
//!
//! A part each: `build/variants.rs` writes `variants.rs`; `build/kernels.rs` writes `kernels.rs`, `params_check.hpp` and
//! `kernels_all.cu`; `build/nvcc.rs` compiles the last one. All of them write to `OUT_DIR` only.

// Cargo reads its directives from standard output.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, error};

#[path = "build/budgets.rs"]
mod budgets;
#[cfg(feature = "emulated")]
#[path = "build/emulated.rs"]
mod emulated;
#[path = "build/kernels.rs"]
mod kernels;
#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/params.rs"]
mod params;
#[path = "build/ptx.rs"]
mod ptx;
#[path = "build/ptxas.rs"]
mod ptxas;
#[path = "build/variants.rs"]
mod variants;

type Failure = Box<dyn error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.to_string().lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    variants::generate(&out)?;

    let sources = kernels::Sources::read()?;
    let unit = sources.write_unit(&out)?;
    let compiled = match cfg!(feature = "cuda") {
        true => nvcc::compile(&out, &unit, &sources)?,
        false => nvcc::Compiled::without("this build is without the feature `cuda`"),
    };
    sources.write_table(&out, &compiled)?;
    #[cfg(feature = "emulated")]
    emulated::compile(&out, &unit)?;
    Ok(())
}
