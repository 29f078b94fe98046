//! Embedding lookup from the table of Qwen3-0.6B.

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::{LiveRows, embedding};
use tanren::rng::{Purpose, Stream};

use crate::common::ROW;
use crate::harness::{Bench, HIDDEN_SIZE, random};

/// Rows of the table.
const VOCAB_SIZE: usize = 151_936;

/// Random tokens: no row of the table is in a cache.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "embedding");
    let table = device.zeros::<f32>(VOCAB_SIZE, HIDDEN_SIZE)?;
    let mut stream = Stream::new(0, Purpose::Shuffle, 0);
    for tokens in [64, ROW, 4 * ROW] {
        let ids: Vec<u32> = (0..tokens).map(|_| stream.next_u32() % VOCAB_SIZE as u32).collect();
        let ids = device.tensor(tokens, 1, &ids)?;
        let mut y = random(device, tokens, HIDDEN_SIZE)?;
        bench.bytes(&format!("forward {tokens}x{HIDDEN_SIZE}"), || {
            let live_rows = LiveRows::ALL;
            let args = embedding::Forward {
                table: &table,
                ids: &ids,
                types: None,
                positions: None,
                y: &mut y,
                live_rows,
            };
            embedding::forward(device, args)
        })?;
    }
    Ok(())
}
