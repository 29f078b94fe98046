//! From lines of text to packed batches: rows, templates, tokens, labels, order, packing.
