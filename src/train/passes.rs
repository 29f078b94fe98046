//! The rows of a micro-batch as passes: cut to the tokens that are computed at once, packed, and halved where they do not fit.

use super::prepare::Row;
use crate::batch::Batch;
use crate::config::TrainConfig;
use crate::data::collate::{collate, collate_shared};
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

/// The rows of one pass as a batch. `first_sample` is the number of the first row within the step: with the position it names
/// a dropout mask, so that masks do not depend on how a step is cut into passes.
pub(super) fn packed(rows: &[&Row], share_prefix: bool, first_sample: u32) -> Batch {
    let examples: Vec<_> = rows.iter().map(|row| &row.example).collect();
    let mut batch = if share_prefix { collate_shared(&examples, 0) } else { collate(&examples, 0) };
    // A shared prefix is a segment of its own: there are fewer than twice as many segments as rows.
    let first = if share_prefix { 2 * first_sample } else { first_sample };
    for segment in &mut batch.segments {
        segment.sample += first;
    }
    batch
}

/// The rows of one pass as a batch, or as several of halves of them, each of which fits `capacity`. A row alone always does.
pub(super) fn fitting<'r, 'a>(
    rows: &'r [&'a Row],
    share_prefix: bool,
    first_sample: u32,
    capacity: Option<PassCapacity>,
) -> Vec<(Batch, &'r [&'a Row])> {
    let batch = packed(rows, share_prefix, first_sample);
    if rows.len() < 2 || capacity.is_none_or(|capacity| capacity.holds(PassCapacity::of(&batch))) {
        return vec![(batch, rows)];
    }
    let (left, right) = rows.split_at(rows.len() / 2);
    let mut all = fitting(left, share_prefix, first_sample, capacity);
    all.extend(fitting(right, share_prefix, first_sample + left.len() as u32, capacity));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::Example;

    #[test]
    fn a_pass_beyond_the_room_is_cut_and_keeps_its_rows_and_samples() {
        let row = |len: usize| Row {
            example: Example {
                input_ids: vec![1; len],
                labels: vec![1; len],
                prompt_len: 0,
                record: 0,
                truncated: false,
            },
            place: String::new(),
        };
        let rows = [row(5), row(7), row(3), row(9), row(2)];
        let rows: Vec<&Row> = rows.iter().collect();
        let whole = fitting(&rows, false, 3, None);
        // The last token of a row is a target alone.
        assert_eq!((whole.len(), whole[0].0.total_tokens()), (1, 21));
        let enough = PassCapacity::of(&whole[0].0);
        assert_eq!(fitting(&rows, false, 3, Some(enough)).len(), 1);
        let alone = rows.iter().map(|row| PassCapacity::of(&packed(&[row], false, 0)));
        let least = alone.fold(PassCapacity::default(), PassCapacity::max);
        let two = PassCapacity::of(&packed(&rows[..2], false, 0)).max(least);
        for capacity in [least, two] {
            let parts = fitting(&rows, false, 3, Some(capacity));
            assert!(
                parts.len() > 1 && parts.iter().all(|(batch, _)| capacity.holds(PassCapacity::of(batch)))
            );
            let samples =
                parts.iter().flat_map(|(batch, _)| batch.segments.iter().map(|s| (s.sample, s.len)));
            assert!(samples.eq([(3, 4), (4, 6), (5, 2), (6, 8), (7, 1)]), "{capacity:?}");
        }
    }
}
