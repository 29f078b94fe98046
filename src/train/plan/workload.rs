//! Synthetic rows for planning before there is data: their number and length decide memory and work, not their words.

use serde::Serialize;

use crate::batch::{Batch, Label, LabelTarget, Targets, TokenTarget};
use crate::config::ModelConfig;
use crate::config::head::HeadSpec;
use crate::error::{Error, Result};

/// The tokens of one pass: sequences of one length, each with its last tokens supervised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Workload {
    /// Tokens that are computed at once.
    pub tokens: usize,
    /// Tokens of a sequence; the last one may be shorter.
    pub sequence_length: usize,
    /// Part of the tokens that carry loss, above 0 and up to 1; at least one of every sequence.
    pub supervised_share: f64,
}

impl Workload {
    /// Checks every number against the model.
    ///
    /// # Errors
    /// An input error that names the option.
    pub(super) fn check(&self, model: &ModelConfig) -> Result<()> {
        let rule = |good: bool, field: &str, got: &dyn std::fmt::Display, expected: String| match good {
            true => Ok(()),
            false => Error::input("CONFIG", "out of range")
                .field(field)
                .got(got)
                .expected(expected)
                .fix("plan for rows that the model can take")
                .into(),
        };
        let (tokens, length, share) = (self.tokens, self.sequence_length, self.supervised_share);
        rule((1..=MAX_TOKENS).contains(&tokens), "tokens", &tokens, format!("1 to {MAX_TOKENS}"))?;
        let longest = model.max_sequence_length();
        let fits = (1..=longest).contains(&length);
        rule(fits, "sequence_length", &length, format!("1 to {longest}, the positions of the model"))?;
        rule(share > 0.0 && share <= 1.0, "supervised_share", &share, "above 0 and at most 1".to_owned())
    }

    /// The pass, for a model with this head. Where sequences are labelled, each has one label.
    pub(in crate::train) fn batch(&self, head: &HeadSpec) -> Batch {
        let mut batch = Batch::default();
        let (mut tokens, mut labels) = (Vec::new(), Vec::new());
        let ids = vec![0; self.sequence_length.min(self.tokens)];
        while batch.total_tokens() < self.tokens {
            let start = batch.total_tokens();
            let len = self.sequence_length.min(self.tokens - start);
            batch.push_segment(&ids[..len], None, 0);
            match head {
                HeadSpec::Tokens => {
                    let supervised = ((len as f64 * self.supervised_share).round() as usize).clamp(1, len);
                    let rows = start + len - supervised..start + len;
                    tokens.extend(rows.map(|row| TokenTarget { row, token: 0, weight: 1.0 }));
                }
                HeadSpec::Labels(head) => {
                    let label = Label::Numbers(vec![0.0; head.num_labels]);
                    labels.push(LabelTarget { rows: head.pool.rows(start..start + len), label, weight: 1.0 });
                }
            }
        }
        batch.targets = match head {
            HeadSpec::Tokens => Targets::Tokens(tokens),
            HeadSpec::Labels(_) => Targets::Labels(labels),
        };
        batch
    }
}

/// More tokens at once than any machine holds.
const MAX_TOKENS: usize = 1 << 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_tile_the_tokens_and_end_with_their_targets() {
        let workload = Workload { tokens: 250, sequence_length: 100, supervised_share: 0.1 };
        let batch = workload.batch(&HeadSpec::Tokens);
        batch.validate(1, 100, 0).unwrap();
        let lengths: Vec<usize> = batch.segments.iter().map(|s| s.len).collect();
        assert_eq!((lengths, batch.targets.len()), (vec![100, 100, 50], 25));
        assert_eq!((batch.targets.tokens()[0].row, batch.targets.tokens()[24].row), (90, 249));
        let all = Workload { supervised_share: 1.0, tokens: 3, ..workload }.batch(&HeadSpec::Tokens);
        assert_eq!(all.target_rows(), [0, 1, 2]);
        assert_eq!(Workload { supervised_share: 1e-9, ..workload }.batch(&HeadSpec::Tokens).targets.len(), 3);
    }
}
