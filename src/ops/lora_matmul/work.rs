//! What a call costs, for the ledger: the frozen products and the adapters apart; and what a GPU holds meanwhile.
//!
//! Every operand of a call counts once, so the input that the layers of a group share counts once too. On a GPU the kernels of
//! the adapters read the input and `dy` once more, beside the kernels of the frozen products, and gradients pass through partial
//! sums: that counts as well. Launches are those of [`super::gpu`]: forward, `xa` of the group and then its outputs; backward,
//! `dxa`, `dx`, the partial sums of `dA` and `dB`, and their reduction.

use super::plan::{self, Problem};
use super::{Frozen, LoraMatmul};
use crate::device::{Device, Machine, Tensor, Work};
use crate::error::Result;
use crate::ops::gemm::Write;
use crate::tensor::Real;

/// The group as the plans of its kernels see it.
fn problem<T: Real>(rows: usize, layers: &[LoraMatmul<'_, T>]) -> Problem {
    Problem {
        rows,
        in_features: layers.first().map_or(0, |l| l.frozen.weight.cols()),
        out_features: layers.iter().map(|l| l.frozen.weight.rows()).collect(),
        rank: layers.iter().map(LoraMatmul::max_rank).max().unwrap_or(0),
        num_adapters: layers.iter().map(|l| l.loras.len()).max().unwrap_or(0),
        dropout: layers.iter().any(|l| l.dropout.is_some()),
        tile: None,
    }
}

/// The plan of the gradients of a group, if it has adapters.
fn gradient_plan<T: Real>(
    device: &Device,
    rows: usize,
    layers: &[LoraMatmul<'_, T>],
) -> Result<Option<plan::GradPlan>> {
    let problem = problem(rows, layers);
    let adapted = || layers.iter().filter(|l| l.max_rank() > 0);
    let mut features: Vec<usize> = adapted().map(|l| l.frozen.weight.rows()).collect();
    features.extend(adapted().map(|l| l.frozen.weight.cols()));
    if features.is_empty() {
        return Ok(None);
    }
    Ok(Some(plan::grad(&problem, &features, device.chip()?)))
}

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

/// Frozen layers under the first name and adapters under the second; `projects` where `xa` is computed too.
pub(super) fn record_forward<T: Real>(
    device: &Device,
    [base, lora]: [&'static str; 2],
    rows: usize,
    layers: &[LoraMatmul<'_, T>],
    projects: bool,
) {
    let input = layers.first().map_or(0, |l| rows * l.frozen.weight.cols()) as u64;
    let (mut frozen, mut adapters) = (Work::new(0, input), Work::new(0, 0));
    for layer in layers {
        let [out_features, in_features] = layer.frozen.weight.shape();
        frozen.flops += layer.base_flops(rows);
        frozen.bytes += layer.frozen_numbers() + (rows * out_features) as u64;
        let width = if projects { out_features + in_features } else { out_features };
        adapters.flops += layer.over_runs(|rows, r| 2 * rows * r * width);
        adapters.bytes += layer.over_runs(|rows, r| rows * r) + layer.adapter_numbers();
        if layer.dropout.is_some() {
            adapters.flops += layer.base_flops(layer.dora_rows());
        }
    }
    if device.machine() == Machine::Gpu {
        // xa has a launch of its own; the product with B is part of the launch of the frozen layers.
        adapters.launches = u64::from(projects);
        adapters.bytes += if projects { input } else { 0 };
    }
    record(device, base, frozen, size_of::<T>());
    record(device, lora, adapters, size_of::<T>());
}

/// The projection of one layer alone.
pub(super) fn record_project<T: Real>(device: &Device, rows: usize, layer: &LoraMatmul<'_, T>) {
    let in_features = layer.frozen.weight.cols();
    let flops = layer.over_runs(|rows, r| 2 * rows * r * in_features);
    let read = layer.loras.iter().flatten().map(|l| l.a.len() as u64).sum::<u64>();
    let numbers = (rows * in_features) as u64 + read + layer.over_runs(|rows, r| rows * r);
    let work = Work::new(flops, if flops > 0 { numbers } else { 0 });
    record(device, "lora_matmul.project.lora", work, size_of::<T>());
}

/// `dx` of the frozen layers, where it is wanted, and the rest for the adapters.
pub(super) fn record_backward<T: Real>(
    device: &Device,
    rows: usize,
    layers: &[LoraMatmul<'_, T>],
    dx: Option<Write>,
) {
    let input = layers.first().map_or(0, |l| rows * l.frozen.weight.cols()) as u64;
    let (mut frozen, mut adapters) = (Work::new(0, 0), Work { launches: 3, ..Work::default() });
    let on_gpu = device.machine() == Machine::Gpu;
    let mut statistics = 0;
    for layer in layers {
        let [out_features, in_features] = layer.frozen.weight.shape();
        let width = out_features + in_features;
        let dora_rows = layer.dora_rows();
        // dB and dA, dxa and its part of dx.
        adapters.flops += layer.over_runs(|rows, r| 2 * rows * r * width);
        adapters.flops += layer.over_runs(|rows, r| 2 * rows * r * out_features);
        adapters.bytes += layer.over_runs(|rows, r| rows * r) + layer.adapter_numbers();
        statistics += 2 * layer.adapter_numbers();
        // z of DoRA, for the gradient of the magnitude.
        adapters.flops += layer.base_flops(dora_rows);
        let dy = (rows * out_features) as u64;
        if dx.is_some() {
            adapters.flops += layer.over_runs(|rows, r| 2 * rows * r * in_features);
            adapters.flops += layer.base_flops(dora_rows);
            frozen.flops += layer.base_flops(rows);
            frozen.bytes += layer.frozen.weight.len() as u64 + dy;
        }
        adapters.bytes += match (on_gpu, dx.is_some()) {
            (true, _) => 2 * dy,
            (false, true) => 0,
            (false, false) => dy,
        };
    }
    if on_gpu && let Ok(Some(plan)) = gradient_plan(device, rows, layers) {
        statistics += 2 * plan.workspace as u64;
    }
    if let Some(write) = dx {
        frozen.bytes += if write == Write::Add { 2 * input } else { input };
        record(device, "lora_matmul.backward", frozen, size_of::<T>());
    }
    if adapters.flops > 0 {
        adapters.bytes += input;
        let bytes = adapters.bytes * size_of::<T>() as u64 + statistics * size_of::<T::Stat>() as u64;
        device.record("lora_matmul.backward.lora", Work { bytes, ..adapters });
    }
}

/// Notes `work`, whose bytes are numbers of `size` bytes so far, unless there is none.
fn record(device: &Device, op: &'static str, work: Work, size: usize) {
    if work.flops > 0 {
        device.record(op, Work { bytes: work.bytes * size as u64, ..work });
    }
}

/// What a GPU holds during the backward pass of a group.
pub(super) struct Temporaries<T: Real> {
    /// Of every layer.
    _dxa: Vec<Tensor<T>>,
    /// Partial sums of `dA` and `dB`.
    _partial: Option<Tensor<T::Stat>>,
}

/// Takes the memory that a GPU holds during the backward pass of a group.
///
/// # Errors
/// [`crate::error::Error::Device`] if the device runs no kernels.
pub(super) fn gpu_temporaries<T: Real>(
    device: &Device,
    rows: usize,
    layers: &[LoraMatmul<'_, T>],
) -> Result<Temporaries<T>> {
    let stride = problem(rows, layers).rank_stride();
    let dxa = layers.iter().map(|_| device.empty(rows, stride)).collect::<Result<_>>()?;
    let partial =
        gradient_plan(device, rows, layers)?.map(|plan| device.empty(1, plan.workspace)).transpose()?;
    Ok(Temporaries { _dxa: dxa, _partial: partial })
}
