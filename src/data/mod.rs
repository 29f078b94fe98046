//! From lines of text to packed batches: rows, templates, tokens, labels, order, packing.
//!
//! The data path reads top to bottom: [`jsonl`] parses rows, [`routing`] picks them by mode, [`encode`] turns each into ids and
//! labels with a [`tokenizer`] and a chat [`template`], [`audit`] says what became of the file, [`packing`] orders and
//! batches the examples and [`collate`] packs them into one [`crate::batch::Batch`].

pub mod audit;
pub mod collate;
pub mod encode;
pub mod jsonl;
pub mod packing;
pub mod routing;
pub mod template;
pub mod tokenizer;

mod row;
mod strict_json;
