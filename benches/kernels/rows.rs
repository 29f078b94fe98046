//! Picking the supervised rows and adding them back. The floor is every row once.

use half::bf16;
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::rows::{self, RowIndex};

use super::harness::{Bench, Cost, random};

struct Set {
    x: Tensor<bf16>,
    y: Tensor<bf16>,
    index: RowIndex,
}

/// Half of the rows are picked.
pub(crate) fn bench(bench: &mut Bench<'_>) -> Result<()> {
    for model in bench.mode.models() {
        for &num_rows in bench.mode.rows() {
            let (hidden, picked) = (model.hidden, num_rows / 2);
            let name = format!("{} {num_rows}", model.name);
            let cost = |passes: usize| Cost { flops: 0, bytes: (2 * passes * picked * hidden) as u64 };
            let make = |device: &Device, _| {
                Ok(Set {
                    x: random(device, num_rows, hidden, 1.0, 0)?,
                    y: random(device, picked, hidden, 1e-3, 1)?,
                    index: RowIndex::new(device, &(0..num_rows).step_by(2).collect::<Vec<_>>())?,
                })
            };
            bench.run(&format!("rows/gather {name}"), cost(2), &[], make, |device, set| {
                rows::gather(device, &set.x, &set.index).map(drop)
            })?;
            bench.run(&format!("rows/scatter_add {name}"), cost(3), &[], make, |device, set| {
                rows::scatter_add(device, &set.y, &set.index, &mut set.x)
            })?;
        }
    }
    Ok(())
}
