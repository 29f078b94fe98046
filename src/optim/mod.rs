//! The update of the adapters: schedule, clipping, AdamW.
