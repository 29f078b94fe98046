//! The plan of a training as text: memory, work, and work by op.

use super::table;
use super::units::{bytes, count, flops};
use crate::train::Plan;

/// Memory and work, a line each.
pub(super) fn summary(plan: &Plan) -> Vec<String> {
    table::pairs(&[
        ("weights", bytes(plan.weights_bytes)),
        (
            "adapter",
            format!(
                "{} with gradients and optimizer ({} numbers trained)",
                bytes(plan.adapter_bytes),
                count(plan.trainable as u64)
            ),
        ),
        (
            "activations",
            format!(
                "{} ({} tokens in the largest pass)",
                bytes(plan.activation_bytes),
                count(plan.largest_pass_tokens as u64)
            ),
        ),
        ("peak", bytes(plan.peak_bytes)),
        ("work per step", flops(plan.step_flops)),
    ])
}

/// The work of one step by op, the most expensive first.
pub(super) fn by_op(plan: &Plan) -> Vec<String> {
    let mut ops: Vec<_> = plan.ops.iter().collect();
    ops.sort_by(|a, b| b.2.cmp(&a.2).then(b.3.cmp(&a.3)).then(a.0.cmp(&b.0)));
    let row = |(name, calls, flops, bytes): &(String, u64, u64, u64)| {
        let giga = |number: u64| format!("{:.3}", number as f64 / 1e9);
        vec![name.clone(), count(*calls), giga(*flops), giga(*bytes)]
    };
    let rows: Vec<_> = ops.into_iter().map(row).collect();
    table::columns(&["op", ">calls", ">GFLOP", ">GB"], &rows)
}
