//! The safetensors container: 8 bytes of header length, a JSON header, then the tensors without gaps.
//!
//! [`TensorFile`] reads and maps a file after a check that is stricter than the format's own reader: what it accepts is
//! accepted by every other reader, and no header can make it allocate more than a few times its own size. [`serialize`]
//! and [`write_safetensors`] write the bytes the `safetensors` library would write. Source: the format's README,
//! <https://github.com/huggingface/safetensors#format>.
//!
//! The data has no checksum: a flipped bit of a weight cannot be seen here.

mod header;
mod view;
mod write;

#[cfg(test)]
mod tests;

pub use view::{Mapped, TensorFile, TensorView};
pub use write::{NamedTensor, TensorData, serialize, write_safetensors};

/// Class of the errors of this format.
const CODE: &str = "SAFETENSORS";

/// Key of the header that is no tensor.
const METADATA: &str = "__metadata__";

// Numbers in files are little-endian, and are used where they are mapped.
const _: () = assert!(cfg!(target_endian = "little"));
