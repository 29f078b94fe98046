//! Which rows come in which optimizer step: a pure function of rows, settings and seed, so a resumed run needs no cursor but
//! the number of steps done.

use super::evaluate::batch_by;
use crate::config::TrainConfig;
use crate::data::packing::{epoch_order, micro_batches};
use crate::error::{Error, Result};
use crate::session::Context;

/// The micro-batches of one optimizer step, as indices of rows.
pub(super) type Step = Vec<Vec<usize>>;

/// See the module text.
#[derive(Debug)]
pub(super) struct Itinerary<'a> {
    config: &'a TrainConfig,
    lengths: Vec<usize>,
    /// Steps of every epoch that the run gets into; batches filled by tokens differ from epoch to epoch. Without shuffling all
    /// epochs are like the first one, and it stands for them.
    steps: Vec<u64>,
    total_steps: u64,
}

impl<'a> Itinerary<'a> {
    /// The itinerary over rows of these lengths.
    ///
    /// # Errors
    /// An input error if a row does not fit a batch, or there is nothing to do; [`Error::Stopped`] if the context asks to stop.
    pub(super) fn new(config: &'a TrainConfig, lengths: Vec<usize>, context: &Context) -> Result<Self> {
        let mut itinerary = Self { config, lengths, steps: Vec::new(), total_steps: 0 };
        // Steps of all epochs before the last one, and of the last one, which may count in part only.
        let (mut before, mut epochs, mut last) = (0, 0u64, 0);
        let is_done = |before: u64, epochs: u64, last: u64| match config.max_steps {
            Some(max_steps) => before + last >= max_steps,
            None => epochs > 0 && epochs as f64 >= config.num_epochs,
        };
        while !is_done(before, epochs, last) {
            context.check_stop("stopped while the steps were planned")?;
            (before, epochs) = (before + last, epochs + 1);
            last = itinerary.epoch(itinerary.steps.len())?.len() as u64;
            if last == 0 {
                return Error::input("DATA", "there is no row to train on").fix("check --train-file").into();
            }
            itinerary.steps.push(last);
            if !config.shuffle {
                epochs = match config.max_steps {
                    Some(max_steps) => max_steps.div_ceil(last),
                    None => config.num_epochs.ceil() as u64,
                };
                before = epochs.saturating_sub(1) * last;
            }
        }
        itinerary.total_steps = config.max_steps.unwrap_or_else(|| {
            let part = (config.num_epochs - (epochs as f64 - 1.0)).clamp(0.0, 1.0);
            before + (part * last as f64).ceil() as u64
        });
        if itinerary.total_steps == 0 {
            return Error::input("CONFIG", "the run has no step")
                .field("max_steps")
                .fix("raise --num-epochs or --max-steps")
                .into();
        }
        Ok(itinerary)
    }

    /// Steps of the whole run.
    pub(super) fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Steps of the first epoch.
    pub(super) fn steps_per_epoch(&self) -> u64 {
        self.steps.first().copied().unwrap_or(1)
    }

    /// Epoch and step within it that come after `done` steps.
    pub(super) fn locate(&self, done: u64) -> (usize, u64) {
        if !self.config.shuffle {
            let steps = self.steps_per_epoch();
            return ((done / steps) as usize, done % steps);
        }
        let mut left = done;
        for (epoch, &steps) in self.steps.iter().enumerate() {
            if left < steps {
                return (epoch, left);
            }
            left -= steps;
        }
        (self.steps.len(), left)
    }

    /// Position in epochs after `done` steps.
    pub(super) fn position(&self, done: u64) -> f64 {
        let (epoch, step) = self.locate(done);
        let steps =
            if self.config.shuffle { self.steps.get(epoch).copied() } else { Some(self.steps_per_epoch()) };
        epoch as f64 + steps.map_or(0.0, |steps| step as f64 / steps as f64)
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
        let batches = micro_batches(&self.lengths, &order, batch_by(config.batching()))?;
        Ok(batches.chunks(config.gradient_accumulation_steps).map(<[_]>::to_vec).collect())
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
        let itinerary = Itinerary::new(&config, vec![10; 11], &Context::default()).unwrap();
        assert_eq!((itinerary.steps_per_epoch(), itinerary.total_steps()), (3, 8));
        assert_eq!(itinerary.locate(0), (0, 0));
        assert_eq!(itinerary.locate(7), (2, 1));
        assert!((itinerary.position(7) - 2.0 - 1.0 / 3.0).abs() < 1e-12);
        let ends: Vec<u64> = (0..=8).filter(|&s| itinerary.ends_epoch(s)).collect();
        assert_eq!(ends, [3, 6, 8]);
        let sizes: Vec<usize> = itinerary.epoch(0).unwrap().iter().map(|s| s.concat().len()).collect();
        assert_eq!(sizes, [4, 4, 3]);
    }

    #[test]
    fn max_steps_override_epochs_and_token_batches_may_differ_by_epoch() {
        let config = config(|c| {
            (c.max_steps, c.batch_size, c.tokens_per_batch) = (Some(50), None, Some(100));
        });
        let lengths: Vec<usize> = (0..17).map(|i| 10 + 13 * i % 71).collect();
        let itinerary = Itinerary::new(&config, lengths, &Context::default()).unwrap();
        assert_eq!(itinerary.total_steps(), 50);
        let mut done = 0;
        for epoch in 0..itinerary.steps.len() {
            assert_eq!(itinerary.locate(done), (epoch, 0));
            done += itinerary.epoch(epoch).unwrap().len() as u64;
        }
        assert!(done >= 50);
    }

    #[test]
    fn without_shuffling_one_epoch_stands_for_all() {
        let context = Context::default();
        let of = |edit: fn(&mut TrainConfig)| {
            let config = config(|c| {
                c.shuffle = false;
                edit(c);
            });
            let itinerary = Itinerary::new(&config, vec![10; 5], &context).unwrap();
            let total = itinerary.total_steps();
            (total, itinerary.locate(total - 1), itinerary.steps.len())
        };
        assert_eq!(of(|c| c.num_epochs = 2.5), (8, (2, 1), 1));
        assert_eq!(of(|c| c.max_steps = Some(1_000_000_000)), (1_000_000_000, (333_333_333, 0), 1));
        assert_eq!(of(|c| c.max_steps = Some(1)), (1, (0, 0), 1));
    }

    #[test]
    fn counting_steps_can_be_stopped() {
        let context = Context { stop: Some(std::sync::Arc::new(|| true)), ..Context::default() };
        let config = config(|c| c.max_steps = Some(1_000_000_000));
        assert!(matches!(Itinerary::new(&config, vec![1; 4], &context), Err(Error::Stopped { .. })));
    }

    #[test]
    fn nothing_to_do_is_an_error() {
        let context = Context::default();
        assert!(Itinerary::new(&config(|_| ()), Vec::new(), &context).is_err());
        assert!(Itinerary::new(&config(|c| c.max_steps = Some(0)), vec![1; 4], &context).is_err());
    }
}
