//! Training and scoring from a Rust program: options in, events on the way, a summary out. Nothing is printed by the library.
//!
//! `cargo run --release --example embed` trains the small random model for 20 steps and asks it the held-out questions.

#![allow(clippy::print_stdout, reason = "an example shows what it gets")]

use tanren::config::{ScoreConfig, TrainConfig};
use tanren::error::Result;
use tanren::score::{self, Findings};
use tanren::train::{self, Event};

fn main() -> Result<()> {
    let mut options = toml::Table::new();
    options.insert("model".into(), "qwen3-tiny".into());
    options.insert("train_file".into(), "examples/lawqa/train.jsonl".into());
    options.insert("output_dir".into(), "runs/embed".into());
    options.insert("overwrite".into(), true.into());
    options.insert("max_steps".into(), 20.into());
    let config = TrainConfig::resolve(options, None)?;
    // The context may carry a question that is asked between passes: should the run stop?
    let summary = train::run(&config, &train::Context::default(), &mut |event| {
        if let Event::Step(step) = event {
            println!("step {}: loss {:.4}, {:.0} tokens/s", step.step, step.loss, step.tokens_per_second);
        }
    })?;
    println!("mean loss {:?} in {:.1} s", summary.train_loss, summary.train_runtime);

    let mut options = toml::Table::new();
    options.insert("model".into(), "qwen3-tiny".into());
    options.insert("adapter".into(), "runs/embed".into());
    options.insert("data_file".into(), "examples/lawqa/test.jsonl".into());
    options.insert("output".into(), "runs/embed/scores".into());
    options.insert("overwrite".into(), true.into());
    options.insert("mode".into(), "choice".into());
    let config = ScoreConfig::resolve(options, None)?;
    let summary = score::run(&config, &score::Context::default(), &mut |_| ())?;
    if let Findings::Choice(report) = summary.findings {
        println!("accuracy {:?} over {} rows", report.overall.accuracy, report.overall.num_rows);
    }
    Ok(())
}
