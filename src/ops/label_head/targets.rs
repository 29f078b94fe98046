//! The sequences of a batch with their labels, and what the head finds for them: lists on the CPU, tables and tensors in GPU memory.
//!
//! A CUDA graph is recorded once for a capacity of sequences; those of each batch are written into the tables.

use super::{LabelScore, Loss, OP};
use crate::batch::{Label, LabelTarget};
use crate::device::kernels::params::{LabelEntry, LabelRange};
use crate::device::{Device, Machine, PendingCopy, Table, Tensor};
use crate::error::{Error, Result};
use crate::tensor::Real;

/// The sequences to label, in order, with rows of what the head reads; and the scale of the loss.
#[derive(Debug)]
pub struct Targets {
    list: Vec<LabelTarget>,
    scale: f64,
    capacity: usize,
    num_labels: usize,
    tables: Option<Tables>,
}

/// The same for kernels.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) ranges: Table<LabelRange>,
    pub(super) entries: Table<LabelEntry>,
    pub(super) numbers: Table<f32>,
}

impl Targets {
    /// These sequences, without spare capacity.
    ///
    /// # Errors
    /// As [`Targets::write`].
    pub fn new(device: &Device, targets: &[LabelTarget], num_labels: usize, scale: f64) -> Result<Self> {
        let mut new = Self::with_capacity(device, targets.len(), num_labels)?;
        new.write(device, targets, scale)?;
        Ok(new)
    }

    /// Empty, with capacity for this many sequences, for a head with `num_labels` outputs. Call [`Targets::write`] before the first
    /// use.
    ///
    /// # Errors
    /// Those of the device.
    pub fn with_capacity(device: &Device, capacity: usize, num_labels: usize) -> Result<Self> {
        let tables = match device.machine() {
            Machine::Cpu => None,
            Machine::Gpu => Some(Tables {
                ranges: Table::with_capacity(device, capacity)?,
                entries: Table::with_capacity(device, capacity)?,
                numbers: Table::with_capacity(device, capacity * num_labels)?,
            }),
        };
        Ok(Self { list: Vec::new(), scale: 0.0, capacity, num_labels, tables })
    }

    /// Replaces the content.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more than there is room for, or rows are out of order; those of the device.
    pub fn write(&mut self, device: &Device, targets: &[LabelTarget], scale: f64) -> Result<()> {
        if targets.len() > self.capacity {
            let expected = format!("at most {}", self.capacity);
            return Err(Error::shape(OP, "targets", expected, targets.len()));
        }
        let mut end = 0;
        for target in targets {
            if target.rows.start < end || target.rows.is_empty() {
                return Err(Error::shape(OP, "targets", "rows in order", target));
            }
            end = target.rows.end;
        }
        if let Some(tables) = &mut self.tables {
            let range = |target: &LabelTarget| LabelRange {
                first: target.rows.start as i32,
                end: target.rows.end as i32,
            };
            let entry = |target: &LabelTarget| LabelEntry {
                weight: if target.label == Label::None {
                    0.0
                } else {
                    (scale * f64::from(target.weight)) as f32
                },
                label: if let Label::Class(class) = target.label { class as i32 } else { 0 },
            };
            let mut numbers = vec![0.0; targets.len() * self.num_labels];
            for (to, target) in numbers.chunks_exact_mut(self.num_labels).zip(targets) {
                if let Label::Numbers(own) = &target.label {
                    to.iter_mut().zip(own).for_each(|(to, own)| *to = *own);
                }
            }
            tables.ranges.write(device, &targets.iter().map(range).collect::<Vec<_>>())?;
            tables.entries.write(device, &targets.iter().map(entry).collect::<Vec<_>>())?;
            tables.numbers.write(device, &numbers)?;
        }
        self.list = targets.to_vec();
        self.scale = scale;
        Ok(())
    }

    /// The sequences.
    pub fn list(&self) -> &[LabelTarget] {
        &self.list
    }

    /// Scale of the loss.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Capacity in sequences; on a CPU, which has no spare rows, their number.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// One past the last row that a sequence reads.
    pub(super) fn end(&self) -> usize {
        self.list.last().map_or(0, |target| target.rows.end)
    }

    pub(super) fn tables(&self) -> Result<&Tables> {
        self.tables.as_ref().ok_or_else(|| Error::shape(OP, "targets", "tables on the GPU", "a list"))
    }

    /// How many sequences there are, for kernels of other ops.
    pub fn live_rows(&self) -> crate::ops::LiveRows {
        match &self.tables {
            Some(tables) => crate::ops::LiveRows::at(tables.ranges.count_ptr()),
            None => crate::ops::LiveRows::ALL,
        }
    }
}

/// What the head found. On a GPU the logits stay in its memory until they are read; losses are computed of them on the host.
#[derive(Debug)]
pub struct LabelScores {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Host(Vec<LabelScore>),
    /// Logits, `[capacity, num_labels]`.
    Device(Tensor<f32>),
}

impl LabelScores {
    /// Empty, with capacity for this many sequences.
    ///
    /// # Errors
    /// Those of the device.
    pub fn with_capacity(device: &Device, capacity: usize, num_labels: usize) -> Result<Self> {
        let place = match device.machine() {
            Machine::Cpu => Place::Host(Vec::new()),
            Machine::Gpu => Place::Device(device.empty(capacity, num_labels)?),
        };
        Ok(Self { place })
    }

    /// Where the head writes logits of type `S`; none on a host.
    pub(crate) fn logits<S: Real>(&mut self) -> Option<&mut Tensor<S>> {
        match &mut self.place {
            Place::Host(_) => None,
            Place::Device(logits) => (logits as &mut dyn std::any::Any).downcast_mut(),
        }
    }

    /// Takes what was found on the host.
    pub(crate) fn set(&mut self, scores: Vec<LabelScore>) {
        self.place = Place::Host(scores);
    }

    /// Starts the copy of the logits of the first `count` sequences to the host, for [`LabelScores::take`].
    ///
    /// # Errors
    /// [`Error::Shape`] if `count` exceeds the capacity, or the scores are on the host already; errors of the device.
    pub fn send(&self, copy: &mut PendingCopy, count: usize) -> Result<()> {
        match &self.place {
            Place::Device(logits) => copy.send(logits, logits.cols() * count),
            Place::Host(_) => Err(Error::shape(OP, "scores", "on a GPU", "on the host")),
        }
    }

    /// Waits for the copy that [`LabelScores::send`] started.
    ///
    /// # Errors
    /// Those of the device.
    pub fn take(copy: &mut PendingCopy, loss: &Loss, targets: &[LabelTarget]) -> Result<Vec<LabelScore>> {
        Ok(loss.scores(targets, &copy.take::<f32>()?))
    }

    /// The scores of these sequences, in their order.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&self, device: &Device, loss: &Loss, targets: &[LabelTarget]) -> Result<Vec<LabelScore>> {
        match &self.place {
            Place::Host(scores) => Ok(scores.clone()),
            Place::Device(logits) => {
                let values = device.read(logits)?;
                let count = (targets.len() * logits.cols()).min(values.len());
                Ok(loss.scores(targets, &values[..count]))
            }
        }
    }
}
