//! The loop: steps, logs, evaluations, checkpoints; starting, resuming, stopping.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use half::bf16;
use serde_json::{Map, Value, json};

use super::ahead::{Rooms, Rows, reserve};
use super::checkpoint as state_files;
use super::evaluate::{EvalMetrics, check_metric, evaluate};
use super::event::{Event, StepLog, Summary};
use super::identity::{Identity, identity};
use super::itinerary::Itinerary;
use super::log::Log;
use super::output::{check_output, checkpoint_to_resume, remove_old_run};
use super::plan::{Plan, chooses, planned};
#[cfg(feature = "plot")]
use super::plot;
use super::prepare::{Prepared, Row, first_adapter, open_device, prepare};
use super::state::TrainerState;
use super::step::{Spare, Started, Stepper, check_learns};
use super::sums::Sums;
use crate::config::TrainConfig;
use crate::device::{Class, Device, Machine};
use crate::error::{Error, Result};
use crate::formats::atomic::write_file;
use crate::formats::checkpoint::{self, RunLock};
use crate::model::{ModelFlops, Scorer};
use crate::optim::{Optimizer, Schedule};
use crate::session::room::peak_bytes;
use crate::session::{Context, Notice, Peak, text_settings};
use crate::tensor::Real;

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
    let itinerary = Itinerary::new(config, lengths, context)?;
    let (planned, rooms) = planned(config, &prepared, &itinerary, context)?;
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
        Training::start((config, &lock), context, &prepared, (itinerary, &planned, rooms), watch)?;
    training.steps(watch)?;
    training.finish(watch)
}

/// A run on its way.
struct Training<'a, T: Real<Stat = f32>> {
    config: &'a TrainConfig,
    lock: &'a RunLock,
    context: &'a Context,
    prepared: &'a Prepared<T>,
    itinerary: Itinerary<'a>,
    schedule: Schedule,
    stepper: Stepper<'a, T>,
    scorer: Scorer<T>,
    state: TrainerState,
    identity: Identity,
    log: Log,
    /// Step of the checkpoint that was saved last.
    saved: Option<u64>,
    last_eval: Option<EvalMetrics>,
    stopped_early: bool,
    /// Floating-point operations of the plan by token that is computed.
    flops_per_token: f64,
    /// What `sol` is a share of.
    peak: Option<Peak>,
    start: Instant,
    /// Sums of this process, and since the last log line.
    all: Sums,
    since_log: Sums,
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

impl<'a, T: Real<Stat = f32>> Training<'a, T> {
    /// A run at its first step, or where the checkpoint to resume from left it.
    fn start(
        (config, lock): (&'a TrainConfig, &'a RunLock),
        context: &'a Context,
        prepared: &'a Prepared<T>,
        (itinerary, planned, rooms): (Itinerary<'a>, &Plan, Rooms),
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let device = &prepared.device;
        let place = device.class(Class::Master);
        let mut notices = Vec::new();
        let mut notify = |notice| notices.push(notice);
        let master = device.run(|| first_adapter(config, &place, &prepared.decoder, &mut notify))?;
        notices.into_iter().for_each(|notice| watch(Event::Notice(notice)));
        let (optimizer, adapter) = Optimizer::with_master(device, master)?;
        let total_steps = itinerary.total_steps();
        let mut stepper = Stepper {
            config,
            device,
            decoder: &prepared.decoder,
            policies: planned.activation_policy.clone(),
            model_flops: ModelFlops::of(&prepared.model.config, Some(&config.lora()))?,
            recorded: None,
            spare: Spare::default(),
            room: rooms.cuts.then_some(rooms.training),
            grads: vec![adapter.zeros_like(&device.class(Class::Gradient))?],
            optimizer,
            adapters: vec![adapter],
        };
        let identity = identity(config, prepared)?;
        let mut state = TrainerState::new(config, total_steps, itinerary.steps_per_epoch());
        let mut saved = None;
        checkpoint::clean_stale(&config.output_dir)?;
        match checkpoint_to_resume(config, watch)? {
            Some(found) => {
                let restored = state_files::restore(&found, &mut stepper, &identity)?;
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
        let scorer = stepper.record(rooms)?;
        write_file(&config.output_dir.join("training_config.toml"), config.to_toml().as_bytes())?;
        write_file(&config.output_dir.join(text_settings::NAME), &prepared.text.to_json())?;
        let log = Log::open(&config.output_dir, state.global_step)?;
        let peak = Peak::of(device, &mut |notice| watch(notice.into()));
        watch(Event::Started {
            done: state.global_step,
            total: total_steps,
            steps_per_epoch: itinerary.steps_per_epoch(),
            trainable: stepper.adapters[0].num_params(),
        });
        let schedule = schedule(config, total_steps);
        let stopped_early = patience_is_over(config, &state);
        device.reset_peak();
        device.take_ledger();
        Ok(Self {
            config,
            lock,
            context,
            prepared,
            itinerary,
            schedule,
            stepper,
            scorer,
            state,
            identity,
            log,
            saved,
            last_eval: None,
            stopped_early,
            flops_per_token: planned.step_flops as f64 / planned.step_tokens.max(1) as f64,
            peak,
            start: Instant::now(),
            all: Sums::default(),
            since_log: Sums::default(),
        })
    }

    /// Fails if what is published next would be for other weights than those on the disk, or into another folder than that of
    /// the run.
    fn check_surroundings(&self) -> Result<()> {
        self.lock.check()?;
        self.prepared.model.folder.check_unchanged()
    }

    /// All steps that are left.
    fn steps(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let result = self.steps_until_end(watch);
        match result {
            Err(Error::Stopped { .. }) => {
                let checkpoint = self.save(watch)?;
                Err(Error::Interrupted { step: self.state.global_step, checkpoint })
            }
            other => other,
        }
    }

    fn steps_until_end(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        // A run that was stopped before the evaluation of its last step makes up for it.
        let (done, total) = (self.state.global_step, self.itinerary.total_steps());
        if done > 0 && self.evaluates_after(done) && !self.was_evaluated(done) {
            self.evaluate_and_save(watch)?;
        }
        let mut rows = Rows::default();
        // Steps that were started, in their order. A GPU gets its next step while it works on this one.
        let ahead = if self.stepper.recorded.is_some() { 2 } else { 1 };
        let mut started: VecDeque<Started> = VecDeque::new();
        let mut last_end = Instant::now();
        let mut stop = None;
        while (self.state.global_step < total && !self.stopped_early) || !started.is_empty() {
            let next = self.state.global_step + started.len() as u64;
            let may_start = started.is_empty() || !self.pauses_after(next);
            if stop.is_none() && next < total && started.len() < ahead && may_start {
                match self.start_step(&mut rows, next) {
                    Ok(step) => started.push_back(step),
                    Err(error @ Error::Stopped { .. }) => stop = Some(error),
                    Err(error) => return Err(error),
                }
                if started.len() < ahead && stop.is_none() {
                    continue;
                }
            }
            let Some(step) = started.pop_front() else { break };
            let begin = step.begin(self.prepared.device.kind(), last_end);
            self.finish_step(step, begin, watch)?;
            last_end = Instant::now();
            if started.is_empty() {
                self.evaluate_and_save(watch)?;
            }
            if self.context.stopped() && self.state.global_step < total {
                stop.get_or_insert(Error::Stopped { what: "stopped between two steps".into() });
            }
            if stop.is_some() && started.is_empty() {
                break;
            }
        }
        stop.map_or(Ok(()), Err)
    }

    /// Starts step `step` (from 0).
    fn start_step(&mut self, rows: &mut Rows, step: u64) -> Result<Started> {
        let micro_batches = rows.of(&self.itinerary, step)?;
        let pick = |batch: &Vec<usize>| batch.iter().map(|&i| &self.prepared.train[i]).collect();
        let micro_batches: Vec<Vec<&Row>> = micro_batches.iter().map(pick).collect();
        let learning_rate = self.schedule.learning_rate(step);
        self.stepper.start(step, learning_rate, &micro_batches, self.context)
    }

    /// Waits for a step that was started; its time counts from `begin`.
    fn finish_step(
        &mut self,
        started: Started,
        begin: Instant,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let learning_rate = self.schedule.learning_rate(self.state.global_step);
        // What was recorded was counted for its room, and not for the batch.
        let flops = match self.stepper.recorded {
            Some(_) => started.packed_tokens as f64 * self.flops_per_token,
            None => started.flops as f64,
        };
        let result = self.stepper.finish(started)?;
        let vocab_size = self.prepared.decoder.config.vocab_size;
        check_learns(&result, vocab_size, self.state.global_step + 1)?;
        let seconds = begin.elapsed().as_secs_f64();
        let state = &mut self.state;
        state.global_step += 1;
        state.epoch = self.itinerary.position(state.global_step);
        state.num_input_tokens_seen += result.num_tokens as u64;
        state.total_flos += flops;
        state.empty_steps += u64::from(result.loss.is_none());
        self.all.add(&result, seconds);
        self.since_log.add(&result, seconds);
        let mut step_log = StepLog {
            step: state.global_step,
            epoch: state.epoch,
            loss: result.loss.unwrap_or(0.0),
            grad_norm: result.grad_norm,
            learning_rate,
            num_tokens: result.num_tokens,
            num_supervised_tokens: result.num_supervised_tokens,
            step_seconds: seconds,
            tokens_per_second: result.num_tokens as f64 / seconds,
            sol: self.peak.and_then(|peak| peak.share(result.model_flops, seconds)),
        };
        watch(Event::Step(&step_log));
        let last = state.global_step == self.itinerary.total_steps();
        if state.global_step.is_multiple_of(self.config.logging_steps.max(1)) || last {
            // A line covers the steps since the one before, as the Hugging Face trainer has it.
            let sums = std::mem::take(&mut self.since_log);
            step_log.loss = sums.mean_loss().unwrap_or(0.0);
            step_log.tokens_per_second = sums.tokens_per_second();
            step_log.sol = sums.sol(self.peak);
            self.lock.check()?;
            let row = self.log.write(&step_log)?;
            watch(Event::Logged(&step_log));
            self.remember(&row, &["loss", "grad_norm", "learning_rate"]);
        }
        Ok(())
    }

    /// Keeps some keys of a log row in the history, as the form of Hugging Face has them.
    fn remember(&mut self, row: &Map<String, Value>, keys: &[&str]) {
        let wanted = ["epoch", "step"].iter().chain(keys);
        let entry = wanted.filter_map(|&key| Some((key.to_owned(), row.get(key)?.clone()))).collect();
        self.state.log_history.push(entry);
    }

    /// What is due after a step.
    fn evaluate_and_save(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let done = self.state.global_step;
        let mut best = false;
        if self.evaluates_after(done) {
            best = self.evaluate(watch)?;
        }
        if self.saves_after(done) || best || self.stopped_early {
            self.save(watch)?;
        }
        Ok(())
    }

    fn saves_after(&self, done: u64) -> bool {
        match self.config.save_steps {
            Some(steps) => done.is_multiple_of(steps.max(1)) || done == self.itinerary.total_steps(),
            None => self.itinerary.ends_epoch(done),
        }
    }

    /// Whether something needs the adapter as it is after so many steps.
    fn pauses_after(&self, done: u64) -> bool {
        self.evaluates_after(done) || self.saves_after(done) || self.context.stopped()
    }

    fn evaluates_after(&self, done: u64) -> bool {
        let due = match self.config.eval_steps {
            Some(steps) => done.is_multiple_of(steps.max(1)) || done == self.itinerary.total_steps(),
            None => self.itinerary.ends_epoch(done),
        };
        due && !self.prepared.eval.is_empty()
    }

    fn was_evaluated(&self, done: u64) -> bool {
        let of_step = |row: &&Map<String, Value>| row.get("step").and_then(Value::as_u64) == Some(done);
        self.state.log_history.iter().filter(of_step).any(|row| row.contains_key("eval_loss"))
    }

    /// Evaluates, and says whether this is the best so far.
    fn evaluate(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<bool> {
        let prepared = self.prepared;
        let model = (&prepared.decoder, &prepared.device);
        let with = (&mut self.scorer, self.stepper.adapters.as_slice());
        let metrics = evaluate(self.config, model, with, &prepared.eval, self.context, watch)?;
        prepared.device.take_ledger();
        let value = metrics.get(&self.config.metric_for_best_model).unwrap_or(metrics.eval_loss);
        let step = self.state.global_step;
        let best = self.state.best_metric.is_none_or(|best| self.config.is_better(value, best));
        if best {
            self.state.best_metric = Some(value);
            self.state.best_global_step = Some(step);
            self.state.best_model_checkpoint = Some(format!("checkpoint-{step}"));
            self.state.evaluations_without_gain = 0;
        } else {
            self.state.evaluations_without_gain += 1;
        }
        self.stopped_early = patience_is_over(self.config, &self.state);
        let mut row = serde_json::to_value(metrics).unwrap_or_default();
        row["step"] = json!(step);
        row["epoch"] = json!(self.state.epoch);
        let row = self.log.write(&row)?;
        let keys: Vec<&str> = row.keys().map(String::as_str).filter(|k| k.starts_with("eval_")).collect();
        self.remember(&row, &keys);
        self.last_eval = Some(metrics);
        watch(Event::Evaluated { step, metrics: &metrics, best });
        Ok(best)
    }

    /// Saves a checkpoint of the current step if there is none, and removes old ones.
    fn save(&mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf> {
        let config = self.config;
        let step = self.state.global_step;
        let path = config.output_dir.join(format!("checkpoint-{step}"));
        if self.saved == Some(step) {
            return Ok(path);
        }
        self.check_surroundings()?;
        let text = &self.prepared.text;
        state_files::save(config, &self.stepper, &self.state, (&self.identity, text))?;
        self.saved = Some(step);
        watch(Event::Saved { path: &path });
        if let Some(keep) = config.save_total_limit {
            let best: Vec<PathBuf> =
                self.state.best_model_checkpoint.iter().map(|name| config.output_dir.join(name)).collect();
            checkpoint::rotate(&config.output_dir, keep, &best)?;
        }
        Ok(path)
    }

    /// Publishes the adapter and sums up.
    fn finish(mut self, watch: &mut dyn FnMut(Event<'_>)) -> Result<Summary> {
        let config = self.config;
        self.save(watch)?;
        let best = self.state.best_model_checkpoint.as_ref().map(|name| config.output_dir.join(name));
        if let (true, Some(best)) = (config.load_best_model_at_end, &best)
            && self.state.best_global_step != Some(self.state.global_step)
        {
            checkpoint::open(best)?;
            state_files::load_adapter(best, &mut self.stepper)?;
            watch(Event::Notice(Notice::Note(format!("the final adapter is that of {}", best.display()))));
        }
        self.check_surroundings()?;
        state_files::publish(config, &self.stepper)?;
        let train_runtime = self.start.elapsed().as_secs_f64();
        let tokens_per_second = self.all.tokens_per_second();
        let sol = self.all.sol(self.peak);
        let peak_bytes = peak_bytes(&self.prepared.device, &self.prepared.decoder.weights);
        let mut row = json!({
            "step": self.state.global_step,
            "epoch": self.state.epoch,
            "train_loss": self.all.mean_loss(),
            "train_runtime": train_runtime,
            "train_tokens_per_second": tokens_per_second,
            "num_input_tokens_seen": self.state.num_input_tokens_seen,
            "total_flos": self.state.total_flos,
            "peak_tensor_bytes": peak_bytes,
        });
        if let Some(sol) = sol {
            row["train_sol"] = json!(sol);
        }
        self.log.write(&row)?;
        let state = config.output_dir.join("trainer_state.json");
        write_file(&state, self.state.to_json().as_bytes())?;
        #[cfg(feature = "plot")]
        plot::loss_curve(&config.output_dir.join("loss.svg"), &self.state.log_history)?;
        Ok(Summary {
            global_step: self.state.global_step,
            train_loss: self.all.mean_loss(),
            best_metric: self.state.best_metric,
            best_model_checkpoint: best,
            eval: self.last_eval,
            empty_steps: self.state.empty_steps,
            stopped_early: self.stopped_early,
            train_runtime,
            tokens_per_second,
            sol,
            peak_bytes,
        })
    }
}

/// True if as many evaluations in a row were no gain as the user has patience for; also after a resume.
fn patience_is_over(config: &TrainConfig, state: &TrainerState) -> bool {
    config.early_stopping_patience.is_some_and(|patience| state.evaluations_without_gain >= patience.max(1))
}
