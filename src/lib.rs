//! LoRA / QLoRA fine-tuning and scoring of language models on one device, without Python.
//!
//! Options in, [`Event`](train::Event)s on the way, a [`Summary`](train::Summary) or an [`Error`](error::Error) out. The library
//! prints nothing, installs no handlers, ends no process and has no global state.
//!
//! # A first program
//!
//! Options are pairs of a name and a value, with the names of the command line (`tanren train --help`) and of the tools that it
//! understands. Here a small random model is trained for two steps; a real one is a folder or a Hugging Face id.
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
//! The adapter in `runs/first` is a PEFT adapter. [`score::run`] asks it for log-probabilities or for the best of given answers;
//! `examples/embed.rs` does both.
//!
//! # Events
//!
//! The closure hears what happens while it happens: notes and warnings ([`Notice`](train::Notice)), what the rows are like, the
//! plan, every step, every evaluation, every saved checkpoint. It runs on the thread that called [`train::run`], between two
//! pieces of work, so what it does takes time from the training. Events may be added: match with a `_` arm.
//!
//! # Stopping
//!
//! A run asks its [`Context`](train::Context) between passes whether to end. A training that is asked to saves first and returns
//! [`Error::Interrupted`](error::Error::Interrupted); `resume = "auto"` goes on from there, to the same bytes.
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
//! An error has a class, a place, what was there, what was expected and what to do, each with a method; `docs/errors.md` lists the
//! classes and exit codes.
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
//! The chat template of a model is a program that somebody else wrote. The command line renders it in a process of its own with
//! limits on memory and time. A program that takes models from strangers does the same: a hidden command of its own calls
//! [`HelperCommand::serve`](train::HelperCommand::serve), and [`Context::template_helper`](train::Context::template_helper) says
//! how to start it. Without one, templates are rendered in the calling process, where only their length is limited.
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
//! A program that embeds training takes `default-features = false` and what it needs of the rest. [`config`], [`error`], [`train`]
//! and [`score`] are what it can rely on. What `unstable` shows changes with any version.

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
