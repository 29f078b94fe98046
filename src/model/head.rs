//! What reads the final hidden states of the rows that a batch has targets for.

use super::block::Pass;
use super::weights::Weights;
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::linear_cross_entropy::{self, Scores};
use crate::tensor::Real;

/// The head of a model.
#[derive(Debug)]
pub enum Head<T: Real> {
    /// Log-probabilities of next tokens.
    Tokens(TokenHead<T>),
}

/// The head of a language model: logits are the products with the rows of a matrix.
#[derive(Debug)]
pub struct TokenHead<T: Real> {
    /// `[vocab_size, hidden_size]`; none where the embedding table is the head.
    pub weight: Option<Tensor<T>>,
}

impl<T: Real> Head<T> {
    /// Its own tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor<T>> {
        match self {
            Self::Tokens(head) => head.weight.iter(),
        }
    }
}

impl<T: Real> Weights<T> {
    /// The matrix that gives logits: the head's own, or the embedding table.
    pub fn logit_matrix(&self) -> &Tensor<T> {
        match &self.head {
            Head::Tokens(head) => head.weight.as_ref().unwrap_or(&self.embed_tokens),
        }
    }

    /// What the targets of the batch get, from the final states `normed` of their rows.
    pub(super) fn score(&self, pass: &Pass<'_, T>, normed: &Tensor<T>, scores: &mut Scores) -> Result<()> {
        self.run_head(pass, normed, scores, None)
    }

    /// The same, and the gradient of the loss with respect to `normed`.
    pub(super) fn score_and_gradient(
        &self,
        pass: &Pass<'_, T>,
        normed: &Tensor<T>,
        scores: &mut Scores,
    ) -> Result<Tensor<T>> {
        let mut d_normed = pass.device.empty(normed.rows(), normed.cols())?;
        self.run_head(pass, normed, scores, Some(&mut d_normed))?;
        Ok(d_normed)
    }

    fn run_head(
        &self,
        pass: &Pass<'_, T>,
        x: &Tensor<T>,
        scores: &mut Scores,
        dx: Option<&mut Tensor<T>>,
    ) -> Result<()> {
        match &self.head {
            Head::Tokens(_) => {
                let (weight, targets) = (self.logit_matrix(), &pass.tables.targets);
                let args = linear_cross_entropy::Forward { x, weight, targets, scores, dx };
                linear_cross_entropy::forward(pass.device, args)
            }
        }
    }

    /// Logits of the rows of `normed`.
    pub(super) fn logits(&self, device: &Device, normed: &Tensor<T>) -> Result<Tensor<T>> {
        linear_cross_entropy::logits(device, normed, self.logit_matrix())
    }
}
