//! What bounds the passes of a run: room that every one of them fits into, and the largest of them. Found by packing them all once,
//! since how full batches get and what they share depends on which rows meet.

use super::evaluate::eval_passes;
use super::itinerary::Itinerary;
use super::prepare::Row;
use super::step::{packed, passes};
use crate::batch::Batch;
use crate::config::TrainConfig;
use crate::error::Result;
use crate::model::Room;

/// See the module text.
#[derive(Debug, Clone, Default)]
pub(super) struct Extent {
    /// What no pass exceeds.
    pub(super) room: Room,
    /// The pass with the most tokens.
    pub(super) most_tokens: Batch,
    /// The pass with the most rows for the head and the last block; none if it is the one with the most tokens.
    most_targets: Option<Batch>,
}

impl Extent {
    /// That of some passes.
    pub(super) fn of(passes: impl Iterator<Item = Batch>) -> Self {
        let mut extent = Self::default();
        for batch in passes {
            extent.add(batch);
        }
        extent
    }

    /// That of every pass that trains.
    ///
    /// # Errors
    /// An input error if a row does not fit a batch.
    pub(super) fn of_training(config: &TrainConfig, rows: &[Row], itinerary: &Itinerary<'_>) -> Result<Self> {
        let mut extent = Self::default();
        let mut left = itinerary.total_steps() as usize;
        let mut epoch = 0;
        while left > 0 {
            let steps = itinerary.epoch(epoch)?;
            for batch in steps.iter().take(left).flatten() {
                let rows: Vec<&Row> = batch.iter().map(|&i| &rows[i]).collect();
                for pass in passes(&rows, config.max_tokens_per_pass) {
                    extent.add(packed(pass, config.share_prefix, 0));
                }
            }
            left = left.saturating_sub(steps.len());
            epoch += 1;
            // Without shuffling every epoch is the first one.
            if !config.shuffle {
                break;
            }
        }
        Ok(extent)
    }

    /// That of every pass that evaluates.
    ///
    /// # Errors
    /// An input error if a row does not fit a batch.
    pub(super) fn of_evaluation(config: &TrainConfig, rows: &[Row]) -> Result<Self> {
        Ok(Self::of(eval_passes(config, rows)?.iter().map(|pass| packed(pass, false, 0))))
    }

    fn add(&mut self, batch: Batch) {
        let (room, rows) = (Room::of(&batch), self.most_targets().target_rows().len());
        if batch.total_tokens() > self.most_tokens.total_tokens() {
            let before = std::mem::replace(&mut self.most_tokens, batch);
            let is_more = room.target_rows > rows;
            if is_more {
                self.most_targets = None;
            } else if self.most_targets.is_none() && !before.input_ids.is_empty() {
                self.most_targets = Some(before);
            }
        } else if room.target_rows > rows {
            self.most_targets = Some(batch);
        }
        self.room = self.room.max(room);
    }

    fn most_targets(&self) -> &Batch {
        self.most_targets.as_ref().unwrap_or(&self.most_tokens)
    }

    /// The largest passes; none if there is no pass.
    pub(super) fn largest(&self) -> Vec<Batch> {
        let both = std::iter::once(&self.most_tokens).chain(&self.most_targets);
        both.filter(|batch| !batch.input_ids.is_empty()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::plan::Workload;

    #[test]
    fn the_largest_passes_are_those_with_the_most_tokens_and_the_most_targets() {
        let batch =
            |tokens, share| Workload { tokens, sequence_length: 100, supervised_share: share }.batch();
        let sizes = |shapes: &[(usize, f64)]| {
            let extent = Extent::of(shapes.iter().map(|&(tokens, share)| batch(tokens, share)));
            let largest = extent.largest();
            let sizes: Vec<_> = largest.iter().map(|b| (b.total_tokens(), b.targets.len())).collect();
            assert_eq!(extent.room.tokens(), sizes.iter().map(|s| s.0).max().unwrap_or(0));
            assert_eq!(extent.room.targets, sizes.iter().map(|s| s.1).max().unwrap_or(0));
            sizes
        };
        assert_eq!(sizes(&[]), []);
        assert_eq!(sizes(&[(100, 0.5)]), [(100, 50)]);
        assert_eq!(sizes(&[(100, 0.5), (200, 0.5)]), [(200, 100)]);
        assert_eq!(sizes(&[(100, 0.5), (200, 0.1), (50, 0.1)]), [(200, 20), (100, 50)]);
        assert_eq!(sizes(&[(200, 0.1), (100, 0.5), (300, 0.1)]), [(300, 30), (100, 50)]);
        assert_eq!(sizes(&[(200, 0.1), (100, 0.5), (300, 0.5)]), [(300, 150)]);
    }
}
