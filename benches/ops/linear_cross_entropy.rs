//! Head and loss: few rows over the whole vocabulary of Qwen3 (answers of a letter), and many rows over a smaller one.

use criterion::Criterion;
use tanren::batch::TokenTarget;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::linear_cross_entropy::{Forward, Scores, Targets, forward};

use crate::common::ROW;
use crate::harness::{Bench, HIDDEN_SIZE, random};

/// Without and with the gradient.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "linear_cross_entropy");
    for (rows, cols, vocab_size) in
        [(64, 256, 4096), (2, HIDDEN_SIZE, 151_936), (8, HIDDEN_SIZE, 151_936), (ROW, HIDDEN_SIZE, 16_384)]
    {
        let x = random(device, rows, cols)?;
        let weight = random(device, vocab_size, cols)?;
        let target = |row| TokenTarget { row, token: (row * 97 % vocab_size) as u32, weight: 1.0 };
        let targets: Vec<TokenTarget> = (0..rows).map(target).collect();
        let targets = Targets::new(device, &targets, rows, 0.01)?;
        let shape = format!("{rows}x{cols}x{vocab_size}");
        bench.flops(&format!("scores {shape}"), || {
            let mut scores = Scores::with_capacity(device, rows)?;
            let (x, weight, targets) = (&x, &weight, &targets);
            forward(device, Forward { x, weight, targets, scores: &mut scores, dx: None })
        })?;
        let mut dx = random(device, rows, cols)?;
        bench.flops(&format!("gradient {shape}"), || {
            let mut scores = Scores::with_capacity(device, rows)?;
            let (x, weight, targets, dx) = (&x, &weight, &targets, Some(&mut dx));
            forward(device, Forward { x, weight, targets, scores: &mut scores, dx })
        })?;
    }
    Ok(())
}
