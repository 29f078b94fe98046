//! What a training will cost, before it starts: the same code on a device that computes nothing.

use serde::Serialize;

use super::itinerary::Itinerary;
use super::prepare::{Prepared, Row};
use super::step::{packed, passes};
use crate::config::{ModelConfig, TrainConfig};
use crate::device::Device;
use crate::error::Result;
use crate::model::{Adapter, Decoder, DropoutStep, PassOptions, init};
use crate::optim::Optimizer;

/// Memory and work of one optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Frozen weights, as f32.
    pub weights_bytes: u64,
    /// Adapter, its gradient and its two moments.
    pub adapter_bytes: u64,
    /// Activations and temporary tensors of the largest pass.
    pub activation_bytes: u64,
    /// The most memory that tensors take at once.
    pub peak_bytes: u64,
    /// Tokens of the pass with the most.
    pub largest_pass_tokens: usize,
    /// Numbers that are trained.
    pub trainable: usize,
    /// Floating-point operations of one step.
    pub step_flops: u64,
    /// Work by op: name, calls, floating-point operations, bytes.
    pub ops: Vec<(String, u64, u64, u64)>,
}

/// Plans the step of `micro_batches`: its memory is that of its largest pass.
///
/// # Errors
/// As the step itself: an input error if a row does not fit the model.
pub fn plan(config: &TrainConfig, model: &ModelConfig, micro_batches: &[Vec<&Row>]) -> Result<Plan> {
    let device = Device::dry();
    let decoder = Decoder { config: model.clone(), weights: init::dry::<f32>(&device, model)? };
    let weights_bytes = device.memory().live_bytes;
    let adapter = Adapter::new(&device, &config.lora(), model, &decoder.weights, config.seed)?;
    let trainable = adapter.num_params();
    let mut grads = vec![adapter.zeros_like(&device)?];
    let optimizer = Optimizer::new(&device, &adapter)?;
    let adapters = vec![adapter];
    let held = device.memory().live_bytes;
    device.reset_peak();
    device.take_ledger();
    let dropout = Some(DropoutStep { seed: config.seed, step: 0 });
    let mut largest_pass_tokens = 0;
    for micro_batch in micro_batches {
        for pass in passes(micro_batch, config.max_tokens_per_pass) {
            let batch = packed(pass, config.share_prefix, 0);
            largest_pass_tokens = largest_pass_tokens.max(batch.total_tokens());
            let options = PassOptions { scale: 1.0, dropout, policies: &[] };
            decoder.score_and_backward(&device, &batch, &adapters, &mut grads, options)?;
        }
    }
    optimizer.grad_norm(&device, &grads[0]);
    let peak_bytes = device.memory().peak_bytes;
    let ledger = device.take_ledger();
    Ok(Plan {
        weights_bytes,
        adapter_bytes: held - weights_bytes,
        activation_bytes: peak_bytes - held,
        peak_bytes,
        largest_pass_tokens,
        trainable,
        step_flops: ledger.total().flops,
        ops: ledger.entries().map(|(op, calls, w)| (op.to_owned(), calls, w.flops, w.bytes)).collect(),
    })
}

/// The plan: memory of the longest rows that could meet in a batch, work of the first step.
pub(super) fn planned(config: &TrainConfig, prepared: &Prepared, itinerary: &Itinerary<'_>) -> Result<Plan> {
    let mut longest: Vec<&Row> = prepared.train.iter().collect();
    longest.sort_by_key(|row| std::cmp::Reverse(row.example.len()));
    longest.truncate(config.batch_size.unwrap_or(usize::MAX));
    let mut tokens = 0;
    let budget = config.tokens_per_batch.unwrap_or(usize::MAX);
    let fits = longest.iter().take_while(|row| {
        tokens += row.example.len();
        tokens <= budget.min(config.max_tokens_per_pass)
    });
    let longest = longest[..fits.count().max(1)].to_vec();
    let memory = plan(config, &prepared.model.config, &[longest])?;
    let first: Vec<Vec<&Row>> = itinerary
        .epoch(0)?
        .first()
        .map(|step| step.iter().map(|b| b.iter().map(|&i| &prepared.train[i]).collect()).collect())
        .unwrap_or_default();
    let work = plan(config, &prepared.model.config, &first)?;
    Ok(Plan { step_flops: work.step_flops, ops: work.ops, ..memory })
}
