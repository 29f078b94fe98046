//! The door of a training, and the run on its way: its start, its steps, what is due between them, and its end are a file each.

use std::time::Instant;

use half::bf16;

use super::evaluate::check_metric;
use super::event::{Event, Summary};
use super::graphs::reserve;
use super::output::check_output;
use super::plan::{chooses, planned};
use super::prepare::{Prepared, first_adapter, open_device, prepare};
use super::sampler::Sampler;
use super::step::Stepper;
use super::trainee::Trainee;
use crate::config::TrainConfig;
use crate::device::{Device, Machine};
use crate::error::{Error, Result};
use crate::formats::checkpoint::RunLock;
use crate::session::{Context, Notice, Peak};
use crate::tensor::Real;

mod due;
mod publish;
mod start;
mod steps;

/// Trains as `config` says and publishes the adapter in its output folder. Nothing is trained or written with `dry_run`.
///
/// # Errors
/// [`Error::Interrupted`] after saving if the context asks to stop; otherwise an error that names what was wrong. What was
/// saved before is left alone.
pub fn run(config: &TrainConfig, context: &Context, watch: &mut dyn FnMut(Event<'_>)) -> Result<Summary> {
    config.validate()?;
    config.notes.iter().for_each(|note| watch(Notice::Note(note.clone()).into()));
    check_metric(config)?;
    check_output(config)?;
    let lock = match config.dry_run {
        true => None,
        false => {
            let dir = &config.output_dir;
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create the folder", e))?;
            Some(RunLock::acquire(dir)?)
        }
    };
    let device = open_device(config, watch)?;
    match device.machine() {
        Machine::Cpu => run_as::<f32>(config, device, lock, context, watch),
        Machine::Gpu => run_as::<bf16>(config, device, lock, context, watch),
    }
}

/// A run whose model computes in `T`.
fn run_as<T: Real<Stat = f32>>(
    config: &TrainConfig,
    device: Device,
    lock: Option<RunLock>,
    context: &Context,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Summary> {
    let prepared = prepare::<T>(config, device, context, watch)?;
    let lengths = prepared.train.iter().map(|row| row.example.len()).collect();
    let sampler = Sampler::new(config, lengths, context)?;
    let (planned, capacities) = planned(config, &prepared, &sampler, context)?;
    watch(Event::Planned(&planned));
    planned.check_fits()?;
    let policies = &planned.activation_policy;
    if chooses(config) && !policies.keep_all() {
        let what =
            format!("to stay within the memory limit, blocks keep less: {policies}; results are the same");
        watch(Event::Notice(Notice::Note(what)));
    }
    let Some(lock) = lock else {
        let notify = &mut |notice: Notice| watch(notice.into());
        first_adapter(config, &prepared.weights_device, &prepared.decoder, notify)?;
        return Ok(Summary {
            global_step: 0,
            train_loss: None,
            best_metric: None,
            best_model_checkpoint: None,
            eval: None,
            empty_steps: 0,
            stopped_early: false,
            train_runtime: 0.0,
            tokens_per_second: 0.0,
            sol: None,
            peak_bytes: planned.peak_bytes,
        });
    };
    reserve(&prepared.device, &planned)?;
    let mut training =
        Training::start((config, &lock), context, &prepared, (sampler, &planned, capacities), watch)?;
    training.steps(0, watch)?;
    training.finish(0, watch)
}

/// A run on its way: its trainees, and what they share.
struct Training<'a, T: Real<Stat = f32>> {
    config: &'a TrainConfig,
    lock: &'a RunLock,
    context: &'a Context,
    prepared: &'a Prepared<T>,
    /// Trained one after another; a run has one.
    trainees: Vec<Trainee<'a, T>>,
    stepper: Stepper<'a, T>,
    /// Floating-point operations of the plan by token that is computed.
    flops_per_token: f64,
    /// What `sol` is a share of.
    peak: Option<Peak>,
    start: Instant,
}

impl<T: Real<Stat = f32>> Training<'_, T> {
    /// Fails if what is published next would be for other weights than those on the disk, or into another folder than that of
    /// the run.
    fn check_surroundings(&self) -> Result<()> {
        self.lock.check()?;
        self.prepared.model.folder.check_unchanged()
    }
}
