//! One decoder block: forward, and backward in mirrored order.
//!
//! `x_mid = x_in + o_proj(attention(norm(x_in)))`, `x_out = x_mid + down(silu(gate) * up)` with gate and up of `norm(x_mid)`.
//!
//! Kept for the backward pass: `x_in`, `x_mid`, the projections q, k, v before norm and rotation, `o` and `lse`, gate and up,
//! `x~ A^T` of every adapted layer, and the statistics of the norms. Everything else (normed inputs, rotated q and k, softmax,
//! `silu(gate) * up`) is computed again where it is needed, at the cost of element-wise work.

use super::adapter::Adapter;
use super::weights::{Module, Weights};
use crate::batch::{AdapterRows, Segment};
use crate::config::ModelConfig;
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::attention::{self, Attention, AttentionPlan, Heads};
use crate::ops::gemm::Write;
use crate::ops::lora_matmul::{self, Dropout, Frozen, Lora, LoraGrad, LoraMatmul, RowKeys};
use crate::ops::qk_norm_rope::{self, QkNormRope, RopeTable};
use crate::ops::rms_norm::{self, Norm};
use crate::ops::{rows, swiglu};
use crate::tensor::Real;

/// Seed and step of the dropout masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutStep {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
}

/// What the ops need to know about some rows of the batch.
pub(super) struct RowSet<T: Real> {
    adapter_rows: Vec<AdapterRows>,
    keys: RowKeys,
    rope: RopeTable<T::Stat>,
    plan: AttentionPlan,
}

/// One pass over one batch: what is constant over the blocks.
pub(super) struct Pass<'a, T: Real> {
    pub(super) device: &'a Device,
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a Weights<T>,
    pub(super) adapters: &'a [Adapter<T>],
    /// Norms of DoRA by adapter, block and module.
    dora_norms: Vec<Vec<[Option<Tensor<T::Stat>>; 7]>>,
    all: RowSet<T>,
    /// The rows that the last block has to finish.
    supervised: RowSet<T>,
    pub(super) target_rows: Vec<usize>,
    dropout: Option<DropoutStep>,
}

/// What a block keeps for the backward pass.
pub(super) struct Saved<T: Real> {
    x_in: Tensor<T>,
    rstd_in: Tensor<T::Stat>,
    q: Tensor<T>,
    k: Tensor<T>,
    v: Tensor<T>,
    o: Tensor<T>,
    lse: Tensor<T::Stat>,
    pub(super) x_mid: Tensor<T>,
    rstd_mid: Tensor<T::Stat>,
    gate: Tensor<T>,
    up: Tensor<T>,
    /// By [`Module`].
    xa: [Tensor<T>; 7],
}

impl<'a, T: Real> Pass<'a, T> {
    /// Prepares a pass over packed `segments`; `target_rows` (ascending) are the rows whose final state is wanted.
    pub(super) fn new(
        device: &'a Device,
        (config, weights): (&'a ModelConfig, &'a Weights<T>),
        adapters: &'a [Adapter<T>],
        segments: &[Segment],
        target_rows: Vec<usize>,
        dropout: Option<DropoutStep>,
    ) -> Result<Self> {
        let positions: Vec<usize> =
            segments.iter().flat_map(|s| s.position_offset..s.position_offset + s.len).collect();
        let all = RowSet {
            adapter_rows: runs(segments.iter().flat_map(|s| s.rows().map(|_| s.adapter))),
            keys: RowKeys::new(segments),
            rope: RopeTable::new(device, &positions, config.head_dim, config.rope_theta)?,
            plan: AttentionPlan::causal(segments),
        };
        let adapter_of = |row: &usize| {
            let segment = segments.partition_point(|s| s.start + s.len <= *row);
            segments[segment].adapter
        };
        let supervised = RowSet {
            adapter_rows: runs(target_rows.iter().map(adapter_of)),
            keys: all.keys.gather(&target_rows),
            rope: all.rope.gather(device, &target_rows),
            plan: AttentionPlan::for_rows(segments, &target_rows),
        };
        let mut dora_norms = Vec::new();
        for adapter in adapters {
            let mut blocks = Vec::new();
            for (layer, block) in weights.blocks.iter().enumerate() {
                let mut norms = [const { None }; 7];
                for module in Module::ALL {
                    let Some(params) = adapter.params(layer, module) else { continue };
                    if params.magnitude.is_some() {
                        let weight = &block.linears[module as usize].weight;
                        let scaling = T::Stat::from_f64(adapter.config().scaling());
                        norms[module as usize] =
                            Some(lora_matmul::dora_norm(device, weight, &params.a, &params.b, scaling)?);
                    }
                }
                blocks.push(norms);
            }
            dora_norms.push(blocks);
        }
        Ok(Self { device, config, weights, adapters, dora_norms, all, supervised, target_rows, dropout })
    }

    /// Runs block `layer` on the output `x` of what came before, `residual` being the stream it adds to. Returns what backward
    /// needs and the output of the MLP, which the next norm adds to `x_mid`.
    pub(super) fn forward(
        &self,
        layer: usize,
        mut x: Tensor<T>,
        residual: Option<&Tensor<T>>,
    ) -> Result<(Saved<T>, Tensor<T>)> {
        let (device, config) = (self.device, self.config);
        let set = self.queries(layer);
        let mut rstd_in = device.empty(x.rows(), 1);
        let mut normed = device.empty(x.rows(), x.cols());
        rms_norm::forward(device, &mut x, residual, &self.input_norm(layer), &mut normed, &mut rstd_in)?;
        let x_in = x;
        let (k, xa_k) = self.linear(layer, Module::K, &normed, &self.all)?;
        let (v, xa_v) = self.linear(layer, Module::V, &normed, &self.all)?;
        let normed = self.only_queries(layer, normed)?;
        let (q, xa_q) = self.linear(layer, Module::Q, &normed, set)?;
        drop(normed);

        let (q_rotated, k_rotated) = self.rotated(layer, &q, &k)?;
        let args = Attention { q: &q_rotated, k: &k_rotated, v: &v, heads: self.heads(), plan: &set.plan };
        let mut o = device.empty(q.rows(), q.cols());
        let mut lse = device.empty(q.rows(), config.num_attention_heads);
        attention::forward(device, &args, &mut o, &mut lse)?;
        drop((q_rotated, k_rotated));

        let (mut x_mid, xa_o) = self.linear(layer, Module::O, &o, set)?;
        let mut rstd_mid = device.empty(x_mid.rows(), 1);
        let mut normed = device.empty(x_mid.rows(), x_mid.cols());
        let picked = match self.is_last(layer) {
            true => Some(rows::gather(device, &x_in, &self.target_rows)?),
            false => None,
        };
        let stream = Some(picked.as_ref().unwrap_or(&x_in));
        let norm = self.post_attention_norm(layer);
        rms_norm::forward(device, &mut x_mid, stream, &norm, &mut normed, &mut rstd_mid)?;
        drop(picked);

        let (gate, xa_gate) = self.linear(layer, Module::Gate, &normed, set)?;
        let (up, xa_up) = self.linear(layer, Module::Up, &normed, set)?;
        drop(normed);
        let mut h = device.empty(gate.rows(), gate.cols());
        swiglu::forward(device, &gate, &up, &mut h)?;
        let (out, xa_down) = self.linear(layer, Module::Down, &h, set)?;
        let xa = [xa_q, xa_k, xa_v, xa_o, xa_gate, xa_up, xa_down];
        Ok((Saved { x_in, rstd_in, q, k, v, o, lse, x_mid, rstd_mid, gate, up, xa }, out))
    }

    /// Goes back through block `layer`: adds to `grads`, takes the gradient of its output stream and gives that of its input
    /// stream, or none where nothing below is trained (`lowest`).
    pub(super) fn backward(
        &self,
        layer: usize,
        saved: Saved<T>,
        mut d_stream: Tensor<T>,
        lowest: bool,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Option<Tensor<T>>> {
        let device = self.device;
        let set = self.queries(layer);
        let Saved { x_in, rstd_in, q, k, v, o, lse, x_mid, rstd_mid, mut gate, mut up, xa } = saved;
        let [xa_q, xa_k, xa_v, xa_o, xa_gate, xa_up, xa_down] = xa;
        let like = |t: &Tensor<T>| device.empty(t.rows(), t.cols());

        let mut h = like(&gate);
        swiglu::forward(device, &gate, &up, &mut h)?;
        let mut dh = like(&gate);
        let dx = Some((&mut dh, Write::Overwrite));
        self.linear_backward(layer, Module::Down, set, (&d_stream, &h, &xa_down), dx, grads)?;
        drop(h);
        swiglu::backward(device, &dh, &mut gate, &mut up)?;
        drop(dh);
        let mut normed = like(&x_mid);
        rms_norm::apply(device, &x_mid, &self.post_attention_norm(layer), &rstd_mid, &mut normed)?;
        let mut d_normed = like(&x_mid);
        let dx = Some((&mut d_normed, Write::Overwrite));
        self.linear_backward(layer, Module::Gate, set, (&gate, &normed, &xa_gate), dx, grads)?;
        let dx = Some((&mut d_normed, Write::Add));
        self.linear_backward(layer, Module::Up, set, (&up, &normed, &xa_up), dx, grads)?;
        drop((gate, up, normed));
        let norm = self.post_attention_norm(layer);
        rms_norm::backward(device, &d_normed, &x_mid, &norm, &rstd_mid, &mut d_stream)?;
        drop((d_normed, x_mid));

        // In the lowest adapted block, what nobody trains need not be reached.
        let trains = |module| self.adapters.iter().any(|a| a.params(layer, module).is_some());
        let reaches_qkv = !lowest || [Module::Q, Module::K, Module::V].into_iter().any(trains);
        let mut d_o = reaches_qkv.then(|| like(&o));
        let dx = d_o.as_mut().map(|d_o| (d_o, Write::Overwrite));
        self.linear_backward(layer, Module::O, set, (&d_stream, &o, &xa_o), dx, grads)?;
        let Some(d_o) = d_o else { return Ok(None) };

        let (q_rotated, k_rotated) = self.rotated(layer, &q, &k)?;
        let args = Attention { q: &q_rotated, k: &k_rotated, v: &v, heads: self.heads(), plan: &set.plan };
        let (mut dq, mut dk, mut dv) = (like(&q), like(&k), like(&v));
        let to = attention::Backward { d_o: &d_o, o: &o, lse: &lse, dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention::backward(device, &args, to)?;
        drop((q_rotated, k_rotated, v, o, lse, d_o));
        let (q_op, k_op) = self.qk_ops(layer);
        qk_norm_rope::backward(device, &q, &q_op, &mut dq)?;
        qk_norm_rope::backward(device, &k, &k_op, &mut dk)?;
        drop((q, k));

        let mut normed = like(&x_in);
        rms_norm::apply(device, &x_in, &self.input_norm(layer), &rstd_in, &mut normed)?;
        let mut d_normed = (!lowest).then(|| like(&x_in));
        let dx = d_normed.as_mut().map(|d| (d, Write::Overwrite));
        self.linear_backward(layer, Module::K, &self.all, (&dk, &normed, &xa_k), dx, grads)?;
        let dx = d_normed.as_mut().map(|d| (d, Write::Add));
        self.linear_backward(layer, Module::V, &self.all, (&dv, &normed, &xa_v), dx, grads)?;
        let normed = self.only_queries(layer, normed)?;
        if !self.is_last(layer) {
            let dx = d_normed.as_mut().map(|d| (d, Write::Add));
            self.linear_backward(layer, Module::Q, set, (&dq, &normed, &xa_q), dx, grads)?;
        } else {
            let mut d_rows = (!lowest).then(|| like(&normed));
            let dx = d_rows.as_mut().map(|d| (d, Write::Overwrite));
            self.linear_backward(layer, Module::Q, set, (&dq, &normed, &xa_q), dx, grads)?;
            if let (Some(d_rows), Some(d_normed)) = (&d_rows, &mut d_normed) {
                rows::scatter_add(device, d_rows, &self.target_rows, d_normed)?;
            }
        }
        let Some(d_normed) = d_normed else { return Ok(None) };
        let mut d_in = match self.is_last(layer) {
            true => {
                let mut d_in = device.zeros(x_in.rows(), x_in.cols());
                rows::scatter_add(device, &d_stream, &self.target_rows, &mut d_in)?;
                d_in
            }
            false => d_stream,
        };
        rms_norm::backward(device, &d_normed, &x_in, &self.input_norm(layer), &rstd_in, &mut d_in)?;
        Ok(Some(d_in))
    }

    fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.weights.blocks.len()
    }

    /// The rows whose queries and MLP the block computes.
    fn queries(&self, layer: usize) -> &RowSet<T> {
        if self.is_last(layer) { &self.supervised } else { &self.all }
    }

    fn only_queries(&self, layer: usize, x: Tensor<T>) -> Result<Tensor<T>> {
        if self.is_last(layer) { rows::gather(self.device, &x, &self.target_rows) } else { Ok(x) }
    }

    fn heads(&self) -> Heads {
        Heads {
            num_attention_heads: self.config.num_attention_heads,
            num_key_value_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
            softmax_scale: 1.0 / (self.config.head_dim as f64).sqrt(),
        }
    }

    fn norm(&self, weight: &'a Tensor<T>) -> Norm<'a, T> {
        Norm { weight, eps: T::Stat::from_f64(self.config.rms_norm_eps) }
    }

    fn input_norm(&self, layer: usize) -> Norm<'a, T> {
        self.norm(&self.weights.blocks[layer].input_layernorm)
    }

    fn post_attention_norm(&self, layer: usize) -> Norm<'a, T> {
        self.norm(&self.weights.blocks[layer].post_attention_layernorm)
    }

    /// The final norm.
    pub(super) fn final_norm(&self) -> Norm<'a, T> {
        self.norm(&self.weights.norm)
    }

    fn qk_ops(&self, layer: usize) -> (QkNormRope<'_, T>, QkNormRope<'_, T>) {
        let eps = T::Stat::from_f64(self.config.rms_norm_eps);
        let norms = self.weights.blocks[layer].qk_norm.as_ref();
        let q = QkNormRope {
            norm: norms.map(|n| (&n.0, eps)),
            table: &self.queries(layer).rope,
            head_dim: self.config.head_dim,
        };
        (q, QkNormRope { norm: norms.map(|n| (&n.1, eps)), table: &self.all.rope, ..q })
    }

    fn rotated(&self, layer: usize, q: &Tensor<T>, k: &Tensor<T>) -> Result<(Tensor<T>, Tensor<T>)> {
        let (q_op, k_op) = self.qk_ops(layer);
        let mut q_rotated = self.device.empty(q.rows(), q.cols());
        let mut k_rotated = self.device.empty(k.rows(), k.cols());
        qk_norm_rope::forward(self.device, q, &q_op, &mut q_rotated)?;
        qk_norm_rope::forward(self.device, k, &k_op, &mut k_rotated)?;
        Ok((q_rotated, k_rotated))
    }

    fn linear(
        &self,
        layer: usize,
        module: Module,
        x: &Tensor<T>,
        set: &RowSet<T>,
    ) -> Result<(Tensor<T>, Tensor<T>)> {
        let loras = self.loras(layer, module);
        let op = self.lora_matmul(layer, module, &loras, set);
        let mut y = self.device.empty(x.rows(), op.frozen.weight.rows());
        let mut xa = self.device.empty(x.rows(), op.max_rank());
        lora_matmul::forward(self.device, x, &op, &mut y, &mut xa)?;
        Ok((y, xa))
    }

    /// `(dy, x, xa)` of the layer; see [`lora_matmul::backward`].
    fn linear_backward(
        &self,
        layer: usize,
        module: Module,
        set: &RowSet<T>,
        (dy, x, xa): (&Tensor<T>, &Tensor<T>, &Tensor<T>),
        dx: Option<(&mut Tensor<T>, Write)>,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<()> {
        let loras = self.loras(layer, module);
        let op = self.lora_matmul(layer, module, &loras, set);
        let mut grads: Vec<Option<LoraGrad<'_, T::Stat>>> = grads
            .iter_mut()
            .map(|g| {
                g.params_mut(layer, module).map(|p| LoraGrad {
                    a: &mut p.a,
                    b: &mut p.b,
                    magnitude: p.magnitude.as_mut(),
                })
            })
            .collect();
        let args = lora_matmul::Backward { dy, x, xa, dx, grads: &mut grads };
        lora_matmul::backward(self.device, &op, args)
    }

    fn loras(&self, layer: usize, module: Module) -> Vec<Option<Lora<'_, T>>> {
        self.adapters
            .iter()
            .zip(&self.dora_norms)
            .map(|(adapter, norms)| {
                adapter.params(layer, module).map(|p| Lora {
                    a: &p.a,
                    b: &p.b,
                    scaling: T::Stat::from_f64(adapter.config().scaling()),
                    dora: p.magnitude.as_ref().zip(norms[layer][module as usize].as_ref()),
                })
            })
            .collect()
    }

    fn lora_matmul<'s>(
        &'s self,
        layer: usize,
        module: Module,
        loras: &'s [Option<Lora<'s, T>>],
        set: &'s RowSet<T>,
    ) -> LoraMatmul<'s, T> {
        let linear = &self.weights.blocks[layer].linears[module as usize];
        let number = (layer * Module::ALL.len() + module as usize) as u32;
        let p = self.adapters.first().map_or(0.0, |a| a.config().dropout);
        LoraMatmul {
            frozen: Frozen { weight: &linear.weight, bias: linear.bias.as_ref() },
            loras,
            rows: &set.adapter_rows,
            dropout: self.dropout.and_then(|d| Dropout::new(p, d.seed, d.step, number, &set.keys)),
        }
    }
}

/// Runs of equal adapters, row by row.
fn runs(adapters: impl Iterator<Item = usize>) -> Vec<AdapterRows> {
    let mut runs: Vec<AdapterRows> = Vec::new();
    for (row, adapter) in adapters.enumerate() {
        match runs.last_mut() {
            Some(run) if run.adapter == adapter => run.rows.end = row + 1,
            _ => runs.push(AdapterRows { adapter, rows: row..row + 1 }),
        }
    }
    runs
}
