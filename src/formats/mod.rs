//! Bytes to named tensors and back: safetensors, model folders, PEFT adapters, checkpoints.
