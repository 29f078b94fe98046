//! What reads the final hidden states of the rows that a batch has targets for.

use super::adapter::Adapter;
use super::block::Pass;
use super::label_head::LabelHead;
use super::weights::Weights;
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::label_head::{LabelScore, LabelScores, PreparedLoss};
use crate::ops::linear_cross_entropy::{self, Scores, TargetScore};
use crate::tensor::Real;

/// The head of a model.
#[derive(Debug)]
pub enum Head<T: Real> {
    /// Log-probabilities of next tokens.
    Tokens(TokenHead<T>),
    /// Labels or numbers of sequences.
    Labels(LabelHead<T>),
}

/// The head of a language model: logits are the products with the rows of a matrix.
#[derive(Debug)]
pub struct TokenHead<T: Real> {
    /// `[vocab_size, hidden_size]`; none where the embedding table is the head.
    pub weight: Option<Tensor<T>>,
}

/// What the head found for the targets of a batch, in their order.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// Log-probabilities of tokens.
    Tokens(Vec<TargetScore>),
    /// Losses and logits of sequences.
    Labels(Vec<LabelScore>),
}

impl Found {
    /// Of tokens; nothing where sequences are labelled.
    pub fn tokens(self) -> Vec<TargetScore> {
        match self {
            Self::Tokens(scores) => scores,
            Self::Labels(_) => Vec::new(),
        }
    }

    /// Of sequences; nothing where tokens are predicted.
    pub fn labels(self) -> Vec<LabelScore> {
        match self {
            Self::Labels(scores) => scores,
            Self::Tokens(_) => Vec::new(),
        }
    }
}

/// Where what the head finds goes.
pub(super) enum Sink<'a> {
    /// Of tokens.
    Tokens(&'a mut Scores),
    /// Of sequences, whose loss this is.
    Labels(&'a PreparedLoss, &'a mut LabelScores),
}

impl<T: Real> Head<T> {
    /// Its own frozen tensors.
    pub fn tensors(&self) -> Vec<&Tensor<T>> {
        match self {
            Self::Tokens(head) => head.weight.iter().collect(),
            Self::Labels(head) => head.tensors(),
        }
    }
}

impl<T: Real> Weights<T> {
    /// The matrix that gives logits of tokens: the head's own, or the embedding table.
    pub fn logit_matrix(&self) -> &Tensor<T> {
        match &self.head {
            Head::Tokens(TokenHead { weight: Some(weight) }) => weight,
            Head::Tokens(_) | Head::Labels(_) => &self.embed_tokens,
        }
    }

    /// What the targets of the batch get, from the final states `normed` of their rows.
    pub(super) fn score(&self, pass: &Pass<'_, T>, normed: Tensor<T>, sink: Sink<'_>) -> Result<()> {
        match (&self.head, sink) {
            (Head::Tokens(_), Sink::Tokens(scores)) => self.run_tokens(pass, &normed, scores, None),
            (Head::Labels(head), Sink::Labels(loss, scores)) => head.score(pass, normed, (loss, scores)),
            _ => Err(other_head()),
        }
    }

    /// The same, and the gradient of the loss with respect to `normed`; gradients of the trained part of the head are added to
    /// `grads`.
    pub(super) fn score_and_gradient(
        &self,
        pass: &Pass<'_, T>,
        normed: Tensor<T>,
        sink: Sink<'_>,
        grads: &mut [Adapter<T::Stat>],
    ) -> Result<Tensor<T>> {
        match (&self.head, sink) {
            (Head::Tokens(_), Sink::Tokens(scores)) => {
                let mut d_normed = pass.device.empty(normed.rows(), normed.cols())?;
                self.run_tokens(pass, &normed, scores, Some(&mut d_normed))?;
                Ok(d_normed)
            }
            (Head::Labels(head), Sink::Labels(loss, scores)) => {
                head.score_and_gradient(pass, normed, (loss, scores), grads)
            }
            _ => Err(other_head()),
        }
    }

    fn run_tokens(
        &self,
        pass: &Pass<'_, T>,
        x: &Tensor<T>,
        scores: &mut Scores,
        dx: Option<&mut Tensor<T>>,
    ) -> Result<()> {
        let (weight, targets) = (self.logit_matrix(), &pass.tables.targets);
        let args = linear_cross_entropy::Forward { x, weight, targets, scores, dx };
        linear_cross_entropy::forward(pass.device, args)
    }

    /// Logits of tokens for the rows of `normed`.
    pub(super) fn logits(&self, device: &Device, normed: &Tensor<T>) -> Result<Tensor<T>> {
        match &self.head {
            Head::Tokens(_) => linear_cross_entropy::logits(device, normed, self.logit_matrix()),
            Head::Labels(_) => Err(other_head()),
        }
    }
}

/// The error of a batch with targets that the head of the model does not have.
fn other_head() -> Error {
    Error::shape("head", "targets", "those of the model's head: tokens, or labels of sequences", "the others")
}
