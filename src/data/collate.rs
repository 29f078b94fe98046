//! Collates examples into one packed [`Batch`]: labels are shifted into targets, and rows without effect on
//! the loss are left out.
//!
//! Row `t` of an example predicts token `t + 1`, so there is a target at `t` if `labels[t + 1]` is
//! supervised. In a causal model the rows after the last such `t` have no effect on the loss; they are
//! dropped. [`collate_shared`] packs a prompt that several examples share only once; sums over targets stay
//! the same.

use super::encode::{Asked, Continuation, Example};
use crate::batch::{Batch, IGNORE_INDEX, LabelTarget, Targets, TokenTarget};
use crate::config::head::Pool;

/// Minimum length of a shared prefix that becomes a segment of its own. A shorter one saves less than a
/// segment costs.
pub const MIN_SHARED_TOKENS: usize = 16;

/// Packs examples, each in a segment of its own, for the adapter with index `adapter`. An example without
/// targets contributes no segment.
pub fn collate(examples: &[&Example], adapter: usize) -> Batch {
    let (mut batch, mut targets) = (Batch::default(), Vec::new());
    for example in examples {
        let rows = used_rows(example);
        if rows == 0 {
            continue;
        }
        let start = batch.total_tokens();
        let segment = batch.push_segment(&example.input_ids[..rows], None, adapter);
        batch.segments[segment].tail = example.len() - rows;
        targets.extend(predictions(example).map(|(t, token)| TokenTarget {
            row: start + t,
            token,
            weight: 1.0,
        }));
    }
    batch.targets = Targets::Tokens(targets);
    batch
}

/// As [`collate`], but a prefix of 16 or more tokens that at least two examples share becomes one segment,
/// which the rest of each example continues. The targets are those of [`collate`] in another order; several
/// may share a row.
pub fn collate_shared(examples: &[&Example], adapter: usize) -> Batch {
    let used: Vec<&Example> = examples.iter().copied().filter(|example| used_rows(example) > 0).collect();
    let ids: Vec<&[u32]> = used.iter().map(|example| &example.input_ids[..used_rows(example)]).collect();
    let (mut batch, mut targets) = (Batch::default(), Vec::new());
    let spans = share(&ids, adapter, &mut batch);
    for (example, spans) in used.iter().zip(&spans) {
        let mut spans = spans.iter().copied().peekable();
        for (t, token) in predictions(example) {
            while spans.peek().is_some_and(|span| t >= span.position + span.len) {
                spans.next();
            }
            // The spans of an example tile its rows, so there is one.
            if let Some(span) = spans.peek() {
                targets.push(TokenTarget { row: span.row + t - span.position, token, weight: 1.0 });
            }
        }
    }
    targets.sort_by_key(|target: &TokenTarget| (target.row, target.token));
    batch.targets = Targets::Tokens(targets);
    batch
}

/// Packs sequences that are labelled as a whole, for a head that reads `pool` of each.
pub fn collate_labels(examples: &[&Example], adapter: usize, pool: Pool) -> Batch {
    let (mut batch, mut targets) = (Batch::default(), Vec::new());
    for example in examples.iter().filter(|example| !example.is_empty()) {
        let start = batch.total_tokens();
        batch.push_segment(&example.input_ids, None, adapter);
        let rows = pool.rows(start..start + example.len());
        targets.push(LabelTarget { rows, label: example.label.clone(), weight: 1.0 });
    }
    let has_types = |example: &&Example| !example.token_type_ids.is_empty();
    if examples.iter().any(has_types) {
        for example in examples {
            match has_types(example) {
                true => batch.token_type_ids.extend(&example.token_type_ids),
                false => batch.token_type_ids.resize(batch.token_type_ids.len() + example.len(), 0),
            }
        }
    }
    batch.targets = Targets::Labels(targets);
    batch
}

/// A prompt with its continuations, packed.
#[derive(Debug, Clone, PartialEq)]
pub struct Choices {
    /// The prompt as one segment, and one segment per choice that continues it.
    pub batch: Batch,
    /// For every choice the indices of its targets in `batch.targets`, in the order of its tokens.
    pub targets: Vec<Vec<usize>>,
}

/// Packs the prompt once and every answer after it; the scored tokens of an answer are targets.
pub fn collate_choices(asked: &Asked, adapter: usize) -> Choices {
    let (mut batch, mut all) = (Batch::default(), Vec::new());
    let root = batch.push_segment(&asked.prompt, None, adapter);
    let mut targets: Vec<Vec<usize>> = vec![Vec::new(); asked.answers.len()];
    let mut segments = Vec::with_capacity(asked.answers.len());
    for Continuation { ids, .. } in &asked.answers {
        // The last token of an answer has no target.
        let rows = &ids[..ids.len().saturating_sub(1)];
        segments.push(batch.total_tokens());
        if !rows.is_empty() {
            batch.push_segment(rows, Some(root), adapter);
        }
    }
    // Targets are sorted by row: those of the prompt's last row come first.
    let scored = |answer: &Continuation| answer.scored.clone();
    for (answer, targets) in asked.answers.iter().zip(&mut targets) {
        if scored(answer).contains(&0) {
            targets.push(all.len());
            all.push(TokenTarget { row: asked.prompt.len() - 1, token: answer.ids[0], weight: 1.0 });
        }
    }
    for ((answer, start), targets) in asked.answers.iter().zip(segments).zip(&mut targets) {
        for t in scored(answer).filter(|&t| t > 0) {
            targets.push(all.len());
            all.push(TokenTarget { row: start + t - 1, token: answer.ids[t], weight: 1.0 });
        }
    }
    batch.targets = Targets::Tokens(all);
    Choices { batch, targets }
}

/// The rows with targets: row, and the token to predict.
fn predictions(example: &Example) -> impl Iterator<Item = (usize, u32)> + '_ {
    let labels = example.labels.iter().skip(1).enumerate();
    labels
        .filter(|&(_, &label)| label != IGNORE_INDEX)
        .filter_map(|(t, &label)| Some((t, u32::try_from(label).ok()?)))
}

/// Number of rows up to the last one with a target.
fn used_rows(example: &Example) -> usize {
    predictions(example).last().map_or(0, |(t, _)| t + 1).min(example.input_ids.len())
}

/// Rows `position..position + len` of an example, packed from `row` on.
#[derive(Debug, Clone, Copy)]
struct Span {
    position: usize,
    len: usize,
    row: usize,
}

/// Work left in the walk over the trie: the sequences `range` (of the sorted order) agree on all tokens before `from`, which are
/// packed, the last of them in `parent`.
struct Branch {
    range: std::ops::Range<usize>,
    from: usize,
    parent: Option<usize>,
}

/// Packs `sequences` as a trie and returns the spans of rows of each. It uses a stack instead of recursion,
/// because a chain of sequences, each a prefix of the next, is as deep as it is long.
fn share(sequences: &[&[u32]], adapter: usize, batch: &mut Batch) -> Vec<Vec<Span>> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|&i| sequences[i]);
    let mut spans = vec![Vec::new(); sequences.len()];
    let mut stack = vec![Branch { range: 0..order.len(), from: 0, parent: None }];
    while let Some(Branch { range, from, parent }) = stack.pop() {
        let group = &order[range.clone()];
        let (Some(&first), Some(&last)) = (group.first(), group.last()) else { continue };
        // The range is sorted, so a prefix shared by its first and last sequence is shared by all.
        let common = common_prefix(sequences[first], sequences[last]);
        let (mut at, mut parent) = (from, parent);
        if group.len() == 1 || common - from >= MIN_SHARED_TOKENS {
            if common > from {
                let row = batch.total_tokens();
                parent = Some(batch.push_segment(&sequences[first][from..common], parent, adapter));
                for &i in group {
                    spans[i].push(Span { position: from, len: common - from, row });
                }
            }
            at = common;
        }
        if group.len() > 1 {
            split(sequences, &order, range, common, |range| stack.push(Branch { range, from: at, parent }));
        }
    }
    spans
}

/// Parts of the sorted `range` with the same token at `depth`; sequences that end there come one by one.
fn split(
    sequences: &[&[u32]],
    order: &[usize],
    range: std::ops::Range<usize>,
    depth: usize,
    mut emit: impl FnMut(std::ops::Range<usize>),
) {
    let token = |position: usize| sequences[order[position]].get(depth);
    let mut start = range.start;
    while start < range.end {
        let here = token(start);
        let mut end = start + 1;
        while here.is_some() && end < range.end && token(end) == here {
            end += 1;
        }
        emit(start..end);
        start = end;
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
#[path = "collate_tests.rs"]
mod tests;
