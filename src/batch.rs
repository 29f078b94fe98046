//! A packed batch: rows without padding, the table of segments they belong to, and the tokens that carry loss.
//!
//! This is the only data structure that data, ops, model and training share. A segment may continue another
//! one ([`Segment::prefix`]: its rows see all rows of that prefix, which is computed once), and its rows
//! belong to an adapter ([`Segment::adapter`]).

use std::ops::Range;

use crate::error::{Error, Result};

/// Label of a token without loss, as in PyTorch and transformers.
pub const IGNORE_INDEX: i64 = -100;

/// A run of consecutive rows of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// First row in the packed batch.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
    /// Index of the earlier segment that this one continues, if any.
    pub prefix: Option<usize>,
    /// Index of the adapter its rows go through.
    pub adapter: usize,
    /// Position id of the first row: 0, or the end of the prefix.
    pub position_offset: usize,
    /// Tokens of the sequence behind these rows, which nothing needs: they only count where a model looks at the length.
    pub tail: usize,
    /// Number of the sample within an optimizer step; the dropout mask depends on it and on the position.
    pub sample: u32,
}

impl Segment {
    /// The rows of the segment in the packed batch.
    pub fn rows(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// One token to predict: `-weight * ln p(token | rows up to row)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenTarget {
    /// The row whose hidden state predicts it. Several targets may share a row.
    pub row: usize,
    /// The token that should come next.
    pub token: u32,
    /// Its weight in the loss.
    pub weight: f32,
}

/// What a sequence is labelled with.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Label {
    /// Nothing: it has logits and no loss.
    #[default]
    None,
    /// A class, by number.
    Class(u32),
    /// One number per output of the head.
    Numbers(Vec<f32>),
}

/// One sequence to label.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelTarget {
    /// The rows that the head reads: one, or all of which it takes the mean. They belong to one segment.
    pub rows: Range<usize>,
    /// Its label.
    pub label: Label,
    /// Its weight in the loss.
    pub weight: f32,
}

/// The targets of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// Next tokens, sorted by row.
    Tokens(Vec<TokenTarget>),
    /// Labels of sequences, sorted by row.
    Labels(Vec<LabelTarget>),
}

/// No targets.
impl Default for Targets {
    fn default() -> Self {
        Self::Tokens(Vec::new())
    }
}

impl Targets {
    /// Number of targets.
    pub fn len(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Labels(labels) => labels.len(),
        }
    }

    /// True if there are no targets.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows that some target needs, sorted, each once.
    pub fn rows(&self) -> Vec<usize> {
        let mut rows: Vec<usize> = match self {
            Self::Tokens(tokens) => tokens.iter().map(|target| target.row).collect(),
            Self::Labels(labels) => labels.iter().flat_map(|target| target.rows.clone()).collect(),
        };
        rows.dedup();
        rows
    }

    /// Sum of the weights.
    pub fn total_weight(&self) -> f64 {
        match self {
            Self::Tokens(tokens) => tokens.iter().map(|target| f64::from(target.weight)).sum(),
            Self::Labels(labels) => labels.iter().map(|target| f64::from(target.weight)).sum(),
        }
    }

    /// The tokens to predict; none where sequences are labelled.
    pub fn tokens(&self) -> &[TokenTarget] {
        match self {
            Self::Tokens(tokens) => tokens,
            Self::Labels(_) => &[],
        }
    }

    /// The tokens to predict, to be changed; they must stay sorted by row. None where sequences are labelled.
    pub fn tokens_mut(&mut self) -> Option<&mut Vec<TokenTarget>> {
        match self {
            Self::Tokens(tokens) => Some(tokens),
            Self::Labels(_) => None,
        }
    }

    /// The sequences to label; none where tokens are predicted.
    pub fn labels(&self) -> &[LabelTarget] {
        match self {
            Self::Labels(labels) => labels,
            Self::Tokens(_) => &[],
        }
    }
}

/// A packed batch. Invariants (checked by [`Batch::validate`]): segments tile `0..total_tokens` in order, a
/// prefix is an earlier segment of the same adapter, positions continue where the prefix ends, targets are
/// sorted by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Token ids, `[total_tokens]`.
    pub input_ids: Vec<u32>,
    /// The segments, in row order.
    pub segments: Vec<Segment>,
    /// What carries loss.
    pub targets: Targets,
    /// Type of every token, `[total_tokens]`; all 0 if it is empty. Only some encoders read it.
    pub token_type_ids: Vec<u32>,
}

/// Consecutive rows that go through one adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterRows {
    /// Index of the adapter.
    pub adapter: usize,
    /// The rows.
    pub rows: Range<usize>,
}

impl Batch {
    /// Number of packed rows.
    pub fn total_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Appends a segment with its tokens; `prefix` names an earlier segment that it continues. Returns its index.
    pub fn push_segment(&mut self, input_ids: &[u32], prefix: Option<usize>, adapter: usize) -> usize {
        let position_offset = prefix.map_or(0, |p| self.segments[p].position_offset + self.segments[p].len);
        let start = self.input_ids.len();
        self.input_ids.extend_from_slice(input_ids);
        let sample = self.segments.len() as u32;
        self.segments.push(Segment {
            start,
            len: input_ids.len(),
            prefix,
            adapter,
            position_offset,
            tail: 0,
            sample,
        });
        self.segments.len() - 1
    }

    /// Cumulative row counts, `[segments + 1]`, as flash-attention takes them.
    pub fn cu_seqlens(&self) -> Vec<usize> {
        let ends = self.segments.iter().map(|s| s.start + s.len);
        std::iter::once(0).chain(ends).collect()
    }

    /// Position id of every row, `[total_tokens]`.
    pub fn position_ids(&self) -> Vec<usize> {
        self.segments.iter().flat_map(|s| s.position_offset..s.position_offset + s.len).collect()
    }

    /// Sum of the target weights: the denominator of the loss.
    pub fn total_weight(&self) -> f64 {
        self.targets.total_weight()
    }

    /// The rows that some target needs, sorted, each once.
    pub fn target_rows(&self) -> Vec<usize> {
        self.targets.rows()
    }

    /// Runs of rows by adapter, in row order, neighbours merged.
    pub fn adapter_rows(&self) -> Vec<AdapterRows> {
        let mut runs: Vec<AdapterRows> = Vec::new();
        for segment in &self.segments {
            match runs.last_mut() {
                Some(run) if run.adapter == segment.adapter => run.rows.end = segment.start + segment.len,
                _ => runs.push(AdapterRows { adapter: segment.adapter, rows: segment.rows() }),
            }
        }
        runs
    }

    /// Checks every invariant, and that tokens, positions and adapters are within the model's limits.
    ///
    /// # Errors
    /// [`Error::Input`] that names the segment, row or token.
    pub fn validate(&self, vocab_size: usize, max_position: usize, adapters: usize) -> Result<()> {
        let bad = |what: String| -> Result<()> { Error::input("BATCH", what).into() };
        let mut next = 0;
        for (i, segment) in self.segments.iter().enumerate() {
            if segment.start != next || segment.len == 0 {
                return bad(format!("segment {i} starts at row {} with {} rows", segment.start, segment.len));
            }
            next += segment.len;
            let offset = match segment.prefix {
                None => 0,
                Some(p) if p < i && self.segments[p].adapter == segment.adapter => {
                    self.segments[p].position_offset + self.segments[p].len
                }
                Some(p) => return bad(format!("segment {i} cannot continue segment {p}")),
            };
            if segment.position_offset != offset || offset + segment.len > max_position {
                return Error::input("BATCH", format!("segment {i} is too long for the model"))
                    .got(format!("{} positions", offset + segment.len))
                    .expected(format!("at most {max_position}"))
                    .fix("lower --max-seq-length")
                    .into();
            }
            if adapters > 0 && segment.adapter >= adapters {
                return bad(format!("segment {i} names adapter {} of {adapters}", segment.adapter));
            }
        }
        if next != self.input_ids.len() {
            return bad(format!("{next} rows in segments, {} tokens", self.input_ids.len()));
        }
        let known = |token: u32| (token as usize) < vocab_size;
        if let Some(token) = self.input_ids.iter().find(|&&t| !known(t)) {
            return bad(format!("token id {token} is not below the vocabulary size {vocab_size}"));
        }
        if !self.token_type_ids.is_empty() && self.token_type_ids.len() != next {
            return bad(format!("{next} tokens, {} token types", self.token_type_ids.len()));
        }
        let mut end = 0;
        for (i, target) in self.targets.labels().iter().enumerate() {
            let rows = &target.rows;
            let segment = self.segments.iter().find(|segment| segment.rows().contains(&rows.start));
            let is_within = segment.is_some_and(|segment| rows.end <= segment.start + segment.len);
            if rows.start < end || rows.is_empty() || !is_within || !target.weight.is_finite() {
                return bad(format!("label {i} is out of range or out of order: {target:?}"));
            }
            end = rows.end;
        }
        let targets = self.targets.tokens();
        for (i, target) in targets.iter().enumerate() {
            let sorted = i == 0 || targets[i - 1].row <= target.row;
            if target.row >= next || !known(target.token) || !sorted || !target.weight.is_finite() {
                return bad(format!("target {i} is out of range or out of order: {target:?}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let mut batch = Batch::default();
        let prompt = batch.push_segment(&[1, 2, 3], None, 0);
        batch.push_segment(&[4], Some(prompt), 0);
        batch.push_segment(&[5, 6], Some(prompt), 0);
        batch.push_segment(&[7], None, 1);
        batch.targets = Targets::Tokens(vec![
            TokenTarget { row: 2, token: 4, weight: 1.0 },
            TokenTarget { row: 2, token: 5, weight: 1.0 },
            TokenTarget { row: 4, token: 6, weight: 0.5 },
        ]);
        batch
    }

    #[test]
    fn positions_go_on_where_the_prefix_ends() {
        let batch = batch();
        batch.validate(8, 5, 2).unwrap();
        assert_eq!(batch.position_ids(), [0, 1, 2, 3, 3, 4, 0]);
        assert_eq!(batch.cu_seqlens(), [0, 3, 4, 6, 7]);
        assert_eq!(batch.target_rows(), [2, 4]);
        assert_eq!(batch.total_weight(), 2.5);
        let runs = batch.adapter_rows();
        assert_eq!(runs, [AdapterRows { adapter: 0, rows: 0..6 }, AdapterRows { adapter: 1, rows: 6..7 }]);
    }

    #[test]
    fn every_limit_is_checked() {
        assert!(batch().validate(7, 5, 2).is_err(), "token 7");
        assert!(batch().validate(8, 4, 2).is_err(), "position 4");
        assert!(batch().validate(8, 5, 1).is_err(), "adapter 1");
        let mut swapped = batch();
        swapped.targets.tokens_mut().unwrap().swap(0, 2);
        assert!(swapped.validate(8, 5, 2).is_err(), "order of targets");
        let mut forward = batch();
        forward.segments[1].prefix = Some(2);
        assert!(forward.validate(8, 5, 2).is_err(), "a later prefix");
        let mut holes = batch();
        holes.segments[1].start = 4;
        assert!(holes.validate(8, 5, 2).is_err(), "a hole");
    }
}
