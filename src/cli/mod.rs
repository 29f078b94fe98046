//! The command line: clap structs and all printing. Nothing outside this folder prints.

pub mod options;
