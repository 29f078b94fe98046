//! Passes whose launches are recorded once, and run for every batch that fits: on a card as one CUDA graph, without any work of the
//! host but the batch's tables. With gradients for training, without for evaluation and scoring ([`Scorer`]).
//!
//! The batch, its loss scale and the masks of the step are in tables of fixed addresses; grids are made for the capacity that was
//! asked for, and blocks beyond the rows of a batch end at once. Results are the bits of [`Decoder::score_and_backward`] and
//! [`Decoder::score`].

use std::collections::VecDeque;

use super::adapter::Adapter;
use super::adapter_tables::AdapterTables;
use super::decoder::{Decoder, DropoutStep, PassOptions};
use super::head::{Found, Sink};
use super::init;
use super::tables::{BatchTables, PassCapacity};
use crate::batch::{Batch, LabelTarget};
use crate::device::arch::Chip;
use crate::device::{Device, Graph, PendingCopy};
use crate::error::{Error, Result};
use crate::ops::label_head::{LabelScores, Loss, PreparedLoss};
use crate::ops::linear_cross_entropy::Scores;
use crate::tensor::Real;

/// What a pass has in the memory of the device beside weights, adapters and gradients: made before anything is recorded, so that it
/// lies on no place that recorded launches use.
pub struct PassTables<T: Real> {
    capacity: PassCapacity,
    batch: BatchTables<T>,
    of_adapters: AdapterTables<T>,
    scores: PassScores,
}

/// Where the head writes what it finds.
enum PassScores {
    Tokens(Scores),
    Labels(PreparedLoss, LabelScores),
}

impl PassScores {
    fn sink(&mut self) -> Sink<'_> {
        match self {
            Self::Tokens(scores) => Sink::Tokens(scores),
            Self::Labels(loss, scores) => Sink::Labels(loss, scores),
        }
    }
}

/// See the module text. The adapters and gradients that it was recorded with stay where they are.
pub struct RecordedPass<T: Real> {
    tables: PassTables<T>,
    graph: Graph,
}

impl<T: Real> std::fmt::Debug for RecordedPass<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordedPass")
            .field("capacity", &self.tables.capacity)
            .field("graph", &self.graph)
            .finish_non_exhaustive()
    }
}

impl<T: Real> Decoder<T> {
    /// The tables of a pass over batches with at most `capacity`. `grads` are those that it adds to, by adapter; none for scoring.
    /// `loss` is that of labels, where sequences are labelled.
    ///
    /// # Errors
    /// [`Error::Device`] if there is not so much memory.
    pub fn pass_tables(
        &self,
        device: &Device,
        capacity: PassCapacity,
        (adapters, grads): (&[Adapter<T>], &[Adapter<T::Stat>]),
        loss: Option<&Loss>,
        dropout: Option<DropoutStep>,
    ) -> Result<PassTables<T>> {
        let mut batch = BatchTables::with_capacity(device, &self.config, capacity, dropout.is_some())?;
        batch.write(device, &Batch::default(), &[], 0.0)?;
        let of_adapters = AdapterTables::new(device, self.sites(), adapters, grads, dropout)?;
        let scores = match loss {
            None => PassScores::Tokens(Scores::with_capacity(device, capacity.targets)?),
            Some(loss) => {
                let (loss, scores) = self.label_sink(device, capacity.targets, loss)?;
                PassScores::Labels(loss, scores)
            }
        };
        Ok(PassTables { capacity, batch, of_adapters, scores })
    }

    /// Records a pass with gradients, which are those that the tables were made with, with the dropout that they were made with
    /// and the policies of `options`; its scale and step are given with every batch.
    ///
    /// # Errors
    /// [`Error::Device`] of a CPU, or without reserved memory or enough of it.
    pub fn record(
        &self,
        device: &Device,
        tables: PassTables<T>,
        (adapters, grads): (&[Adapter<T>], &mut [Adapter<T::Stat>]),
        options: PassOptions<'_>,
    ) -> Result<RecordedPass<T>> {
        let PassOptions { dropout, policies, .. } = options;
        let lowest = self.lowest(adapters);
        let lowest =
            lowest.ok_or_else(|| Error::shape("record", "adapters", "one that adapts a layer", "none"))?;
        let PassTables { capacity, batch, mut of_adapters, mut scores } = tables;
        let (graph, ()) = device.capture(|| {
            of_adapters.measure(device, &self.weights, adapters)?;
            let kept = Some((lowest, policies));
            let pass = self.pass(device, (adapters, &of_adapters), &batch, (dropout, kept));
            self.both_ways(&pass, lowest, grads, scores.sink())
        })?;
        Ok(RecordedPass { tables: PassTables { capacity, batch, of_adapters, scores }, graph })
    }

    /// Records a pass without gradients.
    ///
    /// # Errors
    /// [`Error::Device`] of a CPU, or without reserved memory or enough of it.
    pub fn record_scoring(
        &self,
        device: &Device,
        tables: PassTables<T>,
        adapters: &[Adapter<T>],
    ) -> Result<RecordedPass<T>> {
        let PassTables { capacity, batch, mut of_adapters, mut scores } = tables;
        let (graph, ()) = device.capture(|| {
            of_adapters.measure(device, &self.weights, adapters)?;
            let pass = self.pass(device, (adapters, &of_adapters), &batch, (None, None));
            self.only_forward(&pass, scores.sink())
        })?;
        Ok(RecordedPass { tables: PassTables { capacity, batch, of_adapters, scores }, graph })
    }

    /// Bytes that a recorded pass without gradients takes on a GPU beside weights and adapters: what to reserve for it.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no kernels for the model.
    pub fn scoring_bytes(
        &self,
        chip: Chip,
        capacity: PassCapacity,
        adapters: &[Adapter<T>],
        loss: Option<&Loss>,
    ) -> Result<u64> {
        let device = Device::dry_gpu(chip);
        let decoder = Self { config: self.config.clone(), weights: init::dry(&device, &self.config)? };
        let like = |adapter: &Adapter<T>| adapter.zeros_like(&Device::dry())?.cast(&device);
        let adapters = adapters.iter().map(like).collect::<Result<Vec<Adapter<T>>>>()?;
        let before = device.arena().unwrap_or_default().high_water_bytes;
        let tables = decoder.pass_tables(&device, capacity, (&adapters, &[]), loss, None)?;
        decoder.record_scoring(&device, tables, &adapters)?;
        Ok(device.arena().unwrap_or_default().high_water_bytes - before)
    }
}

impl<T: Real> RecordedPass<T> {
    /// How large a batch may be.
    pub fn capacity(&self) -> PassCapacity {
        self.tables.capacity
    }

    /// What was recorded.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Starts the pass over `batch`, which adds to the gradients if there are any; what it finds goes to `scores`. Nothing is
    /// waited for.
    ///
    /// # Errors
    /// An input error if the batch does not fit the model; [`Error::Shape`] if it is larger than the capacity.
    pub fn start(
        &mut self,
        decoder: &Decoder<T>,
        device: &Device,
        batch: &Batch,
        (adapters, options): (&[Adapter<T>], PassOptions<'_>),
        scores: &mut PendingScores,
    ) -> Result<()> {
        decoder.validate(device, batch, adapters)?;
        let (needed, tables) = (PassCapacity::of(batch), &mut self.tables);
        if tables.capacity.max(needed) != tables.capacity {
            return Err(Error::shape("record", "batch", format!("at most {:?}", tables.capacity), needed));
        }
        tables.batch.write(device, batch, &batch.target_rows(), options.scale)?;
        if let Some(step) = options.dropout {
            tables.of_adapters.set_step(device, decoder.sites(), adapters, step)?;
        }
        if let PassScores::Labels(loss, _) = &tables.scores {
            loss.loss.check_all(batch.targets.labels(), decoder.num_labels())?;
        }
        device.replay(&self.graph)?;
        let count = batch.targets.len();
        match &tables.scores {
            PassScores::Tokens(found) => found.send(&mut scores.copy, count),
            PassScores::Labels(loss, found) => {
                let labels = batch.targets.labels();
                scores.labels = Some((loss.loss.clone(), labels.to_vec()));
                found.send(&mut scores.copy, count)
            }
        }
    }
}

/// What a pass that was started finds, on its way to the host.
#[derive(Debug)]
pub struct PendingScores {
    copy: PendingCopy,
    /// The loss and the sequences, where these are labelled.
    labels: Option<(Loss, Vec<LabelTarget>)>,
}

impl PendingScores {
    /// Nothing yet.
    pub fn new(device: &Device) -> Self {
        Self { copy: PendingCopy::new(device), labels: None }
    }

    /// What the pass found, in the order of its targets, once it is done.
    ///
    /// # Errors
    /// [`Error::Device`] if something of it failed.
    pub fn finish(&mut self) -> Result<Found> {
        match self.labels.take() {
            None => Scores::take(&mut self.copy).map(Found::Tokens),
            Some((loss, targets)) => LabelScores::take(&mut self.copy, &loss, &targets).map(Found::Labels),
        }
    }
}

/// Scores batch after batch without gradients. On a GPU that has a recorded pass the next batch is started while the device
/// works on the one before.
#[derive(Debug)]
pub struct Scorer<T: Real> {
    recorded: Option<RecordedPass<T>>,
    /// That of labels; none where tokens are scored.
    loss: Option<Loss>,
    spare: Vec<PendingScores>,
}

/// A batch that was started.
enum Started {
    Done(Found),
    Sent(PendingScores),
}

impl<T: Real> Scorer<T> {
    /// With a pass that was recorded without gradients, or without any; and the loss of labels, where sequences are labelled.
    pub fn new(recorded: Option<RecordedPass<T>>, loss: Option<Loss>) -> Self {
        Self { recorded, loss, spare: Vec::new() }
    }

    /// Gives `take` what the head finds for every batch, in their order, with what came with the batch.
    ///
    /// # Errors
    /// The first error of `batches`, of a batch, or of `take`; batches that were started by then are forgotten.
    pub fn score<X>(
        &mut self,
        (decoder, device): (&Decoder<T>, &Device),
        adapters: &[Adapter<T>],
        batches: impl Iterator<Item = Result<(Batch, X)>>,
        mut take: impl FnMut(X, Found) -> Result<()>,
    ) -> Result<()> {
        let ahead = usize::from(self.recorded.is_some());
        let mut started = VecDeque::new();
        for next in batches {
            let (batch, with) = next?;
            started.push_back((with, self.start((decoder, device), adapters, &batch)?));
            if started.len() > ahead
                && let Some((with, oldest)) = started.pop_front()
            {
                take(with, self.finish(oldest)?)?;
            }
        }
        for (with, oldest) in started {
            take(with, self.finish(oldest)?)?;
        }
        Ok(())
    }

    fn start(
        &mut self,
        (decoder, device): (&Decoder<T>, &Device),
        adapters: &[Adapter<T>],
        batch: &Batch,
    ) -> Result<Started> {
        let Some(recorded) = self.recorded.as_mut().filter(|_| !batch.targets.is_empty()) else {
            let loss = self.loss.as_ref();
            return device.run(|| decoder.find(device, batch, adapters, loss)).map(Started::Done);
        };
        let mut copy = self.spare.pop().unwrap_or_else(|| PendingScores::new(device));
        let options = PassOptions { scale: 0.0, dropout: None, policies: &[] };
        recorded.start(decoder, device, batch, (adapters, options), &mut copy)?;
        Ok(Started::Sent(copy))
    }

    fn finish(&mut self, started: Started) -> Result<Found> {
        match started {
            Started::Done(scores) => Ok(scores),
            Started::Sent(mut copy) => {
                let found = copy.finish()?;
                self.spare.push(copy);
                Ok(found)
            }
        }
    }
}
