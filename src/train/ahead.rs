//! What a run on a GPU needs before its first step: its memory in one piece, and how large a pass will be; and the rows of the steps
//! that are started ahead.

use super::itinerary::{Itinerary, Step};
use super::plan::Plan;
use super::prepare::Prepared;
use super::step::room_of;
use crate::config::TrainConfig;
use crate::device::Device;
use crate::error::Result;
use crate::model::Room;
use crate::tensor::Real;

/// Takes the memory of a GPU that the run may use, in one piece: nothing is allocated in a step then, and launches can be
/// recorded. The weights are there already.
pub(super) fn reserve(device: &Device, planned: &Plan) -> Result<()> {
    let Some(planned_bytes) = planned.arena_bytes else { return Ok(()) };
    let bytes = match device.card_memory()? {
        Some(memory) => {
            let limit = planned.memory_limit.as_ref().map_or(memory.free_bytes, |limit| limit.bytes);
            limit.saturating_sub(planned.weights_bytes).min(memory.free_bytes / 100 * 97)
        }
        // Evaluation and other batches may lie less densely than the plan's.
        None => planned_bytes + planned_bytes / 2 + (64 << 20),
    };
    device.reserve(bytes)
}

/// The rows of steps, epoch by epoch.
#[derive(Default)]
pub(super) struct Rows {
    epoch: Option<(usize, Vec<Step>)>,
}

impl Rows {
    /// The micro-batches of step `step` (from 0).
    pub(super) fn of(&mut self, itinerary: &Itinerary<'_>, step: u64) -> Result<Step> {
        let (epoch, place) = itinerary.locate(step);
        if self.epoch.as_ref().is_none_or(|(known, _)| *known != epoch) {
            self.epoch = Some((epoch, itinerary.epoch(epoch)?));
        }
        let steps = self.epoch.as_ref().map(|(_, steps)| steps);
        Ok(steps.and_then(|steps| steps.get(place as usize)).cloned().unwrap_or_default())
    }
}

/// What the largest pass from step `done` on needs.
pub(super) fn room<T: Real>(
    config: &TrainConfig,
    prepared: &Prepared<T>,
    itinerary: &Itinerary<'_>,
    done: u64,
) -> Result<Room> {
    let mut room = Room::default();
    let (first, _) = itinerary.locate(done);
    let (last, _) = itinerary.locate(itinerary.total_steps().saturating_sub(1));
    for epoch in first..=last {
        let micro_batches = itinerary.epoch(epoch)?.into_iter().flatten();
        let rows = micro_batches.map(|b| b.into_iter().map(|i| &prepared.train[i]).collect());
        room = room.max(room_of(config, rows));
    }
    Ok(room)
}
