//! Lookup of tokens in tables that no cache holds. The floor is every row once.

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::embedding;

use crate::harness::{Bench, Cost, random};
use crate::lora_matmul::{MODELS, ROWS};

/// Rows of the table: fewer than a vocabulary, and many times those that are looked up.
const VOCAB_SIZE: usize = 50_000;

/// Forward; there is no way back.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "embedding");
    for (model, hidden, ..) in MODELS {
        let table = random(device, VOCAB_SIZE, hidden, 1.0, 0)?;
        for rows in ROWS {
            let ids: Vec<u32> = (0..rows).map(|i| (i * 7919 % VOCAB_SIZE) as u32).collect();
            let ids = device.tensor(rows, 1, &ids)?;
            let mut y = device.empty(rows, hidden)?;
            let cost = Cost { flops: 0, bytes: (4 * rows * hidden) as u64 };
            bench.run(&format!("forward {model} {rows}"), cost, || {
                embedding::forward(device, &table, &ids, &mut y)
            })?;
        }
    }
    Ok(())
}
