//! Training and scoring from a Rust program: options in, events on the way, a summary out. Nothing is printed by the library.
//!
//! `cargo run --release --example embed` trains the small random model for 20 steps and asks it the held-out questions.

#![allow(clippy::print_stdout, reason = "an example shows what it gets")]

use tanren::config::{Options, ScoreConfig, TrainConfig};
use tanren::error::Result;
use tanren::score::{self, Findings};
use tanren::train::{self, Context, Event};

fn main() -> Result<()> {
    let options = Options::new()
        .set("model", "qwen3-tiny")
        .set("train_file", "examples/lawqa/train.jsonl")
        .set("output_dir", "runs/embed")
        .set("overwrite", true)
        .set("max_steps", 20);
    let config = TrainConfig::from_pairs(options)?;
    // The context may carry a question that is asked between passes: should the run stop?
    let summary = train::run(&config, &Context::default(), &mut |event| {
        if let Event::Step(step) = event {
            println!("step {}: loss {:.4}, {:.0} tokens/s", step.step, step.loss, step.tokens_per_second);
        }
    })?;
    println!("mean loss {:?} in {:.1} s", summary.train_loss, summary.train_runtime);

    // Texts alone do as well.
    let config = ScoreConfig::from_pairs([
        ("model", "qwen3-tiny"),
        ("adapter", "runs/embed"),
        ("data_file", "examples/lawqa/test.jsonl"),
        ("output", "runs/embed/scores"),
        ("overwrite", "true"),
        ("mode", "choice"),
    ])?;
    let summary = score::run(&config, &Context::default(), &mut |_| ())?;
    if let Findings::Choice(report) = summary.findings {
        println!("accuracy {:?} over {} rows", report.overall.accuracy, report.overall.num_rows);
    }
    Ok(())
}
