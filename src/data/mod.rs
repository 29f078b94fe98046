//! From lines of text to packed batches: rows, templates, tokens, labels, order, packing.
//!
//! The data path reads top to bottom: [`files`] reads rows as [`record`]s, [`routing`] picks them by mode,
//! [`encode`] turns each into ids and labels with a [`tokenizer`] and a chat [`template`] (found and opened
//! by [`texts`]), [`audit`] reports statistics and findings, [`packing`] orders and batches the examples and
//! [`collate`] packs them into one [`crate::batch::Batch`].

pub mod audit;
pub mod collate;
pub mod encode;
pub mod files;
pub mod labels;
pub mod packing;
pub mod record;
pub mod routing;
pub mod template;
pub mod texts;
pub mod tokenizer;

mod rows;

use crate::error::{Error, InputError};

/// Adds context of the caller (path, line, ...) to an input error.
fn at(error: Error, add: impl FnOnce(InputError) -> InputError) -> Error {
    match error {
        Error::Input(inner) => add(*inner).into(),
        other => other,
    }
}

/// The first character boundary of `text` from byte `at` on.
fn char_boundary(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len())
}
