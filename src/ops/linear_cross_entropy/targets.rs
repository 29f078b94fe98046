//! The targets and the scores of the op: lists on the CPU, tables and tensors in GPU memory.
//!
//! A CUDA graph is recorded once for a capacity of rows and targets; the targets of each batch are written
//! into the tables.

use crate::batch::TokenTarget;
use crate::device::kernels::params::{CrossEntropyRow, CrossEntropyTarget};
use crate::device::{Device, Machine, PendingCopy, Table, Tensor};
use crate::error::{Error, Result};

use super::{OP, TargetScore};

/// The tokens to predict, sorted by row, and the scale of the loss.
#[derive(Debug)]
pub struct Targets {
    list: Vec<TokenTarget>,
    num_rows: usize,
    max_rows: usize,
    max_targets: usize,
    scale: f64,
    tables: Option<Tables>,
}

/// The same for kernels.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) rows: Table<CrossEntropyRow>,
    pub(super) targets: Table<CrossEntropyTarget>,
}

impl Targets {
    /// These targets on `num_rows` rows, without spare capacity. `scale` is the factor of the loss in the
    /// gradient.
    ///
    /// # Errors
    /// As [`Targets::write`].
    pub fn new(device: &Device, targets: &[TokenTarget], num_rows: usize, scale: f64) -> Result<Self> {
        let mut new = Self::with_capacity(device, num_rows, targets.len())?;
        new.write(device, targets, num_rows, scale)?;
        Ok(new)
    }

    /// Empty, with capacity for this many rows and targets. Call [`Targets::write`] before the first use.
    ///
    /// # Errors
    /// Those of the device.
    pub fn with_capacity(device: &Device, max_rows: usize, max_targets: usize) -> Result<Self> {
        let tables = match device.machine() {
            Machine::Cpu => None,
            Machine::Gpu => Some(Tables {
                rows: Table::with_capacity(device, max_rows)?,
                targets: Table::with_capacity(device, max_targets)?,
            }),
        };
        Ok(Self { list: Vec::new(), num_rows: 0, max_rows, max_targets, scale: 0.0, tables })
    }

    /// Replaces the content: `targets` on the rows `0..num_rows` of `x`, rows in order.
    ///
    /// # Errors
    /// [`Error::Shape`] if a target's row is out of range or out of order, or there are more than there is room for; those of
    /// the device.
    pub fn write(
        &mut self,
        device: &Device,
        targets: &[TokenTarget],
        num_rows: usize,
        scale: f64,
    ) -> Result<()> {
        if num_rows > self.max_rows || targets.len() > self.max_targets {
            let expected = format!("at most {} on {} rows", self.max_targets, self.max_rows);
            let got = format!("{} on {num_rows}", targets.len());
            return Err(Error::shape(OP, "targets", expected, got));
        }
        let mut last = 0;
        for target in targets {
            if target.row < last || target.row >= num_rows {
                return Err(Error::shape(OP, "targets", format!("rows in order, below {num_rows}"), target));
            }
            last = target.row;
        }
        if let Some(tables) = &mut self.tables {
            let (rows, entries) = entries(targets, num_rows, scale);
            tables.rows.write(device, &rows)?;
            tables.targets.write(device, &entries)?;
        }
        self.list = targets.to_vec();
        (self.num_rows, self.scale) = (num_rows, scale);
        Ok(())
    }

    /// The targets.
    pub fn list(&self) -> &[TokenTarget] {
        &self.list
    }

    /// Number of rows of `x`.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Capacity for rows of `x`.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Capacity for targets.
    pub fn max_targets(&self) -> usize {
        self.max_targets
    }

    /// Scale of the loss.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    pub(super) fn tables(&self) -> Result<&Tables> {
        self.tables.as_ref().ok_or_else(|| Error::shape(OP, "targets", "tables on the GPU", "a list"))
    }
}

/// The tables' content. Weights are scaled and added up in f64 and rounded once.
fn entries(
    targets: &[TokenTarget],
    num_rows: usize,
    scale: f64,
) -> (Vec<CrossEntropyRow>, Vec<CrossEntropyTarget>) {
    let mut next = 0;
    let row = |row: usize| {
        let first = next;
        next += targets[first..].iter().take_while(|t| t.row == row).count();
        let weight: f64 = targets[first..next].iter().map(|t| f64::from(t.weight)).sum();
        CrossEntropyRow {
            first_target: first as i32,
            end_target: next as i32,
            weight: (scale * weight) as f32,
            reserved: 0,
        }
    };
    let rows = (0..num_rows).map(row).collect();
    let entry = |t: &TokenTarget| CrossEntropyTarget {
        token: t.token as i32,
        weight: (scale * f64::from(t.weight)) as f32,
    };
    (rows, targets.iter().map(entry).collect())
}

/// The scores of all targets. On a GPU they stay in its memory until they are read.
#[derive(Debug)]
pub struct Scores {
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) enum Place {
    /// On the host.
    Host(Vec<TargetScore>),
    /// `[capacity, 2]`: log-probability, and 1 where no token has a larger logit; with the number of targets.
    Device(Tensor<f32>, usize),
}

impl Scores {
    /// Empty, with capacity for the scores of this many targets.
    ///
    /// # Errors
    /// Those of the device.
    pub fn with_capacity(device: &Device, max_targets: usize) -> Result<Self> {
        let place = match device.machine() {
            Machine::Cpu => Place::Host(Vec::new()),
            Machine::Gpu => Place::Device(device.empty(max_targets, 2)?, 0),
        };
        Ok(Self { place })
    }

    /// Starts the copy of the scores of the first `count` targets to the host, for [`Scores::take`].
    ///
    /// # Errors
    /// [`Error::Shape`] if `count` exceeds the capacity, or the scores are on the host already; errors of the
    /// device.
    pub fn send(&self, copy: &mut PendingCopy, count: usize) -> Result<()> {
        match &self.place {
            Place::Device(tensor, _) => copy.send(tensor, 2 * count),
            Place::Host(_) => Err(Error::shape(OP, "scores", "on a GPU", "on the host")),
        }
    }

    /// Waits for the copy that [`Scores::send`] started.
    ///
    /// # Errors
    /// Those of the device.
    pub fn take(copy: &mut PendingCopy) -> Result<Vec<TargetScore>> {
        Ok(copy.take::<f32>()?.chunks_exact(2).map(score).collect())
    }

    /// The scores of the targets, in their order; zeros on a dry device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&self, device: &Device) -> Result<Vec<TargetScore>> {
        match &self.place {
            Place::Host(scores) => Ok(scores.clone()),
            Place::Device(_, count) => self.read_first(device, *count),
        }
    }

    /// The scores of the first `count` targets, for use after a graph has been replayed with other targets in
    /// the tables.
    ///
    /// # Errors
    /// [`Error::Shape`] if `count` exceeds the capacity; errors of the device.
    pub fn read_first(&self, device: &Device, count: usize) -> Result<Vec<TargetScore>> {
        let (scores, room): (Vec<TargetScore>, usize) = match &self.place {
            Place::Host(scores) => (scores.iter().take(count).copied().collect(), scores.len()),
            Place::Device(tensor, _) => {
                let values = device.read(tensor)?;
                (values.chunks_exact(2).take(count).map(score).collect(), tensor.rows())
            }
        };
        if count > room {
            return Err(Error::shape(OP, "scores", format!("at most {room}"), count));
        }
        Ok(scores)
    }
}

/// The score from the two numbers of a target.
fn score(pair: &[f32]) -> TargetScore {
    TargetScore { logprob: f64::from(pair[0]), is_argmax: pair[1] != 0.0 }
}
