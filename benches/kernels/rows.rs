//! Picking the supervised rows and adding them back. The floor is every row once.

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::rows::{self, RowIndex};

use crate::harness::{Bench, Cost, random};
use crate::lora_matmul::{MODELS, ROWS};

/// Half of the rows are picked.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "rows");
    for (model, hidden, ..) in MODELS {
        for num_rows in ROWS {
            let name = format!("{model} {num_rows}");
            let cost =
                |rows: usize, passes: usize| Cost { flops: 0, bytes: (2 * passes * rows * hidden) as u64 };
            let mut x = random(device, num_rows, hidden, 1.0, 0)?;
            let index = RowIndex::new(device, &(0..num_rows).step_by(2).collect::<Vec<_>>())?;
            let picked = num_rows / 2;
            bench.run(&format!("gather {name}"), cost(picked, 2), || {
                rows::gather(device, &x, &index).map(drop)
            })?;
            let y = random(device, picked, hidden, 1e-3, 1)?;
            bench.run(&format!("scatter_add {name}"), cost(picked, 3), || {
                rows::scatter_add(device, &y, &index, &mut x)
            })?;
        }
    }
    Ok(())
}
