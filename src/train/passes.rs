//! The rows of a micro-batch as passes: cut to the tokens that are computed at once, packed, and halved where they do not fit.

use super::prepare::Row;
use crate::batch::Batch;
use crate::config::TrainConfig;
use crate::config::head::{HeadSpec, Pool};
use crate::data::collate::{collate, collate_labels, collate_shared};
use crate::data::packing::passes;
use crate::model::PassCapacity;

/// The passes that a micro-batch is computed in.
pub(super) fn passes_of<'r, 'a>(
    rows: &'r [&'a Row],
    config: &TrainConfig,
) -> impl Iterator<Item = &'r [&'a Row]> + use<'r, 'a> {
    let lengths = rows.iter().map(|row| row.example.len());
    passes(lengths, config.max_tokens_per_pass).into_iter().map(|pass| &rows[pass])
}

/// How rows become a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PackAs {
    /// Tokens are predicted. With `share_prefix`, starts that rows have in common are computed once.
    Tokens { share_prefix: bool },
    /// Sequences are labelled by a head that reads these states.
    Labels(Pool),
}

impl PackAs {
    /// For training with this head.
    pub(super) fn of(config: &TrainConfig, head: &HeadSpec) -> Self {
        match head {
            HeadSpec::Tokens => Self::Tokens { share_prefix: config.share_prefix },
            HeadSpec::Labels(head) => Self::Labels(head.pool),
        }
    }

    /// The same without shared starts, as evaluations have it.
    pub(super) fn unshared(self) -> Self {
        match self {
            Self::Tokens { .. } => Self::Tokens { share_prefix: false },
            Self::Labels(pool) => Self::Labels(pool),
        }
    }
}

/// The rows of one pass as a batch. `first_sample` is the number of the first row within the step: with the position it names
/// a dropout mask, so that masks do not depend on how a step is cut into passes.
pub(super) fn packed(rows: &[&Row], pack_as: PackAs, first_sample: u32) -> Batch {
    let examples: Vec<_> = rows.iter().map(|row| &row.example).collect();
    let (mut batch, first) = match pack_as {
        // A shared prefix is a segment of its own: there are fewer than twice as many segments as rows.
        PackAs::Tokens { share_prefix: true } => (collate_shared(&examples, 0), 2 * first_sample),
        PackAs::Tokens { share_prefix: false } => (collate(&examples, 0), first_sample),
        PackAs::Labels(pool) => (collate_labels(&examples, 0, pool), first_sample),
    };
    for segment in &mut batch.segments {
        segment.sample += first;
    }
    batch
}

/// The rows of one pass as a batch, or as several of halves of them, each of which fits `capacity`. A row alone always does.
pub(super) fn fitting<'r, 'a>(
    rows: &'r [&'a Row],
    pack_as: PackAs,
    first_sample: u32,
    capacity: Option<PassCapacity>,
) -> Vec<(Batch, &'r [&'a Row])> {
    let batch = packed(rows, pack_as, first_sample);
    if rows.len() < 2 || capacity.is_none_or(|capacity| capacity.holds(PassCapacity::of(&batch))) {
        return vec![(batch, rows)];
    }
    let (left, right) = rows.split_at(rows.len() / 2);
    let mut all = fitting(left, pack_as, first_sample, capacity);
    all.extend(fitting(right, pack_as, first_sample + left.len() as u32, capacity));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::Example;

    const TOKENS: PackAs = PackAs::Tokens { share_prefix: false };

    #[test]
    fn a_pass_beyond_the_room_is_cut_and_keeps_its_rows_and_samples() {
        let row = |len: usize| Row {
            example: Example {
                input_ids: vec![1; len],
                labels: vec![1; len],
                prompt_len: 0,
                record: 0,
                truncated: false,
                ..Example::default()
            },
            place: String::new(),
        };
        let rows = [row(5), row(7), row(3), row(9), row(2)];
        let rows: Vec<&Row> = rows.iter().collect();
        let whole = fitting(&rows, TOKENS, 3, None);
        // The last token of a row is a target alone.
        assert_eq!((whole.len(), whole[0].0.total_tokens()), (1, 21));
        let enough = PassCapacity::of(&whole[0].0);
        assert_eq!(fitting(&rows, TOKENS, 3, Some(enough)).len(), 1);
        let alone = rows.iter().map(|row| PassCapacity::of(&packed(&[row], TOKENS, 0)));
        let least = alone.fold(PassCapacity::default(), PassCapacity::max);
        let two = PassCapacity::of(&packed(&rows[..2], TOKENS, 0)).max(least);
        for capacity in [least, two] {
            let parts = fitting(&rows, TOKENS, 3, Some(capacity));
            assert!(
                parts.len() > 1 && parts.iter().all(|(batch, _)| capacity.holds(PassCapacity::of(batch)))
            );
            let samples =
                parts.iter().flat_map(|(batch, _)| batch.segments.iter().map(|s| (s.sample, s.len)));
            assert!(samples.eq([(3, 4), (4, 6), (5, 2), (6, 8), (7, 1)]), "{capacity:?}");
        }
    }
}
