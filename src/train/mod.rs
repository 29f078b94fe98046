//! The training loop: the only place that holds data, model and optimizer together.
