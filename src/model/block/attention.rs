//! Attention as a sublayer: the projections q, k and v, the rotation of q and k, attention itself, and `o_proj`; forward and
//! backward side by side.
//!
//! Kept: the projections before norm and rotation, `o`, `lse`, and `x~ A^T` of the four layers. Rotated q and k are computed again.
//! The last block computes queries for supervised rows only.

use std::rc::Rc;

use super::super::policy::Policy;
use super::Pass;
use super::linears::{Group, Job, PartialJob, Projection, exactly};
use super::wiring::Gradient;
use crate::config::Slot;
use crate::device::{Class, Tensor};
use crate::error::Result;
use crate::ops::attention::{self, Heads};
use crate::ops::qk_norm_rope::{self, HeadNorm, QkNormRope, RopeBackwardJob, RopeJob};
use crate::ops::rows;
use crate::tensor::Real;

/// What the backward pass reads.
pub(super) struct Attention<T: Real> {
    q: Tensor<T>,
    k: Tensor<T>,
    v: Tensor<T>,
    o: Tensor<T>,
    lse: Tensor<T::Stat>,
    /// Of q, k, v and o.
    xa: [Tensor<T>; 4],
}

/// What the backward pass leaves for the norm before, and for the gradients.
pub(super) struct Back<'s, T: Real> {
    /// Gradient of the input; none where nothing below is trained.
    pub(super) d_normed: Option<Tensor<T>>,
    /// The gradients of k, v and q, whose input the norm makes again; none where they are not reached.
    pub(super) partial: Option<[PartialJob<'s, T>; 3]>,
}

impl<T: Real> Pass<'_, T> {
    /// The layers that read the input of attention for every row.
    pub(super) fn attention_readers(&self, layer: usize) -> Result<Group<'_, T>> {
        let slots: &[Slot] = match self.is_last(layer) {
            true => &[Slot::K, Slot::V],
            false => &[Slot::K, Slot::V, Slot::Q],
        };
        self.group(layer, slots, &self.tables.all)
    }

    /// Runs attention of block `layer` on what the norm made.
    pub(super) fn attention(
        &self,
        layer: usize,
        readers: &Group<'_, T>,
        (normed, xa): (Rc<Tensor<T>>, Projection<T>),
        keep: Option<Policy>,
    ) -> Result<(Attention<T>, Tensor<T>)> {
        let set = self.queries(layer);
        let (xa_place, y_place) = (self.place(keep, Class::Xa), self.place(keep, Class::Qkv));
        let [(k, xa_k), (v, xa_v), (q, xa_q)] = if self.is_last(layer) {
            let [k, v] = exactly(self.linears(readers, &normed, xa, &y_place)?)?;
            let normed = rows::gather(self.device, &normed, &self.tables.target_rows)?;
            let group = self.group(layer, &[Slot::Q], set)?;
            let xa = self.xa(&group, normed.rows(), &xa_place)?.unfused();
            let [q] = exactly(self.linears(&group, &normed, xa, &y_place)?)?;
            [k, v, q]
        } else {
            exactly(self.linears(readers, &normed, xa, &y_place)?)?
        };
        drop(normed);

        let (q_rotated, k_rotated) = self.rotated(layer, &q, &k)?;
        let heads = self.heads(layer);
        let args = attention::Attention { q: &q_rotated, k: &k_rotated, v: &v, heads, plan: &set.plan };
        let mut o = self.place(keep, Class::OLse).empty(q.rows(), q.cols())?;
        let mut lse = self.place(keep, Class::OLse).empty(q.rows(), heads.num_attention_heads)?;
        attention::forward(self.device, &args, &mut o, &mut lse)?;
        drop((q_rotated, k_rotated));

        let group = self.group(layer, &[Slot::O], set)?;
        let xa = self.xa(&group, o.rows(), &xa_place)?.unfused();
        let [(out, xa_o)] = exactly(self.linears(&group, &o, xa, &self.place(keep, Class::XMid))?)?;
        Ok((Attention { q, k, v, o, lse, xa: [xa_q, xa_k, xa_v, xa_o] }, out))
    }

    /// Goes back through attention of block `layer`. In the lowest block that has adapters (`lowest`), what nobody trains is not
    /// reached.
    pub(super) fn attention_backward<'s>(
        &'s self,
        layer: usize,
        saved: Attention<T>,
        Gradient { d_out, dxa }: Gradient<T>,
        lowest: bool,
        jobs: &mut Vec<Job<'s, T>>,
    ) -> Result<Back<'s, T>> {
        let (all, set) = (&self.tables.all, self.queries(layer));
        let Attention { q, k, v, o, lse, xa: [xa_q, xa_k, xa_v, xa_o] } = saved;
        let trains = |slot| self.number(layer, slot).is_ok_and(|number| self.is_trained(number));
        let reaches_qkv = !lowest || [Slot::Q, Slot::K, Slot::V].into_iter().any(trains);
        let mut d_o = reaches_qkv.then(|| self.like(&o)).transpose()?;
        let group = self.group(layer, &[Slot::O], set)?;
        let [dxa_o] = exactly(self.linears_back(&group, &[&d_out], dxa, d_o.as_mut())?)?;
        let o = Rc::new(o);
        jobs.push(self.partial(layer, Slot::O, set, (d_out, xa_o, dxa_o))?.with_input(o.clone()));
        let Some(d_o) = d_o else { return Ok(Back { d_normed: None, partial: None }) };

        let (q_rotated, k_rotated) = self.rotated(layer, &q, &k)?;
        let heads = self.heads(layer);
        let args = attention::Attention { q: &q_rotated, k: &k_rotated, v: &v, heads, plan: &set.plan };
        let (mut dq, mut dk, mut dv) = (self.like(&q)?, self.like(&k)?, self.like(&v)?);
        let to = attention::Backward { d_o: &d_o, o: &o, lse: &lse, dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention::backward(self.device, &args, to)?;
        drop((q_rotated, k_rotated, v, lse, d_o));
        let (q_op, k_op) = self.qk_ops(layer);
        let (rows, cols) = (self.tables.ids.rows(), self.config.hidden_size);
        let mut d_normed = (!lowest).then(|| self.device.empty(rows, cols)).transpose()?;
        let [dxa_q, dxa_k, dxa_v] = if !self.is_last(layer) {
            // The order of the jobs and what follows them.
            let group = self.group(layer, &[Slot::Q, Slot::K, Slot::V], set)?;
            let dxa = self.dxa(&group, rows)?;
            let q_job = RopeBackwardJob { x: &q, op: q_op, dy: &mut dq };
            let k_job = RopeBackwardJob { x: &k, op: k_op, dy: &mut dk };
            let jobs = &mut [q_job, k_job];
            let args = qk_norm_rope::Backward { jobs, projection: dxa.fused(), complete: &[&dv] };
            qk_norm_rope::backward(self.device, args)?;
            exactly(self.linears_back(&group, &[&dq, &dk, &dv], dxa, d_normed.as_mut())?)?
        } else {
            let q_job = RopeBackwardJob { x: &q, op: q_op, dy: &mut dq };
            let k_job = RopeBackwardJob { x: &k, op: k_op, dy: &mut dk };
            let jobs = &mut [q_job, k_job];
            let args = qk_norm_rope::Backward { jobs, projection: None, complete: &[] };
            qk_norm_rope::backward(self.device, args)?;
            let group = self.group(layer, &[Slot::K, Slot::V], all)?;
            let dxa = self.dxa(&group, rows)?.unfused();
            let [dxa_k, dxa_v] = exactly(self.linears_back(&group, &[&dk, &dv], dxa, d_normed.as_mut())?)?;
            let mut d_rows = d_normed.as_ref().map(|_| self.device.empty(dq.rows(), cols)).transpose()?;
            let group = self.group(layer, &[Slot::Q], set)?;
            let dxa = self.dxa(&group, dq.rows())?.unfused();
            let [dxa_q] = exactly(self.linears_back(&group, &[&dq], dxa, d_rows.as_mut())?)?;
            if let (Some(d_rows), Some(d_normed)) = (&d_rows, &mut d_normed) {
                rows::scatter_add(self.device, d_rows, &self.tables.target_rows, d_normed)?;
            }
            [dxa_q, dxa_k, dxa_v]
        };
        let partial = [
            self.partial(layer, Slot::K, all, (Rc::new(dk), xa_k, dxa_k))?,
            self.partial(layer, Slot::V, all, (Rc::new(dv), xa_v, dxa_v))?,
            self.partial(layer, Slot::Q, set, (Rc::new(dq), xa_q, dxa_q))?,
        ];
        Ok(Back { d_normed, partial: Some(partial) })
    }

    /// q and k after norm and rotation.
    fn rotated(&self, layer: usize, q: &Tensor<T>, k: &Tensor<T>) -> Result<(Tensor<T>, Tensor<T>)> {
        let (q_op, k_op) = self.qk_ops(layer);
        let (mut q_rotated, mut k_rotated) = (self.like(q)?, self.like(k)?);
        let q_job = RopeJob { x: q, op: q_op, y: &mut q_rotated };
        let k_job = RopeJob { x: k, op: k_op, y: &mut k_rotated };
        qk_norm_rope::forward(self.device, &mut [q_job, k_job])?;
        Ok((q_rotated, k_rotated))
    }

    fn heads(&self, layer: usize) -> Heads {
        let spec = self.spec(layer).attn;
        Heads {
            num_attention_heads: spec.heads,
            num_key_value_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            softmax_scale: 1.0 / (spec.head_dim as f64).sqrt(),
        }
    }

    fn qk_ops(&self, layer: usize) -> (QkNormRope<'_, T>, QkNormRope<'_, T>) {
        let spec = self.spec(layer);
        let eps = T::Stat::from_f64(spec.norm.eps);
        let norms = self.weights.blocks[layer].qk_norm.as_ref();
        let q = QkNormRope {
            norm: norms.map(|n| HeadNorm { weight: &n.0, eps }),
            table: &self.queries(layer).rope,
            head_dim: spec.attn.head_dim,
        };
        let norm = norms.map(|n| HeadNorm { weight: &n.1, eps });
        (q, QkNormRope { norm, table: &self.tables.all.rope, ..q })
    }
}
