//! LoRA / QLoRA fine-tuning and scoring of language models on one device, without Python.
//!
//! A run takes options, emits [`Event`](train::Event)s, and returns a [`Summary`](train::Summary) or an
//! [`Error`](error::Error). The library prints nothing, installs no handlers, ends no process and has no
//! global state.
//!
//! # A first program
//!
//! Options are pairs of a name and a value. Names are those of the command line (`tanren train --help`) and
//! their known aliases in other tools. Here a small random model is trained for two steps; a real one is a
//! folder or a Hugging Face id.
//!
//! ```no_run
//! use tanren::config::{Options, TrainConfig};
//! use tanren::train::{self, Context, Event};
//!
//! let options = Options::new()
//!     .set("model", "qwen3-tiny")
//!     .set("train_file", "examples/lawqa/train.jsonl")
//!     .set("output_dir", "runs/first")
//!     .set("max_steps", 2);
//! let config = TrainConfig::from_pairs(options)?;
//! let summary = train::run(&config, &Context::default(), &mut |event| {
//!     if let Event::Step(step) = event {
//!         println!("step {}: loss {:.4}", step.step, step.loss);
//!     }
//! })?;
//! println!("{} steps, mean loss {:?}", summary.global_step, summary.train_loss);
//! # Ok::<(), tanren::error::Error>(())
//! ```
//!
//! The adapter in `runs/first` is a PEFT adapter. [`score::run`] computes log-probabilities with it, or
//! chooses the best of given answers; `examples/embed.rs` does both.
//!
//! # Events
//!
//! The closure receives events as they happen: notes and warnings ([`Notice`](train::Notice)), statistics of
//! the rows, the plan, every step, every evaluation, every saved checkpoint. It runs on the thread that
//! called [`train::run`], between two pieces of work, so it delays the training while it runs. Later versions
//! may add events: match with a `_` arm.
//!
//! # Stopping
//!
//! A run polls its [`Context`](train::Context) between passes for a request to stop. A training then saves
//! its state and returns [`Error::Interrupted`](error::Error::Interrupted); `resume = "auto"` continues from
//! there, with byte-identical results.
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//! use tanren::train::Context;
//!
//! let stop = Arc::new(AtomicBool::new(false));
//! let asked = Arc::clone(&stop);
//! let context = Context::default().stop_when(move || asked.load(Ordering::Relaxed));
//! // In another thread, or in a signal handler of the program:
//! stop.store(true, Ordering::Relaxed);
//! assert!(context.stopped());
//! ```
//!
//! # Errors
//!
//! An error has a class, a place, the actual value, the expected value and a fix, each with a method;
//! `docs/errors.md` lists the classes and exit codes.
//!
//! ```
//! use tanren::config::TrainConfig;
//!
//! let error = TrainConfig::from_pairs([("model", "m"), ("learnig_rate", "1e-4")]).unwrap_err();
//! assert_eq!((error.code(), error.field()), ("CONFIG", Some("learnig_rate")));
//! assert_eq!(error.fix(), Some("did you mean learning_rate?"));
//! ```
//!
//! # Chat templates
//!
//! The chat template of a model is untrusted code. The command line renders it in a child process with limits
//! on memory and time. A program that loads untrusted models should do the same: it needs a hidden command
//! that calls [`HelperCommand::serve`](train::HelperCommand::serve), and
//! [`Context::template_helper`](train::Context::template_helper) tells how to start it. Without a helper,
//! templates are rendered in the calling process, where only their length is limited.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `cli` | yes | the program `tanren`: clap, progress bars, signals; implies `plot` |
//! | `hub` | yes | downloads by Hugging Face id; without it, folders and the local cache |
//! | `cuda` | yes | NVIDIA GPUs, if the build finds nvcc |
//! | `plot` | with `cli` | the loss curve `loss.svg` |
//! | `unstable` | no | the parts as public modules: ops, devices, models, files |
//! | `emulated` | no | the GPU kernels on the processor, for tests; implies `unstable` |
//!
//! A program that embeds training sets `default-features = false` and adds the features it needs. [`config`],
//! [`error`], [`train`] and [`score`] are the stable interface. Modules of `unstable` may change in any
//! version.

#![cfg_attr(
    not(feature = "unstable"),
    allow(
        dead_code,
        unreachable_pub,
        unused_imports,
        reason = "with `unstable` all of it is public, and tests and benchmarks use it"
    )
)]

#[cfg(feature = "unstable")]
pub mod batch;
#[cfg(not(feature = "unstable"))]
mod batch;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
#[cfg(feature = "unstable")]
pub mod data;
#[cfg(not(feature = "unstable"))]
mod data;
#[cfg(feature = "unstable")]
pub mod device;
#[cfg(not(feature = "unstable"))]
mod device;
pub mod error;
#[cfg(feature = "unstable")]
pub mod formats;
#[cfg(not(feature = "unstable"))]
mod formats;
mod kinds;
#[cfg(feature = "unstable")]
pub mod model;
#[cfg(not(feature = "unstable"))]
mod model;
#[cfg(feature = "unstable")]
pub mod ops;
#[cfg(not(feature = "unstable"))]
mod ops;
#[cfg(feature = "unstable")]
pub mod optim;
#[cfg(not(feature = "unstable"))]
mod optim;
#[cfg(feature = "unstable")]
pub mod rng;
#[cfg(not(feature = "unstable"))]
mod rng;
pub mod score;
#[cfg(feature = "unstable")]
pub mod session;
#[cfg(not(feature = "unstable"))]
mod session;
#[cfg(feature = "unstable")]
pub mod tensor;
#[cfg(not(feature = "unstable"))]
mod tensor;
pub mod train;
