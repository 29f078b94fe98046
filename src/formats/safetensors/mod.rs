//! The safetensors container: 8 bytes of header length, a JSON header, then the tensors without gaps.
//!
//! [`TensorFile`] reads a file by the rules of the `safetensors` library, after stricter checks: every file
//! that it accepts is accepted by all other readers, and no header can make it allocate more than a few times
//! its own size. [`serialize`] and [`write_safetensors`] write the same format as the library, but
//! deterministically (the library writes metadata in random order) and atomically. Source: the format's
//! README, <https://github.com/huggingface/safetensors#format>.
//!
//! The data has no checksum: a flipped bit of a weight cannot be detected here.

mod header;
mod view;
mod write;

#[cfg(test)]
mod tests;

pub use ::safetensors::tensor::Dtype;
pub use header::Header;
pub use view::{TensorFile, TensorView};
pub use write::{NamedTensor, TensorData, serialize, write_safetensors};

/// Class of the errors of this format.
const CODE: &str = "SAFETENSORS";

/// Key of the header that is not a tensor.
const METADATA: &str = "__metadata__";

// Numbers in files are little-endian, and are used without conversion.
const _: () = assert!(cfg!(target_endian = "little"));
