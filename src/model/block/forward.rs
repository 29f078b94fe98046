//! Forward through a block, and what it leaves for the way back.
//!
//! The two halves of a block are functions of their own, because the backward pass of a block that kept its input only runs them
//! once more; they give the same bits then.

use super::super::policy::Policy;
use super::Pass;
use super::linears::Group;
use crate::config::Slot;
use crate::device::{Class, Tensor};
use crate::error::Result;
use crate::ops::attention::{self, Attention};
use crate::ops::qk_norm_rope::{self, RopeJob};
use crate::ops::{rms_norm, rows, swiglu};
use crate::tensor::Real;

/// What a block keeps for the backward pass: its input, and the rest unless that is computed again.
pub(in crate::model) struct Saved<T: Real> {
    pub(super) x_in: Tensor<T>,
    pub(super) rest: Option<Rest<T>>,
}

/// The two halves of a block.
pub(super) struct Rest<T: Real> {
    pub(super) attention: AttentionHalf<T>,
    pub(super) mlp: MlpHalf<T>,
}

/// What the backward pass reads of the first half.
pub(super) struct AttentionHalf<T: Real> {
    pub(super) rstd_in: Tensor<T::Stat>,
    pub(super) q: Tensor<T>,
    pub(super) k: Tensor<T>,
    pub(super) v: Tensor<T>,
    pub(super) o: Tensor<T>,
    pub(super) lse: Tensor<T::Stat>,
    /// Of q, k, v and o.
    pub(super) xa: [Tensor<T>; 4],
}

/// What the backward pass reads of the second half.
pub(super) struct MlpHalf<T: Real> {
    pub(super) x_mid: Tensor<T>,
    pub(super) rstd_mid: Tensor<T::Stat>,
    /// None where they are computed again.
    pub(super) gate_up: Option<[Tensor<T>; 2]>,
    /// Of gate and up.
    pub(super) xa: [Tensor<T>; 2],
    /// Of down; none where it is computed again.
    pub(super) xa_down: Option<Tensor<T>>,
}

/// A block that is done.
pub(in crate::model) struct Done<T: Real> {
    /// None where there is no way back.
    pub(in crate::model) saved: Option<Saved<T>>,
    /// The stream that the output of the MLP is added to, where `saved` does not hold it.
    pub(in crate::model) x_mid: Option<Tensor<T>>,
    /// Output of the MLP.
    pub(in crate::model) out: Tensor<T>,
}

impl<T: Real> Saved<T> {
    /// The stream between attention and MLP, if it was kept.
    pub(in crate::model) fn x_mid(&self) -> Option<&Tensor<T>> {
        self.rest.as_ref().map(|rest| &rest.mlp.x_mid)
    }
}

impl<T: Real> Pass<'_, T> {
    /// Runs block `layer` on the output `x` of what came before, `residual` being the stream it adds to. The output of the MLP
    /// is added to `x_mid` by the next norm.
    pub(in crate::model) fn forward(
        &self,
        layer: usize,
        mut x: Tensor<T>,
        residual: Option<&Tensor<T>>,
    ) -> Result<Done<T>> {
        let (set, keep) = (self.queries(layer), self.policy(layer));
        let keeps_rest = keep.is_some_and(|policy| policy != Policy::Checkpoint);
        let (attention, projected) = self.attention_half(layer, &mut x, residual, keep)?;
        let attention = keeps_rest.then_some(attention);
        let (mut mlp, [gate, up]) = self.mlp_half(layer, &x, projected, keep)?;
        let x_in = keep.map(|_| x);

        let group = self.group(layer, [Slot::Down], set)?;
        let xa = self.xa(&group, gate.rows(), &self.place(keep, Class::Xa))?;
        let mut h = self.like(&gate)?;
        swiglu::forward_with(&set.device, &gate, &up, &mut h, xa.made_by.as_ref())?;
        mlp.gate_up = keep.is_some_and(|policy| policy.keeps(Class::GateUp)).then_some([gate, up]);
        let [(out, xa_down)] = self.linears(&group, &h, xa, &self.place_of_input(layer + 1))?;
        mlp.xa_down = Some(xa_down);
        Ok(match (x_in, attention) {
            (Some(x_in), Some(attention)) => {
                let saved = Saved { x_in, rest: Some(Rest { attention, mlp }) };
                Done { saved: Some(saved), x_mid: None, out }
            }
            (x_in, _) => {
                let saved = x_in.map(|x_in| Saved { x_in, rest: None });
                Done { saved, x_mid: Some(mlp.x_mid), out }
            }
        })
    }

    /// Everything that the backward pass reads, from the input of the block alone.
    pub(super) fn rest_again(&self, layer: usize, x_in: &mut Tensor<T>) -> Result<Rest<T>> {
        let (attention, projected) = self.attention_half(layer, x_in, None, None)?;
        let (mlp, gate_up) = self.mlp_half(layer, x_in, projected, None)?;
        Ok(Rest { attention, mlp: MlpHalf { gate_up: Some(gate_up), ..mlp } })
    }

    /// Gate and up again, from what was kept.
    pub(super) fn gate_up_again(
        &self,
        layer: usize,
        x_mid: &Tensor<T>,
        rstd_mid: &Tensor<T::Stat>,
        xa: &[Tensor<T>; 2],
    ) -> Result<[Tensor<T>; 2]> {
        let mut normed = self.like(x_mid)?;
        let device = &self.queries(layer).device;
        rms_norm::apply(device, x_mid, &self.post_attention_norm(layer), rstd_mid, &mut normed)?;
        self.linears_again(&self.gate_and_up(layer)?, &normed, xa)
    }

    /// Gate and up share their input.
    pub(super) fn gate_and_up(&self, layer: usize) -> Result<Group<'_, T, 2>> {
        self.group(layer, [Slot::Gate, Slot::Up], self.queries(layer))
    }

    /// The first half: `x` becomes the stream `x + residual`, and the result is the output of `o_proj`, which the norm of the
    /// second half adds to it.
    fn attention_half(
        &self,
        layer: usize,
        x: &mut Tensor<T>,
        residual: Option<&Tensor<T>>,
        keep: Option<Policy>,
    ) -> Result<(AttentionHalf<T>, Tensor<T>)> {
        let (all, set) = (&self.tables.all, self.queries(layer));
        let place = |class| self.place(keep, class);
        let mut rstd_in = place(Class::Rstd).empty(x.rows(), 1)?;
        let mut normed = self.like(x)?;
        let (norm, xa_place, y_place) = (self.input_norm(layer), place(Class::Xa), place(Class::Qkv));
        let made = (&mut normed, &mut rstd_in);
        let [(k, xa_k), (v, xa_v), (q, xa_q)] = if self.is_last(layer) {
            let group = self.group(layer, [Slot::K, Slot::V], all)?;
            let xa = self.xa(&group, x.rows(), &xa_place)?;
            rms_norm::forward_with(&all.device, x, residual, &norm, made, xa.made_by.as_ref())?;
            let [k, v] = self.linears(&group, &normed, xa, &y_place)?;
            let normed = rows::gather(self.device, &normed, &self.tables.target_rows)?;
            let group = self.group(layer, [Slot::Q], set)?;
            let xa = self.xa(&group, normed.rows(), &xa_place)?.apart();
            let [q] = self.linears(&group, &normed, xa, &y_place)?;
            [k, v, q]
        } else {
            let group = self.group(layer, [Slot::K, Slot::V, Slot::Q], set)?;
            let xa = self.xa(&group, x.rows(), &xa_place)?;
            rms_norm::forward_with(&all.device, x, residual, &norm, made, xa.made_by.as_ref())?;
            self.linears(&group, &normed, xa, &y_place)?
        };
        drop(normed);

        let (q_rotated, k_rotated) = self.rotated(layer, &q, &k)?;
        let args = Attention { q: &q_rotated, k: &k_rotated, v: &v, heads: self.heads(), plan: &set.plan };
        let mut o = place(Class::OLse).empty(q.rows(), q.cols())?;
        let mut lse = place(Class::OLse).empty(q.rows(), self.config.num_attention_heads)?;
        attention::forward(&set.device, &args, &mut o, &mut lse)?;
        drop((q_rotated, k_rotated));

        let group = self.group(layer, [Slot::O], set)?;
        let xa = self.xa(&group, o.rows(), &place(Class::Xa))?.apart();
        let [(projected, xa_o)] = self.linears(&group, &o, xa, &place(Class::XMid))?;
        Ok((AttentionHalf { rstd_in, q, k, v, o, lse, xa: [xa_q, xa_k, xa_v, xa_o] }, projected))
    }

    /// The second half up to gate and up, which are beside it; `projected` becomes `x_mid`.
    fn mlp_half(
        &self,
        layer: usize,
        x_in: &Tensor<T>,
        projected: Tensor<T>,
        keep: Option<Policy>,
    ) -> Result<(MlpHalf<T>, [Tensor<T>; 2])> {
        let device = &self.queries(layer).device;
        let mut x_mid = projected;
        let mut rstd_mid = self.place(keep, Class::Rstd).empty(x_mid.rows(), 1)?;
        let mut normed = self.like(&x_mid)?;
        let picked = match self.is_last(layer) {
            true => Some(rows::gather(self.device, x_in, &self.tables.target_rows)?),
            false => None,
        };
        let stream = Some(picked.as_ref().unwrap_or(x_in));
        let norm = self.post_attention_norm(layer);
        let group = self.gate_and_up(layer)?;
        let xa = self.xa(&group, x_mid.rows(), &self.place(keep, Class::Xa))?;
        let made = (&mut normed, &mut rstd_mid);
        rms_norm::forward_with(device, &mut x_mid, stream, &norm, made, xa.made_by.as_ref())?;
        drop(picked);
        let place = self.place(keep, Class::GateUp);
        let [(gate, xa_gate), (up, xa_up)] = self.linears(&group, &normed, xa, &place)?;
        let half = MlpHalf { x_mid, rstd_mid, gate_up: None, xa: [xa_gate, xa_up], xa_down: None };
        Ok((half, [gate, up]))
    }

    /// q and k after norm and rotation.
    pub(super) fn rotated(
        &self,
        layer: usize,
        q: &Tensor<T>,
        k: &Tensor<T>,
    ) -> Result<(Tensor<T>, Tensor<T>)> {
        let (q_op, k_op) = self.qk_ops(layer);
        let (mut q_rotated, mut k_rotated) = (self.like(q)?, self.like(k)?);
        let q_job = RopeJob { x: q, op: q_op, y: &mut q_rotated };
        let k_job = RopeJob { x: k, op: k_op, y: &mut k_rotated };
        qk_norm_rope::forward(self.device, &mut [q_job, k_job])?;
        Ok((q_rotated, k_rotated))
    }
}
