//! The work of a call, for the ledger, with frozen products and adapters counted apart.
//!
//! Every operand of a call counts once, so the input that the layers of a group share counts once too. On a
//! GPU the product of `xa` with `B` is part of the launch of the frozen layers, so that launch counts to the
//! frozen part.

use super::group::LayerRows;
use super::{GradJob, Group, Layer};
use crate::device::{Device, Tensor, Work};
use crate::tensor::Real;

impl<T: Real> LayerRows<'_, T> {
    /// Sum over the runs of `f(rows, rank)`.
    fn over_runs(&self, f: impl Fn(usize, usize) -> usize) -> u64 {
        self.runs().map(|(_, lora, rows)| f(rows.len(), lora.a.rows()) as u64).sum()
    }

    /// Rows that go through DoRA adapters.
    fn dora_rows(&self) -> usize {
        self.runs().filter(|(_, lora, _)| lora.dora.is_some()).map(|(_, _, rows)| rows.len()).sum()
    }
}

impl<T: Real> Layer<'_, T> {
    fn base_flops(&self, rows: usize) -> u64 {
        2 * (rows * self.weight.len()) as u64
    }

    /// Elements of all `A`.
    fn a_numbers(&self) -> u64 {
        self.loras.iter().flatten().map(|lora| lora.a.len() as u64).sum()
    }

    /// Elements of all `B`.
    fn b_numbers(&self) -> u64 {
        self.loras.iter().flatten().map(|lora| lora.b.len() as u64).sum()
    }

    fn frozen_numbers(&self) -> u64 {
        (self.weight.len() + self.bias.map_or(0, Tensor::len)) as u64
    }
}

/// The work of `xa` of a group; `reads`: the input is read from memory, not fused into its producer.
pub(super) fn record_project<T: Real>(device: &Device, group: &Group<'_, T>, reads: bool) {
    let in_features = group.in_features();
    let input = (group.rows.capacity() * in_features) as u64;
    let mut work = Work::new(0, if reads { input } else { 0 });
    for one in group.each() {
        work.flops += one.over_runs(|rows, r| 2 * rows * r * in_features);
        work.bytes += one.layer.a_numbers() + one.over_runs(|rows, r| rows * r);
    }
    record(device, "lora_matmul.project.lora", work, size_of::<T>());
}

/// Records frozen layers under the first name and adapters under the second.
pub(super) fn record_apply<T: Real>(device: &Device, [base, lora]: [&'static str; 2], group: &Group<'_, T>) {
    let rows = group.rows.capacity();
    let (mut frozen, mut adapters) = (Work::new(0, (rows * group.in_features()) as u64), Work::new(0, 0));
    for one in group.each() {
        let (layer, out_features) = (one.layer, one.layer.out_features());
        frozen.flops += layer.base_flops(rows);
        frozen.bytes += layer.frozen_numbers() + (rows * out_features) as u64;
        adapters.flops += one.over_runs(|rows, r| 2 * rows * r * out_features);
        adapters.bytes += one.over_runs(|rows, r| rows * r) + layer.b_numbers();
        if layer.dropout.is_some() {
            adapters.flops += layer.base_flops(one.dora_rows());
        }
    }
    record(device, lora, adapters, size_of::<T>());
    record(device, base, frozen, size_of::<T>());
}

/// The work of `dxa` of a group; `reads`: `dy` is read from memory, not fused into its producer.
pub(super) fn record_project_back<T: Real>(device: &Device, group: &Group<'_, T>, reads: bool) {
    let mut work = Work::new(0, 0);
    for one in group.each().filter(|one| one.layer.max_rank() > 0) {
        let out_features = one.layer.out_features();
        let dy = (group.rows.capacity() * out_features) as u64;
        work.flops += one.over_runs(|rows, r| 2 * rows * r * out_features);
        work.bytes += if reads { dy } else { 0 } + one.over_runs(|rows, r| rows * r) + one.layer.b_numbers();
    }
    record(device, "lora_matmul.project_back.lora", work, size_of::<T>());
}

/// The work of `dx` of a group.
pub(super) fn record_backward_input<T: Real>(device: &Device, group: &Group<'_, T>) {
    let (rows, in_features) = (group.rows.capacity(), group.in_features());
    let (mut frozen, mut adapters) = (Work::new(0, (rows * in_features) as u64), Work::new(0, 0));
    for one in group.each() {
        let layer = one.layer;
        frozen.flops += layer.base_flops(rows);
        frozen.bytes += (layer.weight.len() + rows * layer.out_features()) as u64;
        adapters.flops += one.over_runs(|rows, r| 2 * rows * r * in_features);
        adapters.flops += layer.base_flops(one.dora_rows());
        adapters.bytes += one.over_runs(|rows, r| rows * r) + layer.a_numbers();
    }
    record(device, "lora_matmul.backward.lora", adapters, size_of::<T>());
    record(device, "lora_matmul.backward", frozen, size_of::<T>());
}

/// The work of `dA` and `dB`, which are read and written. Consecutive layers with the same input read it
/// once.
pub(super) fn record_gradients<T: Real>(device: &Device, jobs: &[GradJob<'_, '_, T>]) {
    let (mut work, mut statistics, mut input) = (Work::new(0, 0), 0, std::ptr::null());
    for job in jobs.iter().filter(|job| job.layer.max_rank() > 0) {
        let (one, layer) = (job.layer_rows(), &job.layer);
        work.flops += one.over_runs(|rows, r| 2 * rows * r * (layer.out_features() + layer.in_features()));
        // z of DoRA, for the gradient of the magnitude.
        work.flops += layer.base_flops(one.dora_rows());
        work.bytes += job.dy.len() as u64 + 2 * one.over_runs(|rows, r| rows * r);
        if !std::ptr::eq(input, job.x) {
            work.bytes += job.x.len() as u64;
        }
        input = job.x;
        statistics += 2 * (layer.a_numbers() + layer.b_numbers());
    }
    let bytes = work.bytes * size_of::<T>() as u64 + statistics * size_of::<T::Stat>() as u64;
    if work.flops > 0 {
        device.record("lora_matmul.gradients.lora", Work { bytes, ..work });
    }
}

/// Records `work`, whose bytes count elements until multiplied by `size`, unless it is empty.
fn record(device: &Device, op: &'static str, work: Work, size: usize) {
    if work.flops > 0 {
        device.record(op, Work { bytes: work.bytes * size as u64, ..work });
    }
}
