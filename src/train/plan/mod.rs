//! What a training will cost, before it starts: the same code on a device that computes nothing.
//!
//! A plan is for this machine or for a named card, for the rows of a run or for a [`Workload`] of synthetic rows. It says what
//! every kind of buffer takes, what blocks keep for the backward pass so that it fits, and the work of a step; for a card also
//! the time that a roofline predicts.

mod choose;
mod measure;
#[cfg(test)]
mod tests;
mod work;
mod workload;

pub use work::{Group, WorkOf};
pub use workload::Workload;

use serde::Serialize;

use self::choose::asked;
use self::measure::{Job, Measured, Setup};
use super::graphs::PassCapacities;
use super::pass_limits::PassLimits;
use super::passes::{PackAs, packed, passes_of};
use super::prepare::{Prepared, Row};
use super::sampler::Sampler;
use crate::batch::Batch;
use crate::config::{DeviceChoice, Dtype, ModelConfig, Task, TrainConfig};
use crate::device::arch::Chip;
use crate::device::card::CARDS;
use crate::device::{Card, Class, Device, Machine};
use crate::error::{Error, Result};
use crate::model::{Policies, Policy};
use crate::session::memory::size;
use crate::session::{Context, Limit, Peak};
use crate::tensor::Real;

/// Memory and work of one optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// `cpu`, or the card that is planned for.
    pub device: String,
    /// Type of weights and activations.
    pub dtype: Dtype,
    /// What blocks keep for the backward pass, by block.
    pub activation_policy: Policies,
    /// Frozen weights.
    pub weights_bytes: u64,
    /// Adapter, its gradient and its two moments; where weights are bf16, also its master in f32.
    pub adapter_bytes: u64,
    /// Activations and temporary tensors of the largest pass.
    pub activation_bytes: u64,
    /// The most memory that tensors take at once.
    pub peak_bytes: u64,
    /// The one block that holds all tensors on a GPU: the peak, and gaps between tensors. None on the cpu.
    pub arena_bytes: Option<u64>,
    /// Bytes per use at the peak.
    pub peak_by_use: Vec<BytesOf>,
    /// Memory limit, if any.
    pub memory_limit: Option<Limit>,
    /// False if it does not fit.
    pub fits: bool,
    /// Tokens of the largest pass, training or evaluation.
    pub largest_pass_tokens: usize,
    /// True if it is the evaluation that does not fit, and the training alone would.
    pub evaluation_is_too_large: bool,
    /// Tokens of one step.
    pub step_tokens: usize,
    /// Numbers that are trained.
    pub trainable: usize,
    /// Floating-point operations of one step.
    pub step_flops: u64,
    /// Model FLOPs of one step ([`crate::model::ModelFlops`]): the work that `sol` counts.
    pub step_model_flops: u64,
    /// Work of one step by group.
    pub groups: Vec<WorkOf<Group>>,
    /// Work of one step by op.
    pub ops: Vec<WorkOf<String>>,
    /// What the card is predicted to do; none on the CPU.
    pub prediction: Option<Prediction>,
    /// The most tokens that fit at once, by policy; empty unless asked for.
    pub capacity: Vec<Capacity>,
}

/// Bytes of one kind of buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BytesOf {
    /// What the buffers are for.
    #[serde(rename = "use")]
    pub class: &'static str,
    /// Bytes.
    pub bytes: u64,
}

/// A roofline's answer, not a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Prediction {
    /// Seconds of one step.
    pub step_secs: f64,
    /// Tokens of the step per second.
    pub tokens_per_second: f64,
    /// Share of the speed of light, as [`super::StepLog::sol`]: the model FLOPs of the step over the predicted seconds and the
    /// peak of the card.
    pub sol: f64,
}

/// How much fits under one policy for all blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Capacity {
    /// The policy.
    pub activation_policy: Policy,
    /// Tokens; none if not even one fits.
    pub tokens: Option<usize>,
}

/// Where a plan is for.
struct Place {
    /// The GPU that kernels are planned for; none on the cpu.
    chip: Option<Chip>,
    dtype: Dtype,
    card: Option<&'static Card>,
    limit: Option<Limit>,
}

impl Place {
    /// The card that the configuration names, or the device of a run, or this machine; and the memory there.
    fn of(config: &TrainConfig, device: Option<&Device>) -> Result<Self> {
        let card = match &config.gpu {
            None => None,
            Some(name) => match Card::find(name) {
                Some(card) => Some(card),
                None => {
                    return Error::input("CONFIG", "no such card")
                        .field("gpu")
                        .got(name)
                        .expected(CARDS.map(|card| card.name).join(", "))
                        .fix("choose the card that is most like yours, and set memory_limit")
                        .into();
                }
            },
        };
        let device = device.filter(|device| card.is_none() && device.machine() == Machine::Gpu);
        let named = config.device.is_gpu();
        let on_gpu = card.is_some() || device.is_some() || named;
        let chip = match (card, device) {
            (Some(card), _) => Some(card.chip()),
            (None, Some(device)) => Some(device.chip()?),
            (None, None) => named.then_some(Chip::RTX_3080),
        };
        // GPUs compute in bf16; a plan for one that is not here may ask what f32 would take.
        let dtype = if on_gpu && card.is_none() { Dtype::Bf16 } else { config.dtype };
        let limit = |bytes, source| Some(Limit { bytes, source });
        let free = device.map(Limit::of_card).transpose()?.flatten();
        let limit = match (config.memory_limit, card) {
            (Some(size), _) => limit(size.bytes(), "memory_limit".to_owned()),
            (None, Some(card)) => {
                limit(card.tensor_bytes(), format!("{}, less what is not for tensors", card.title))
            }
            // The memory of a GPU is not that of this machine.
            (None, None) if on_gpu => free,
            (None, None) => Limit::of_machine(),
        };
        let card = card.or_else(|| device.and_then(|device| Card::of_label(device.label())));
        Ok(Self { chip, dtype, card, limit })
    }

    fn setup<'a>(&self, config: &'a TrainConfig, model: &'a ModelConfig, context: &'a Context) -> Setup<'a> {
        Setup { config, model, chip: self.chip, dtype: self.dtype, context }
    }

    fn limit_bytes(&self) -> Option<u64> {
        self.limit.as_ref().map(|limit| limit.bytes)
    }

    /// The card, or the device of the run.
    fn name(&self, config: &TrainConfig) -> String {
        match (self.card, self.chip) {
            (Some(card), _) => card.name.to_owned(),
            (None, None) => DeviceChoice::Cpu.to_string(),
            (None, Some(_)) => config.device.to_string(),
        }
    }

    /// The plan of a step whose memory is that of `memory` and whose work is that of `work`.
    fn plan(&self, setup: &Setup<'_>, policies: Policies, memory: &Measured, work: &Measured) -> Plan {
        let peak_bytes = memory.peak.total();
        // The kernels that are planned compute in bf16; nothing is known about others.
        let timed = self.card.filter(|_| setup.config.dtype == Dtype::Bf16);
        let (ops, groups) = work::of(&work.ledger, timed);
        let secs: Option<f64> = groups.iter().map(|group| group.predicted_secs).sum();
        let prediction = timed.zip(secs).map(|(card, step_secs)| Prediction {
            step_secs,
            tokens_per_second: work.num_tokens as f64 / step_secs.max(f64::MIN_POSITIVE),
            sol: Peak::of_card(card).share(work.model_flops, step_secs).unwrap_or(0.0),
        });
        let bytes_of = |(class, bytes): (Class, u64)| BytesOf { class: class.name(), bytes };
        Plan {
            device: self.name(setup.config),
            dtype: setup.config.dtype,
            activation_policy: policies,
            weights_bytes: memory.weights_bytes,
            adapter_bytes: memory.adapter_bytes,
            activation_bytes: peak_bytes - memory.weights_bytes - memory.adapter_bytes,
            peak_bytes,
            arena_bytes: memory.arena_bytes,
            peak_by_use: memory.peak.iter().map(bytes_of).collect(),
            fits: self.limit.as_ref().is_none_or(|limit| memory.needed_bytes() <= limit.bytes),
            memory_limit: self.limit.clone(),
            largest_pass_tokens: memory.largest_pass_tokens,
            evaluation_is_too_large: false,
            step_tokens: work.num_tokens,
            trainable: memory.trainable,
            step_flops: work.flops(),
            step_model_flops: work.model_flops,
            groups,
            ops,
            prediction,
            capacity: Vec::new(),
        }
    }

    /// The most tokens that fit at once, by policy.
    fn capacity(&self, setup: &Setup<'_>, workload: &Workload) -> Result<Vec<Capacity>> {
        let Some(limit) = &self.limit else { return Ok(Vec::new()) };
        let batch = |tokens| Workload { tokens, ..*workload }.batch(&setup.model.head);
        let of = |activation_policy| -> Result<Capacity> {
            let tokens = setup.capacity(activation_policy, limit.bytes, batch)?;
            Ok(Capacity { activation_policy, tokens })
        };
        Policy::ALL.into_iter().map(of).collect()
    }
}

impl Plan {
    /// Fails if the plan does not fit.
    ///
    /// # Errors
    /// An input error with the largest number of tokens that would fit, if [`Plan::capacity`] knows it.
    pub fn check_fits(&self) -> Result<()> {
        let (false, Some(limit)) = (self.fits, &self.memory_limit) else { return Ok(()) };
        let most =
            self.capacity.iter().filter_map(|c| Some((c.tokens?, c.activation_policy))).max_by_key(|c| c.0);
        let held = self.weights_bytes + self.adapter_bytes;
        let fix = match most {
            _ if held > limit.bytes => {
                "weights and adapter alone are more: take a smaller model, or a machine with more memory"
                    .to_owned()
            }
            _ if self.evaluation_is_too_large => format!(
                "the training alone would fit: evaluate fewer than {} tokens at once (eval_batch_size, max_tokens_per_pass, shorter rows), which changes no result",
                self.largest_pass_tokens
            ),
            Some((tokens, policy)) => format!(
                "compute at most {tokens} tokens at once (max_tokens_per_pass, and rows no longer than that), which fits with activation_policy {}; a smaller lora_r saves little",
                policy.name()
            ),
            None => "compute fewer tokens at once (max_tokens_per_pass, shorter rows)".to_owned(),
        };
        let more = if self.device == "cpu" { "; or raise memory_limit, if there is more" } else { "" };
        Error::input("CONFIG", "the training does not fit into the memory")
            .field("memory_limit")
            .got(format!(
                "{} with activation_policy {}",
                size(self.arena_bytes.unwrap_or(self.peak_bytes)),
                self.activation_policy
            ))
            .expected(format!("at most {} ({})", size(limit.bytes), limit.source))
            .fix(fix + more)
            .into()
    }
}

/// Plans the step of `micro_batches`: its memory is that of its largest pass.
///
/// # Errors
/// As the step itself: an input error if a row does not fit the model; or if the card is unknown.
pub fn plan(config: &TrainConfig, model: &ModelConfig, micro_batches: &[Vec<&Row>]) -> Result<Plan> {
    let place = Place::of(config, None)?;
    let context = Context::default();
    let setup = place.setup(config, model, &context);
    let job = Job::of(step_passes(config, PackAs::of(config, &model.head), micro_batches));
    let (policies, measured) = setup.choose(&job, place.limit_bytes())?;
    Ok(place.plan(&setup, policies, &measured, &measured))
}

/// Plans a step of one pass over synthetic rows.
///
/// # Errors
/// An input error if the workload does not fit the model, or the card is unknown.
pub fn plan_workload(config: &TrainConfig, model: &ModelConfig, workload: &Workload) -> Result<Plan> {
    let model = &with_head(config, model.clone())?;
    workload.check(model)?;
    let place = Place::of(config, None)?;
    let context = Context::default();
    let setup = place.setup(config, model, &context);
    let (policies, measured) =
        setup.choose(&Job::of(vec![workload.batch(&model.head)]), place.limit_bytes())?;
    let plan = place.plan(&setup, policies, &measured, &measured);
    Ok(Plan { capacity: place.capacity(&setup, workload)?, ..plan })
}

/// The model with the dropout and the head that the task asks for; one with labels has two outputs for classes, and one for a number, unless the
/// configuration says how many.
fn with_head(config: &TrainConfig, model: ModelConfig) -> Result<ModelConfig> {
    let model = model.with_base_dropout(config.base_dropout)?;
    match config.task {
        Task::Causal => model.with_token_head(),
        Task::Classify => Ok(model.with_label_head(config.num_labels.unwrap_or(2))),
        Task::Regress => Ok(model.with_label_head(config.num_labels.unwrap_or(1))),
    }
}

/// The plan of a run, with the memory of its largest passes and the work of its first step; and how large passes are.
pub(super) fn planned<T: Real<Stat = f32>>(
    config: &TrainConfig,
    prepared: &Prepared<T>,
    sampler: &Sampler<'_>,
    context: &Context,
) -> Result<(Plan, PassCapacities)> {
    let place = Place::of(config, Some(&prepared.device))?;
    let setup = place.setup(config, &prepared.model.config, context);
    let pack_as = PackAs::of(config, &prepared.model.config.head);
    let training = PassLimits::of_training(config, &prepared.train, sampler, pack_as, context)?;
    let evaluation = PassLimits::of_evaluation(config, &prepared.eval, pack_as)?;
    let job = Job::of_run(&training, &evaluation);
    let limit = place.limit_bytes();
    let (mut policies, mut memory) = setup.choose(&job, limit)?;
    if place.chip.is_none() {
        // Without capacities, the pass that takes the most may be one that is second in tokens and in targets.
        let all = job.with_candidates(&training, &evaluation);
        let most = setup.measure(&all, &policies)?;
        (policies, memory) = match limit {
            Some(limit) if most.needed_bytes() > limit => setup.choose(&all, Some(limit))?,
            _ => (policies, most),
        };
    }
    let first: Vec<Vec<&Row>> = sampler
        .epoch(0)?
        .first()
        .map(|step| step.iter().map(|b| b.iter().map(|&i| &prepared.train[i]).collect()).collect())
        .unwrap_or_default();
    let work = setup.measure(&Job::of(step_passes(config, pack_as, &first)), &policies)?;
    let mut plan = place.plan(&setup, policies, &memory, &work);
    if let (false, Some(limit), Some(training)) = (plan.fits, limit, job.without_evaluation()) {
        plan.evaluation_is_too_large = setup.choose(&training, Some(limit))?.1.needed_bytes() <= limit;
    }
    if let Some(most_tokens) = job.passes.first().filter(|_| config.dry_run || !plan.fits) {
        plan.capacity = place.capacity(&setup, &like(most_tokens))?;
    }
    Ok((plan, job.capacities))
}

/// A workload of rows like those of a pass.
fn like(pass: &Batch) -> Workload {
    let tokens = pass.total_tokens().max(1);
    let longest = pass.segments.iter().map(|s| s.position_offset + s.len).max().unwrap_or(1);
    let supervised_share = (pass.targets.len() as f64 / tokens as f64).clamp(f64::MIN_POSITIVE, 1.0);
    Workload { tokens, sequence_length: longest, supervised_share }
}

/// The passes of a step.
fn step_passes(config: &TrainConfig, pack_as: PackAs, micro_batches: &[Vec<&Row>]) -> Vec<Batch> {
    let pack = |pass: &[&Row]| packed(pass, pack_as, 0);
    micro_batches.iter().flat_map(|rows| passes_of(rows, config).map(pack)).collect()
}

/// Whether a run of this configuration chooses by itself what blocks keep.
pub(super) fn chooses(config: &TrainConfig) -> bool {
    asked(config.activation_policy).is_none()
}
