//! The head with its loss for the vocabulary of Qwen3: log-probabilities alone, and with the gradient.
//!
//! Rows are supervised ones: one chunk of 512, and half of a batch of 4,352. cuBLASLt's bar is the product of the logits, and with
//! the gradient the one of dx too.

use half::bf16;
use tanren::batch::TokenTarget;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::linear_cross_entropy::{Forward, Scores, Targets, forward};

use super::cublaslt::Product;
use super::harness::{Bench, Cost, random};

/// Models by hidden size.
pub(crate) fn bench(bench: &mut Bench<'_>) -> Result<()> {
    for model in bench.mode.models() {
        let all: &[usize] = bench.mode.choose(&[512, 64, 2176], &[512]);
        for &rows in all {
            let rows = rows.min(8 * bench.mode.rows()[0]);
            run(bench, model.name, rows, [model.hidden, model.vocab_size])?;
        }
    }
    Ok(())
}

struct Set {
    x: Tensor<bf16>,
    weight: Tensor<bf16>,
    dx: Tensor<bf16>,
    targets: Targets,
    scores: Scores,
}

fn run(bench: &mut Bench<'_>, model: &str, rows: usize, [hidden, vocab_size]: [usize; 2]) -> Result<()> {
    let make = |device: &Device, _| -> Result<Set> {
        let target = |row| TokenTarget { row, token: (row * 97 % vocab_size) as u32, weight: 1.0 };
        let targets: Vec<TokenTarget> = (0..rows).map(target).collect();
        let targets = Targets::new(device, &targets, rows, 1.0 / rows as f64)?;
        Ok(Set {
            x: random(device, rows, hidden, 1.0, 0)?,
            weight: random(device, vocab_size, hidden, 0.02, 1)?,
            dx: device.empty(rows, hidden)?,
            scores: Scores::with_capacity(device, rows)?,
            targets,
        })
    };
    let product = 2 * (rows * hidden * vocab_size) as u64;
    let bytes = 2 * (hidden * (rows + vocab_size)) as u64;
    // Logits are written, read, replaced by their gradients and read again.
    let logits = 2 * 4 * (rows * vocab_size) as u64;
    let of_logits = Product::Forward { rows, inputs: hidden, outputs: vocab_size };
    let of_dx = Product::Input { rows, inputs: hidden, outputs: vocab_size };
    let cost = Cost { flops: 2 * product, bytes: 2 * bytes + logits };
    let name = |what: &str| format!("linear_cross_entropy/{what} {model} {rows}");
    bench.run(&name("gradient"), cost, &[of_logits, of_dx], make, |device, set| {
        let Set { x, weight, dx, targets, scores } = set;
        forward(device, Forward { x, weight, targets, scores, dx: Some(dx) })
    })?;
    let cost = Cost { flops: product, bytes };
    bench.run(&name("scores"), cost, &[of_logits], make, |device, set| {
        let Set { x, weight, targets, scores, .. } = set;
        forward(device, Forward { x, weight, targets, scores, dx: None })
    })
}
