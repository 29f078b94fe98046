//! The MLP as a sublayer: `down(act(gate) * up)`, or `down(act(up))` without a gate; forward and backward side by side.
//!
//! Kept: the input of the activation, and `x~ A^T` of all layers; less where the policy of the block says so. `act(gate) * up` is
//! computed again.

use std::rc::Rc;

use super::super::policy::Policy;
use super::linears::{Group, Job, PartialJob, Projection, exactly};
use super::wiring::{Gradient, SavedNorm};
use super::{Pass, missing, norm_before_mlp};
use crate::config::Slot;
use crate::config::block::Gate;
use crate::device::{Class, Tensor};
use crate::error::Result;
use crate::ops::activation::{self, Input, InputMut};
use crate::tensor::Real;

/// What the backward pass reads.
pub(super) struct Mlp<T: Real> {
    /// Outputs of the layers before the activation, in their order; none where they are computed again.
    hidden: Option<Vec<Tensor<T>>>,
    /// Of these layers.
    xa: Vec<Tensor<T>>,
    /// Of down; none where it is computed again.
    xa_down: Option<Tensor<T>>,
}

/// The layers before the activation.
fn slots(gate: Gate) -> &'static [Slot] {
    match gate {
        Gate::None => &[Slot::Up],
        Gate::Split => &[Slot::Gate, Slot::Up],
        Gate::Fused => &[Slot::GateUp],
    }
}

impl<T: Real> Pass<'_, T> {
    /// The layers that read the input of the MLP.
    pub(super) fn mlp_readers(&self, layer: usize) -> Result<Group<'_, T>> {
        self.group(layer, slots(self.spec(layer).mlp.gate), self.queries(layer))
    }

    /// Runs the layers before the activation of block `layer` on what the norm made: all that the backward pass needs.
    pub(super) fn gate_up(
        &self,
        readers: &Group<'_, T>,
        (normed, xa): (Rc<Tensor<T>>, Projection<T>),
        keep: Option<Policy>,
    ) -> Result<Mlp<T>> {
        let made = self.linears(readers, &normed, xa, &self.place(keep, Class::GateUp))?;
        let (hidden, xa) = made.into_iter().unzip();
        Ok(Mlp { hidden: Some(hidden), xa, xa_down: None })
    }

    /// Runs the rest, and leaves in `mlp` what the policy keeps.
    pub(super) fn down(&self, layer: usize, mlp: &mut Mlp<T>, keep: Option<Policy>) -> Result<Tensor<T>> {
        let (set, spec) = (self.queries(layer), self.spec(layer).mlp);
        let keeps = keep.is_some_and(|policy| policy.keeps(Class::GateUp));
        let hidden = mlp.hidden.take().ok_or_else(|| missing("the hidden layer"))?;
        let input = match (spec.gate, &hidden[..]) {
            (Gate::Split, [gate, up]) => Input::Gated { gate, up },
            (Gate::Fused, [gate_up]) => Input::Fused(gate_up),
            (Gate::None, [up]) => Input::Plain(up),
            _ => return Err(missing("the hidden layer")),
        };
        let group = self.group(layer, &[Slot::Down], set)?;
        let rows = hidden[0].rows();
        let fuses = activation::fuses(spec.act, spec.gate == Gate::Split);
        let xa = self.xa(&group, rows, &self.place(keep, Class::Xa))?;
        let xa = if fuses { xa } else { xa.unfused() };
        let mut h = self.device.empty(rows, spec.size)?;
        let args = activation::Forward {
            act: spec.act,
            input,
            h: &mut h,
            live_rows: set.live_rows,
            projection: xa.fused(),
        };
        activation::forward(self.device, args)?;
        mlp.hidden = keeps.then_some(hidden);
        let [(out, xa_down)] = exactly(self.linears(&group, &h, xa, &self.place_of_input(layer + 1))?)?;
        mlp.xa_down = Some(xa_down);
        Ok(out)
    }

    /// Goes back through the MLP of block `layer`, behind the norm that left `saved_norm`: gives the gradient of its input, and the
    /// gradients of the layers before the activation, whose input the norm makes again.
    pub(super) fn mlp_backward<'s>(
        &'s self,
        layer: usize,
        mlp: Mlp<T>,
        saved_norm: &SavedNorm<T>,
        Gradient { d_out, dxa, .. }: Gradient<T>,
        jobs: &mut Vec<Job<'s, T>>,
    ) -> Result<(Tensor<T>, Vec<PartialJob<'s, T>>)> {
        let (set, spec) = (self.queries(layer), self.spec(layer).mlp);
        let Mlp { hidden, xa, xa_down } = mlp;
        let readers = self.mlp_readers(layer)?;
        let mut d_hidden = match hidden {
            Some(hidden) => hidden,
            None => {
                let normed = self.normed_again(norm_before_mlp(layer), saved_norm)?;
                self.linears_again(&readers, &normed, &xa)?
            }
        };
        let down = self.group(layer, &[Slot::Down], set)?;
        let mut h = self.device.empty(d_hidden[0].rows(), spec.size)?;
        let [dxa_down] = exactly(self.linears_back(&down, &[&d_out], dxa, Some(&mut h))?)?;
        let fuses = activation::fuses(spec.act, spec.gate == Gate::Split);
        let dxa = self.dxa(&readers, h.rows())?;
        let dxa = if fuses { dxa } else { dxa.unfused() };
        let input = match (spec.gate, &mut d_hidden[..]) {
            (Gate::Split, [gate, up]) => InputMut::Gated { gate, up },
            (Gate::Fused, [gate_up]) => InputMut::Fused(gate_up),
            (Gate::None, [up]) => InputMut::Plain(up),
            _ => return Err(missing("the hidden layer")),
        };
        // From here on h holds h, and not its gradient.
        let args = activation::Backward {
            act: spec.act,
            dh: &mut h,
            input,
            live_rows: set.live_rows,
            projection: dxa.fused(),
        };
        activation::backward(self.device, args)?;
        let xa_down = match xa_down {
            Some(xa_down) => xa_down,
            None => self.projected(&down, &h)?,
        };
        let mut d_normed = self.device.empty(d_out.rows(), d_out.cols())?;
        let refs: Vec<_> = d_hidden.iter().collect();
        let dxa = self.linears_back(&readers, &refs, dxa, Some(&mut d_normed))?;
        jobs.push(self.partial(layer, Slot::Down, set, (d_out, xa_down, dxa_down))?.with_input(Rc::new(h)));
        let of_layers = slots(spec.gate).iter().zip(d_hidden).zip(xa.into_iter().zip(dxa));
        let partial = |((&slot, dy), (xa, dxa))| self.partial(layer, slot, set, (Rc::new(dy), xa, dxa));
        let partial = of_layers.map(partial).collect::<Result<_>>()?;
        Ok((d_normed, partial))
    }
}
