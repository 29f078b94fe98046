//! Picking rows out of a tensor and adding them back, for the supervised rows of the last block.

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::rows::{self, RowIndex};

use crate::common::ROW;
use crate::harness::{Bench, HIDDEN_SIZE, random};

/// Two rows of a short batch, and every second row of a long one.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "rows");
    for (tokens, step) in [(ROW, ROW / 2), (4 * ROW, 2)] {
        let picked: Vec<usize> = (0..tokens).step_by(step).collect();
        let index = RowIndex::new(device, &picked)?;
        let mut x = random(device, tokens, HIDDEN_SIZE)?;
        let y = random(device, picked.len(), HIDDEN_SIZE)?;
        let shape = format!("{} of {tokens}x{HIDDEN_SIZE}", picked.len());
        bench.bytes(&format!("gather {shape}"), || rows::gather(device, &x, &index).map(drop))?;
        bench.bytes(&format!("scatter_add {shape}"), || rows::scatter_add(device, &y, &index, &mut x))?;
    }
    Ok(())
}
