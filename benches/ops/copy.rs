//! Copying and adding without any arithmetic worth the name: the bandwidth that element-wise ops can reach at most.
//!
//! The sizes are those of the tensors of a step, so caches help here as much as they help the ops.

use criterion::{Criterion, Throughput};
use rayon::prelude::*;
use tanren::device::Device;
use tanren::error::Result;

use crate::common::ROW;
use crate::harness::{Bench, HIDDEN_SIZE, INTERMEDIATE_SIZE, random};

/// Elements one task handles.
const PIECE: usize = 1 << 14;

/// Two operands (copy) and three (sum), of `[tokens, columns]`.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "copy");
    for (tokens, cols) in
        [(64, 256), (ROW, HIDDEN_SIZE), (4 * ROW, HIDDEN_SIZE), (4 * ROW, INTERMEDIATE_SIZE)]
    {
        let (a, b) = (random(device, tokens, cols)?, random(device, tokens, cols)?);
        let mut y = random(device, tokens, cols)?;
        let bytes = (y.len() * size_of::<f32>()) as u64;
        bench.measure(&format!("copy {tokens}x{cols}"), Throughput::BytesDecimal(2 * bytes), || {
            let pieces = y.data_mut().par_chunks_mut(PIECE).zip(a.data().par_chunks(PIECE));
            pieces.for_each(|(y, a)| y.copy_from_slice(a));
        });
        bench.measure(&format!("sum {tokens}x{cols}"), Throughput::BytesDecimal(3 * bytes), || {
            let inputs = a.data().par_chunks(PIECE).zip(b.data().par_chunks(PIECE));
            y.data_mut().par_chunks_mut(PIECE).zip(inputs).for_each(|(y, (a, b))| {
                for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                    *y = a + b;
                }
            });
        });
    }
    Ok(())
}
