//! Decoders and encoders, forward and the mirrored backward.
//!
//! The path of a batch: [`decoder`] embeds the tokens, runs the [`block`]s, and hands the supervised rows to the [`head`]. What a
//! block keeps for the backward pass is a struct of its own (`block::Saved`), the exact minimal list, or less where its [`policy`]
//! says so. Gradients exist for adapters only. The last block computes queries, MLP and head for supervised rows only; backward
//! stops at the lowest block that has an adapter, and computes no gradient of its input.

pub mod adapter;
mod adapter_tables;
mod base_masks;
pub mod block;
pub mod decoder;
pub mod head;
pub mod init;
pub mod label_head;
pub mod load;
pub mod model_flops;
pub mod open;
mod peft_config;
pub mod policy;
pub mod recorded;
pub mod tables;
pub mod weights;

#[cfg(test)]
mod encoder_tests;
#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

pub use adapter::Adapter;
pub use decoder::{Decoder, DropoutStep, PassOptions};
pub use head::Found;
pub use model_flops::ModelFlops;
pub use policy::{Policies, Policy};
pub use recorded::{PendingScores, RecordedPass, Scorer};
pub use tables::PassCapacity;
pub use weights::Weights;
