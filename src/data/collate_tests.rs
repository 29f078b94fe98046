//! Packing keeps every target with its whole context; sharing only changes its position.

use super::*;
use proptest::prelude::*;

fn example(input_ids: &[u32], labels: &[i64]) -> Example {
    Example {
        input_ids: input_ids.to_vec(),
        labels: labels.to_vec(),
        prompt_len: 0,
        record: 0,
        truncated: false,
        ..Example::default()
    }
}

/// An example whose first `prompt` tokens are not supervised.
fn answer(input_ids: &[u32], prompt: usize) -> Example {
    let label = |(i, &id): (usize, &u32)| if i < prompt { IGNORE_INDEX } else { i64::from(id) };
    example(input_ids, &input_ids.iter().enumerate().map(label).collect::<Vec<_>>())
}

/// Every target with the tokens visible to its row, sorted.
fn contexts(batch: &Batch) -> Vec<(Vec<u32>, u32)> {
    let mut all: Vec<(Vec<u32>, u32)> = batch
        .targets
        .tokens()
        .iter()
        .map(|target| {
            let own = batch.segments.iter().position(|s| s.rows().contains(&target.row)).unwrap();
            let mut seen = batch.input_ids[batch.segments[own].start..=target.row].to_vec();
            let mut next = batch.segments[own].prefix;
            while let Some(segment) = next {
                seen.splice(0..0, batch.input_ids[batch.segments[segment].rows()].iter().copied());
                next = batch.segments[segment].prefix;
            }
            (seen, target.token)
        })
        .collect();
    all.sort();
    all
}

#[test]
fn labels_are_shifted_and_useless_rows_dropped() {
    let batch = collate(
        &[&example(&[5, 6, 7, 8, 9], &[-100, -100, 7, 8, -100]), &answer(&[1, 2], 2), &answer(&[3, 4], 0)],
        2,
    );
    assert_eq!(batch.input_ids, [5, 6, 7, 3]);
    let rows: Vec<(usize, u32)> = batch.targets.tokens().iter().map(|t| (t.row, t.token)).collect();
    assert_eq!(rows, [(1, 7), (2, 8), (3, 4)]);
    assert!(batch.segments.iter().all(|s| s.adapter == 2));
    batch.validate(10, 3, 3).unwrap();
}

#[test]
fn a_shared_prompt_is_packed_once() {
    let prompt: Vec<u32> = (100..120).collect();
    let with = |tail: &[u32]| answer(&[&prompt, tail].concat(), 20);
    let examples = [with(&[1, 2, 3]), with(&[4, 2]), with(&[1, 2, 9]), answer(&[7, 8], 1)];
    let batch = collate_shared(&examples.iter().collect::<Vec<_>>(), 0);
    batch.validate(200, 30, 1).unwrap();
    // 20 shared rows; "1 2", "4" and "1 2" share too little to be shared; then 7.
    assert_eq!(batch.total_tokens(), 20 + 2 + 1 + 2 + 1);
    assert_eq!(batch.segments.iter().filter(|s| s.prefix.is_some()).count(), 3);
    assert_eq!(contexts(&batch), contexts(&collate(&examples.iter().collect::<Vec<_>>(), 0)));
}

#[test]
fn equal_examples_share_every_row() {
    let one = answer(&(0..30).collect::<Vec<_>>(), 10);
    let batch = collate_shared(&[&one, &one, &one], 0);
    assert_eq!((batch.total_tokens(), batch.segments.len(), batch.targets.len()), (29, 1, 60));
    batch.validate(30, 30, 1).unwrap();
}

#[test]
fn a_long_chain_of_beginnings_needs_no_stack() {
    let ids: Vec<u32> = (0..16 * 400).map(|i| i % 97).collect();
    let examples: Vec<Example> = (2..=400).map(|n| answer(&ids[..16 * n], 1)).collect();
    let batch = collate_shared(&examples.iter().collect::<Vec<_>>(), 0);
    assert_eq!(batch.total_tokens(), ids.len() - 1);
    batch.validate(97, ids.len(), 1).unwrap();
}

/// Row and token of targets.
fn tokens_of(batch: &Batch) -> impl Fn(&Vec<usize>) -> Vec<(usize, u32)> {
    |indices| {
        indices.iter().map(|&i| (batch.targets.tokens()[i].row, batch.targets.tokens()[i].token)).collect()
    }
}

#[test]
fn choices_share_their_prompt() {
    let answer = |ids: &[u32], from: usize| Continuation { ids: ids.to_vec(), scored: from..ids.len() };
    let asked = |answers| Asked { record: 0, prompt: vec![1, 2, 3], answers };
    let all = asked(vec![answer(&[4], 0), answer(&[5, 6, 7], 0), answer(&[4, 6], 0)]);
    let Choices { batch, targets } = collate_choices(&all, 0);
    assert_eq!(all.num_rows(), batch.total_tokens());
    batch.validate(8, 5, 1).unwrap();
    assert_eq!(batch.input_ids, [1, 2, 3, 5, 6, 4]);
    let tokens =
        |indices: &Vec<usize>| indices.iter().map(|&i| batch.targets.tokens()[i].token).collect::<Vec<_>>();
    assert_eq!(targets.iter().map(tokens).collect::<Vec<_>>(), [vec![4], vec![5, 6, 7], vec![4, 6]]);
    assert_eq!(targets[1].iter().map(|&i| batch.targets.tokens()[i].row).collect::<Vec<_>>(), [2, 3, 4]);
    // Answers whose beginning is not scored: what the template writes before them, in two ways.
    let Choices { batch, targets } =
        collate_choices(&asked(vec![answer(&[4, 5], 1), answer(&[6, 7, 5], 2)]), 0);
    batch.validate(8, 6, 1).unwrap();
    assert_eq!(batch.input_ids, [1, 2, 3, 4, 6, 7]);
    assert_eq!(targets.iter().map(tokens_of(&batch)).collect::<Vec<_>>(), [vec![(3, 5)], vec![(5, 5)]]);
}

proptest! {
    #[test]
    fn sharing_keeps_every_target_and_its_context(
        pool in proptest::collection::vec(0u32..2, 80),
        cuts in proptest::collection::vec((0usize..80, 0u32..4, 0usize..30), 0..12),
        supervised in proptest::collection::vec(any::<bool>(), 120),
    ) {
        // Beginnings of one sequence with different tails: prefixes of every length occur.
        let examples: Vec<Example> = cuts
            .iter()
            .map(|&(cut, token, tail)| {
                let ids = [&pool[..cut], &vec![token; tail][..]].concat();
                let labels: Vec<i64> = ids.iter().zip(&supervised).map(|(&id, &s)| if s { id.into() } else { IGNORE_INDEX }).collect();
                example(&ids, &labels)
            })
            .collect();
        let examples: Vec<&Example> = examples.iter().collect();
        let (plain, shared) = (collate(&examples, 0), collate_shared(&examples, 0));
        prop_assert!(plain.validate(4, 120, 1).is_ok());
        prop_assert!(shared.validate(4, 120, 1).is_ok());
        prop_assert!(shared.total_tokens() <= plain.total_tokens());
        prop_assert_eq!(contexts(&plain), contexts(&shared));
    }
}

/// A model whose rotation depends on the length of a sequence sees that of the whole one.
#[test]
fn tokens_that_nothing_needs_are_counted() {
    let example = Example {
        input_ids: vec![1; 9],
        labels: [vec![IGNORE_INDEX; 4], vec![1; 2], vec![IGNORE_INDEX; 3]].concat(),
        prompt_len: 4,
        record: 0,
        truncated: false,
        ..Example::default()
    };
    let batch = collate(&[&example], 0);
    assert_eq!((batch.segments[0].len, batch.segments[0].tail), (5, 4));
}
