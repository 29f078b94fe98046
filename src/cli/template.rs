//! The hidden command that renders chat templates, and how a run starts it.

use crate::data::template::sandbox::{HelperCommand, serve_template};
use crate::error::{Error, Result};

/// Name of the hidden command, as clap derives it from [`super::options::Command::RenderTemplate`].
const COMMAND: &str = "render-template";

/// Answers requests for renderings until the input ends.
///
/// # Errors
/// If the limits of the process cannot be set, or the parent is gone.
pub(super) fn serve() -> Result<()> {
    serve_template(std::io::stdin().lock(), std::io::stdout().lock())
}

/// How to start this program as the process that renders.
///
/// # Errors
/// An I/O error if the system does not say where the program is.
pub(super) fn helper() -> Result<HelperCommand> {
    let program = std::env::current_exe().map_err(|e| Error::io("tanren", "find the running program", e))?;
    Ok(HelperCommand { program, args: vec![COMMAND.into()] })
}
