//! The MLP as a sublayer: `down(silu(gate) * up)`, forward and backward side by side.
//!
//! Kept: gate and up, and `x~ A^T` of the three layers; less where the policy of the block says so. `silu(gate) * up` is computed
//! again.

use std::rc::Rc;

use super::super::policy::Policy;
use super::linears::{Group, Job, PartialJob, Projection, exactly};
use super::wiring::{Gradient, SavedNorm};
use super::{Pass, missing, norm_before_mlp};
use crate::config::Slot;
use crate::device::{Class, Tensor};
use crate::error::Result;
use crate::ops::swiglu;
use crate::tensor::Real;

/// What the backward pass reads.
pub(super) struct Mlp<T: Real> {
    /// None where they are computed again.
    gate_up: Option<[Tensor<T>; 2]>,
    /// Of gate and up.
    xa: [Tensor<T>; 2],
    /// Of down; none where it is computed again.
    xa_down: Option<Tensor<T>>,
}

impl<T: Real> Pass<'_, T> {
    /// The layers that read the input of the MLP.
    pub(super) fn mlp_readers(&self, layer: usize) -> Result<Group<'_, T>> {
        self.group(layer, &[Slot::Gate, Slot::Up], self.queries(layer))
    }

    /// Runs gate and up of block `layer` on what the norm made: all that the backward pass needs.
    pub(super) fn gate_up(
        &self,
        readers: &Group<'_, T>,
        (normed, xa): (Rc<Tensor<T>>, Projection<T>),
        keep: Option<Policy>,
    ) -> Result<Mlp<T>> {
        let made = self.linears(readers, &normed, xa, &self.place(keep, Class::GateUp))?;
        let [(gate, xa_gate), (up, xa_up)] = exactly(made)?;
        Ok(Mlp { gate_up: Some([gate, up]), xa: [xa_gate, xa_up], xa_down: None })
    }

    /// Runs the rest, and leaves in `mlp` what the policy keeps.
    pub(super) fn down(&self, layer: usize, mlp: &mut Mlp<T>, keep: Option<Policy>) -> Result<Tensor<T>> {
        let set = self.queries(layer);
        let keeps = keep.is_some_and(|policy| policy.keeps(Class::GateUp));
        let [gate, up] = mlp.gate_up.take().ok_or_else(|| missing("gate and up"))?;
        let group = self.group(layer, &[Slot::Down], set)?;
        let xa = self.xa(&group, gate.rows(), &self.place(keep, Class::Xa))?;
        let mut h = self.like(&gate)?;
        let args = swiglu::Forward {
            gate: &gate,
            up: &up,
            h: &mut h,
            live_rows: set.live_rows,
            projection: xa.fused(),
        };
        swiglu::forward(self.device, args)?;
        mlp.gate_up = keeps.then_some([gate, up]);
        let [(out, xa_down)] = exactly(self.linears(&group, &h, xa, &self.place_of_input(layer + 1))?)?;
        mlp.xa_down = Some(xa_down);
        Ok(out)
    }

    /// Goes back through the MLP of block `layer`, behind the norm that left `saved_norm`: gives the gradient of its input, and the
    /// gradients of gate and up, whose input the norm makes again.
    pub(super) fn mlp_backward<'s>(
        &'s self,
        layer: usize,
        mlp: Mlp<T>,
        saved_norm: &SavedNorm<T>,
        Gradient { d_out, dxa }: Gradient<T>,
        jobs: &mut Vec<Job<'s, T>>,
    ) -> Result<(Tensor<T>, [PartialJob<'s, T>; 2])> {
        let set = self.queries(layer);
        let Mlp { gate_up, xa, xa_down } = mlp;
        let readers = self.mlp_readers(layer)?;
        let [mut d_gate, mut d_up] = match gate_up {
            Some(gate_up) => gate_up,
            None => {
                let normed = self.normed_again(norm_before_mlp(layer), saved_norm)?;
                exactly(self.linears_again(&readers, &normed, &xa)?)?
            }
        };
        let down = self.group(layer, &[Slot::Down], set)?;
        let mut h = self.like(&d_gate)?;
        let [dxa_down] = exactly(self.linears_back(&down, &[&d_out], dxa, Some(&mut h))?)?;
        let dxa = self.dxa(&readers, h.rows())?;
        // From here on h holds h, and not its gradient.
        let args = swiglu::Backward {
            dh: &mut h,
            gate: &mut d_gate,
            up: &mut d_up,
            live_rows: set.live_rows,
            projection: dxa.fused(),
        };
        swiglu::backward(self.device, args)?;
        let xa_down = match xa_down {
            Some(xa_down) => xa_down,
            None => self.projected(&down, &h)?,
        };
        let mut d_normed = self.device.empty(d_out.rows(), d_out.cols())?;
        let [dxa_gate, dxa_up] =
            exactly(self.linears_back(&readers, &[&d_gate, &d_up], dxa, Some(&mut d_normed))?)?;
        let [xa_gate, xa_up] = xa;
        let partial = |slot, dy, xa, dxa| self.partial(layer, slot, set, (Rc::new(dy), xa, dxa));
        jobs.push(self.partial(layer, Slot::Down, set, (d_out, xa_down, dxa_down))?.with_input(Rc::new(h)));
        Ok((
            d_normed,
            [partial(Slot::Gate, d_gate, xa_gate, dxa_gate)?, partial(Slot::Up, d_up, xa_up, dxa_up)?],
        ))
    }
}
