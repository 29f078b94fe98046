//! Which rows come in which optimizer step: a pure function of rows, settings and seed, so a resumed run needs no cursor but
//! the number of steps done.

use std::cell::RefCell;

use crate::config::{Batching, TrainConfig};
use crate::data::packing::{epoch_order, micro_batches};
use crate::error::{Error, Result};
use crate::session::Context;

/// The micro-batches of one optimizer step, as indices of rows.
pub(super) type Step = Vec<Vec<usize>>;

/// See the module text.
#[derive(Debug)]
pub(super) struct Sampler<'a> {
    config: &'a TrainConfig,
    lengths: Vec<usize>,
    /// Steps of the first epoch.
    first: u64,
    /// Step behind the last one of every epoch that was asked about, where epochs differ in their steps.
    ends: RefCell<Vec<u64>>,
    total_steps: u64,
}

impl<'a> Sampler<'a> {
    /// The sampler over rows of these lengths. Epochs are counted when the run gets to them, except where the number of steps
    /// depends on all of them: batches filled by tokens in a new order every epoch, for a number of epochs.
    ///
    /// # Errors
    /// An input error if a row does not fit a batch, or there is nothing to do; [`Error::Stopped`] if the context asks to stop.
    pub(super) fn new(config: &'a TrainConfig, lengths: Vec<usize>, context: &Context) -> Result<Self> {
        let mut sampler = Self { config, lengths, first: 0, ends: RefCell::default(), total_steps: 0 };
        sampler.first = sampler.epoch(0)?.len() as u64;
        if sampler.first == 0 {
            return Error::input("DATA", "there is no row to train on").fix("check --train-file").into();
        }
        sampler.total_steps = match config.max_steps {
            Some(max_steps) => max_steps,
            None => {
                let epochs = (config.num_epochs.ceil() as u64).max(1);
                let part = (config.num_epochs - (epochs as f64 - 1.0)).clamp(0.0, 1.0);
                let last = epochs as usize - 1;
                let counted = if sampler.is_regular() { 0 } else { last };
                for epoch in 0..counted {
                    context.check_stop("stopped while the steps were planned")?;
                    sampler.end(epoch);
                }
                let before = last.checked_sub(1).map_or(0, |epoch| sampler.end(epoch));
                before + (part * sampler.steps(last) as f64).ceil() as u64
            }
        };
        if sampler.total_steps == 0 {
            return Error::input("CONFIG", "the run has no step")
                .field("max_steps")
                .fix("raise --num-epochs or --max-steps")
                .into();
        }
        Ok(sampler)
    }

    /// Steps of the whole run.
    pub(super) fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Steps of the first epoch.
    pub(super) fn steps_per_epoch(&self) -> u64 {
        self.first
    }

    /// Whether every epoch has as many steps as the first one.
    fn is_regular(&self) -> bool {
        !self.config.shuffle || matches!(self.config.batching(), Batching::Samples(_))
    }

    /// Steps of an epoch; at least one.
    fn steps(&self, epoch: usize) -> u64 {
        if epoch == 0 || self.is_regular() {
            return self.first;
        }
        // The first epoch could be built, so every row fits into a batch, and all epochs can be.
        self.epoch(epoch).map_or(1, |steps| steps.len().max(1) as u64)
    }

    /// Step behind the last one of an epoch.
    fn end(&self, epoch: usize) -> u64 {
        if self.is_regular() {
            return self.first.saturating_mul(epoch as u64 + 1);
        }
        let mut ends = self.ends.borrow_mut();
        while ends.len() <= epoch {
            let before = ends.last().copied().unwrap_or(0);
            let steps = self.steps(ends.len());
            ends.push(before + steps);
        }
        ends[epoch]
    }

    /// Epoch and step within it that come after `done` steps.
    pub(super) fn locate(&self, done: u64) -> (usize, u64) {
        if self.is_regular() {
            return ((done / self.first) as usize, done % self.first);
        }
        loop {
            let ends = self.ends.borrow();
            let epoch = ends.partition_point(|&end| end <= done);
            if epoch < ends.len() {
                let start = epoch.checked_sub(1).map_or(0, |before| ends[before]);
                return (epoch, done - start);
            }
            drop(ends);
            self.end(epoch);
        }
    }

    /// Position in epochs after `done` steps.
    pub(super) fn position(&self, done: u64) -> f64 {
        let (epoch, step) = self.locate(done);
        let start = epoch.checked_sub(1).map_or(0, |before| self.end(before));
        epoch as f64 + step as f64 / (self.end(epoch) - start) as f64
    }

    /// True if `done` steps end an epoch or the run.
    pub(super) fn ends_epoch(&self, done: u64) -> bool {
        done > 0 && (self.locate(done).1 == 0 || done == self.total_steps)
    }

    /// The steps of an epoch.
    ///
    /// # Errors
    /// An input error if a row does not fit a batch.
    pub(super) fn epoch(&self, epoch: usize) -> Result<Vec<Step>> {
        let config = self.config;
        let order = epoch_order(self.lengths.len(), config.seed, epoch as u32, config.shuffle);
        let batches = micro_batches(&self.lengths, &order, config.batching())?;
        Ok(batches.chunks(config.gradient_accumulation_steps).map(<[_]>::to_vec).collect())
    }
}

/// The rows of steps, epoch by epoch.
#[derive(Default)]
pub(super) struct StepRows {
    epoch: Option<(usize, Vec<Step>)>,
}

impl StepRows {
    /// The micro-batches of step `step` (from 0).
    pub(super) fn of(&mut self, sampler: &Sampler<'_>, step: u64) -> Result<Step> {
        let (epoch, place) = sampler.locate(step);
        if self.epoch.as_ref().is_none_or(|(known, _)| *known != epoch) {
            self.epoch = Some((epoch, sampler.epoch(epoch)?));
        }
        let steps = self.epoch.as_ref().map(|(_, steps)| steps);
        Ok(steps.and_then(|steps| steps.get(place as usize)).cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(edit: impl FnOnce(&mut TrainConfig)) -> TrainConfig {
        let mut config = TrainConfig { batch_size: Some(2), ..TrainConfig::default() };
        edit(&mut config);
        config
    }

    #[test]
    fn epochs_steps_and_positions_agree() {
        let config = config(|c| (c.num_epochs, c.gradient_accumulation_steps) = (2.5, 2));
        // 11 rows, 6 micro-batches, 3 steps per epoch.
        let sampler = Sampler::new(&config, vec![10; 11], &Context::default()).unwrap();
        assert_eq!((sampler.steps_per_epoch(), sampler.total_steps()), (3, 8));
        assert_eq!(sampler.locate(0), (0, 0));
        assert_eq!(sampler.locate(7), (2, 1));
        assert!((sampler.position(7) - 2.0 - 1.0 / 3.0).abs() < 1e-12);
        let ends: Vec<u64> = (0..=8).filter(|&s| sampler.ends_epoch(s)).collect();
        assert_eq!(ends, [3, 6, 8]);
        let sizes: Vec<usize> = sampler.epoch(0).unwrap().iter().map(|s| s.concat().len()).collect();
        assert_eq!(sizes, [4, 4, 3]);
    }

    #[test]
    fn max_steps_override_epochs_and_token_batches_may_differ_by_epoch() {
        let config = config(|c| {
            (c.max_steps, c.batch_size, c.tokens_per_batch) = (Some(50), None, Some(100));
        });
        let lengths: Vec<usize> = (0..17).map(|i| 10 + 13 * i % 71).collect();
        let sampler = Sampler::new(&config, lengths, &Context::default()).unwrap();
        assert_eq!(sampler.total_steps(), 50);
        let mut done = 0;
        let mut ends = std::collections::BTreeSet::new();
        for epoch in 0..40 {
            assert_eq!(sampler.locate(done), (epoch, 0));
            let steps = sampler.epoch(epoch).unwrap().len() as u64;
            assert_eq!(sampler.locate(done + steps - 1), (epoch, steps - 1));
            assert!((sampler.position(done + 1) - epoch as f64 - 1.0 / steps as f64).abs() < 1e-12);
            ends.insert(steps);
            done += steps;
        }
        assert!(done >= 50 && ends.len() > 1, "epochs differ: {ends:?}");
    }

    #[test]
    fn a_very_long_run_is_planned_at_once() {
        let context = Context::default();
        let of = |edit: fn(&mut TrainConfig)| {
            let config = config(edit);
            let sampler = Sampler::new(&config, vec![10; 5], &context).unwrap();
            let total = sampler.total_steps();
            let counted = sampler.ends.borrow().len();
            (total, counted, sampler.locate(if counted == 0 && total < 10 { total - 1 } else { 7 }))
        };
        let long = 1_000_000_000;
        assert_eq!(of(|c| c.num_epochs = 2.5), (8, 0, (2, 1)));
        assert_eq!(of(|c| (c.max_steps, c.shuffle) = (Some(1_000_000_000), false)), (long, 0, (2, 1)));
        assert_eq!(of(|c| c.max_steps = Some(1_000_000_000)), (long, 0, (2, 1)));
        let by_tokens = |c: &mut TrainConfig| {
            (c.max_steps, c.batch_size, c.tokens_per_batch) = (Some(1_000_000_000), None, Some(20));
        };
        assert_eq!(of(by_tokens), (long, 0, (2, 1)));
        assert_eq!(of(|c| c.max_steps = Some(1)), (1, 0, (0, 0)));
    }

    #[test]
    fn epochs_of_different_lengths_add_up() {
        let context = Context::default();
        let lengths: Vec<usize> = (0..17).map(|i| 10 + 13 * i % 71).collect();
        for num_epochs in [0.5, 1.0, 3.0, 7.25] {
            let config =
                config(|c| (c.num_epochs, c.batch_size, c.tokens_per_batch) = (num_epochs, None, Some(100)));
            let sampler = Sampler::new(&config, lengths.clone(), &context).unwrap();
            let mut expected = 0.0;
            for epoch in 0..num_epochs.ceil() as usize {
                let steps = sampler.epoch(epoch).unwrap().len() as f64;
                expected += (steps * (num_epochs - epoch as f64).min(1.0)).ceil();
            }
            assert_eq!(sampler.total_steps() as f64, expected, "{num_epochs}");
        }
    }

    #[test]
    fn counting_steps_can_be_stopped() {
        let context = Context { stop: Some(std::sync::Arc::new(|| true)), ..Context::default() };
        let config = config(|c| (c.num_epochs, c.batch_size, c.tokens_per_batch) = (1e6, None, Some(2)));
        assert!(matches!(Sampler::new(&config, vec![1; 4], &context), Err(Error::Stopped { .. })));
    }

    #[test]
    fn nothing_to_do_is_an_error() {
        let context = Context::default();
        assert!(Sampler::new(&config(|_| ()), Vec::new(), &context).is_err());
        assert!(Sampler::new(&config(|c| c.max_steps = Some(0)), vec![1; 4], &context).is_err());
    }
}
