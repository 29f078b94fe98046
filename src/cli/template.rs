//! The hidden command that renders chat templates, and the command line that starts it.

use crate::data::template::sandbox::{HelperCommand, serve_template};
use crate::error::{Error, Result};

/// Name of the hidden command, as clap derives it from [`super::options::Command::RenderTemplate`].
const COMMAND: &str = "render-template";

/// Serves rendering requests until the input ends.
///
/// # Errors
/// If the limits of the process cannot be set, or the parent is gone.
pub(super) fn serve() -> Result<()> {
    serve_template(std::io::stdin().lock(), std::io::stdout().lock())
}

/// The command that starts this program as the rendering process.
///
/// # Errors
/// An I/O error if the system does not report the path of the program.
pub(super) fn helper() -> Result<HelperCommand> {
    let program = std::env::current_exe().map_err(|e| Error::io("tanren", "find the running program", e))?;
    Ok(HelperCommand { program, args: vec![COMMAND.into()] })
}
