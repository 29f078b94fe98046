//! The safetensors container: 8 bytes of header length, a JSON header, then the tensors without gaps.
//!
//! [`TensorFile`] reads a file by the rules of the `safetensors` library, after checks that are stricter: what it accepts is
//! accepted by every other reader, and no header can make it allocate more than a few times its own size. [`serialize`]
//! and [`write_safetensors`] write the bytes the library would write, but the same ones every time (the library writes free text
//! in random order) and beside the old file. Source: the format's README, <https://github.com/huggingface/safetensors#format>.
//!
//! The data has no checksum: a flipped bit of a weight cannot be seen here.

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

/// Key of the header that is no tensor.
const METADATA: &str = "__metadata__";

// Numbers in files are little-endian, and are used as they are read.
const _: () = assert!(cfg!(target_endian = "little"));
