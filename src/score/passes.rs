//! Rows in passes that fit the memory: how they are cut, and several packed prompts in one batch.

use std::ops::Range;

use crate::batch::{Batch, Segment, Target};
use crate::config::Batching;
use crate::data::collate::Choices;
use crate::data::packing::{BatchBy, micro_batches};
use crate::error::Result;

/// A batch, and which of its targets belong together: a row's in logprob mode, a choice's in choice mode.
#[derive(Debug, Default)]
pub(super) struct Packed {
    pub(super) batch: Batch,
    /// Indices into the batch's targets, per unit.
    pub(super) units: Vec<Vec<usize>>,
}

impl Packed {
    /// Appends a prompt with its choices; every choice is a unit.
    pub(super) fn push(&mut self, choices: Choices) {
        let first = append(&mut self.batch, choices.batch);
        let moved = |targets: Vec<usize>| targets.into_iter().map(|t| t + first).collect();
        self.units.extend(choices.targets.into_iter().map(moved));
    }
}

/// Appends the rows, segments and targets of `other`, and returns the index of its first target.
pub(super) fn append(batch: &mut Batch, other: Batch) -> usize {
    let (rows, segments, targets) = (batch.total_tokens(), batch.segments.len(), batch.targets.len());
    batch.input_ids.extend(other.input_ids);
    batch.segments.extend(other.segments.into_iter().map(|segment| Segment {
        start: segment.start + rows,
        prefix: segment.prefix.map(|prefix| prefix + segments),
        sample: segment.sample + segments as u32,
        ..segment
    }));
    batch.targets.extend(other.targets.into_iter().map(|target| Target { row: target.row + rows, ..target }));
    targets
}

/// Cuts rows of these lengths into passes, in order: batches as configured, each in parts of at most `max_tokens` tokens; a
/// longer row is alone.
///
/// # Errors
/// As [`micro_batches`].
pub(super) fn passes(lengths: &[usize], by: Batching, max_tokens: usize) -> Result<Vec<Range<usize>>> {
    let order: Vec<usize> = (0..lengths.len()).collect();
    let batches = match by {
        Batching::Samples(rows) => micro_batches(lengths, &order, BatchBy::Samples(rows))?,
        Batching::Tokens(budget) => {
            // A row that alone is longer fills its batch. It does not break a rule as it would in training, where it would
            // change what a step is.
            let lengths: Vec<usize> = lengths.iter().map(|&length| length.clamp(1, budget)).collect();
            micro_batches(&lengths, &order, BatchBy::Tokens(budget))?
        }
    };
    let mut passes: Vec<Range<usize>> = Vec::new();
    for batch in batches {
        let mut left = 0;
        for (i, row) in batch.into_iter().enumerate() {
            match passes.last_mut().filter(|_| i > 0 && lengths[row] <= left) {
                Some(pass) => {
                    pass.end = row + 1;
                    left -= lengths[row];
                }
                None => {
                    passes.push(row..row + 1);
                    left = max_tokens.saturating_sub(lengths[row]);
                }
            }
        }
    }
    Ok(passes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::collate::collate_choices;
    use crate::data::encode::{Asked, Continuation};

    #[test]
    fn passes_tile_the_rows_within_both_limits() {
        let cut = |by, max_tokens| passes(&[3, 3, 9, 1, 1, 1], by, max_tokens).unwrap();
        assert_eq!(cut(Batching::Samples(4), 100), [0..4, 4..6]);
        assert_eq!(cut(Batching::Samples(6), 6), [0..2, 2..3, 3..6]);
        assert_eq!(cut(Batching::Tokens(6), 100), [0..2, 2..3, 3..6]);
        assert_eq!(cut(Batching::Tokens(100), 1), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6]);
    }

    #[test]
    fn an_appended_prompt_keeps_its_own_continuations() {
        let answer = |ids: &[u32]| Continuation { ids: ids.to_vec(), scored: 0..ids.len() };
        let answers = || vec![answer(&[5, 6]), answer(&[7])];
        let asked = |prompt: &[u32]| Asked { record: 0, prompt: prompt.to_vec(), answers: answers() };
        let mut packed = Packed::default();
        packed.push(collate_choices(&asked(&[1, 2, 3]), 0));
        packed.push(collate_choices(&asked(&[1, 4]), 0));
        packed.batch.validate(8, 4, 0).unwrap();
        assert_eq!(packed.batch.input_ids, [1, 2, 3, 5, 1, 4, 5]);
        assert_eq!(packed.batch.position_ids(), [0, 1, 2, 3, 0, 1, 2]);
        let prefixes: Vec<_> = packed.batch.segments.iter().map(|s| s.prefix).collect();
        assert_eq!(prefixes, [None, Some(0), None, Some(2)]);
        let tokens = |unit: &Vec<usize>| -> Vec<(usize, u32)> {
            unit.iter().map(|&t| (packed.batch.targets[t].row, packed.batch.targets[t].token)).collect()
        };
        let units: Vec<_> = packed.units.iter().map(tokens).collect();
        assert_eq!(units, [vec![(2, 5), (3, 6)], vec![(2, 7)], vec![(5, 5), (6, 6)], vec![(5, 7)]]);
    }
}
