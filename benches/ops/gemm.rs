//! Matrix products in the orientations of a step: the arithmetic that linear layers, attention and the head can reach at most.

use criterion::{Criterion, Throughput};
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::gemm::{Mat, MatMut, Write, gemm, par_gemm};

use crate::common::{LORA_R, ROW};
use crate::harness::{Bench, HEAD_DIM, HIDDEN_SIZE, INTERMEDIATE_SIZE, random};

/// The wide products of a linear layer, and the thin ones of its adapter.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "gemm");
    for (tokens, inputs, outputs) in [
        (64, 256, 768),
        (ROW, HIDDEN_SIZE, INTERMEDIATE_SIZE),
        (4 * ROW, HIDDEN_SIZE, INTERMEDIATE_SIZE),
        (4 * ROW, INTERMEDIATE_SIZE, HIDDEN_SIZE),
    ] {
        let x = random(device, tokens, inputs)?;
        let dy = random(device, tokens, outputs)?;
        let weight = random(device, outputs, inputs)?;
        let thin = random(device, tokens, LORA_R)?;
        let a = random(device, LORA_R, inputs)?;
        let mut y = random(device, tokens, outputs)?;
        let mut dx = random(device, tokens, inputs)?;
        let mut xa = random(device, tokens, LORA_R)?;
        let mut db = random(device, outputs, LORA_R)?;
        let mut da = random(device, LORA_R, inputs)?;
        let (x, dy) = (Mat::new(x.data(), tokens, inputs), Mat::new(dy.data(), tokens, outputs));
        let weight = Mat::new(weight.data(), outputs, inputs);
        let (thin, a) = (Mat::new(thin.data(), tokens, LORA_R), Mat::new(a.data(), LORA_R, inputs));
        let wide = Throughput::Elements(2 * (tokens * inputs * outputs) as u64);
        let shape = format!("{tokens}x{inputs}x{outputs}");
        bench.measure(&format!("x W^T {shape}"), wide.clone(), || {
            par_gemm(MatMut::new(y.data_mut(), tokens, outputs), Write::Overwrite, 1.0, x, weight.t());
        });
        bench.measure(&format!("dy W {shape}"), wide, || {
            par_gemm(MatMut::new(dx.data_mut(), tokens, inputs), Write::Overwrite, 1.0, dy, weight);
        });
        let flops = Throughput::Elements(2 * (tokens * inputs * LORA_R) as u64);
        bench.measure(&format!("x A^T {tokens}x{inputs}x{LORA_R}"), flops.clone(), || {
            par_gemm(MatMut::new(xa.data_mut(), tokens, LORA_R), Write::Overwrite, 1.0, x, a.t());
        });
        bench.measure(&format!("dx = dxa A {tokens}x{LORA_R}x{inputs}"), flops, || {
            par_gemm(MatMut::new(dx.data_mut(), tokens, inputs), Write::Overwrite, 1.0, thin, a);
        });
        let flops = Throughput::Elements(2 * (tokens * outputs * LORA_R) as u64);
        bench.measure(&format!("dB = dy^T xa {outputs}x{tokens}x{LORA_R}"), flops, || {
            par_gemm(MatMut::new(db.data_mut(), outputs, LORA_R), Write::Overwrite, 1.0, dy.t(), thin);
        });
        let flops = Throughput::Elements(2 * (tokens * inputs * LORA_R) as u64);
        bench.measure(&format!("dA = dxa^T x {LORA_R}x{tokens}x{inputs}"), flops, || {
            par_gemm(MatMut::new(da.data_mut(), LORA_R, inputs), Write::Overwrite, 1.0, thin.t(), x);
        });
    }
    // One tile of attention: scores of 64 queries, on one thread.
    let (q, k) = (random(device, 64, HEAD_DIM)?, random(device, ROW, HEAD_DIM)?);
    let mut s = random(device, 64, ROW)?;
    let (q, k) = (Mat::new(q.data(), 64, HEAD_DIM), Mat::new(k.data(), ROW, HEAD_DIM));
    let flops = Throughput::Elements(2 * (64 * HEAD_DIM * ROW) as u64);
    bench.measure(&format!("one thread q k^T 64x{HEAD_DIM}x{ROW}"), flops, || {
        gemm(MatMut::new(s.data_mut(), 64, ROW), Write::Overwrite, 1.0, q, k.t());
    });
    Ok(())
}
