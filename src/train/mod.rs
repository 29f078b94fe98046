//! The training loop: the only place that holds data, model and optimizer together.
//!
//! [`run`] is the door: a resolved [`TrainConfig`](crate::config::TrainConfig) in, a [`Summary`] out, [`Event`]s on the way. It prints nothing, installs no
//! handler and never ends the process. Loss of an optimizer step is `sum(weight * nll) / sum(weight)` over all supervised
//! tokens of the step, whatever the micro-batches, so batch size, accumulation, packing and passes do not change an update.

mod ahead;
mod checkpoint;
mod evaluate;
mod event;
mod extent;
mod identity;
mod itinerary;
mod log;
mod output;
mod plan;
mod plot;
mod prepare;
mod run;
mod state;
mod step;
mod sums;

pub use crate::session::Limit;
pub use evaluate::EvalMetrics;
pub use event::{Event, StepLog, Summary};
pub use plan::{BytesOf, Capacity, Group, Plan, Prediction, WorkOf, Workload, plan, plan_workload};
pub use prepare::{Prepared, Row, prepare};
pub use run::run;
pub use state::TrainerState;

pub use crate::session::Context;
