//! Attention over packed rows with grouped heads, over a shared prefix, and for the few queries of the last block.

use criterion::Criterion;
use tanren::batch::{Batch, Segment};
use tanren::device::Device;
use tanren::error::Result;
use tanren::ops::attention::{self, Attention, AttentionPlan, AttnMask, Backward, Grads, Heads};

use crate::common::ROW;
use crate::harness::{Bench, HEAD_DIM, NUM_ATTENTION_HEADS, NUM_KEY_VALUE_HEADS, packed_rows, random};

/// Both directions by plan.
pub(crate) fn bench(criterion: &mut Criterion, device: &Device) -> Result<()> {
    let mut bench = Bench::new(criterion, device, "attention");
    let small = Heads { num_attention_heads: 4, num_key_value_heads: 2, head_dim: 64, softmax_scale: 0.125 };
    let heads = Heads {
        num_attention_heads: NUM_ATTENTION_HEADS,
        num_key_value_heads: NUM_KEY_VALUE_HEADS,
        head_dim: HEAD_DIM,
        softmax_scale: 1.0 / (HEAD_DIM as f64).sqrt(),
    };
    let causal = |segments: &[Segment]| AttentionPlan::causal(segments);
    for (name, heads, plan) in [
        ("1 row of 64, small heads".to_owned(), small, causal(&packed_rows(1, 64))),
        (format!("1 row of {ROW}"), heads, causal(&packed_rows(1, ROW))),
        (format!("4 rows of {ROW}"), heads, causal(&packed_rows(4, ROW))),
        (format!("prefix of {} and 4 of 14", ROW - 14), heads, causal(&shared_prefix())),
        (
            format!("4 rows of {ROW}, all keys"),
            heads,
            AttentionPlan::of_all(AttnMask::Full, &packed_rows(4, ROW))?,
        ),
        (
            format!("4 rows of {ROW}, window of 64"),
            heads,
            AttentionPlan::of_all(AttnMask::Window(64), &packed_rows(4, ROW))?,
        ),
        (
            format!("last 2 queries of {ROW}"),
            heads,
            AttentionPlan::for_rows(AttnMask::Causal, &packed_rows(1, ROW), &[ROW - 2, ROW - 1])?,
        ),
    ] {
        let (queries, keys) = (plan.num_query_rows(), plan.num_key_rows());
        let q = random(device, queries, heads.q_cols())?;
        let (k, v) = (random(device, keys, heads.kv_cols())?, random(device, keys, heads.kv_cols())?);
        let mut o = random(device, queries, heads.q_cols())?;
        let mut lse = random(device, queries, heads.num_attention_heads)?;
        let args = Attention { q: (&q).into(), k: (&k).into(), v: (&v).into(), heads, plan: &plan };
        bench.flops(&format!("forward {name}"), || attention::forward(device, &args, &mut o, &mut lse))?;
        let d_o = random(device, queries, heads.q_cols())?;
        let mut dq = random(device, queries, heads.q_cols())?;
        let (mut dk, mut dv) =
            (random(device, keys, heads.kv_cols())?, random(device, keys, heads.kv_cols())?);
        bench.flops(&format!("backward {name}"), || {
            let (dq, dk, dv) = (&mut dq, &mut dk, &mut dv);
            attention::backward(
                device,
                &args,
                Backward { d_o: &d_o, o: &o, lse: &lse, grads: Grads::Split { dq, dk, dv } },
            )
        })?;
    }
    Ok(())
}

/// One question with four answers of 14 tokens.
fn shared_prefix() -> Vec<Segment> {
    let mut batch = Batch::default();
    let prefix = batch.push_segment(&[0; ROW - 14], None, 0);
    for _ in 0..4 {
        batch.push_segment(&[0; 14], Some(prefix), 0);
    }
    batch.segments
}
