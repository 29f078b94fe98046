//! The losses of labels and numbers, as PyTorch defines them, summed instead of averaged.

use super::targets::Targets;
use super::{OP, gpu};
use crate::batch::{Label, LabelTarget};
use crate::device::{Device, Machine, Tensor, Work};
use crate::error::{Error, Result};
use crate::ops::{Runner, check_shape, runner};
use crate::tensor::Real;

/// What is minimised, for one sequence with logits `z`. The mean that PyTorch gives is the sum over the sequences divided by the sum
/// of their [`Loss::divisor`].
#[derive(Debug, Clone, PartialEq)]
pub enum Loss {
    /// With `x = log softmax(z)`, `n` classes, label `y` and smoothing `e`: `-(1 - e) w[y] x[y] - e/n sum_c w[c] x[c]`.
    CrossEntropy {
        /// `w`, by class; all 1 if there are none.
        class_weights: Option<Vec<f32>>,
        /// `e`.
        label_smoothing: f64,
    },
    /// Sum over the outputs of `-(p t ln s(z) + (1 - t) ln(1 - s(z)))`, with the logistic function `s`.
    Bce {
        /// `p`, by output; all 1 if there are none.
        pos_weight: Option<Vec<f32>>,
    },
    /// Sum over the outputs of `(z - t)^2`.
    Mse,
    /// Sum over the outputs of `(s(z) - t)^2`.
    SigmoidMse,
}

/// What the head found for one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelScore {
    /// Its loss, without its weight; 0 without a label.
    pub loss: f64,
    /// One number per output.
    pub logits: Vec<f32>,
}

impl Loss {
    /// Cross entropy without weights and smoothing.
    pub fn cross_entropy() -> Self {
        Self::CrossEntropy { class_weights: None, label_smoothing: 0.0 }
    }

    /// What is usual for labels like this one.
    pub fn usual(label: &Label) -> Self {
        match label {
            Label::Class(_) => Self::cross_entropy(),
            Label::Numbers(_) | Label::None => Self::Mse,
        }
    }

    /// What a sequence counts in the divisor of a mean; 0 without a label.
    pub fn divisor(&self, label: &Label) -> f64 {
        match (self, label) {
            (_, Label::None) => 0.0,
            (Self::CrossEntropy { class_weights: Some(weights), .. }, Label::Class(class)) => {
                weights.get(*class as usize).map_or(0.0, |&weight| f64::from(weight))
            }
            (_, Label::Class(_)) => 1.0,
            (_, Label::Numbers(numbers)) => numbers.len() as f64,
        }
    }

    /// Fails unless a label is of the kind and size of this loss.
    fn check(&self, label: &Label, num_labels: usize) -> Result<()> {
        let weights = match self {
            Self::CrossEntropy { class_weights: weights, .. } | Self::Bce { pos_weight: weights } => weights,
            Self::Mse | Self::SigmoidMse => &None,
        };
        if let Some(weights) = weights.as_ref().filter(|weights| weights.len() != num_labels) {
            return Err(Error::shape(OP, "weights", num_labels, weights.len()));
        }
        let fits = match (self, label) {
            (_, Label::None) => true,
            (Self::CrossEntropy { .. }, Label::Class(class)) => (*class as usize) < num_labels,
            (Self::CrossEntropy { .. }, Label::Numbers(_)) => false,
            (_, Label::Numbers(numbers)) => {
                numbers.len() == num_labels && numbers.iter().all(|number| number.is_finite())
            }
            (_, Label::Class(_)) => false,
        };
        match fits {
            true => Ok(()),
            false => Err(Error::shape(OP, "label", format!("one of {num_labels} for {self:?}"), label)),
        }
    }

    /// Loss and its derivatives by the logits `z`.
    pub(super) fn of(&self, label: &Label, z: &[f64]) -> (f64, Vec<f64>) {
        match (self, label) {
            (Self::CrossEntropy { class_weights, label_smoothing }, Label::Class(class)) => {
                let weight = |c: usize| class_weights.as_ref().map_or(1.0, |w| f64::from(w[c]));
                let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let log_sum = largest + z.iter().map(|z| (z - largest).exp()).sum::<f64>().ln();
                let share = |c: usize| {
                    let own = if c == *class as usize { (1.0 - label_smoothing) * weight(c) } else { 0.0 };
                    own + label_smoothing / z.len() as f64 * weight(c)
                };
                let shares: Vec<f64> = (0..z.len()).map(share).collect();
                let total: f64 = shares.iter().sum();
                let loss = z.iter().zip(&shares).map(|(z, share)| share * (log_sum - z)).sum();
                let slope = |(z, share): (&f64, &f64)| total * (z - log_sum).exp() - share;
                (loss, z.iter().zip(&shares).map(slope).collect())
            }
            (Self::Bce { pos_weight }, Label::Numbers(targets)) => {
                let of = |(i, (&z, &t)): (usize, (&f64, &f32))| {
                    let (p, t) = (pos_weight.as_ref().map_or(1.0, |p| f64::from(p[i])), f64::from(t));
                    // ln(1 + exp(-|z|)) never overflows.
                    let tail = (-z.abs()).exp().ln_1p();
                    let (log_one, log_zero) = (z.min(0.0) - tail, (-z).min(0.0) - tail);
                    let s = sigmoid(z);
                    (-(p * t * log_one + (1.0 - t) * log_zero), (1.0 - t) * s - p * t * (1.0 - s))
                };
                sum(z.iter().zip(targets).enumerate().map(of))
            }
            (Self::Mse, Label::Numbers(targets)) => {
                let of = |(&z, &t): (&f64, &f32)| {
                    let error = z - f64::from(t);
                    (error * error, 2.0 * error)
                };
                sum(z.iter().zip(targets).map(of))
            }
            (Self::SigmoidMse, Label::Numbers(targets)) => {
                let of = |(&z, &t): (&f64, &f32)| {
                    let s = sigmoid(z);
                    let error = s - f64::from(t);
                    (error * error, 2.0 * error * s * (1.0 - s))
                };
                sum(z.iter().zip(targets).map(of))
            }
            _ => (0.0, vec![0.0; z.len()]),
        }
    }
}

fn sigmoid(z: f64) -> f64 {
    match z >= 0.0 {
        true => 1.0 / (1.0 + (-z).exp()),
        false => z.exp() / (1.0 + z.exp()),
    }
}

fn sum(all: impl Iterator<Item = (f64, f64)>) -> (f64, Vec<f64>) {
    let (losses, slopes): (Vec<f64>, Vec<f64>) = all.unzip();
    (losses.iter().sum(), slopes)
}

impl Loss {
    /// Fails unless every label is of the kind and size of this loss.
    ///
    /// # Errors
    /// [`Error::Shape`] that says what is expected.
    pub fn check_all(&self, targets: &[LabelTarget], num_labels: usize) -> Result<()> {
        targets.iter().try_for_each(|target| self.check(&target.label, num_labels))
    }

    /// The losses of sequences with `logits`, `[sequences, num_labels]`, in f64.
    pub fn scores<S: Real>(&self, targets: &[LabelTarget], logits: &[S]) -> Vec<LabelScore> {
        let num_labels = logits.len() / targets.len().max(1);
        let score = |(target, logits): (&LabelTarget, &[S])| {
            let z: Vec<f64> = logits.iter().map(|z| z.to_f64()).collect();
            LabelScore {
                loss: self.of(&target.label, &z).0,
                logits: z.into_iter().map(|z| z as f32).collect(),
            }
        };
        targets.iter().zip(logits.chunks_exact(num_labels.max(1))).map(score).collect()
    }
}

/// A loss with its weights in the memory of the device.
#[derive(Debug)]
pub struct PreparedLoss {
    /// The loss.
    pub loss: Loss,
    /// `[1, num_labels]`: of classes or of positive targets; none where all are 1, and on a CPU.
    pub(super) weights: Option<Tensor<f32>>,
}

impl PreparedLoss {
    /// For passes on `device`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(device: &Device, loss: &Loss) -> Result<Self> {
        let weights = match loss {
            Loss::CrossEntropy { class_weights: weights, .. } | Loss::Bce { pos_weight: weights } => weights,
            Loss::Mse | Loss::SigmoidMse => &None,
        };
        let on_gpu = weights.as_ref().filter(|_| device.machine() == Machine::Gpu);
        let weights = on_gpu.map(|weights| device.tensor(1, weights.len(), weights)).transpose()?;
        Ok(Self { loss: loss.clone(), weights })
    }
}

/// The gradient `d_logits` of `scale * sum(weight * loss)` by `logits`, `[sequences, num_labels]`, which is overwritten.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit, or a label is of another kind or size than the loss wants; errors of the device.
pub fn loss_gradient<T: Real>(
    device: &Device,
    loss: &PreparedLoss,
    logits: &Tensor<T::Stat>,
    targets: &Targets,
    d_logits: &mut Tensor<T>,
) -> Result<()> {
    check_shape(OP, "d_logits", d_logits, logits.shape())?;
    if targets.capacity() != logits.rows() {
        return Err(Error::shape(OP, "targets", logits.rows(), targets.capacity()));
    }
    loss.loss.check_all(targets.list(), logits.cols())?;
    let bytes = (logits.len() * (size_of::<T::Stat>() + size_of::<T>())) as u64;
    device.record("label_head.loss", Work::new(10 * logits.len() as u64, bytes));
    match runner::<T>(device, OP)? {
        Runner::Cpu => {
            for (row, target) in targets.list().iter().enumerate() {
                let z: Vec<f64> = logits.row(row).iter().map(|z| z.to_f64()).collect();
                let factor = targets.scale() * f64::from(target.weight);
                let (_, slopes) = loss.loss.of(&target.label, &z);
                let to = &mut d_logits.data_mut()[row * z.len()..(row + 1) * z.len()];
                to.iter_mut().zip(slopes).for_each(|(d, slope)| *d = T::from_f64(factor * slope));
            }
        }
        Runner::Gpu => gpu::loss(device, loss, logits, targets, d_logits)?,
        Runner::Skip => {}
    }
    Ok(())
}
