//! RMSNorm with the residual in front, its recomputation, and its gradient.

use criterion::Criterion;
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::LiveRows;
use tanren::ops::norm::{self, Norm, NormKind};

use crate::common::ROW;
use crate::harness::{Bench, HIDDEN_SIZE, random};

/// All three directions on the residual stream.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "norm");
    for (tokens, cols) in [(64, 256), (ROW, HIDDEN_SIZE), (4 * ROW, HIDDEN_SIZE)] {
        let weight = random(device, 1, cols)?;
        let norm = Norm { kind: NormKind::Rms, weight: &weight, bias: None, eps: 1e-6 };
        let mut x = random(device, tokens, cols)?;
        let residual = random(device, tokens, cols)?;
        let mut y = random(device, tokens, cols)?;
        let mut rstd = random(device, tokens, 1)?;
        let shape = format!("{tokens}x{cols}");
        bench.bytes(&format!("forward {shape}"), || {
            norm::forward(
                device,
                norm::Forward {
                    x: &mut x,
                    residual: Some(&residual),
                    norm,
                    y: &mut y,
                    rstd: &mut rstd,
                    live_rows: LiveRows::ALL,
                    projection: None,
                },
            )
        })?;
        bench.bytes(&format!("apply {shape}"), || {
            norm::apply(
                device,
                norm::Apply { s: &residual, norm, rstd: &rstd, y: &mut y, live_rows: LiveRows::ALL },
            )
        })?;
        let dy = random(device, tokens, cols)?;
        bench.bytes(&format!("backward {shape}"), || {
            norm::backward(
                device,
                norm::Backward {
                    dy: &dy,
                    s: &residual,
                    norm,
                    rstd: &rstd,
                    d_in: Some(&dy),
                    ds: &mut x,
                    normed: None,
                    live_rows: LiveRows::ALL,
                    projection: None,
                },
            )
        })?;
    }
    Ok(())
}
