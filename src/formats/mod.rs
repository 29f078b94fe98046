//! Bytes to named tensors and back: safetensors, model folders, PEFT adapters, checkpoints.
//!
//! Everything that comes from outside is checked once, here, and becomes a type that cannot be wrong. Everything that is
//! written appears whole or not at all, and never by changing a file that exists (it may be mapped).

pub mod adapter;
pub mod atomic;
pub mod checkpoint;
pub mod hub;
pub mod mmap;
pub mod model_folder;
pub mod safetensors;

mod folder;
mod python_json;
mod shard_index;
mod storage;
mod strict_json;
