//! Decoder models: loading, forward and the mirrored backward.
