//! The attention mask of a packed batch, against its definition.

use tanren::batch::Batch;
use tanren::ops::attention::{AttentionPlan, AttnMask, PlanCapacity};

use super::Choices;

/// Most rows of a batch; the rule is checked pair by pair.
const MOST_ROWS: usize = 600;

/// Segments of any length, each alone or behind an earlier one, and some rows as queries.
pub(super) fn attention_plan(input: &[u8]) {
    let mut choices = Choices(input);
    let mut batch = Batch::default();
    while !choices.is_empty() && batch.total_tokens() < MOST_ROWS && batch.segments.len() < 40 {
        let len = match choices.below(4) {
            0 => 1 + choices.below(3),
            1 => 62 + choices.below(5),
            _ => 1 + choices.below(256),
        };
        let count = batch.segments.len();
        let prefix = (count > 0 && choices.below(2) == 1).then(|| choices.below(count));
        batch.push_segment(&vec![0; len], prefix, 0);
    }
    batch.validate(1, usize::MAX, 1).unwrap();
    let total = batch.total_tokens();
    let step = 1 + choices.below(5);
    let some: Vec<usize> = (0..total).filter(|row| row % step == 0 || choices.below(3) == 0).collect();
    let all: Vec<usize> = (0..total).collect();
    let segments = &batch.segments;
    check(&batch, &AttentionPlan::causal(segments), &all, AttnMask::Causal);
    for mask in [AttnMask::Causal, AttnMask::Full, AttnMask::Window(choices.below(200))] {
        for rows in [&some, &all] {
            match AttentionPlan::for_rows(mask, segments, rows) {
                Ok(plan) => check(&batch, &plan, rows, mask),
                Err(_) => assert!(mask != AttnMask::Causal && segments.iter().any(|s| s.prefix.is_some())),
            }
        }
    }
}

/// A query sees the segments that its own one continues, and of its own one what the mask says.
fn check(batch: &Batch, plan: &AttentionPlan, queries: &[usize], mask: AttnMask) {
    assert_eq!(plan.num_query_rows(), queries.len());
    assert_eq!(plan.num_key_rows(), batch.total_tokens());
    let mut next = 0;
    let (mut pairs, mut ranges) = (0_u64, 0);
    for tile in plan.tiles() {
        assert!(tile.rows.start == next && tile.rows.end > next, "tiles cover each row once, in order");
        next = tile.rows.end;
        ranges += tile.keys.len();
        for query in tile.rows.clone() {
            let row = queries[query];
            let mut seen: Vec<usize> = Vec::new();
            for range in &tile.keys {
                let visible = plan.visible(query, range);
                seen.extend(visible.map(|key| range.rows.start + key));
            }
            let mut at = batch.segments.iter().position(|s| s.rows().contains(&row)).unwrap();
            let own = batch.segments[at].rows();
            let mut expected: Vec<usize> = match mask {
                AttnMask::Causal => (own.start..row + 1).collect(),
                AttnMask::Full => own.collect(),
                AttnMask::Window(reach) => own.filter(|key| key.abs_diff(row) <= reach).collect(),
            };
            while let Some(prefix) = batch.segments[at].prefix {
                expected.splice(0..0, batch.segments[prefix].rows());
                at = prefix;
            }
            assert_eq!(seen, expected, "row {row}");
            pairs += seen.len() as u64;
        }
    }
    assert_eq!(next, queries.len());
    assert_eq!(plan.num_pairs(), pairs);
    let room = PlanCapacity::of(&batch.segments);
    assert!(ranges <= room.ranges, "{ranges} ranges, room for {}", room.ranges);
    assert!(queries.len() <= room.query_rows && batch.segments.len() <= room.segments);
}
