//! The optimizer: learning rate schedule, and AdamW over all tensors of an adapter.

mod optimizer;
mod schedule;

pub use optimizer::{Optimizer, Update};
pub use schedule::Schedule;
