//! Several packed prompts in one batch, and the assignment of targets to rows or choices.

use crate::batch::{Batch, Segment, TokenTarget};
use crate::data::collate::Choices;

/// A batch with its targets grouped into units: a unit is a row in logprob mode, and a choice in choice mode.
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
    let moved = other.targets.tokens().iter().map(|target| TokenTarget { row: target.row + rows, ..*target });
    if let Some(tokens) = batch.targets.tokens_mut() {
        tokens.extend(moved);
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::collate::collate_choices;
    use crate::data::encode::{Asked, Continuation};

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
            unit.iter()
                .map(|&t| (packed.batch.targets.tokens()[t].row, packed.batch.targets.tokens()[t].token))
                .collect()
        };
        let units: Vec<_> = packed.units.iter().map(tokens).collect();
        assert_eq!(units, [vec![(2, 5), (3, 6)], vec![(2, 7)], vec![(5, 5), (6, 6)], vec![(5, 7)]]);
    }
}
