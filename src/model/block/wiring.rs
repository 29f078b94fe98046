//! What lies between two sublayers: the residual stream and its norms, forward and backward side by side.
//!
//! The stream meets one norm before every sublayer and one behind the last, `2 * blocks + 1` in all. At each of them
//! `sum = out + residual` and `normed = norm(sum)`, in one kernel, with `out` the output of the sublayer before. The wirings differ in
//! what goes on as residual: the sum (`x + f(norm(x))`), or what the norm made of it (`norm(x + f(x))`). Nothing else in the
//! model chooses between the two.

use std::rc::Rc;

use super::super::policy::Policy;
use super::super::tables::RowSet;
use super::super::weights::NormWeights;
use super::Pass;
use super::linears::{Group, Projection};
use crate::config::Slot;
use crate::config::block::Wiring;
use crate::device::{Class, Tensor};
use crate::error::{Error, Result};
use crate::ops::norm::{self, Norm};
use crate::ops::rows;
use crate::tensor::Real;

/// The stream between two sublayers: what the last one made, and what that is to be added to.
pub(in crate::model) struct Stream<T: Real> {
    pub(super) out: Tensor<T>,
    pub(super) residual: Option<Rc<Tensor<T>>>,
}

/// What a norm leaves for the backward pass.
pub(in crate::model) struct SavedNorm<T: Real> {
    pub(super) sum: Rc<Tensor<T>>,
    pub(super) rstd: Tensor<T::Stat>,
}

/// What the stream is behind a norm.
pub(super) struct Normed<T: Real> {
    pub(super) saved_norm: SavedNorm<T>,
    /// What the next sublayer reads, or the head.
    pub(super) normed: Rc<Tensor<T>>,
    /// `x~ A^T` of the layers that read it.
    pub(super) xa: Projection<T>,
    /// What the output of the next sublayer is added to.
    pub(super) residual: Rc<Tensor<T>>,
}

/// What the backward pass of a norm gives.
pub(super) struct NormBackward<T: Real> {
    /// Of the output of the sublayer before it.
    pub(super) gradient: Gradient<T>,
    /// What the norm made, where that is wanted.
    pub(super) normed: Option<Rc<Tensor<T>>>,
}

/// The gradient of the output of a sublayer, with `dxa` of its last linear layer.
pub(in crate::model) struct Gradient<T: Real> {
    pub(super) d_out: Rc<Tensor<T>>,
    /// Of the sum with the residual: the same, but where the output has dropout.
    pub(super) d_sum: Rc<Tensor<T>>,
    pub(super) dxa: Projection<T>,
}

impl<T: Real> Stream<T> {
    /// The stream that begins with embeddings.
    pub(in crate::model) fn start(embeddings: Tensor<T>) -> Self {
        Self { out: embeddings, residual: None }
    }
}

impl<T: Real> Pass<'_, T> {
    /// Goes through the norm behind the last block: gives what the head reads.
    pub(in crate::model) fn final_norm(&self, stream: Stream<T>) -> Result<(SavedNorm<T>, Tensor<T>)> {
        let Normed { saved_norm, normed, residual, .. } =
            self.add_and_norm(self.last_norm(), stream, None, None)?;
        drop(residual);
        let normed = Rc::try_unwrap(normed)
            .map_err(|_| Error::shape("final_norm", "normed", "one that nobody else holds", "another"))?;
        Ok((saved_norm, normed))
    }

    /// Goes back through the norm behind the last block.
    pub(in crate::model) fn final_norm_backward(
        &self,
        saved_norm: SavedNorm<T>,
        d_normed: Tensor<T>,
    ) -> Result<Gradient<T>> {
        Ok(self.add_and_norm_backward(self.last_norm(), saved_norm, d_normed, None, false)?.gradient)
    }

    /// Index of the norm behind the last block.
    fn last_norm(&self) -> usize {
        2 * self.num_blocks()
    }

    /// Goes through a norm; `readers` are the layers that read what it makes.
    pub(super) fn add_and_norm(
        &self,
        index: usize,
        stream: Stream<T>,
        readers: Option<&Group<'_, T>>,
        keep: Option<Policy>,
    ) -> Result<Normed<T>> {
        let Stream { out: mut sum, residual } = stream;
        // A stream without a residual is a sum already.
        if residual.is_some() {
            self.mask_in_place(index, self.rows_at(index), &mut sum)?;
        }
        let mut rstd = self.place(keep, Class::Rstd).empty(sum.rows(), 1)?;
        let mut normed = self.like(&sum)?;
        let picked = match &residual {
            Some(residual) if self.is_narrowed_at(index) => {
                Some(rows::gather(self.device, &**residual, &self.tables.target_rows)?)
            }
            _ => None,
        };
        let norm = self.norm_at(index);
        let xa = match readers {
            Some(readers) => self.xa(readers, sum.rows(), &self.place(keep, Class::Xa))?,
            None => Projection::none(),
        };
        let is_masked = self.is_masked_behind(index);
        let xa = if norm.fuses() && !is_masked { xa } else { xa.unfused() };
        let args = norm::Forward {
            x: &mut sum,
            residual: picked.as_ref().or(residual.as_deref()),
            norm,
            y: &mut normed,
            rstd: &mut rstd,
            live_rows: self.rows_at(index).live_rows,
            projection: xa.fused(),
        };
        norm::forward(self.device, args)?;
        if is_masked {
            self.mask_in_place(0, self.rows_at(index), &mut normed)?;
        }
        let (sum, normed) = (Rc::new(sum), Rc::new(normed));
        let residual = match self.wiring(index) {
            Wiring::PreNorm => sum.clone(),
            Wiring::PostNorm => normed.clone(),
        };
        Ok(Normed { saved_norm: SavedNorm { sum, rstd }, normed, xa, residual })
    }

    /// What a norm made, again.
    pub(super) fn normed_again(&self, index: usize, saved_norm: &SavedNorm<T>) -> Result<Tensor<T>> {
        let mut normed = self.like(&saved_norm.sum)?;
        let args = norm::Apply {
            s: &saved_norm.sum,
            norm: self.norm_at(index),
            rstd: &saved_norm.rstd,
            y: &mut normed,
            live_rows: self.rows_at(index).live_rows,
        };
        norm::apply(self.device, args)?;
        if self.is_masked_behind(index) {
            self.mask_in_place(0, self.rows_at(index), &mut normed)?;
        }
        Ok(normed)
    }

    /// Goes back through a norm: `d_normed` is the gradient of its output, `carried` the gradient along the residual. Gives the
    /// gradient of the output of the sublayer before it, and where `wants_normed` what the norm made.
    pub(super) fn add_and_norm_backward(
        &self,
        index: usize,
        saved_norm: SavedNorm<T>,
        mut d_normed: Tensor<T>,
        carried: Option<&Tensor<T>>,
        wants_normed: bool,
    ) -> Result<NormBackward<T>> {
        let SavedNorm { sum, rstd } = saved_norm;
        let producer = self.producer(index)?;
        let mut normed = wants_normed.then(|| self.like(&sum)).transpose()?;
        // The residual that a norm before narrowed has all rows.
        let is_narrow = self.is_narrowed_at(index + 1);
        let mut spread = None;
        let d_in = match (self.wiring(index), carried) {
            (_, None) => None,
            (Wiring::PreNorm, Some(carried)) if is_narrow => {
                let mut all = self.device.zeros(sum.rows(), sum.cols())?;
                rows::scatter_add(self.device, carried, &self.tables.target_rows, &mut all)?;
                Some(&*spread.insert(all))
            }
            (Wiring::PreNorm, Some(carried)) => Some(carried),
            (Wiring::PostNorm, Some(carried)) => {
                let own = self.rows_at(index).own.as_ref();
                let rows = if is_narrow { Some(&self.tables.target_rows) } else { own };
                let rows =
                    rows.ok_or_else(|| Error::shape("add_and_norm", "rows", "an index of all", "none"))?;
                rows::scatter_add(self.device, carried, rows, &mut d_normed)?;
                None
            }
        };
        let norm = self.norm_at(index);
        let dxa = self.dxa(&producer, sum.rows())?;
        let dxa = if norm.fuses() && self.base_mask(index).is_none() { dxa } else { dxa.unfused() };
        let mut d_out = self.like(&sum)?;
        let args = norm::Backward {
            dy: &d_normed,
            s: &sum,
            norm,
            rstd: &rstd,
            d_in,
            ds: &mut d_out,
            normed: normed.as_mut(),
            live_rows: self.rows_at(index).live_rows,
            projection: dxa.fused(),
        };
        norm::backward(self.device, args)?;
        let d_sum = Rc::new(d_out);
        let d_out = self.masked(index, self.rows_at(index), &d_sum)?.map_or_else(|| d_sum.clone(), Rc::new);
        let gradient = Gradient { d_out, d_sum, dxa };
        Ok(NormBackward { gradient, normed: normed.map(Rc::new) })
    }

    /// Whether what a norm makes has dropout: that of the embeddings, if they have one. Nothing below it is trained, so that
    /// no gradient ever comes to it.
    fn is_masked_behind(&self, index: usize) -> bool {
        index == 0 && self.config.embed.norm.is_some() && self.base_mask(0).is_some()
    }

    /// The linear layer whose output the norm sees.
    fn producer(&self, index: usize) -> Result<Group<'_, T>> {
        let (layer, slot) = match index {
            i if i % 2 == 1 => (i / 2, Slot::O),
            0 => return Err(Error::shape("add_and_norm", "norm", "one behind a sublayer", 0)),
            i => (i / 2 - 1, Slot::Down),
        };
        self.group(layer, &[slot], self.rows_at(index))
    }

    /// The rows that a norm sees.
    fn rows_at(&self, index: usize) -> &RowSet<T> {
        let narrow = self.is_narrowed_at(index) || index == self.last_norm();
        if narrow { &self.tables.supervised } else { &self.tables.all }
    }

    /// Whether a norm sees fewer rows than the one before: in the last block, behind attention.
    fn is_narrowed_at(&self, index: usize) -> bool {
        index + 1 == self.last_norm()
    }

    /// What goes on as residual behind a norm. Where the embeddings have a norm, the stream is what that makes.
    fn wiring(&self, index: usize) -> Wiring {
        match index {
            0 if self.config.embed.norm.is_some() => Wiring::PostNorm,
            _ => self.spec((index / 2).min(self.num_blocks() - 1)).wiring,
        }
    }

    fn norm_at(&self, index: usize) -> Norm<'_, T> {
        let NormWeights { spec, weight, bias } = &self.weights.norms[index];
        Norm { kind: spec.kind, weight, bias: bias.as_ref(), eps: T::Stat::from_f64(spec.eps) }
    }
}
