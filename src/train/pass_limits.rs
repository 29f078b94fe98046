//! What bounds the passes of a run: a capacity that all of them fit into, and the largest of them. Found by packing them all once,
//! since how full batches get and what they share depends on which rows meet.

use super::evaluate::eval_passes;
use super::passes::{PackAs, packed, passes_of};
use super::prepare::Row;
use super::sampler::Sampler;
use crate::batch::Batch;
use crate::config::TrainConfig;
use crate::error::Result;
use crate::model::PassCapacity;
use crate::session::Context;

/// Epochs whose passes are all looked at. In a longer run later ones are cut to what these need ([`super::step`]), so that a plan
/// does not take as long as the run.
const EPOCHS: usize = 10;

/// Most passes that are kept as candidates. Beyond it every second one goes, and its neighbours stand for it.
const MOST_PASSES: usize = 64;

/// See the module text.
#[derive(Debug, Clone, Default)]
pub(super) struct PassLimits {
    /// What no pass exceeds.
    pub(super) capacity: PassCapacity,
    /// Whether that is so only because later passes are cut.
    pub(super) is_part: bool,
    /// Passes with more tokens, or more rows for the head and the last block, than any other: fewer and fewer tokens, more and
    /// more of these rows.
    front: Vec<Pass>,
}

#[derive(Debug, Clone)]
struct Pass {
    tokens: usize,
    target_rows: usize,
    batch: Batch,
}

impl Pass {
    /// Whether neither number is larger in `other`.
    fn covers(&self, other: &Self) -> bool {
        self.tokens >= other.tokens && self.target_rows >= other.target_rows
    }
}

impl PassLimits {
    /// The limits of these passes.
    pub(super) fn of(passes: impl Iterator<Item = Batch>) -> Self {
        let mut limits = Self::default();
        for batch in passes {
            limits.add(batch);
        }
        limits
    }

    /// The limits of all passes that train.
    ///
    /// # Errors
    /// An input error if a row does not fit a batch; [`crate::error::Error::Stopped`] if the context asks to stop.
    pub(super) fn of_training(
        config: &TrainConfig,
        rows: &[Row],
        sampler: &Sampler<'_>,
        pack_as: PackAs,
        context: &Context,
    ) -> Result<Self> {
        let mut limits = Self::default();
        let mut left = sampler.total_steps() as usize;
        let mut epoch = 0;
        while left > 0 {
            context.check_stop("stopped while the memory was planned")?;
            let steps = sampler.epoch(epoch)?;
            for batch in steps.iter().take(left).flatten() {
                let rows: Vec<&Row> = batch.iter().map(|&i| &rows[i]).collect();
                for pass in passes_of(&rows, config) {
                    limits.add(packed(pass, pack_as, 0));
                }
            }
            left = left.saturating_sub(steps.len());
            epoch += 1;
            // Without shuffling every epoch is the first one.
            if !config.shuffle {
                break;
            }
            if epoch == EPOCHS && left > 0 {
                limits.is_part = true;
                // However a later pass has to be cut, its rows fit one by one.
                rows.iter().for_each(|row| limits.add(packed(&[row], pack_as, 0)));
                break;
            }
        }
        Ok(limits)
    }

    /// The limits of all passes that evaluate.
    ///
    /// # Errors
    /// An input error if a row does not fit a batch.
    pub(super) fn of_evaluation(config: &TrainConfig, rows: &[Row], pack_as: PackAs) -> Result<Self> {
        Ok(Self::of(eval_passes(config, rows)?.iter().map(|pass| packed(pass, pack_as.unshared(), 0))))
    }

    fn add(&mut self, batch: Batch) {
        let capacity = PassCapacity::of(&batch);
        let pass = Pass { tokens: capacity.tokens(), target_rows: capacity.target_rows, batch };
        self.capacity = self.capacity.max(capacity);
        if pass.tokens == 0 || self.front.iter().any(|other| other.covers(&pass)) {
            return;
        }
        self.front.retain(|other| !pass.covers(other));
        let place = self.front.partition_point(|other| other.tokens > pass.tokens);
        self.front.insert(place, pass);
        if self.front.len() > MOST_PASSES {
            let last = self.front.len() - 1;
            let mut at = 0..=last;
            self.front.retain(|_| at.next().is_some_and(|i| i % 2 == 0 || i == last));
        }
    }

    /// The passes with the most tokens, and with the most rows for the head; one if it is the same, none if there is no pass.
    pub(super) fn largest(&self) -> Vec<Batch> {
        let last = self.front.last().filter(|_| self.front.len() > 1);
        self.front.first().into_iter().chain(last).map(|pass| pass.batch.clone()).collect()
    }

    /// All passes that may take the most memory.
    pub(super) fn candidates(&self) -> Vec<Batch> {
        self.front.iter().map(|pass| pass.batch.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::head::HeadSpec;
    use crate::train::plan::Workload;

    #[test]
    fn the_largest_passes_are_those_with_the_most_tokens_and_the_most_targets() {
        let batch = |tokens, share| {
            Workload { tokens, sequence_length: 100, supervised_share: share }.batch(&HeadSpec::Tokens)
        };
        let sizes = |shapes: &[(usize, f64)]| {
            let limits = PassLimits::of(shapes.iter().map(|&(tokens, share)| batch(tokens, share)));
            let largest = limits.largest();
            let sizes: Vec<_> = largest.iter().map(|b| (b.total_tokens(), b.targets.len())).collect();
            assert_eq!(limits.capacity.tokens(), sizes.iter().map(|s| s.0).max().unwrap_or(0));
            assert_eq!(limits.capacity.targets, sizes.iter().map(|s| s.1).max().unwrap_or(0));
            sizes
        };
        assert_eq!(sizes(&[]), []);
        assert_eq!(sizes(&[(100, 0.5)]), [(100, 50)]);
        assert_eq!(sizes(&[(100, 0.5), (200, 0.5)]), [(200, 100)]);
        assert_eq!(sizes(&[(100, 0.5), (200, 0.1), (50, 0.1)]), [(200, 20), (100, 50)]);
        assert_eq!(sizes(&[(200, 0.1), (100, 0.5), (300, 0.1)]), [(300, 30), (100, 50)]);
        assert_eq!(sizes(&[(200, 0.1), (100, 0.5), (300, 0.5)]), [(300, 150)]);
    }

    #[test]
    fn what_is_second_in_both_is_a_candidate() {
        let batch = |tokens, share| {
            Workload { tokens, sequence_length: 100, supervised_share: share }.batch(&HeadSpec::Tokens)
        };
        let sizes = |shapes: &[(usize, f64)]| -> Vec<usize> {
            let limits = PassLimits::of(shapes.iter().map(|&(tokens, share)| batch(tokens, share)));
            limits.candidates().iter().map(Batch::total_tokens).collect()
        };
        assert_eq!(sizes(&[(100, 0.9), (300, 0.1), (200, 0.3), (200, 0.2), (90, 0.9)]), [300, 200, 100]);
        let limits = PassLimits::of((0..500).map(|i| batch(1000 - i, (400 + i) as f64 / (1000 - i) as f64)));
        let tokens: Vec<usize> = limits.candidates().iter().map(Batch::total_tokens).collect();
        assert!(tokens.len() <= MOST_PASSES && tokens.is_sorted_by(|a, b| a > b), "{tokens:?}");
        assert_eq!((tokens[0], *tokens.last().unwrap()), (1000, limits.largest()[1].total_tokens()));
    }
}
