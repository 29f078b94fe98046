//! The binary: parse, run, print the error, exit with its code.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
