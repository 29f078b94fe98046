//! Bytes to named tensors and back: safetensors, model folders, PEFT adapters, checkpoints.
//!
//! Everything that comes from outside is checked once, here, and becomes a type that cannot be wrong. Everything that is
//! written appears whole or not at all, and never by changing a file that exists (somebody may be reading it).

pub mod adapter;
pub mod atomic;
pub mod checkpoint;
pub mod hub;
pub mod model_folder;
pub mod safetensors;
pub mod shard_index;

mod folder;
mod python_json;
mod stamp;
mod storage;
pub(crate) mod strict_json;
