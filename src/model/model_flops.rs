//! Model FLOPs: the operations that a pass over a batch calls for, by a published formula, whatever a program really computes.
//!
//! | part | forward | with backward | for each |
//! |---|---|---|---|
//! | frozen linear layers with `N` weights | `2 N` | `4 N` | packed token |
//! | each adapted layer | `2 r (in + out)` | `6 r (in + out)` | packed token |
//! | attention, each block | `4 Hq d` | `14 Hq d` | pair of a query and a key that it sees |
//! | LM head | `2 h V` | `4 h V` | row that the head computes |
//!
//! A multiply-add counts as two. Backward has `dx` of a frozen layer and no gradient of its weight; `dx`, `dA` and `dB` of an
//! adapter; 2.5 times the forward pass of attention, as FlashAttention's authors count. Pairs are those of the real segments and
//! the mask of the block, so a causal sequence of `S` tokens has `S (S + 1) / 2`, and `S^2` where every token sees all; a prefix that segments share is computed, and counted, once. Padding does
//! not exist here, and tokens that nothing needs are no part of a batch.
//!
//! Not counted: norms, rotation, SwiGLU, softmax, embedding, the optimizer, what is computed again under a policy, dropout, and
//! what DoRA adds. Counted though an exact program can leave it out: gradients below the lowest adapted layer, such as that of
//! the input of the first block, and the last block for rows that no target needs. So the numbers of two programs can be
//! compared, and a program that leaves out what nobody needs gets the credit for it.

use crate::batch::Batch;
use crate::config::block::{AttnMask, BlockSpec};
use crate::config::{LoraConfig, ModelConfig, Site, SiteLora, Sites};
use crate::error::Result;

/// Multiply-adds by part, of one direction; see the module text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelFlops {
    /// `N`.
    frozen: u64,
    /// Sum of `r (in + out)` over the adapted layers.
    lora: u64,
    /// `Hq d`, summed over the blocks with a causal mask.
    causal: u64,
    /// Over those without a mask.
    full: u64,
    /// Over those with a window, and the reach of the window.
    window: (u64, usize),
    /// `h V`.
    head: u64,
}

impl ModelFlops {
    /// Those of a model with an adapter, or of the bare model.
    ///
    /// # Errors
    /// An input error if the adapter targets a layer that the model does not have.
    pub fn of(model: &ModelConfig, lora: Option<&LoraConfig>) -> Result<Self> {
        let (mut causal, mut full, mut window) = (0, 0, (0, 0));
        for BlockSpec { attn, .. } in &model.blocks {
            let size = attn.q_size() as u64;
            match attn.mask {
                AttnMask::Causal => causal += size,
                AttnMask::Full => full += size,
                AttnMask::Window(reach) => window = (window.0 + size, reach),
            }
        }
        let mut lora_numbers = 0;
        if let Some(lora) = lora {
            let ranks = lora.at_sites(model)?;
            let of_site = |(site, lora): (&Site, &Option<SiteLora>)| {
                lora.map_or(0, |lora| (lora.r * site.shape.iter().sum::<usize>()) as u64)
            };
            lora_numbers = Sites::of(model).iter().zip(ranks.iter()).map(of_site).sum();
        }
        Ok(Self {
            frozen: model.linear_weights(),
            lora: lora_numbers,
            causal,
            full,
            window,
            head: (model.hidden_size * model.vocab_size) as u64,
        })
    }

    /// A pass that scores. A batch without targets is not computed.
    pub fn forward(&self, batch: &Batch) -> u64 {
        self.count(batch, [2, 2, 4, 2])
    }

    /// A pass that trains. A batch without targets is not computed.
    pub fn forward_and_backward(&self, batch: &Batch) -> u64 {
        self.count(batch, [4, 6, 14, 4])
    }

    fn count(&self, batch: &Batch, [frozen, lora, pair, head]: [u64; 4]) -> u64 {
        if batch.targets.is_empty() {
            return 0;
        }
        let tokens = batch.total_tokens() as u64;
        let rows = batch.target_rows().len() as u64;
        let sum = |pairs: fn(u64, u64, u64) -> u64| -> u64 {
            let reach = self.window.1 as u64;
            batch.segments.iter().map(|s| pairs(s.len as u64, s.position_offset as u64, reach)).sum()
        };
        let pairs = self.causal * sum(|len, before, _| len * before + len * (len + 1) / 2)
            + self.full * sum(|len, before, _| len * (len + before))
            + self.window.0 * sum(window_pairs);
        tokens * (frozen * self.frozen + lora * self.lora) + pair * pairs + head * self.head * rows
    }
}

/// Pairs of a sequence of `len` tokens where each sees those at most `reach` away. Sequences with a prefix have no window.
fn window_pairs(len: u64, _: u64, reach: u64) -> u64 {
    let side = reach.min(len.saturating_sub(1));
    len + 2 * (side * len - side * (side + 1) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Targets, TokenTarget};
    use crate::config::{TargetModules, variant};
    use crate::model::{Adapter, Decoder, PassOptions, init};
    use crate::ops::attention::AttentionPlan;
    use crate::ops::testing::cpu;

    fn lora(r: usize, modules: &[&str]) -> LoraConfig {
        let names = modules.iter().map(|&name| name.to_owned()).collect();
        LoraConfig {
            r,
            alpha: 8.0,
            target_modules: if modules.is_empty() {
                TargetModules::AllLinear
            } else {
                TargetModules::List(names)
            },
            ..LoraConfig::default()
        }
    }

    /// Sequences of these lengths, each with its last `supervised` rows as targets.
    fn batch(lengths: &[usize], supervised: usize) -> Batch {
        let mut batch = Batch::default();
        for &len in lengths {
            let start = batch.total_tokens();
            batch.push_segment(&vec![1; len], None, 0);
            let rows = start + len - supervised..start + len;
            batch.targets.tokens_mut().unwrap().extend(rows.map(|row| TokenTarget {
                row,
                token: 2,
                weight: 1.0,
            }));
        }
        batch
    }

    #[test]
    fn numbers_of_qwen3_0_6b_by_hand() {
        let model = variant("Qwen3-0.6B").unwrap().model_config().unwrap();
        let all = ModelFlops::of(&model, Some(&lora(16, &[]))).unwrap();
        // Of one block: q and o 1024 x 2048, k and v 1024 x 1024, gate, up and down 1024 x 3072.
        let n = 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072_u64);
        assert_eq!((n, all.frozen), (440_401_920, n));
        // 10.1 million numbers are trained: in + out is 3072, 2048, 2048, 3072 and three times 4096.
        assert_eq!(all.lora, 28 * 16 * (2 * 3072 + 2 * 2048 + 3 * 4096));
        // Two sequences of 512 tokens of which 51 carry loss; 131,328 pairs each.
        let two = batch(&[512, 512], 51);
        let linears = 1024 * (1_761_607_680 + 60_555_264_u64);
        let attention = 2 * 131_328 * 14 * 2048 * 28;
        let head = 102 * 622_329_856_u64;
        assert_eq!(all.forward_and_backward(&two), linears + attention + head);
        // Per token 2.09 GFLOP: 4 N is 1.76 of it, attention 0.206.
        assert_eq!(linears + attention + head, 2_140_236_939_264);
        let forward = 1024 * (2 * n + 2 * all.lora) + attention / 14 * 4 + head / 2;
        assert_eq!(all.forward(&two), forward);
        // Attention only, and no adapter at all.
        let few = ModelFlops::of(&model, Some(&lora(8, &["q_proj", "v_proj"]))).unwrap();
        assert_eq!(few, ModelFlops { lora: 28 * 8 * (3072 + 2048), ..all });
        assert_eq!(ModelFlops::of(&model, None).unwrap(), ModelFlops { lora: 0, ..all });
        assert!(ModelFlops::of(&model, Some(&lora(8, &["c_attn"]))).is_err());
    }

    #[test]
    fn a_shared_prefix_counts_once_and_its_pairs_for_everyone_who_sees_it() {
        let model = variant("qwen3-tiny").unwrap().model_config().unwrap();
        let flops = ModelFlops::of(&model, Some(&lora(4, &[]))).unwrap();
        let mut shared = Batch::default();
        let prompt = shared.push_segment(&[1; 7], None, 0);
        for _ in 0..3 {
            let start = shared.total_tokens();
            shared.push_segment(&[2; 2], Some(prompt), 0);
            // The last row of the prompt predicts the first token of every answer: one row for the head.
            shared.targets.tokens_mut().unwrap().insert(0, TokenTarget { row: 6, token: 2, weight: 1.0 });
            shared.targets.tokens_mut().unwrap().push(TokenTarget { row: start, token: 3, weight: 1.0 });
        }
        let pairs = 7 * 8 / 2 + 3 * (8 + 9);
        assert_eq!(AttentionPlan::causal(&shared.segments).num_pairs(), pairs);
        let expected =
            13 * (4 * flops.frozen + 6 * flops.lora) + 14 * pairs * flops.causal + 4 * 4 * flops.head;
        assert_eq!(flops.forward_and_backward(&shared), expected);
        let nothing = Batch { targets: Targets::default(), ..shared };
        assert_eq!((flops.forward(&nothing), flops.forward_and_backward(&nothing)), (0, 0));
    }

    /// The ledger counts what is computed: it differs by exactly what the module text says that the formula counts and an exact
    /// program can leave out.
    #[test]
    fn the_ledger_differs_by_what_an_exact_program_leaves_out() {
        let base = variant("qwen3-tiny").unwrap().model_config().unwrap();
        let base = base.with_num_hidden_layers(3).with_blocks(|block| {
            (block.attn.heads, block.attn.kv_heads, block.attn.head_dim, block.mlp.size) = (4, 2, 6, 20);
        });
        let model = ModelConfig { hidden_size: 12, vocab_size: 37, ..base };
        let device = cpu();
        let decoder =
            Decoder { weights: init::random::<f32>(&device, &model, 3).unwrap(), config: model.clone() };
        let (q, k, mlp) = ((12, 24), (12, 12), (12, 20));
        for (lora, r) in [(lora(3, &[]), 3), (lora(5, &["q_proj", "down_proj"]), 5)] {
            let adapts = |name| {
                let all = lora.target_modules == TargetModules::AllLinear;
                (all || matches!(name, "q_proj" | "down_proj")) as usize
            };
            let cost = |name, (inputs, outputs): (usize, usize), [frozen, adapter]: [usize; 2]| {
                (frozen * inputs * outputs + adapter * r * (inputs + outputs) * adapts(name)) as u64
            };
            let flops = ModelFlops::of(&model, Some(&lora)).unwrap();
            let adapters = [Adapter::new(&device, &lora, &model, &decoder.weights, 1).unwrap()];
            for supervised in [1, 4, 9] {
                let batch = batch(&[9, 9], supervised);
                let (tokens, rows) = (18, 2 * supervised as u64);
                let mut grads = [adapters[0].zeros_like(&device).unwrap()];
                let counted = |run: &mut dyn FnMut()| -> u64 {
                    device.take_ledger();
                    run();
                    let products = ["lora_matmul", "attention", "linear_cross_entropy"];
                    let ledger = device.take_ledger();
                    let of_products = |op: &str| products.iter().any(|product| op.starts_with(product));
                    ledger.entries().filter(|(op, ..)| of_products(op)).map(|(.., work)| work.flops).sum()
                };
                let options = PassOptions { scale: 1.0, dropout: None, policies: &[] };
                let trained = counted(&mut || {
                    decoder.score_and_backward(&device, &batch, &adapters, &mut grads, options).unwrap();
                });
                let scored = counted(&mut || {
                    decoder.score(&device, &batch, &adapters).unwrap();
                });
                // The last block: queries and all that follows them for rows with targets only.
                let of_last = |per_linear: [usize; 2], per_pair: u64| {
                    let linears: u64 = [
                        ("q_proj", q),
                        ("o_proj", (24, 12)),
                        ("gate_proj", mlp),
                        ("up_proj", mlp),
                        ("down_proj", (20, 12)),
                    ]
                    .into_iter()
                    .map(|(name, shape)| cost(name, shape, per_linear))
                    .sum();
                    let seen =
                        AttentionPlan::for_rows(AttnMask::Causal, &batch.segments, &batch.target_rows())
                            .unwrap()
                            .num_pairs();
                    (tokens - rows) * linears + per_pair * 24 * (2 * 45 - seen)
                };
                // The first block: the gradient of its input.
                let of_first: u64 = [("q_proj", q), ("k_proj", k), ("v_proj", k)]
                    .into_iter()
                    .map(|(name, (inputs, outputs))| {
                        tokens * (2 * inputs * outputs + 2 * r * inputs * adapts(name)) as u64
                    })
                    .sum();
                let left_out = of_first + of_last([4, 6], 14);
                assert_eq!(flops.forward_and_backward(&batch) - trained, left_out, "{lora:?} {supervised}");
                assert_eq!(flops.forward(&batch) - scored, of_last([2, 2], 4), "{lora:?} {supervised}");
            }
        }
    }
}
