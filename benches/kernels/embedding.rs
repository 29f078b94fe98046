//! Lookup of tokens in tables that no cache holds. The floor is every row once.

use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::{LiveRows, embedding};

use super::harness::{Bench, Cost, random};

/// Forward; there is no way back.
pub(crate) fn bench(bench: &mut Bench<'_>) -> Result<()> {
    for model in bench.mode.models() {
        for &rows in bench.mode.rows() {
            let name = format!("embedding/forward {} {rows}", model.name);
            // The table is one for all, and large; it is not made for a benchmark that does not run.
            if !bench.wants(&name) {
                continue;
            }
            let (hidden, vocab_size) = (model.hidden, model.vocab_size);
            let table = random(&bench.device, vocab_size, hidden, 1.0, 0)?;
            let cost = Cost { flops: 0, bytes: (4 * rows * hidden) as u64 };
            let make = |device: &Device, set: usize| {
                // Every set looks up rows of its own, all over the table.
                let id = |i: usize| ((set * rows + i) * 7919 % vocab_size) as u32;
                let ids: Vec<u32> = (0..rows).map(id).collect();
                Ok((device.tensor(rows, 1, &ids)?, device.empty(rows, hidden)?))
            };
            bench.run(&name, cost, &[], make, |device, (ids, y)| {
                let live_rows = LiveRows::ALL;
                embedding::forward(
                    device,
                    embedding::Forward { table: &table, ids, types: None, positions: None, y, live_rows },
                )
            })?;
        }
    }
    Ok(())
}
