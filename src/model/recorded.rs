//! A pass with gradients whose launches are recorded once, and run for every batch that fits: on a card as one CUDA graph, without
//! any work of the host but the batch's tables.
//!
//! The batch, its loss scale and the masks of the step are in tables of fixed addresses; grids are made for the room that was
//! asked for, and blocks beyond the rows of a batch end at once. Results are the bits of [`Decoder::score_and_backward`].

use super::adapter::Adapter;
use super::adapter_tables::AdapterTables;
use super::decoder::{Decoder, PassOptions};
use super::tables::{BatchTables, Room};
use crate::batch::Batch;
use crate::device::{Device, Graph, Mailbox};
use crate::error::{Error, Result};
use crate::ops::linear_cross_entropy::{Scores, TargetScore};
use crate::tensor::Real;

/// See the module text. The adapters and gradients that it was recorded with stay where they are.
pub struct RecordedPass<T: Real> {
    room: Room,
    tables: BatchTables<T>,
    of_adapters: AdapterTables<T>,
    graph: Graph,
    scores: Scores,
}

impl<T: Real> std::fmt::Debug for RecordedPass<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordedPass")
            .field("room", &self.room)
            .field("graph", &self.graph)
            .finish_non_exhaustive()
    }
}

impl<T: Real> Decoder<T> {
    /// Records a pass for batches with at most `room`, with the dropout and the policies of `options`; its scale and step are
    /// given with every batch. Tensors that shall stay have to be made before.
    ///
    /// # Errors
    /// [`Error::Device`] of a CPU, or without reserved memory or enough of it.
    pub fn record(
        &self,
        device: &Device,
        room: Room,
        adapters: &[Adapter<T>],
        grads: &mut [Adapter<T::Stat>],
        options: PassOptions<'_>,
    ) -> Result<RecordedPass<T>> {
        let lowest = self.lowest(adapters);
        let lowest =
            lowest.ok_or_else(|| Error::shape("record", "adapters", "one that adapts a layer", "none"))?;
        let PassOptions { dropout, policies, .. } = options;
        let mut tables = BatchTables::with_room(device, &self.config, room, dropout.is_some())?;
        tables.write(device, &Batch::default(), &[], 0.0)?;
        let mut of_adapters = AdapterTables::new(device, &self.config, adapters, grads, dropout)?;
        let (graph, scores) = device.capture(|| {
            of_adapters.measure(device, &self.weights, adapters)?;
            let kept = Some((lowest, policies));
            let pass = self.pass(device, (adapters, &of_adapters), &tables, (dropout, kept));
            self.both_ways(&pass, lowest, grads)
        })?;
        Ok(RecordedPass { room, tables, of_adapters, graph, scores })
    }
}

impl<T: Real> RecordedPass<T> {
    /// How large a batch may be.
    pub fn room(&self) -> Room {
        self.room
    }

    /// What was recorded.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Starts the pass over `batch`, which adds to the gradients; what it finds goes to `scores`. Nothing is waited for.
    ///
    /// # Errors
    /// An input error if the batch does not fit the model; [`Error::Shape`] if it is larger than the room.
    pub fn start(
        &mut self,
        decoder: &Decoder<T>,
        device: &Device,
        batch: &Batch,
        (adapters, options): (&[Adapter<T>], PassOptions<'_>),
        scores: &mut Mailbox,
    ) -> Result<()> {
        decoder.validate(device, batch, adapters)?;
        let needed = Room::of(batch);
        if self.room.max(needed) != self.room {
            return Err(Error::shape("record", "batch", format!("at most {:?}", self.room), needed));
        }
        self.tables.write(device, batch, &batch.target_rows(), options.scale)?;
        if let Some(step) = options.dropout {
            self.of_adapters.set_step(device, &decoder.config, adapters, step)?;
        }
        device.replay(&self.graph)?;
        self.scores.send(scores, batch.targets.len())
    }
}

/// What a pass that was started found, in the order of its targets, once it is done.
///
/// # Errors
/// [`Error::Device`] if something of it failed.
pub fn finish(scores: &mut Mailbox) -> Result<Vec<TargetScore>> {
    Scores::take(scores)
}
