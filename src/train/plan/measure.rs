//! A step on a device that computes nothing: the code that trains, with sizes instead of numbers.

use half::bf16;

use crate::batch::{Batch, Label};
use crate::config::head::HeadSpec;
use crate::config::{self, Dtype, ModelConfig, TrainConfig};
use crate::device::arch::Chip;
use crate::device::{ByClass, Class, Device, Ledger};
use crate::error::Result;
use crate::model::{Adapter, Decoder, DropoutStep, ModelFlops, PassCapacity, PassOptions, Policies, init};
use crate::ops::label_head::Loss;
use crate::optim::Update;
use crate::session::Context;
use crate::tensor::{DType, Real};
use crate::train::graphs::{PassCapacities, record};
use crate::train::pass_limits::PassLimits;
use crate::train::step::update;
use crate::train::trainee::Trainable;

/// Whose step is planned, and where it would run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup<'a> {
    pub(super) config: &'a TrainConfig,
    pub(super) model: &'a ModelConfig,
    /// The GPU that kernels are planned for; none on the cpu.
    pub(super) chip: Option<Chip>,
    pub(super) dtype: Dtype,
    /// Asked before every pass whether to stop.
    pub(super) context: &'a Context,
}

/// What is planned.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// The passes whose work counts; on a processor, their memory too.
    pub(super) passes: Vec<Batch>,
    /// Passes without gradients whose memory counts on a processor.
    pub(super) evaluated: Vec<Batch>,
    /// What a GPU records passes for, which is all that it takes memory for.
    pub(super) capacities: PassCapacities,
}

impl Job {
    /// Exactly these passes.
    pub(super) fn of(passes: Vec<Batch>) -> Self {
        let training = PassLimits::of(passes.iter().cloned()).capacity;
        Self {
            passes,
            evaluated: Vec::new(),
            capacities: PassCapacities { training, ..PassCapacities::default() },
        }
    }

    /// The largest passes of a run.
    pub(super) fn of_run(training: &PassLimits, evaluation: &PassLimits) -> Self {
        let capacities = PassCapacities {
            training: training.capacity,
            evaluation: evaluation.capacity,
            cuts: training.is_part,
        };
        Self { passes: training.largest(), evaluated: evaluation.largest(), capacities }
    }

    /// The same with all passes of which one may take the most memory.
    pub(super) fn with_candidates(&self, training: &PassLimits, evaluation: &PassLimits) -> Self {
        Self {
            passes: training.candidates(),
            evaluated: evaluation.candidates(),
            capacities: self.capacities,
        }
    }

    /// The same without its evaluations; none if it has none.
    pub(super) fn without_evaluation(&self) -> Option<Self> {
        let capacities = PassCapacities { evaluation: PassCapacity::default(), ..self.capacities };
        (!self.evaluated.is_empty()).then(|| Self {
            passes: self.passes.clone(),
            evaluated: Vec::new(),
            capacities,
        })
    }
}

/// What a step takes.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    /// Bytes per class at the peak.
    pub(super) peak: ByClass,
    /// The block that holds all tensors of a GPU, at their places; none on the cpu.
    pub(super) arena_bytes: Option<u64>,
    /// Bytes of weights, adapter and optimizer.
    pub(super) weights_bytes: u64,
    pub(super) adapter_bytes: u64,
    /// Numbers that are trained.
    pub(super) trainable: usize,
    pub(super) num_tokens: usize,
    pub(super) largest_pass_tokens: usize,
    /// Of the passes whose work counts.
    pub(super) model_flops: u64,
    pub(super) ledger: Ledger,
}

impl Measured {
    /// Bytes that must be there: the peak, on a GPU with the gaps between tensors.
    pub(super) fn needed_bytes(&self) -> u64 {
        self.arena_bytes.unwrap_or_else(|| self.peak.total())
    }

    /// Floating-point operations of the step.
    pub(super) fn flops(&self) -> u64 {
        self.ledger.total().flops
    }
}

impl Setup<'_> {
    /// One optimizer step of the passes of `job`, and its evaluations.
    ///
    /// # Errors
    /// As the step itself: an input error if a row does not fit the model; [`crate::error::Error::Stopped`]
    /// if the context asks to stop.
    pub(super) fn measure(&self, job: &Job, policies: &Policies) -> Result<Measured> {
        match self.dtype {
            Dtype::F32 => self.measure_as::<f32>(job, policies),
            Dtype::Bf16 => self.measure_as::<bf16>(job, policies),
        }
    }

    fn check_stop(&self) -> Result<()> {
        self.context.check_stop("stopped while the memory was planned; nothing was written")
    }

    fn measure_as<T: Real<Stat = f32>>(&self, job: &Job, policies: &Policies) -> Result<Measured> {
        let Self { config, model, chip, .. } = *self;
        self.check_stop()?;
        let device = chip.map_or_else(Device::dry, Device::dry_gpu);
        let weights = init::dry::<T>(&device.class(Class::Weights), model)?;
        let decoder = Decoder { config: model.clone(), weights };
        let weights_bytes = device.memory().live_bytes;
        let mut trainable = Trainable::<T>::new(&device, |place| {
            Adapter::new(place, &config.lora(), model, &decoder.weights, config.seed)
        })?;
        let adapter_bytes = device.memory().live_bytes - weights_bytes;
        device.reset_peak();
        device.take_ledger();
        let dropout = Some(DropoutStep { seed: config.seed, step: 0 });
        let options = PassOptions { scale: 1.0, dropout, policies: policies.as_slice() };
        let memory = || (device.peak_by_class(), device.arena().map(|arena| arena.high_water_bytes));
        let loss = |batch: &Batch| Some(loss(config, model, &batch.targets.labels().first()?.label));
        let mut recorded = None;
        if chip.is_some() && T::DTYPE == DType::Bf16 {
            let (model, asked) = ((&device, &decoder), (config, policies.as_slice()));
            let loss = job.passes.iter().find_map(loss);
            drop(record(asked, loss.as_ref(), model, job.capacities, &mut trainable)?);
            recorded = Some(memory());
        }
        for batch in &job.passes {
            self.check_stop()?;
            let (adapters, grads) = trainable.adapters_and_grads();
            decoder.find_and_backward(&device, batch, (adapters, grads), loss(batch).as_ref(), options)?;
        }
        // Its numbers cost nothing.
        let update = Update { max_grad_norm: None, ..update(config, 0.0) };
        trainable.update(&device, &update)?;
        let ledger = device.take_ledger();
        if recorded.is_none() {
            for batch in &job.evaluated {
                self.check_stop()?;
                decoder.find(&device, batch, trainable.adapters(), loss(batch).as_ref())?;
            }
        }
        let (peak, arena_bytes) = recorded.unwrap_or_else(memory);
        let model_flops = ModelFlops::of(model, Some(&config.lora()))?;
        let tokens = || job.passes.iter().map(Batch::total_tokens);
        let evaluated = job.evaluated.iter().map(Batch::total_tokens);
        Ok(Measured {
            peak,
            arena_bytes,
            weights_bytes,
            adapter_bytes,
            trainable: trainable.adapter.num_params(),
            num_tokens: tokens().sum(),
            largest_pass_tokens: tokens().chain(evaluated).max().unwrap_or(0),
            model_flops: job.passes.iter().map(|batch| model_flops.forward_and_backward(batch)).sum(),
            ledger,
        })
    }
}

/// A loss of labels like this one: which it is takes no memory and next to no time, but its weights are a table.
fn loss(config: &TrainConfig, model: &ModelConfig, label: &Label) -> Loss {
    let outputs = match &model.head {
        HeadSpec::Labels(head) => head.num_labels,
        HeadSpec::Tokens => 0,
    };
    let weights = |is_given: bool| is_given.then(|| vec![1.0; outputs]);
    match (Loss::usual(label), config.loss) {
        (Loss::CrossEntropy { label_smoothing, .. }, _) => {
            Loss::CrossEntropy { class_weights: weights(config.class_weights.is_some()), label_smoothing }
        }
        (_, config::Loss::Bce) => Loss::Bce { pos_weight: weights(config.pos_weight.is_some()) },
        (usual, _) => usual,
    }
}
