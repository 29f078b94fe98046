//! The training loop: the only place that holds data, model and optimizer together.
//!
//! [`run()`] is the door: a resolved [`TrainConfig`](crate::config::TrainConfig) in, a [`Summary`] out, [`Event`]s on the way. It prints nothing, installs no
//! handler and never ends the process. Loss of an optimizer step is `sum(weight * nll) / sum(weight)` over all supervised
//! tokens of the step, whatever the micro-batches, so batch size, accumulation, packing and passes do not change an update.

mod checkpoint;
mod evaluate;
mod event;
mod graphs;
mod identity;
mod log;
mod output;
mod pass_limits;
mod passes;
mod plan;
#[cfg(feature = "plot")]
mod plot;
mod prepare;
mod run;
mod sampler;
mod state;
mod step;
mod sums;
mod task;
mod trainee;

pub use crate::session::Limit;
pub use evaluate::EvalMetrics;
pub use event::{Event, StepLog, Summary};
pub use plan::{BytesOf, Capacity, Group, Plan, Prediction, WorkOf};
pub use run::run;

#[cfg(feature = "unstable")]
pub use plan::{Workload, plan, plan_workload};
#[cfg(all(feature = "cli", not(feature = "unstable")))]
pub(crate) use plan::{Workload, plan_workload};
#[cfg(feature = "unstable")]
pub use prepare::{Prepared, Row, prepare};
#[cfg(feature = "unstable")]
pub use state::TrainerState;

pub use crate::data::audit::{Audit, Place, Places, Quantiles, SpecialPlace};
pub use crate::data::routing::Routing;
pub use crate::data::template::sandbox::HelperCommand;
pub use crate::model::{Policies, Policy};
pub use crate::session::{Context, Notice};
