//! Backward through a block: the mirror of its forward pass.

use super::super::adapter::Adapter;
use super::super::weights::Module;
use super::Pass;
use super::forward::{AttentionHalf, MlpHalf, Rest, Saved};
use super::linears::Group;
use crate::device::Tensor;
use crate::error::Result;
use crate::ops::attention::{self, Attention};
use crate::ops::gemm::Write;
use crate::ops::qk_norm_rope::{self, RopeBackwardJob};
use crate::ops::{rms_norm, rows, swiglu};
use crate::tensor::Real;

impl<T: Real> Pass<'_, T> {
    /// Goes back through block `layer`: adds to `grads`, takes the gradient of its output stream and gives that of its input
    /// stream, or none where nothing below is trained (`lowest`).
    pub(in crate::model) fn backward(
        &self,
        layer: usize,
        saved: Saved<T>,
        mut d_stream: Tensor<T>,
        lowest: bool,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Option<Tensor<T>>> {
        let Saved { mut x_in, rest } = saved;
        let Rest { attention, mlp } = match rest {
            Some(rest) => rest,
            None => self.rest_again(layer, &mut x_in)?,
        };
        self.mlp_backward(layer, mlp, &mut d_stream, grads)?;
        self.attention_backward(layer, (x_in, attention), d_stream, lowest, grads)
    }

    /// The second half; `d_stream` becomes the gradient of `x_mid`.
    fn mlp_backward(
        &self,
        layer: usize,
        mlp: MlpHalf<T>,
        d_stream: &mut Tensor<T>,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<()> {
        let device = self.device;
        let MlpHalf { x_mid, rstd_mid, gate_up, xa, xa_down } = mlp;
        let [mut gate, mut up] = match gate_up {
            Some(gate_up) => gate_up,
            None => self.gate_up_again(layer, &x_mid, &rstd_mid, &xa)?,
        };
        let down = Group { layer, modules: [Module::Down], set: self.queries(layer) };
        let mut h = self.like(&gate)?;
        swiglu::forward(device, &gate, &up, &mut h)?;
        let xa_down = match xa_down {
            Some(xa_down) => xa_down,
            None => self.projection(&down, &h)?,
        };
        let mut dh = self.like(&gate)?;
        let dx = Some((&mut dh, Write::Overwrite));
        self.linears_backward(&down, &h, [(d_stream, &xa_down)], dx, grads)?;
        drop((h, xa_down));
        swiglu::backward(device, &mut dh, &mut gate, &mut up)?;
        drop(dh);

        let norm = self.post_attention_norm(layer);
        let mut normed = self.like(&x_mid)?;
        rms_norm::apply(device, &x_mid, &norm, &rstd_mid, &mut normed)?;
        let mut d_normed = self.like(&x_mid)?;
        let dx = Some((&mut d_normed, Write::Overwrite));
        let [xa_gate, xa_up] = &xa;
        let saved = [(&gate, xa_gate), (&up, xa_up)];
        self.linears_backward(&self.gate_and_up(layer), &normed, saved, dx, grads)?;
        drop((gate, up, normed));
        let mut d_mid = self.like(&x_mid)?;
        rms_norm::backward(device, &d_normed, &x_mid, &norm, &rstd_mid, Some(d_stream), &mut d_mid, None)?;
        *d_stream = d_mid;
        Ok(())
    }

    /// The first half, from the gradient of `x_mid`.
    fn attention_backward(
        &self,
        layer: usize,
        (x_in, half): (Tensor<T>, AttentionHalf<T>),
        d_stream: Tensor<T>,
        lowest: bool,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Option<Tensor<T>>> {
        let device = self.device;
        let set = self.queries(layer);
        let AttentionHalf { rstd_in, q, k, v, o, lse, xa: [xa_q, xa_k, xa_v, xa_o] } = half;
        // In the lowest adapted block, what nobody trains need not be reached.
        let trains = |module| self.adapters.iter().any(|a| a.params(layer, module).is_some());
        let reaches_qkv = !lowest || [Module::Q, Module::K, Module::V].into_iter().any(trains);
        let mut d_o = reaches_qkv.then(|| self.like(&o)).transpose()?;
        let dx = d_o.as_mut().map(|d_o| (d_o, Write::Overwrite));
        let group = Group { layer, modules: [Module::O], set };
        self.linears_backward(&group, &o, [(&d_stream, &xa_o)], dx, grads)?;
        let Some(d_o) = d_o else { return Ok(None) };

        let (q_rotated, k_rotated) = self.rotated(layer, &q, &k)?;
        let args = Attention { q: &q_rotated, k: &k_rotated, v: &v, heads: self.heads(), plan: &set.plan };
        let (mut dq, mut dk, mut dv) = (self.like(&q)?, self.like(&k)?, self.like(&v)?);
        let to = attention::Backward { d_o: &d_o, o: &o, lse: &lse, dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention::backward(device, &args, to)?;
        drop((q_rotated, k_rotated, v, o, lse, d_o));
        let (q_op, k_op) = self.qk_ops(layer);
        let q_job = RopeBackwardJob { x: &q, op: q_op, dy: &mut dq };
        let k_job = RopeBackwardJob { x: &k, op: k_op, dy: &mut dk };
        qk_norm_rope::backward(device, &mut [q_job, k_job])?;
        drop((q, k));

        let norm = self.input_norm(layer);
        let mut normed = self.like(&x_in)?;
        rms_norm::apply(device, &x_in, &norm, &rstd_in, &mut normed)?;
        let mut d_normed = (!lowest).then(|| self.like(&x_in)).transpose()?;
        let dx = d_normed.as_mut().map(|d| (d, Write::Overwrite));
        if !self.is_last(layer) {
            let group = Group { layer, modules: [Module::K, Module::V, Module::Q], set };
            let saved = [(&dk, &xa_k), (&dv, &xa_v), (&dq, &xa_q)];
            self.linears_backward(&group, &normed, saved, dx, grads)?;
        } else {
            let group = Group { layer, modules: [Module::K, Module::V], set: &self.all };
            self.linears_backward(&group, &normed, [(&dk, &xa_k), (&dv, &xa_v)], dx, grads)?;
            let normed = rows::gather(device, &normed, &self.target_rows)?;
            let mut d_rows = (!lowest).then(|| self.like(&normed)).transpose()?;
            let dx = d_rows.as_mut().map(|d| (d, Write::Overwrite));
            let group = Group { layer, modules: [Module::Q], set };
            self.linears_backward(&group, &normed, [(&dq, &xa_q)], dx, grads)?;
            if let (Some(d_rows), Some(d_normed)) = (&d_rows, &mut d_normed) {
                rows::scatter_add(device, d_rows, &self.target_rows, d_normed)?;
            }
        }
        let Some(d_normed) = d_normed else { return Ok(None) };
        let d_out = match self.is_last(layer) {
            true => {
                let mut d_in = device.zeros(x_in.rows(), x_in.cols())?;
                rows::scatter_add(device, &d_stream, &self.target_rows, &mut d_in)?;
                d_in
            }
            false => d_stream,
        };
        let mut d_in = self.like(&x_in)?;
        rms_norm::backward(device, &d_normed, &x_in, &norm, &rstd_in, Some(&d_out), &mut d_in, None)?;
        Ok(Some(d_in))
    }

    fn like(&self, tensor: &Tensor<T>) -> Result<Tensor<T>> {
        self.device.empty(tensor.rows(), tensor.cols())
    }
}
