//! What a call costs, for the ledger: the frozen products and the adapters apart.
//!
//! Every operand of a call counts once, so the input that the layers of a group share counts once too. The product of `xa` with
//! `B` is part of the launch of the frozen layers on a GPU; there launches count to the frozen part.

use super::{Frozen, GradJob, LoraMatmul};
use crate::device::{Device, Tensor, Work};
use crate::tensor::Real;

impl<T: Real> LoraMatmul<'_, T> {
    fn base_flops(&self, rows: usize) -> u64 {
        2 * (rows * self.frozen.weight.len()) as u64
    }

    /// Sum over the runs of `f(rows, rank)`.
    fn over_runs(&self, f: impl Fn(usize, usize) -> usize) -> u64 {
        self.runs().map(|(_, lora, rows)| f(rows.len(), lora.a.rows()) as u64).sum()
    }

    /// Numbers of all adapters of the layer.
    fn adapter_numbers(&self) -> u64 {
        self.loras.iter().flatten().map(|l| (l.a.len() + l.b.len()) as u64).sum()
    }

    /// Rows that go through DoRA adapters.
    fn dora_rows(&self) -> usize {
        self.runs().filter(|(_, lora, _)| lora.dora.is_some()).map(|(_, _, rows)| rows.len()).sum()
    }

    fn frozen_numbers(&self) -> u64 {
        let Frozen { weight, bias } = self.frozen;
        (weight.len() + bias.map_or(0, Tensor::len)) as u64
    }
}

/// `xa` of a group; `reads` unless whoever made the input has it at hand.
pub(super) fn record_project<T: Real>(
    device: &Device,
    rows: usize,
    layers: &[LoraMatmul<'_, T>],
    reads: bool,
) {
    let input = layers.first().map_or(0, |l| rows * l.frozen.weight.cols()) as u64;
    let mut work = Work::new(0, if reads { input } else { 0 });
    for layer in layers {
        let in_features = layer.frozen.weight.cols();
        work.flops += layer.over_runs(|rows, r| 2 * rows * r * in_features);
        work.bytes += layer.loras.iter().flatten().map(|l| l.a.len() as u64).sum::<u64>();
        work.bytes += layer.over_runs(|rows, r| rows * r);
    }
    record(device, "lora_matmul.project.lora", work, size_of::<T>());
}

/// Frozen layers under the first name and adapters under the second.
pub(super) fn record_apply<T: Real>(
    device: &Device,
    [base, lora]: [&'static str; 2],
    rows: usize,
    layers: &[LoraMatmul<'_, T>],
) {
    let input = layers.first().map_or(0, |l| rows * l.frozen.weight.cols()) as u64;
    let (mut frozen, mut adapters) = (Work::new(0, input), Work::new(0, 0));
    for layer in layers {
        let out_features = layer.frozen.weight.rows();
        frozen.flops += layer.base_flops(rows);
        frozen.bytes += layer.frozen_numbers() + (rows * out_features) as u64;
        adapters.flops += layer.over_runs(|rows, r| 2 * rows * r * out_features);
        adapters.bytes += layer.over_runs(|rows, r| rows * r);
        adapters.bytes += layer.loras.iter().flatten().map(|l| l.b.len() as u64).sum::<u64>();
        if layer.dropout.is_some() {
            adapters.flops += layer.base_flops(layer.dora_rows());
        }
    }
    record(device, lora, adapters, size_of::<T>());
    record(device, base, frozen, size_of::<T>());
}

/// `dxa` of a group; without `dy` where whoever made that has it at hand.
pub(super) fn record_project_back<T: Real>(device: &Device, layers: &[LoraMatmul<'_, T>], dy: &[&Tensor<T>]) {
    let mut work = Work::new(0, 0);
    for (i, layer) in layers.iter().enumerate().filter(|(_, layer)| layer.max_rank() > 0) {
        let out_features = layer.frozen.weight.rows();
        work.flops += layer.over_runs(|rows, r| 2 * rows * r * out_features);
        work.bytes += dy.get(i).map_or(0, |dy| dy.len() as u64) + layer.over_runs(|rows, r| rows * r);
        work.bytes += layer.loras.iter().flatten().map(|l| l.b.len() as u64).sum::<u64>();
    }
    record(device, "lora_matmul.project_back.lora", work, size_of::<T>());
}

/// `dx` of a group.
pub(super) fn record_backward_input<T: Real>(device: &Device, layers: &[LoraMatmul<'_, T>], rows: usize) {
    let (mut frozen, mut adapters) = (Work::new(0, 0), Work::new(0, 0));
    for layer in layers {
        let [out_features, in_features] = layer.frozen.weight.shape();
        frozen.flops += layer.base_flops(rows);
        frozen.bytes += (layer.frozen.weight.len() + rows * out_features) as u64;
        adapters.flops += layer.over_runs(|rows, r| 2 * rows * r * in_features);
        adapters.flops += layer.base_flops(layer.dora_rows());
        adapters.bytes += layer.over_runs(|rows, r| rows * r);
        adapters.bytes += layer.loras.iter().flatten().map(|l| l.a.len() as u64).sum::<u64>();
    }
    frozen.bytes += layers.first().map_or(0, |l| rows * l.frozen.weight.cols()) as u64;
    record(device, "lora_matmul.backward.lora", adapters, size_of::<T>());
    record(device, "lora_matmul.backward", frozen, size_of::<T>());
}

/// `dA` and `dB`, which are read and written. Layers that follow each other with one input read it once.
pub(super) fn record_gradients<T: Real>(device: &Device, jobs: &[GradJob<'_, '_, T>]) {
    let (mut work, mut statistics, mut input) = (Work::new(0, 0), 0, std::ptr::null());
    for job in jobs.iter().filter(|job| job.layer.max_rank() > 0) {
        let [out_features, in_features] = job.layer.frozen.weight.shape();
        work.flops += job.layer.over_runs(|rows, r| 2 * rows * r * (out_features + in_features));
        // z of DoRA, for the gradient of the magnitude.
        work.flops += job.layer.base_flops(job.layer.dora_rows());
        work.bytes += job.dy.len() as u64 + 2 * job.layer.over_runs(|rows, r| rows * r);
        if !std::ptr::eq(input, job.x) {
            work.bytes += job.x.len() as u64;
        }
        input = job.x;
        statistics += 2 * job.layer.adapter_numbers();
    }
    let bytes = work.bytes * size_of::<T>() as u64 + statistics * size_of::<T::Stat>() as u64;
    if work.flops > 0 {
        device.record("lora_matmul.gradients.lora", Work { bytes, ..work });
    }
}

/// Notes `work`, whose bytes are numbers of `size` bytes so far, unless there is none.
fn record(device: &Device, op: &'static str, work: Work, size: usize) {
    if work.flops > 0 {
        device.record(op, Work { bytes: work.bytes * size as u64, ..work });
    }
}
