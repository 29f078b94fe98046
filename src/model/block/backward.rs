//! Backward through a block: the mirror of its forward pass.
//!
//! The gradients of all adapters of the block are added at its end, in one call: on a GPU that is one launch. What they are made
//! of waits until then.

use super::super::adapter::Adapter;
use super::Pass;
use super::forward::{AttentionHalf, MlpHalf, Rest, Saved};
use super::linears::{Job, Narrow};
use crate::config::Slot;
use crate::device::Tensor;
use crate::error::Result;
use crate::ops::attention::{self, Attention};
use crate::ops::qk_norm_rope::{self, RopeBackwardJob};
use crate::ops::rms_norm::{self, Norm};
use crate::ops::{rows, swiglu};
use crate::tensor::Real;

/// The gradient of the stream behind a block, with what the last linear layer of the block needs of it.
pub(in crate::model) struct Output<T: Real> {
    d_stream: Tensor<T>,
    dxa_down: Narrow<T, 1>,
}

/// What the backward pass of a norm reads.
pub(in crate::model) struct NormBack<'n, T: Real> {
    /// Gradient of what the norm made.
    pub(in crate::model) d_normed: &'n Tensor<T>,
    /// The stream that it saw.
    pub(in crate::model) stream: &'n Tensor<T>,
    pub(in crate::model) norm: Norm<'n, T>,
    pub(in crate::model) rstd: &'n Tensor<T::Stat>,
    /// Gradient that came along the stream.
    pub(in crate::model) d_in: Option<&'n Tensor<T>>,
    /// Becomes what the norm made.
    pub(in crate::model) normed: Option<&'n mut Tensor<T>>,
}

/// What the gradients of the adapters of the second half are made of.
struct MlpParts<T: Real> {
    h: Tensor<T>,
    d_out: Tensor<T>,
    normed: Tensor<T>,
    d_gate: Tensor<T>,
    d_up: Tensor<T>,
    /// Of down, gate and up.
    xa: [Tensor<T>; 3],
    dxa: [Tensor<T>; 3],
}

impl<T: Real> Pass<'_, T> {
    /// Goes back through the norm behind block `layer`.
    pub(in crate::model) fn norm_backward(&self, layer: usize, back: NormBack<'_, T>) -> Result<Output<T>> {
        let set = self.queries(layer);
        let group = self.group(layer, [Slot::Down], set)?;
        let NormBack { d_normed, stream, norm, rstd, d_in, normed } = back;
        let dxa_down = self.dxa(&group, stream.rows())?;
        let mut d_stream = self.like(stream)?;
        let args = rms_norm::Backward {
            dy: d_normed,
            s: stream,
            norm: &norm,
            rstd,
            d_in,
            ds: &mut d_stream,
            normed,
        };
        rms_norm::backward_with(&set.device, args, dxa_down.made_by.as_ref())?;
        Ok(Output { d_stream, dxa_down })
    }

    /// Goes back through block `layer`: adds to `grads`, takes the gradient of its output stream and gives that of its input
    /// stream, or none where nothing below is trained (`lowest`).
    pub(in crate::model) fn backward(
        &self,
        layer: usize,
        saved: Saved<T>,
        output: Output<T>,
        lowest: bool,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Option<Output<T>>> {
        let Saved { mut x_in, rest } = saved;
        let Rest { attention, mlp } = match rest {
            Some(rest) => rest,
            None => self.rest_again(layer, &mut x_in)?,
        };
        let (d_mid, dxa_o, mlp) = self.mlp_backward(layer, mlp, output)?;
        self.attention_backward(layer, (x_in, attention), (d_mid, dxa_o, mlp), lowest, grads)
    }

    /// The second half; gives the gradient of `x_mid`, and what `o_proj` needs of it.
    fn mlp_backward(
        &self,
        layer: usize,
        mlp: MlpHalf<T>,
        Output { d_stream: d_out, dxa_down }: Output<T>,
    ) -> Result<(Tensor<T>, Narrow<T, 1>, MlpParts<T>)> {
        let set = self.queries(layer);
        let device = &set.device;
        let MlpHalf { x_mid, rstd_mid, gate_up, xa: [xa_gate, xa_up], xa_down } = mlp;
        let xa = [xa_gate, xa_up];
        let [mut d_gate, mut d_up] = match gate_up {
            Some(gate_up) => gate_up,
            None => self.gate_up_again(layer, &x_mid, &rstd_mid, &xa)?,
        };
        let down = self.group(layer, [Slot::Down], set)?;
        let mut h = self.like(&d_gate)?;
        let [dxa_down] = self.linears_back(&down, [&d_out], dxa_down, Some(&mut h))?;
        let gate_and_up = self.gate_and_up(layer)?;
        let dxa = self.dxa(&gate_and_up, h.rows())?;
        // From here on h holds h, and not its gradient.
        swiglu::backward_with(device, &mut h, &mut d_gate, &mut d_up, dxa.made_by.as_ref())?;
        let xa_down = match xa_down {
            Some(xa_down) => xa_down,
            None => self.projection(&down, &h)?,
        };
        let mut d_normed = self.like(&x_mid)?;
        let dy = [&d_gate, &d_up];
        let [dxa_gate, dxa_up] = self.linears_back(&gate_and_up, dy, dxa, Some(&mut d_normed))?;
        let dxa_o = self.dxa(&self.group(layer, [Slot::O], set)?, x_mid.rows())?;
        let (mut d_mid, mut normed) = (self.like(&x_mid)?, self.like(&x_mid)?);
        let args = rms_norm::Backward {
            dy: &d_normed,
            s: &x_mid,
            norm: &self.post_attention_norm(layer),
            rstd: &rstd_mid,
            d_in: Some(&d_out),
            ds: &mut d_mid,
            normed: Some(&mut normed),
        };
        rms_norm::backward_with(device, args, dxa_o.made_by.as_ref())?;
        let [xa_gate, xa_up] = xa;
        let (xa, dxa) = ([xa_down, xa_gate, xa_up], [dxa_down, dxa_gate, dxa_up]);
        Ok((d_mid, dxa_o, MlpParts { h, d_out, normed, d_gate, d_up, xa, dxa }))
    }

    /// The first half, from the gradient of `x_mid`, and the gradients of all adapters.
    fn attention_backward(
        &self,
        layer: usize,
        (x_in, half): (Tensor<T>, AttentionHalf<T>),
        (d_mid, dxa_o, mlp): (Tensor<T>, Narrow<T, 1>, MlpParts<T>),
        lowest: bool,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Option<Output<T>>> {
        let (all, set) = (&self.tables.all, self.queries(layer));
        let AttentionHalf { rstd_in, q, k, v, o, lse, xa: [xa_q, xa_k, xa_v, xa_o] } = half;
        // In the lowest adapted block, what nobody trains need not be reached.
        let trains = |slot| {
            let number = self.weights.sites.number(layer, slot);
            number.is_some_and(|number| self.adapters.iter().any(|a| a.params(number).is_some()))
        };
        let reaches_qkv = !lowest || [Slot::Q, Slot::K, Slot::V].into_iter().any(trains);
        let mut d_o = reaches_qkv.then(|| self.like(&o)).transpose()?;
        let group = self.group(layer, [Slot::O], set)?;
        let [dxa_o] = self.linears_back(&group, [&d_mid], dxa_o, d_o.as_mut())?;
        let job = |slot, x, dy, xa, dxa| Job { slot, set, x, dy, xa, dxa };
        let mut jobs = vec![
            job(Slot::Down, &mlp.h, &mlp.d_out, &mlp.xa[0], &mlp.dxa[0]),
            job(Slot::Gate, &mlp.normed, &mlp.d_gate, &mlp.xa[1], &mlp.dxa[1]),
            job(Slot::Up, &mlp.normed, &mlp.d_up, &mlp.xa[2], &mlp.dxa[2]),
            job(Slot::O, &o, &d_mid, &xa_o, &dxa_o),
        ];
        let Some(d_o) = d_o else {
            self.gradients(layer, &jobs, grads)?;
            return Ok(None);
        };

        let (q_rotated, k_rotated) = self.rotated(layer, &q, &k)?;
        let args = Attention { q: &q_rotated, k: &k_rotated, v: &v, heads: self.heads(), plan: &set.plan };
        let (mut dq, mut dk, mut dv) = (self.like(&q)?, self.like(&k)?, self.like(&v)?);
        let to = attention::Backward { d_o: &d_o, o: &o, lse: &lse, dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention::backward(&set.device, &args, to)?;
        drop((q_rotated, k_rotated, v, lse, d_o));
        let (q_op, k_op) = self.qk_ops(layer);
        let mut d_normed = (!lowest).then(|| self.like(&x_in)).transpose()?;
        let [dxa_q, dxa_k, dxa_v] = if !self.is_last(layer) {
            // The order of the jobs and what follows them.
            let group = self.group(layer, [Slot::Q, Slot::K, Slot::V], set)?;
            let dxa = self.dxa(&group, x_in.rows())?;
            let further = [&dv];
            let project = dxa.made_by.as_ref().map(|project| (project, &further[..]));
            let q_job = RopeBackwardJob { x: &q, op: q_op, dy: &mut dq };
            let k_job = RopeBackwardJob { x: &k, op: k_op, dy: &mut dk };
            qk_norm_rope::backward_with(self.device, &mut [q_job, k_job], project)?;
            self.linears_back(&group, [&dq, &dk, &dv], dxa, d_normed.as_mut())?
        } else {
            let q_job = RopeBackwardJob { x: &q, op: q_op, dy: &mut dq };
            let k_job = RopeBackwardJob { x: &k, op: k_op, dy: &mut dk };
            qk_norm_rope::backward(self.device, &mut [q_job, k_job])?;
            let group = self.group(layer, [Slot::K, Slot::V], all)?;
            let dxa = self.dxa(&group, x_in.rows())?.apart();
            let [dxa_k, dxa_v] = self.linears_back(&group, [&dk, &dv], dxa, d_normed.as_mut())?;
            let mut d_rows =
                d_normed.as_ref().map(|_| self.device.empty(dq.rows(), x_in.cols())).transpose()?;
            let group = self.group(layer, [Slot::Q], set)?;
            let dxa = self.dxa(&group, dq.rows())?.apart();
            let [dxa_q] = self.linears_back(&group, [&dq], dxa, d_rows.as_mut())?;
            if let (Some(d_rows), Some(d_normed)) = (&d_rows, &mut d_normed) {
                rows::scatter_add(self.device, d_rows, &self.tables.target_rows, d_normed)?;
            }
            [dxa_q, dxa_k, dxa_v]
        };
        drop((q, k));

        let (norm, mut normed) = (self.input_norm(layer), self.like(&x_in)?);
        let d_in = match d_normed {
            None => {
                rms_norm::apply(&all.device, &x_in, &norm, &rstd_in, &mut normed)?;
                None
            }
            Some(d_normed) => {
                let spread = match self.is_last(layer) {
                    true => {
                        let mut spread = self.device.zeros(x_in.rows(), x_in.cols())?;
                        rows::scatter_add(self.device, &d_mid, &self.tables.target_rows, &mut spread)?;
                        Some(spread)
                    }
                    false => None,
                };
                let back = NormBack {
                    d_normed: &d_normed,
                    stream: &x_in,
                    norm,
                    rstd: &rstd_in,
                    d_in: Some(spread.as_ref().unwrap_or(&d_mid)),
                    normed: Some(&mut normed),
                };
                // Not the lowest, so there is a block below.
                Some(self.norm_backward(layer - 1, back)?)
            }
        };
        let picked = match self.is_last(layer) {
            true => Some(rows::gather(self.device, &normed, &self.tables.target_rows)?),
            false => None,
        };
        let of_all = |slot, dy, xa, dxa| Job { slot, set: all, x: &normed, dy, xa, dxa };
        jobs.push(of_all(Slot::K, &dk, &xa_k, &dxa_k));
        jobs.push(of_all(Slot::V, &dv, &xa_v, &dxa_v));
        jobs.push(job(Slot::Q, picked.as_ref().unwrap_or(&normed), &dq, &xa_q, &dxa_q));
        self.gradients(layer, &jobs, grads)?;
        Ok(d_in)
    }
}
