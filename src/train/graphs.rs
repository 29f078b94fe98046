//! What a run on a GPU needs before its first step: its memory in one piece, and its passes recorded as graphs of launches.

use super::plan::Plan;
use super::trainee::Trainable;
use crate::config::TrainConfig;
use crate::device::Device;
use crate::error::Result;
use crate::model::{Decoder, DropoutStep, PassCapacity, PassOptions, Policy, RecordedPass};
use crate::ops::label_head::Loss;
use crate::tensor::Real;

/// Safety margin: memory of a card that is taken beside the planned bytes where the limit allows it. The plan is exact.
const SPARE_BYTES: u64 = 64 << 20;

/// Takes the memory of a GPU that the run needs, in one piece: nothing is allocated in a step then, and launches can be
/// recorded. The weights are there already.
pub(super) fn reserve(device: &Device, planned: &Plan) -> Result<()> {
    let Some(planned_bytes) = planned.arena_bytes else { return Ok(()) };
    let needed = planned_bytes.saturating_sub(planned.weights_bytes);
    let bytes = match (device.card_memory()?, &planned.memory_limit) {
        (Some(_), Some(limit)) => {
            (needed + SPARE_BYTES).min(limit.bytes.saturating_sub(planned.weights_bytes)).max(needed)
        }
        (Some(_), None) => needed + SPARE_BYTES,
        // An emulator shows that the plan is enough.
        (None, _) => needed,
    };
    device.reserve(bytes)
}

/// The passes of a trainee, recorded.
pub(super) struct Recorded<T: Real> {
    /// Forward and backward; none without a pass that has targets.
    pub(super) training: Option<RecordedPass<T>>,
    /// Forward alone; none without rows to evaluate.
    pub(super) evaluation: Option<RecordedPass<T>>,
}

/// The capacity that the passes of a run need.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PassCapacities {
    pub(super) training: PassCapacity,
    pub(super) evaluation: PassCapacity,
    /// Whether passes that train are cut to their capacity.
    pub(super) cuts: bool,
}

/// Records the passes of a trainee and its update, in the order in which a plan measures them. Whatever stays is made before
/// the first recording.
///
/// # Errors
/// [`crate::error::Error::Device`] if there is not so much memory.
pub(super) fn record<T: Real<Stat = f32>>(
    (config, policies): (&TrainConfig, &[Policy]),
    loss: Option<&Loss>,
    (device, decoder): (&Device, &Decoder<T>),
    capacities: PassCapacities,
    trainable: &mut Trainable<T>,
) -> Result<Recorded<T>> {
    let dropout = Some(DropoutStep { seed: config.seed, step: 0 });
    let (trains, evaluates) = (capacities.training.targets > 0, capacities.evaluation.targets > 0);
    if trains {
        trainable.prepare_update(device)?;
    }
    let (adapters, grads) = trainable.adapters_and_grads();
    let training = trains
        .then(|| decoder.pass_tables(device, capacities.training, (adapters, grads), loss, dropout))
        .transpose()?;
    let evaluation = evaluates
        .then(|| decoder.pass_tables(device, capacities.evaluation, (adapters, &[]), loss, None))
        .transpose()?;
    let options = PassOptions { scale: 1.0, dropout, policies };
    Ok(Recorded {
        training: training
            .map(|tables| decoder.record(device, tables, (adapters, grads), options))
            .transpose()?,
        evaluation: evaluation.map(|tables| decoder.record_scoring(device, tables, adapters)).transpose()?,
    })
}
