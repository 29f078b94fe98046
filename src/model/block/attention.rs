//! Attention as a sublayer: the projections q, k and v, in one layer or three, the rotation of q and k where there is one,
//! attention itself, and the projection of its output; forward and backward side by side.
//!
//! Kept: the projections before norm and rotation, `o`, `lse`, and `x~ A^T` of all layers. Rotated q and k are computed again. The
//! last block computes queries for the rows that the head reads only (where one layer makes q, k and v, all rows get them, and the
//! others are left alone).

use std::rc::Rc;

use super::super::policy::Policy;
use super::super::tables::RowSet;
use super::linears::{Group, Job, PartialJob, Projection, exactly};
use super::wiring::Gradient;
use super::{Pass, missing};
use crate::config::Slot;
use crate::config::block::AttnSpec;
use crate::device::{Class, Tensor};
use crate::error::Result;
use crate::ops::attention::{self, Grads, Heads};
use crate::ops::cols::Cols;
use crate::ops::qk_norm_rope::{self, HeadNorm, QkNormRope, RopeBackwardJob, RopeJob};
use crate::ops::rows;
use crate::tensor::Real;

/// What the backward pass reads.
pub(super) struct Attention<T: Real> {
    qkv: Qkv<T>,
    o: Tensor<T>,
    lse: Tensor<T::Stat>,
    /// Of the layers before attention, in the order of [`Qkv`].
    xa: Vec<Tensor<T>>,
    /// Of the layer behind it.
    xa_o: Tensor<T>,
}

/// The projections before norm and rotation.
enum Qkv<T: Real> {
    /// Of three layers; q for the rows whose queries the block computes.
    Split { q: Tensor<T>, k: Tensor<T>, v: Tensor<T> },
    /// Of one layer.
    Fused(Tensor<T>),
}

/// Queries and keys after norm and rotation, where that makes tensors of their own.
enum Rotated<T: Real> {
    /// None of three layers: nothing is rotated.
    Plain,
    /// One each.
    Split { q: Tensor<T>, k: Tensor<T> },
    /// Side by side; the queries of some rows, if only these are queries.
    Fused { qk: Option<Tensor<T>>, picked_q: Option<Tensor<T>> },
}

/// What the backward pass leaves for the norm before, and for the gradients.
pub(super) struct Back<'s, T: Real> {
    /// Gradient of the input; none where nothing below is trained.
    pub(super) d_normed: Option<Tensor<T>>,
    /// The gradients of the layers before attention, whose input the norm makes again; none where they are not reached.
    pub(super) partial: Option<Vec<Reader<'s, T>>>,
}

/// The gradients of a layer that reads what the norm made.
pub(super) struct Reader<'s, T: Real> {
    pub(super) job: PartialJob<'s, T>,
    /// Whether it reads only the rows whose queries the block computes.
    pub(super) is_picked: bool,
}

impl<T: Real> Pass<'_, T> {
    /// The layers that read the input of attention for every row.
    pub(super) fn attention_readers(&self, layer: usize) -> Result<Group<'_, T>> {
        let slots: &[Slot] = match (self.spec(layer).attn.fused_qkv, self.is_last(layer)) {
            (true, _) => &[Slot::Qkv],
            (false, true) => &[Slot::K, Slot::V],
            (false, false) => &[Slot::K, Slot::V, Slot::Q],
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
        let mut made = self.linears(readers, &normed, xa, &y_place)?;
        if !self.spec(layer).attn.fused_qkv && self.is_last(layer) {
            let normed = rows::gather(self.device, &*normed, &self.tables.target_rows)?;
            let group = self.group(layer, &[Slot::Q], set)?;
            let xa = self.xa(&group, normed.rows(), &xa_place)?.unfused();
            made.extend(self.linears(&group, &normed, xa, &y_place)?);
        }
        drop(normed);
        let (made, xa): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        let qkv = match self.spec(layer).attn.fused_qkv {
            true => {
                Qkv::Fused(exactly::<_, 1>(made)?.into_iter().next().ok_or_else(|| missing("q, k and v"))?)
            }
            false => {
                let [k, v, q] = exactly(made)?;
                Qkv::Split { q, k, v }
            }
        };

        let rotated = self.rotated(layer, &qkv)?;
        let args = self.attention_args(layer, &qkv, &rotated)?;
        let mut o = self.place(keep, Class::OLse).empty(args.q.rows(), args.q.cols())?;
        let mut lse = self.place(keep, Class::OLse).empty(args.q.rows(), args.heads.num_attention_heads)?;
        attention::forward(self.device, &args, &mut o, &mut lse)?;
        drop(rotated);

        let group = self.group(layer, &[Slot::O], set)?;
        let xa_o = self.xa(&group, o.rows(), &xa_place)?.unfused();
        let [(out, xa_o)] = exactly(self.linears(&group, &o, xa_o, &self.place(keep, Class::XMid))?)?;
        Ok((Attention { qkv, o, lse, xa, xa_o }, out))
    }

    /// Goes back through attention of block `layer`. In the lowest block that has adapters (`lowest`), what nobody trains is not
    /// reached.
    pub(super) fn attention_backward<'s>(
        &'s self,
        layer: usize,
        saved: Attention<T>,
        Gradient { d_out, dxa, .. }: Gradient<T>,
        lowest: bool,
        jobs: &mut Vec<Job<'s, T>>,
    ) -> Result<Back<'s, T>> {
        let set = self.queries(layer);
        let Attention { qkv, o, lse, xa, xa_o } = saved;
        let trains = |slot| self.number(layer, slot).is_ok_and(|number| self.is_trained(number));
        let reaches_qkv = !lowest || [Slot::Q, Slot::K, Slot::V, Slot::Qkv].into_iter().any(trains);
        let mut d_o = reaches_qkv.then(|| self.like(&o)).transpose()?;
        let group = self.group(layer, &[Slot::O], set)?;
        let [dxa_o] = exactly(self.linears_back(&group, &[&d_out], dxa, d_o.as_mut())?)?;
        let o = Rc::new(o);
        jobs.push(self.partial(layer, Slot::O, set, (d_out, xa_o, dxa_o))?.with_input(o.clone()));
        let Some(d_o) = d_o else { return Ok(Back { d_normed: None, partial: None }) };

        let rotated = self.rotated(layer, &qkv)?;
        match qkv {
            Qkv::Split { .. } => self.split_backward(layer, (qkv, rotated), (d_o, &o, lse), xa, lowest),
            Qkv::Fused(_) => self.fused_backward(layer, (qkv, rotated), (d_o, &o, lse), xa, lowest),
        }
    }

    /// Room for the gradient of what the layers before attention read; none in the lowest block. Asked for as late as possible.
    fn d_normed(&self, lowest: bool) -> Result<Option<Tensor<T>>> {
        (!lowest).then(|| self.device.empty(self.tables.ids.rows(), self.config.hidden_size)).transpose()
    }

    /// From the gradient of `o` to those of three layers.
    fn split_backward<'s>(
        &'s self,
        layer: usize,
        (qkv, rotated): (Qkv<T>, Rotated<T>),
        (d_o, o, lse): (Tensor<T>, &Tensor<T>, Tensor<T::Stat>),
        xa: Vec<Tensor<T>>,
        lowest: bool,
    ) -> Result<Back<'s, T>> {
        let (all, set) = (&self.tables.all, self.queries(layer));
        let args = self.attention_args(layer, &qkv, &rotated)?;
        let Qkv::Split { q, k, v } = &qkv else { return Err(missing("q, k and v")) };
        let (mut dq, mut dk, mut dv) = (self.like(q)?, self.like(k)?, self.like(v)?);
        let grads = Grads::Split { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention::backward(self.device, &args, attention::Backward { d_o: &d_o, o, lse: &lse, grads })?;
        drop((rotated, lse, d_o));
        let Qkv::Split { q, k, v } = qkv else { return Err(missing("q, k and v")) };
        drop(v);
        let (rows, cols) = (self.tables.ids.rows(), self.config.hidden_size);
        let mut d_normed = self.d_normed(lowest)?;
        let rotates = self.spec(layer).attn.rope.is_some();
        let turn_back = |dq: &mut Tensor<T>, dk: &mut Tensor<T>, projection, complete: &[&Tensor<T>]| {
            let (q_op, k_op) = self.qk_ops(layer)?;
            let q_job = RopeBackwardJob { x: (&q).into(), op: q_op, dy: dq };
            let k_job = RopeBackwardJob { x: (&k).into(), op: k_op, dy: dk };
            let jobs = &mut [q_job, k_job];
            qk_norm_rope::backward(self.device, qk_norm_rope::Backward { jobs, projection, complete })
        };
        let [dxa_q, dxa_k, dxa_v] = if !self.is_last(layer) {
            // The order of the jobs and what follows them.
            let group = self.group(layer, &[Slot::Q, Slot::K, Slot::V], set)?;
            let mut dxa = self.dxa(&group, rows)?;
            match rotates {
                true => turn_back(&mut dq, &mut dk, dxa.fused(), &[&dv])?,
                false => dxa = dxa.unfused(),
            }
            exactly(self.linears_back(&group, &[&dq, &dk, &dv], dxa, d_normed.as_mut())?)?
        } else {
            if rotates {
                turn_back(&mut dq, &mut dk, None, &[])?;
            }
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
        let [xa_k, xa_v, xa_q] = exactly(xa)?;
        let reader = |job, is_picked| Reader { job, is_picked };
        let partial = vec![
            reader(self.partial(layer, Slot::K, all, (Rc::new(dk), xa_k, dxa_k))?, false),
            reader(self.partial(layer, Slot::V, all, (Rc::new(dv), xa_v, dxa_v))?, false),
            reader(self.partial(layer, Slot::Q, set, (Rc::new(dq), xa_q, dxa_q))?, self.is_last(layer)),
        ];
        Ok(Back { d_normed, partial: Some(partial) })
    }

    /// From the gradient of `o` to that of the one layer that makes q, k and v.
    fn fused_backward<'s>(
        &'s self,
        layer: usize,
        (qkv, rotated): (Qkv<T>, Rotated<T>),
        (d_o, o, lse): (Tensor<T>, &Tensor<T>, Tensor<T::Stat>),
        xa: Vec<Tensor<T>>,
        lowest: bool,
    ) -> Result<Back<'s, T>> {
        let all = &self.tables.all;
        let args = self.attention_args(layer, &qkv, &rotated)?;
        let Qkv::Fused(x) = &qkv else { return Err(missing("q, k and v")) };
        // In the last block only some rows are queries: the gradient of the others is 0.
        let is_picked = self.is_last(layer);
        let mut dqkv = match is_picked {
            true => self.device.zeros(x.rows(), x.cols())?,
            false => self.like(x)?,
        };
        let mut dq = is_picked.then(|| self.like(o)).transpose()?;
        let grads = Grads::Fused { dqkv: &mut dqkv, dq: dq.as_mut() };
        attention::backward(self.device, &args, attention::Backward { d_o: &d_o, o, lse: &lse, grads })?;
        if let Some(dq) = &dq {
            rows::scatter_add(self.device, dq, &self.tables.target_rows, &mut dqkv)?;
        }
        drop((rotated, lse, d_o, dq));
        if self.spec(layer).attn.rope.is_some() {
            let (op, _) = self.qk_ops(layer)?;
            let job = RopeBackwardJob { x: q_and_k(&self.spec(layer).attn, x)?, op, dy: &mut dqkv };
            let args = qk_norm_rope::Backward { jobs: &mut [job], projection: None, complete: &[] };
            qk_norm_rope::backward(self.device, args)?;
        }
        drop(qkv);
        let mut d_normed = self.d_normed(lowest)?;
        let group = self.group(layer, &[Slot::Qkv], all)?;
        let dxa = self.dxa(&group, dqkv.rows())?.unfused();
        let [dxa] = exactly(self.linears_back(&group, &[&dqkv], dxa, d_normed.as_mut())?)?;
        let [xa] = exactly(xa)?;
        let job = self.partial(layer, Slot::Qkv, all, (Rc::new(dqkv), xa, dxa))?;
        Ok(Back { d_normed, partial: Some(vec![Reader { job, is_picked: false }]) })
    }

    /// q and k after norm and rotation.
    fn rotated(&self, layer: usize, qkv: &Qkv<T>) -> Result<Rotated<T>> {
        match qkv {
            Qkv::Split { .. } if self.spec(layer).attn.rope.is_none() => Ok(Rotated::Plain),
            Qkv::Split { q, k, .. } => {
                let (q_op, k_op) = self.qk_ops(layer)?;
                let (mut q_rotated, mut k_rotated) = (self.like(q)?, self.like(k)?);
                let q_job = RopeJob { x: q.into(), op: q_op, y: &mut q_rotated };
                let k_job = RopeJob { x: k.into(), op: k_op, y: &mut k_rotated };
                qk_norm_rope::forward(self.device, &mut [q_job, k_job])?;
                Ok(Rotated::Split { q: q_rotated, k: k_rotated })
            }
            Qkv::Fused(x) => {
                let attn = &self.spec(layer).attn;
                let qk = match attn.rope {
                    None => None,
                    Some(_) => {
                        let x = q_and_k(attn, x)?;
                        let mut y = self.device.empty(x.rows(), x.cols())?;
                        // Heads without a norm: those of q and k differ in nothing.
                        let (op, _) = self.qk_ops(layer)?;
                        qk_norm_rope::forward(self.device, &mut [RopeJob { x, op, y: &mut y }])?;
                        Some(y)
                    }
                };
                let queries = Cols::new(qk.as_ref().unwrap_or(x), 0..attn.q_size())?;
                let picked_q = match self.is_last(layer) {
                    true => Some(rows::gather(self.device, queries, &self.tables.target_rows)?),
                    false => None,
                };
                Ok(Rotated::Fused { qk, picked_q })
            }
        }
    }

    /// What attention reads.
    fn attention_args<'t>(
        &'t self,
        layer: usize,
        qkv: &'t Qkv<T>,
        rotated: &'t Rotated<T>,
    ) -> Result<attention::Attention<'t, T>> {
        let attn = &self.spec(layer).attn;
        let (q, k, v): (Cols<'t, T>, Cols<'t, T>, Cols<'t, T>) = match (qkv, rotated) {
            (Qkv::Split { q, k, v }, Rotated::Plain) => (q.into(), k.into(), v.into()),
            (Qkv::Split { v, .. }, Rotated::Split { q, k }) => (q.into(), k.into(), v.into()),
            (Qkv::Fused(x), Rotated::Fused { qk, picked_q }) => {
                let (q_end, k_end) = (attn.q_size(), attn.q_size() + attn.kv_size());
                let rotated = qk.as_ref().unwrap_or(x);
                let q = match picked_q {
                    Some(q) => q.into(),
                    None => Cols::new(rotated, 0..q_end)?,
                };
                (q, Cols::new(rotated, q_end..k_end)?, Cols::new(x, k_end..x.cols())?)
            }
            _ => return Err(missing("q, k and v")),
        };
        let heads = Heads {
            num_attention_heads: attn.heads,
            num_key_value_heads: attn.kv_heads,
            head_dim: attn.head_dim,
            softmax_scale: 1.0 / (attn.head_dim as f64).sqrt(),
        };
        Ok(attention::Attention { q, k, v, heads, plan: self.queries(layer).plan(attn.mask)? })
    }

    /// Norm and rotation of the queries and of the keys.
    fn qk_ops(&self, layer: usize) -> Result<(QkNormRope<'_, T>, QkNormRope<'_, T>)> {
        let spec = self.spec(layer);
        let eps = T::Stat::from_f64(spec.norm.eps);
        let norms = self.weights.blocks[layer].qk_norm.as_ref();
        // One layer for all computes every row.
        let of_q: &RowSet<T> = if spec.attn.fused_qkv { &self.tables.all } else { self.queries(layer) };
        let q = QkNormRope {
            norm: norms.map(|n| HeadNorm { weight: &n.0, eps }),
            table: of_q.rope(&spec.attn)?,
            head_dim: spec.attn.head_dim,
        };
        let norm = norms.map(|n| HeadNorm { weight: &n.1, eps });
        Ok((q, QkNormRope { norm, table: self.tables.all.rope(&spec.attn)?, ..q }))
    }
}

/// The columns of the queries and of the keys.
fn q_and_k<'t, T: Real>(attn: &AttnSpec, qkv: &'t Tensor<T>) -> Result<Cols<'t, T>> {
    Cols::new(qkv, 0..attn.q_size() + attn.kv_size())
}
