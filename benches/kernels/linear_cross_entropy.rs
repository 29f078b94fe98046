//! The head with its loss for the vocabulary of Qwen3: log-probabilities alone, and with the gradient.
//!
//! Rows are supervised ones: one chunk of 512, and half of a batch of 4,352.

use criterion::Criterion;
use tanren::batch::Target;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::linear_cross_entropy::{Targets, forward};

use crate::harness::{Bench, Cost, random};

const VOCAB_SIZE: usize = 151_936;

/// Models by hidden size.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "linear_cross_entropy");
    for (model, hidden_size) in
        [("Qwen3-0.6B", 1024), ("Qwen3-1.7B", 2048), ("Qwen3-4B", 2560), ("Qwen3-8B", 4096)]
    {
        let weight = random(device, VOCAB_SIZE, hidden_size, 0.02, 1)?;
        for rows in [64, 512, 2176] {
            let x = random(device, rows, hidden_size, 1.0, 0)?;
            let mut dx = device.empty(rows, hidden_size)?;
            let target = |row| Target { row, token: (row * 97 % VOCAB_SIZE) as u32, weight: 1.0 };
            let targets: Vec<Target> = (0..rows).map(target).collect();
            let targets = Targets::new(device, &targets, rows, 1.0 / rows as f64)?;
            let product = 2 * (rows * hidden_size * VOCAB_SIZE) as u64;
            let bytes = 2 * (hidden_size * (rows + VOCAB_SIZE)) as u64;
            let scores = Cost { flops: product, bytes };
            bench.run(&format!("scores {model} {rows}"), scores, || {
                forward(device, &x, &weight, &targets, None).map(drop)
            })?;
            // Logits are written, read, replaced by their gradients and read again.
            let logits = 2 * 4 * (rows * VOCAB_SIZE) as u64;
            let gradient = Cost { flops: 2 * product, bytes: 2 * bytes + logits };
            bench.run(&format!("gradient {model} {rows}"), gradient, || {
                forward(device, &x, &weight, &targets, Some(&mut dx)).map(drop)
            })?;
        }
    }
    Ok(())
}
