//! AdamW over the tensors of one adapter, with the moments as its state.

use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::model::Adapter;
use crate::ops::adamw::{self, AdamW};
use crate::ops::grad_norm::{clip_factor, grad_norm};
use crate::tensor::Real;

/// The moments of every tensor of an adapter, and the number of updates so far.
#[derive(Debug)]
pub struct Optimizer<T: Real> {
    exp_avg: Adapter<T>,
    exp_avg_sq: Adapter<T>,
    step: u64,
}

/// The settings of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay; applies to every tensor of an adapter (none is a bias or a norm).
    pub weight_decay: f64,
    /// Longest gradient; none switches clipping off.
    pub max_grad_norm: Option<f64>,
}

impl<T: Real> Optimizer<T> {
    /// Zero moments for `adapter`.
    pub fn new(device: &Device, adapter: &Adapter<T>) -> Self {
        Self { exp_avg: adapter.zeros_like(device), exp_avg_sq: adapter.zeros_like(device), step: 0 }
    }

    /// Updates done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Norm of the gradient before clipping; not finite if the gradient is not, and then [`Optimizer::apply`] must not be called.
    pub fn grad_norm(&self, device: &Device, grads: &Adapter<T>) -> f64 {
        grad_norm(device, &grads.tensors())
    }

    /// Clips a gradient of norm `norm` and updates the adapter.
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] if `grads` belongs to another adapter.
    pub fn apply(
        &mut self,
        device: &Device,
        update: &Update,
        norm: f64,
        adapter: &mut Adapter<T>,
        grads: &Adapter<T>,
    ) -> Result<()> {
        self.step += 1;
        let adamw = AdamW {
            learning_rate: update.learning_rate,
            beta1: update.beta1,
            beta2: update.beta2,
            epsilon: update.epsilon,
            weight_decay: update.weight_decay,
            clip: clip_factor(norm, update.max_grad_norm),
            step: self.step,
        };
        let moments = self.exp_avg.tensors_mut().into_iter().zip(self.exp_avg_sq.tensors_mut());
        let params = adapter.tensors_mut().into_iter().zip(grads.tensors());
        for ((param, grad), (exp_avg, exp_avg_sq)) in params.zip(moments) {
            adamw::update(device, &adamw, param, grad, exp_avg, exp_avg_sq)?;
        }
        Ok(())
    }

    /// The state with names, for a checkpoint: `exp_avg.<tensor>` and `exp_avg_sq.<tensor>`.
    pub fn named_state(&self) -> Vec<(String, &Tensor<T>)> {
        let with = |prefix: &str, adapter: &'_ Adapter<T>| -> Vec<String> {
            adapter.named_tensors().into_iter().map(|(name, _)| format!("{prefix}.{name}")).collect()
        };
        let names = with("exp_avg", &self.exp_avg).into_iter().chain(with("exp_avg_sq", &self.exp_avg_sq));
        let tensors = self.exp_avg.tensors().into_iter().chain(self.exp_avg_sq.tensors());
        names.zip(tensors).collect()
    }

    /// Puts back a state that [`Optimizer::named_state`] gave, tensor by tensor in its order, after `step` updates.
    ///
    /// # Errors
    /// The first error of `read(name, tensor)`.
    pub fn restore(
        &mut self,
        step: u64,
        mut read: impl FnMut(&str, &mut Tensor<T>) -> Result<()>,
    ) -> Result<()> {
        let names: Vec<String> = self.named_state().into_iter().map(|(name, _)| name).collect();
        let tensors = self.exp_avg.tensors_mut().into_iter().chain(self.exp_avg_sq.tensors_mut());
        for (name, tensor) in names.iter().zip(tensors) {
            read(name, tensor)?;
        }
        self.step = step;
        Ok(())
    }
}
