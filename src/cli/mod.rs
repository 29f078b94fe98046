//! The command line: clap structs and all printing. Only this folder prints.
//!
//! Results go to standard output, everything about the run (progress, notes, warnings, errors) to standard error. A failed
//! write to either never changes what a command does nor its exit code.

pub mod options;

mod console;
mod init;
mod inspect;
mod panics;
mod plan;
mod score;
mod signals;
mod table;
mod template;
mod train;
mod units;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use self::console::Console;
use self::options::{Cli, Command};
use crate::error::Result;

/// Parses a command line (the program name first), runs it, prints the error, and returns the exit code: 0
/// ok, 2 input, 3 I/O, 4 numeric, 5 device, 6 interrupted after saving, 70 for an internal error.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let console = Arc::new(Console::new());
    let code = panics::contained(&console, || match options::parse(args) {
        Ok(cli) => finish(&console, run(cli, &console)),
        Err(usage) => {
            // Also --help and --version, which clap sends to standard output.
            let _ = usage.print();
            u8::try_from(usage.exit_code()).unwrap_or(2)
        }
    });
    // Flushes the buffer; the exit handler of the standard library would ignore errors too.
    let _ = std::io::stdout().flush();
    ExitCode::from(code)
}

fn run(cli: Cli, console: &Arc<Console>) -> Result<()> {
    signals::survive_file_size_limit();
    match cli.command {
        Command::Train(args) => train::run(&args, console),
        Command::Score(args) => score::run(&args, console),
        Command::Inspect(args) => inspect::run(&args.what, console),
        Command::Init(args) => init::run(&args, console),
        Command::RenderTemplate => template::serve(),
    }
}

/// Prints an error, and gives the exit code.
fn finish(console: &Console, result: Result<()>) -> u8 {
    console.clear();
    match result {
        Ok(()) => 0,
        Err(error) => {
            console.note(&error);
            error.exit_code()
        }
    }
}
