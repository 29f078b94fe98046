//! The update of the adapters: the learning rate of a step, and AdamW over all tensors of an adapter.

mod optimizer;
mod schedule;

pub use optimizer::{Optimizer, Update};
pub use schedule::Schedule;
