//! Attention of every Qwen3 head shape over packed samples, forward and backward, against its floor.
//!
//! Operations are those of the pairs that see each other: two products forward, five backward. What the kernels compute
//! beyond (the masked half of diagonal tiles, and in backward the scores and their gradients a second time) counts as
//! loss.

use criterion::Criterion;
use half::bf16;
use tanren::batch::{Batch, Segment};
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::attention::{Attention, AttentionPlan, Backward, Heads, backward, forward};

use crate::harness::{Bench, Cost, random};

/// Rows that fill an RTX 3080 in whole waves.
const ROWS: [usize; 2] = [2176, 4352];

/// Rows of a sample.
const SAMPLES: [usize; 2] = [512, 300];

/// Models, query heads, key heads.
const MODELS: [(&str, usize, usize); 2] = [("Qwen3-0.6B/1.7B", 16, 8), ("Qwen3-4B/8B", 32, 8)];

const HEAD_DIM: usize = 128;

/// Models, rows and samples.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "attention");
    for (model, num_attention_heads, num_key_value_heads) in MODELS {
        let softmax_scale = 1.0 / (HEAD_DIM as f64).sqrt();
        let heads = Heads { num_attention_heads, num_key_value_heads, head_dim: HEAD_DIM, softmax_scale };
        for rows in ROWS {
            for sample in SAMPLES {
                run(&mut bench, heads, rows, sample, &format!("{model} {rows} in samples of {sample}"))?;
            }
        }
    }
    Ok(())
}

fn run(bench: &mut Bench<'_>, heads: Heads, rows: usize, sample: usize, name: &str) -> Result<()> {
    let device = bench.device.clone();
    let mut plan = AttentionPlan::causal(&packed(rows, sample));
    plan.upload(&device)?;
    let tensor = |cols: usize, index: u32| random(&device, rows, cols, 1.0, index);
    let (q, d_o) = (tensor(heads.q_cols(), 0)?, tensor(heads.q_cols(), 1)?);
    let (k, v) = (tensor(heads.kv_cols(), 2)?, tensor(heads.kv_cols(), 3)?);
    let mut o = device.empty::<bf16>(rows, heads.q_cols())?;
    let mut lse = device.empty::<f32>(rows, heads.num_attention_heads)?;
    let mut dq = device.empty::<bf16>(rows, heads.q_cols())?;
    let (mut dk, mut dv) = (device.empty(rows, heads.kv_cols())?, device.empty(rows, heads.kv_cols())?);

    let args = Attention { q: &q, k: &k, v: &v, heads, plan: &plan };
    let product = 2 * plan.num_pairs() * (heads.num_attention_heads * HEAD_DIM) as u64;
    // q and o, k and v, and as much again with their gradients.
    let numbers = 2 * rows * (heads.q_cols() + heads.kv_cols());
    let bytes = (numbers * size_of::<bf16>() + lse.len() * size_of::<f32>()) as u64;
    bench.run(&format!("forward {name}"), Cost { flops: 2 * product, bytes }, || {
        forward(&device, &args, &mut o, &mut lse)
    })?;
    bench.run(&format!("backward {name}"), Cost { flops: 5 * product, bytes: 2 * bytes }, || {
        let to = Backward { d_o: &d_o, o: &o, lse: &lse, dq: &mut dq, dk: &mut dk, dv: &mut dv };
        backward(&device, &args, to)
    })?;
    Ok(())
}

/// Samples of the same length, the last one cut off where the rows end.
fn packed(rows: usize, sample: usize) -> Vec<Segment> {
    let mut batch = Batch::default();
    for start in (0..rows).step_by(sample) {
        batch.push_segment(&vec![0; sample.min(rows - start)], None, 0);
    }
    batch.segments
}
