//! `tanren inspect`: shows a model, a tokenizer, a data file, a device, a plan or this build, before anything
//! is computed.

mod data;
mod device;
mod kernels;
mod model;
pub(super) mod plan;
mod tokenizer;

use std::sync::Arc;

use super::console::Console;
use super::options::InspectCommand;
use crate::error::Result;
use crate::formats::hub::Watch;
use crate::model::open::{OpenModel, open};

/// Runs the chosen view.
///
/// # Errors
/// Errors of the options or the files.
pub(super) fn run(what: &InspectCommand, console: &Arc<Console>) -> Result<()> {
    match what {
        InspectCommand::Model(args) => match args.model.model() {
            Some(name) => model::show(name, args.verify, console),
            None => {
                model::list(console);
                Ok(())
            }
        },
        InspectCommand::Tokenizer(args) => tokenizer::show(args, console),
        InspectCommand::Data(args) => data::show(args, console),
        InspectCommand::Device(args) => device::show(args, console),
        InspectCommand::Plan(args) => plan::show(args, console),
        InspectCommand::Kernels => {
            kernels::show(console);
            Ok(())
        }
    }
}

/// Opens a model and shows its download, if there is one. Ctrl-C ends the process; the next download resumes.
fn open_model(name: &str, console: &Console) -> Result<OpenModel> {
    let model = open(name, &Watch { tell: &|progress| console.notice(progress.into()), stop: &|| false });
    console.clear();
    model
}
