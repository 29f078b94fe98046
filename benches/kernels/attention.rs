//! Attention of every Qwen3 head shape, and of heads whose width is no power of 2, over packed samples, forward and backward, against
//! its floor.
//!
//! Operations are those of the pairs that see each other: two products forward, five backward. What the kernels compute
//! beyond (the masked half of diagonal tiles, and in backward the scores and their gradients a second time) counts as
//! loss.

use half::bf16;
use tanren::batch::{Batch, Segment};
use tanren::device::{Device, Tensor};
use tanren::error::Result;
use tanren::ops::attention::{Attention, AttentionPlan, Backward, Grads, Heads, backward, forward};

use super::harness::{Bench, Cost, random};
use super::shapes::Mode;

/// Models, rows and samples.
pub(crate) fn bench(bench: &mut Bench<'_>) -> Result<()> {
    // Qwen3-1.7B has the heads of Qwen3-0.6B, and Qwen3-8B those of Qwen3-4B.
    let models = bench.mode.models().iter().step_by(2);
    for model in models {
        for &rows in bench.mode.rows() {
            for sample in [512, 300].map(|sample: usize| sample.min(rows)) {
                let heads = [model.num_attention_heads, model.num_key_value_heads, model.head_dim];
                run(bench, (model.name, heads), rows, sample)?;
            }
        }
    }
    let num_heads = if bench.mode == Mode::Smoke { 1 } else { 16 };
    for head_dim in [48, 72, 80, 96, 112] {
        for &rows in bench.mode.rows().iter().take(1) {
            let name = format!("{num_heads} heads of {head_dim}");
            run(bench, (&name, [num_heads, num_heads, head_dim]), rows, 512.min(rows))?;
        }
    }
    Ok(())
}

/// The tensors of both directions.
struct Set {
    plan: AttentionPlan,
    q: Tensor<bf16>,
    k: Tensor<bf16>,
    v: Tensor<bf16>,
    d_o: Tensor<bf16>,
    o: Tensor<bf16>,
    lse: Tensor<f32>,
    dq: Tensor<bf16>,
    dk: Tensor<bf16>,
    dv: Tensor<bf16>,
}

/// `heads`: query heads, key heads, width of a head.
fn run(
    bench: &mut Bench<'_>,
    (name, [num_attention_heads, num_key_value_heads, head_dim]): (&str, [usize; 3]),
    rows: usize,
    sample: usize,
) -> Result<()> {
    let softmax_scale = 1.0 / (head_dim as f64).sqrt();
    let heads = Heads { num_attention_heads, num_key_value_heads, head_dim, softmax_scale };
    let segments = packed(rows, sample);
    let make = |device: &Device, _| -> Result<Set> {
        let mut plan = AttentionPlan::causal(&segments);
        plan.upload(device)?;
        let tensor = |cols: usize, index: u32| random(device, rows, cols, 1.0, index);
        let (q_cols, kv_cols) = (heads.q_cols(), heads.kv_cols());
        let mut set = Set {
            plan,
            q: tensor(q_cols, 0)?,
            k: tensor(kv_cols, 2)?,
            v: tensor(kv_cols, 3)?,
            d_o: tensor(q_cols, 1)?,
            o: device.empty(rows, q_cols)?,
            lse: device.empty(rows, heads.num_attention_heads)?,
            dq: device.empty(rows, q_cols)?,
            dk: device.empty(rows, kv_cols)?,
            dv: device.empty(rows, kv_cols)?,
        };
        // Backward reads what forward made.
        let Set { plan, q, k, v, o, lse, .. } = &mut set;
        forward(
            device,
            &Attention { q: (&*q).into(), k: (&*k).into(), v: (&*v).into(), heads, plan },
            o,
            lse,
        )?;
        Ok(set)
    };
    let pairs = AttentionPlan::causal(&segments).num_pairs();
    let product = 2 * pairs * heads.q_cols() as u64;
    // q and o, k and v, and as much again with their gradients.
    let numbers = 2 * rows * (heads.q_cols() + heads.kv_cols());
    let statistics = rows * heads.num_attention_heads * size_of::<f32>();
    let bytes = (numbers * size_of::<bf16>() + statistics) as u64;
    let name = format!("{name} {rows} in samples of {sample}");
    let cost = Cost { flops: 5 * product, bytes: 2 * bytes };
    bench.run(&format!("attention/backward {name}"), cost, &[], make, |device, set| {
        let Set { plan, q, k, v, d_o, o, lse, dq, dk, dv } = set;
        let args = Attention { q: (&*q).into(), k: (&*k).into(), v: (&*v).into(), heads, plan };
        backward(device, &args, Backward { d_o, o, lse, grads: Grads::Split { dq, dk, dv } })
    })?;
    let cost = Cost { flops: 2 * product, bytes };
    bench.run(&format!("attention/forward {name}"), cost, &[], make, |device, set| {
        let Set { plan, q, k, v, o, lse, .. } = set;
        forward(device, &Attention { q: (&*q).into(), k: (&*k).into(), v: (&*v).into(), heads, plan }, o, lse)
    })
}

/// Samples of the same length, the last one cut off where the rows end.
fn packed(rows: usize, sample: usize) -> Vec<Segment> {
    let mut batch = Batch::default();
    for start in (0..rows).step_by(sample) {
        batch.push_segment(&vec![0; sample.min(rows - start)], None, 0);
    }
    batch.segments
}
