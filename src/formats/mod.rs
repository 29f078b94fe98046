//! File formats: safetensors, weights of `torch.save`, model folders, PEFT adapters, checkpoints.
//!
//! All input is checked once, here, and becomes a type that cannot hold invalid values. Output files appear
//! whole or not at all, and an existing file is never changed in place, since another process may be reading
//! it.

pub mod adapter;
pub mod atomic;
pub mod checkpoint;
pub mod hub;
pub mod model_folder;
pub mod safetensors;
pub mod shard_index;
pub mod torch_bin;
pub mod weight_files;

mod folder;
mod python_json;
mod stamp;
mod storage;
pub(crate) mod strict_json;
