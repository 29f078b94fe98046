//! The start of a run: at its first step, or where the checkpoint to resume from left it.

use std::time::Instant;

use super::Training;
use crate::config::TrainConfig;
use crate::error::Result;
use crate::formats::atomic::write_file;
use crate::formats::checkpoint::{self, RunLock};
use crate::model::{ModelFlops, Scorer};
use crate::optim::Schedule;
use crate::session::{Context, Notice, Peak, text_settings};
use crate::tensor::Real;
use crate::train::checkpoint as state_files;
use crate::train::event::Event;
use crate::train::graphs::{PassCapacities, Recorded};
use crate::train::identity::identity;
use crate::train::log::Log;
use crate::train::output::{checkpoint_to_resume, remove_old_run};
use crate::train::passes::PackAs;
use crate::train::plan::Plan;
use crate::train::prepare::{Prepared, first_adapter};
use crate::train::sampler::Sampler;
use crate::train::state::TrainerState;
use crate::train::step::{Spare, Stepper};
use crate::train::sums::Sums;
use crate::train::trainee::{Trainable, Trainee, patience_is_over};

impl<'a, T: Real<Stat = f32>> Training<'a, T> {
    /// A run at its first step, or where the checkpoint to resume from left it.
    pub(super) fn start(
        (config, lock): (&'a TrainConfig, &'a RunLock),
        context: &'a Context,
        prepared: &'a Prepared<T>,
        (sampler, planned, capacities): (Sampler<'a>, &Plan, PassCapacities),
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let device = &prepared.device;
        let trainable = Trainable::new(device, |place| {
            let mut notices = Vec::new();
            let mut notify = |notice| notices.push(notice);
            let master = device.run(|| first_adapter(config, place, &prepared.decoder, &mut notify))?;
            notices.into_iter().for_each(|notice| watch(Event::Notice(notice)));
            Ok(master)
        })?;
        let stepper = Stepper {
            config,
            task: &prepared.task,
            pack_as: PackAs::of(config, &prepared.model.config.head),
            device,
            decoder: &prepared.decoder,
            policies: planned.activation_policy.clone(),
            model_flops: ModelFlops::of(&prepared.model.config, Some(&config.lora()))?,
            spare: Spare::default(),
            capacity: capacities.cuts.then_some(capacities.training),
        };
        let trainee = begin(&stepper, prepared, (trainable, sampler), capacities, watch)?;
        let peak = Peak::of(device, &mut |notice| watch(notice.into()));
        watch(Event::Started {
            done: trainee.state.global_step,
            total: trainee.sampler.total_steps(),
            steps_per_epoch: trainee.sampler.steps_per_epoch(),
            trainable: trainee.trainable.adapter.num_params(),
        });
        device.reset_peak();
        device.take_ledger();
        Ok(Self {
            config,
            lock,
            context,
            prepared,
            trainees: vec![trainee],
            stepper,
            flops_per_token: planned.step_flops as f64 / planned.step_tokens.max(1) as f64,
            peak,
            start: Instant::now(),
        })
    }
}

/// A trainee at its first step, or where the checkpoint to resume from left it, with its passes recorded and its files begun.
fn begin<'a, T: Real<Stat = f32>>(
    stepper: &Stepper<'a, T>,
    prepared: &Prepared<T>,
    (mut trainable, sampler): (Trainable<T>, Sampler<'a>),
    capacities: PassCapacities,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Trainee<'a, T>> {
    let (config, device, total_steps) = (stepper.config, stepper.device, sampler.total_steps());
    let identity = identity(config, prepared)?;
    let mut state = TrainerState::new(config, total_steps, sampler.steps_per_epoch());
    let mut saved = None;
    checkpoint::clean_stale(&config.output_dir)?;
    match checkpoint_to_resume(config, watch)? {
        Some(found) => {
            let restored = state_files::restore(&found, (config, device), &mut trainable, &identity)?;
            watch(Event::Notice(Notice::Note(format!(
                "going on from {} (step {})",
                found.path().display(),
                restored.global_step
            ))));
            saved = (found.path().parent() == Some(&config.output_dir)).then_some(restored.global_step);
            if let Some(change) =
                changed_schedule(config, restored.max_steps, total_steps, restored.global_step)
            {
                watch(Event::Notice(Notice::Warning(change)));
            }
            state = TrainerState {
                max_steps: total_steps,
                num_train_epochs: state.num_train_epochs,
                eval_steps: state.eval_steps,
                logging_steps: state.logging_steps,
                save_steps: state.save_steps,
                ..restored
            };
        }
        None => remove_old_run(config)?,
    }
    let Recorded { training, evaluation } = stepper.record(capacities, &mut trainable)?;
    write_file(&config.output_dir.join("training_config.toml"), config.to_toml().as_bytes())?;
    write_file(&config.output_dir.join(text_settings::NAME), &prepared.text.to_json())?;
    for (name, bytes) in &prepared.label_files {
        write_file(&config.output_dir.join(name), bytes)?;
    }
    let log = Log::open(&config.output_dir, state.global_step)?;
    Ok(Trainee {
        config,
        trainable,
        recorded: training,
        scorer: Scorer::new(evaluation, stepper.task.label_loss().cloned()),
        sampler,
        schedule: schedule(config, total_steps),
        stopped_early: patience_is_over(config, &state),
        state,
        identity,
        log,
        saved,
        last_eval: None,
        all: Sums::default(),
        since_log: Sums::default(),
    })
}

/// The learning rates of a run of `total_steps` steps.
fn schedule(config: &TrainConfig, total_steps: u64) -> Schedule {
    Schedule {
        kind: config.lr_scheduler,
        peak: config.learning_rate,
        warmup_steps: config.num_warmup_steps(total_steps),
        total_steps,
    }
}

/// What another length does to the learning rate of a run that goes on behind step `done`; none if nothing.
fn changed_schedule(config: &TrainConfig, before: u64, now: u64, done: u64) -> Option<String> {
    let [old, new] = [before, now].map(|total| schedule(config, total).learning_rate(done));
    let last = schedule(config, before).learning_rate(done.saturating_sub(1));
    (before != now && old != new).then(|| {
        format!(
            "the run was to have {before} steps and now has {now}, so its schedule is another one: the learning rate goes from {last:e} \
             at step {done} to {new:e} at step {} (instead of {old:e})",
            done + 1
        )
    })
}
