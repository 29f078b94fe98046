//! LoRA / QLoRA fine-tuning and scoring of language models on one device, without Python.

pub mod batch;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod formats;
pub mod model;
pub mod ops;
pub mod optim;
pub mod rng;
pub mod score;
pub mod session;
pub mod tensor;
pub mod train;
