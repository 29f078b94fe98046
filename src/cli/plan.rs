//! The plan of a training as text: memory, activation policy, work, and the prediction for a card.

use super::table;
use super::units::{bytes, count, flops, seconds, sol};
use crate::device::Card;
use crate::train::{Plan, WorkOf};

/// Memory and work, a line each.
pub(super) fn summary(plan: &Plan) -> Vec<String> {
    let mut rows = vec![
        ("weights", format!("{} ({})", bytes(plan.weights_bytes), plan.dtype)),
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
    ];
    if let Some(arena) = plan.arena_bytes {
        let gaps = 100.0 * arena.saturating_sub(plan.peak_bytes) as f64 / plan.peak_bytes.max(1) as f64;
        rows.push(("arena", format!("{} in one block ({gaps:.2}% gaps between tensors)", bytes(arena))));
    }
    if let Some(limit) = &plan.memory_limit {
        let fits = if plan.fits { "it fits" } else { "it does NOT fit" };
        rows.push(("limit", format!("{} ({}): {fits}", bytes(limit.bytes), limit.source)));
    }
    rows.push(("blocks keep", plan.activation_policy.to_string()));
    rows.push(("work per step", flops(plan.step_flops)));
    table::pairs(&rows)
}

/// Bytes by use at the peak.
pub(super) fn by_use(plan: &Plan) -> Vec<String> {
    let row = |name: &str, number: u64| {
        let part = 100.0 * number as f64 / plan.peak_bytes.max(1) as f64;
        vec![name.to_owned(), bytes(number), count(number), format!("{part:.1}%")]
    };
    let mut rows: Vec<_> = plan.peak_by_use.iter().map(|of| row(of.class, of.bytes)).collect();
    rows.push(row("all", plan.peak_bytes));
    table::columns(&["use", ">memory", ">bytes", ">part"], &rows)
}

/// The work of one step by group of ops, with the predicted time on a card.
pub(super) fn by_group(plan: &Plan) -> Vec<String> {
    let rows: Vec<_> = plan.groups.iter().map(|group| work_row(group.name.name(), group)).collect();
    columns("group", rows, plan)
}

/// The work of one step by op, the most expensive first.
pub(super) fn by_op(plan: &Plan) -> Vec<String> {
    let mut ops: Vec<&WorkOf<String>> = plan.ops.iter().collect();
    ops.sort_by(|a, b| b.flops.cmp(&a.flops).then(b.bytes.cmp(&a.bytes)).then(a.name.cmp(&b.name)));
    columns("op", ops.into_iter().map(|op| work_row(&op.name, op)).collect(), plan)
}

/// The prediction for the card.
pub(super) fn prediction(plan: &Plan) -> Option<String> {
    let predicted = plan.prediction?;
    let title = Card::find(&plan.device).map_or(plan.device.as_str(), |card| card.title);
    Some(format!(
        "predicted for {title} (a roofline, not a measurement): {} per step of {} tokens, {} tokens/s{}",
        milliseconds(predicted.step_secs),
        count(plan.step_tokens as u64),
        count(predicted.tokens_per_second.round() as u64),
        sol(", ", Some(predicted.sol))
    ))
}

/// Maximum tokens per pass, by policy.
pub(super) fn capacity(plan: &Plan) -> Vec<String> {
    let tokens = |tokens: Option<usize>| tokens.map_or("none".to_owned(), |n| count(n as u64));
    let row = |of: &crate::train::Capacity| vec![of.activation_policy.name().to_owned(), tokens(of.tokens)];
    let rows: Vec<_> = plan.capacity.iter().map(row).collect();
    table::columns(&["all blocks", ">tokens per pass"], &rows)
}

fn work_row<K>(name: &str, work: &WorkOf<K>) -> Vec<String> {
    let giga = |number: u64| format!("{:.3}", number as f64 / 1e9);
    let mut row = vec![name.to_owned(), count(work.calls), giga(work.flops), giga(work.bytes)];
    if let Some(secs) = work.predicted_secs {
        row.extend([count(work.launches), format!("{:.3}", 1e3 * secs)]);
    }
    row
}

fn columns(head: &str, rows: Vec<Vec<String>>, plan: &Plan) -> Vec<String> {
    let mut heads = vec![head, ">calls", ">GFLOP", ">GB"];
    if plan.prediction.is_some() {
        heads.extend([">launches", ">predicted ms"]);
    }
    table::columns(&heads, &rows)
}

/// Formats a time that may be below a second.
fn milliseconds(secs: f64) -> String {
    if secs < 10.0 { format!("{:.1} ms", 1e3 * secs) } else { seconds(secs) }
}
