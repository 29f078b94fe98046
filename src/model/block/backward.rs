//! Backward through a block: the mirror of its forward pass.
//!
//! The gradients of all adapters of the block are added at its end, in one call: on a GPU that is one launch. What they are made
//! of waits until then.

use super::super::adapter::Adapter;
use super::super::weights::Module;
use super::Pass;
use super::forward::{AttentionHalf, MlpHalf, Rest, Saved};
use super::linears::{Group, Job};
use crate::device::Tensor;
use crate::error::Result;
use crate::ops::attention::{self, Attention};
use crate::ops::qk_norm_rope::{self, RopeBackwardJob};
use crate::ops::{rms_norm, rows, swiglu};
use crate::tensor::Real;

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
    /// Goes back through block `layer`: adds to `grads`, takes the gradient of its output stream and gives that of its input
    /// stream, or none where nothing below is trained (`lowest`).
    pub(in crate::model) fn backward(
        &self,
        layer: usize,
        saved: Saved<T>,
        d_stream: Tensor<T>,
        lowest: bool,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Option<Tensor<T>>> {
        let Saved { mut x_in, rest } = saved;
        let Rest { attention, mlp } = match rest {
            Some(rest) => rest,
            None => self.rest_again(layer, &mut x_in)?,
        };
        let (d_mid, mlp) = self.mlp_backward(layer, mlp, d_stream)?;
        self.attention_backward(layer, (x_in, attention), (d_mid, mlp), lowest, grads)
    }

    /// The second half; gives the gradient of `x_mid`.
    fn mlp_backward(
        &self,
        layer: usize,
        mlp: MlpHalf<T>,
        d_out: Tensor<T>,
    ) -> Result<(Tensor<T>, MlpParts<T>)> {
        let set = self.queries(layer);
        let device = &set.device;
        let MlpHalf { x_mid, rstd_mid, gate_up, xa: [xa_gate, xa_up], xa_down } = mlp;
        let xa = [xa_gate, xa_up];
        let [mut d_gate, mut d_up] = match gate_up {
            Some(gate_up) => gate_up,
            None => self.gate_up_again(layer, &x_mid, &rstd_mid, &xa)?,
        };
        let down = Group { layer, modules: [Module::Down], set };
        let mut h = self.like(&d_gate)?;
        let [dxa_down] = self.linears_back(&down, [&d_out], Some(&mut h))?;
        // From here on h holds h, and not its gradient.
        swiglu::backward(device, &mut h, &mut d_gate, &mut d_up)?;
        let xa_down = match xa_down {
            Some(xa_down) => xa_down,
            None => self.projection(&down, &h)?,
        };
        let mut d_normed = self.like(&x_mid)?;
        let dy = [&d_gate, &d_up];
        let [dxa_gate, dxa_up] = self.linears_back(&self.gate_and_up(layer), dy, Some(&mut d_normed))?;
        let (mut d_mid, mut normed) = (self.like(&x_mid)?, self.like(&x_mid)?);
        let norm = self.post_attention_norm(layer);
        let (d_in, again) = (Some(&d_out), Some(&mut normed));
        rms_norm::backward(device, &d_normed, &x_mid, &norm, &rstd_mid, d_in, &mut d_mid, again)?;
        let [xa_gate, xa_up] = xa;
        let (xa, dxa) = ([xa_down, xa_gate, xa_up], [dxa_down, dxa_gate, dxa_up]);
        Ok((d_mid, MlpParts { h, d_out, normed, d_gate, d_up, xa, dxa }))
    }

    /// The first half, from the gradient of `x_mid`, and the gradients of all adapters.
    fn attention_backward(
        &self,
        layer: usize,
        (x_in, half): (Tensor<T>, AttentionHalf<T>),
        (d_mid, mlp): (Tensor<T>, MlpParts<T>),
        lowest: bool,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Option<Tensor<T>>> {
        let (all, set) = (&self.tables.all, self.queries(layer));
        let AttentionHalf { rstd_in, q, k, v, o, lse, xa: [xa_q, xa_k, xa_v, xa_o] } = half;
        // In the lowest adapted block, what nobody trains need not be reached.
        let trains = |module| self.adapters.iter().any(|a| a.params(layer, module).is_some());
        let reaches_qkv = !lowest || [Module::Q, Module::K, Module::V].into_iter().any(trains);
        let mut d_o = reaches_qkv.then(|| self.like(&o)).transpose()?;
        let group = Group { layer, modules: [Module::O], set };
        let [dxa_o] = self.linears_back(&group, [&d_mid], d_o.as_mut())?;
        let job = |module, x, dy, xa, dxa| Job { module, set, x, dy, xa, dxa };
        let mut jobs = vec![
            job(Module::Down, &mlp.h, &mlp.d_out, &mlp.xa[0], &mlp.dxa[0]),
            job(Module::Gate, &mlp.normed, &mlp.d_gate, &mlp.xa[1], &mlp.dxa[1]),
            job(Module::Up, &mlp.normed, &mlp.d_up, &mlp.xa[2], &mlp.dxa[2]),
            job(Module::O, &o, &d_mid, &xa_o, &dxa_o),
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
        let q_job = RopeBackwardJob { x: &q, op: q_op, dy: &mut dq };
        let k_job = RopeBackwardJob { x: &k, op: k_op, dy: &mut dk };
        qk_norm_rope::backward(self.device, &mut [q_job, k_job])?;
        drop((q, k));

        let mut d_normed = (!lowest).then(|| self.like(&x_in)).transpose()?;
        let [dxa_k, dxa_v, dxa_q] = if !self.is_last(layer) {
            let group = Group { layer, modules: [Module::K, Module::V, Module::Q], set };
            self.linears_back(&group, [&dk, &dv, &dq], d_normed.as_mut())?
        } else {
            let group = Group { layer, modules: [Module::K, Module::V], set: all };
            let [dxa_k, dxa_v] = self.linears_back(&group, [&dk, &dv], d_normed.as_mut())?;
            let mut d_rows = d_normed.as_ref().map(|_| self.device.empty(dq.rows(), x_in.cols())).transpose()?;
            let group = Group { layer, modules: [Module::Q], set };
            let [dxa_q] = self.linears_back(&group, [&dq], d_rows.as_mut())?;
            if let (Some(d_rows), Some(d_normed)) = (&d_rows, &mut d_normed) {
                rows::scatter_add(self.device, d_rows, &self.tables.target_rows, d_normed)?;
            }
            [dxa_k, dxa_v, dxa_q]
        };
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
                let mut d_in = self.like(&x_in)?;
                let (from, again) = (Some(spread.as_ref().unwrap_or(&d_mid)), Some(&mut normed));
                rms_norm::backward(&all.device, &d_normed, &x_in, &norm, &rstd_in, from, &mut d_in, again)?;
                Some(d_in)
            }
        };
        let picked = match self.is_last(layer) {
            true => Some(rows::gather(self.device, &normed, &self.tables.target_rows)?),
            false => None,
        };
        let of_all = |module, dy, xa, dxa| Job { module, set: all, x: &normed, dy, xa, dxa };
        jobs.push(of_all(Module::K, &dk, &xa_k, &dxa_k));
        jobs.push(of_all(Module::V, &dv, &xa_v, &dxa_v));
        jobs.push(job(Module::Q, picked.as_ref().unwrap_or(&normed), &dq, &xa_q, &dxa_q));
        self.gradients(layer, &jobs, grads)?;
        Ok(d_in)
    }
}
