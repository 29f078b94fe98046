//! Order and grouping of the rows: shuffle, evaluation split, micro-batches by number of samples or tokens,
//! and the division of a micro-batch into passes.
//!
//! All of it is a pure function of seed and epoch, so a resumed run needs only its position.

use std::ops::Range;

use crate::config::Batching;
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};

/// Cuts `order` into micro-batches, keeping it: with [`Batching::Samples`] consecutive rows and a short last
/// batch, with [`Batching::Tokens`] each batch takes rows while they fit. `lengths[row]` is in tokens.
///
/// # Errors
/// [`Error::Input`] if the batch size is 0, if a single row exceeds the token budget, or if `order` names a
/// row that has no length.
pub fn micro_batches(lengths: &[usize], order: &[usize], batching: Batching) -> Result<Vec<Vec<usize>>> {
    if let Some(&row) = order.iter().find(|&&row| row >= lengths.len()) {
        return Error::input("DATA", format!("row {row} of the order does not exist")).into();
    }
    match batching {
        Batching::Samples(0) => Error::input("CONFIG", "a micro-batch of no samples")
            .field("batch_size")
            .got(0)
            .expected("1 or more")
            .fix("set --batch-size")
            .into(),
        Batching::Samples(samples) => Ok(order.chunks(samples).map(<[usize]>::to_vec).collect()),
        Batching::Tokens(budget) => by_tokens(lengths, order, budget),
    }
}

/// Cuts consecutive rows of these lengths into passes of at most `max_tokens` tokens; a longer row gets a
/// pass of its own.
pub fn passes(lengths: impl IntoIterator<Item = usize>, max_tokens: usize) -> Vec<Range<usize>> {
    let mut passes: Vec<Range<usize>> = Vec::new();
    let mut left = 0;
    for (row, length) in lengths.into_iter().enumerate() {
        match passes.last_mut() {
            Some(pass) if length <= left => pass.end = row + 1,
            _ => {
                passes.push(row..row + 1);
                left = max_tokens;
            }
        }
        left = left.saturating_sub(length);
    }
    passes
}

/// The passes over rows in file order, for evaluation and scoring: micro-batches, each divided into passes. A
/// row longer than the token budget gets a micro-batch of its own, since that changes no result here.
///
/// # Errors
/// [`Error::Input`] if the batch size is 0.
pub fn passes_in_order(
    lengths: &[usize],
    batching: Batching,
    max_tokens: usize,
) -> Result<Vec<Range<usize>>> {
    let order: Vec<usize> = (0..lengths.len()).collect();
    let longest = match batching {
        Batching::Samples(_) => usize::MAX,
        Batching::Tokens(budget) => budget,
    };
    let within: Vec<usize> = lengths.iter().map(|&length| length.min(longest)).collect();
    let mut all = Vec::new();
    for batch in micro_batches(&within, &order, batching)? {
        let first = batch.first().copied().unwrap_or(0);
        let of_batch = passes(batch.iter().map(|&row| lengths[row]), max_tokens);
        all.extend(of_batch.into_iter().map(|pass| first + pass.start..first + pass.end));
    }
    Ok(all)
}

fn by_tokens(lengths: &[usize], order: &[usize], budget: usize) -> Result<Vec<Vec<usize>>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut left = 0;
    for &row in order {
        let length = lengths[row];
        if length > budget {
            return Error::input("CONFIG", format!("example {row} is longer than a whole micro-batch"))
                .field("tokens_per_batch")
                .got(format!("{length} tokens"))
                .expected(format!("at most {budget}"))
                .fix("raise --tokens-per-batch or lower --max-seq-length")
                .into();
        }
        match batches.last_mut() {
            Some(batch) if length <= left => batch.push(row),
            _ => {
                batches.push(vec![row]);
                left = budget;
            }
        }
        left -= length;
    }
    Ok(batches)
}

/// The order of `rows` rows in `epoch`; without `shuffle` the order of the file.
pub fn epoch_order(rows: usize, seed: u64, epoch: u32, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    if shuffle {
        Stream::new(seed, Purpose::Shuffle, epoch).shuffle(&mut order);
    }
    order
}

/// Splits `rows` rows into (training, evaluation), both in file order. The evaluation part is `share` of the rows, rounded, at
/// least one row and never all of them; a `share` of 1 or more is a number of rows.
///
/// # Errors
/// [`Error::Input`] unless `share` is above 0 and leaves a row to train on.
pub fn split_eval(rows: usize, share: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    let is_count = share >= 1.0 && share.fract() == 0.0;
    if !(share > 0.0 && share < 1.0 || is_count) {
        return Error::input("CONFIG", "the evaluation part is neither a share nor a number of rows")
            .field("eval_fraction")
            .got(share)
            .expected("a number between 0 and 1, or a number of rows")
            .fix("use for example --eval-fraction 0.1")
            .into();
    }
    if rows < 2 {
        return Error::input("DATA", "too few rows to split")
            .got(format!("{rows} rows"))
            .expected("2 or more")
            .fix("leave out --eval-fraction, or give --eval-file")
            .into();
    }
    if is_count && share >= rows as f64 {
        return Error::input("CONFIG", "no row would be left to train on")
            .field("eval_fraction")
            .got(format!("{share} rows"))
            .expected(format!("at most {} of the {rows} rows", rows - 1))
            .fix("hold out fewer rows, or give --eval-file")
            .into();
    }
    let eval = match is_count {
        true => share as usize,
        false => ((rows as f64 * share).round() as usize).clamp(1, rows - 1),
    };
    let mut train: Vec<usize> = (0..rows).collect();
    Stream::new(seed, Purpose::Split, 0).shuffle(&mut train);
    let mut held_out = train.split_off(rows - eval);
    train.sort_unstable();
    held_out.sort_unstable();
    Ok((train, held_out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn samples_keep_a_short_last_batch() {
        let batches = micro_batches(&[1; 5], &[4, 3, 2, 1, 0], Batching::Samples(2)).unwrap();
        assert_eq!(batches, [vec![4, 3], vec![2, 1], vec![0]]);
    }

    #[test]
    fn tokens_are_filled_in_order() {
        let batches = micro_batches(&[3, 3, 4, 10, 1], &[0, 1, 2, 3, 4], Batching::Tokens(10)).unwrap();
        assert_eq!(batches, [vec![0, 1, 2], vec![3], vec![4]]);
    }

    #[test]
    fn impossible_batches_are_errors() {
        let error = micro_batches(&[3, 11], &[0, 1], Batching::Tokens(10)).unwrap_err().to_string();
        assert!(
            error.contains("got 11 tokens, expected at most 10; fix: raise --tokens-per-batch"),
            "{error}"
        );
        assert!(micro_batches(&[1], &[0], Batching::Samples(0)).is_err());
        assert!(micro_batches(&[1], &[1], Batching::Samples(1)).is_err());
    }

    #[test]
    fn an_order_depends_on_seed_and_epoch_alone() {
        assert_eq!(epoch_order(4, 1, 0, false), [0, 1, 2, 3]);
        assert_eq!(epoch_order(100, 1, 2, true), epoch_order(100, 1, 2, true));
        assert_ne!(epoch_order(100, 1, 2, true), epoch_order(100, 1, 3, true));
        assert_ne!(epoch_order(100, 1, 2, true), epoch_order(100, 2, 2, true));
    }

    #[test]
    fn both_parts_of_a_split_have_rows() {
        for (rows, fraction, eval) in
            [(2, 0.001, 1), (2, 0.999, 1), (100, 0.1, 10), (3, 0.5, 2), (10, 1.0, 1), (10, 9.0, 9)]
        {
            let (train, held_out) = split_eval(rows, fraction, 7).unwrap();
            assert_eq!((train.len(), held_out.len()), (rows - eval, eval));
            let mut all = [train, held_out].concat();
            all.sort_unstable();
            assert_eq!(all, (0..rows).collect::<Vec<_>>());
        }
        for (rows, fraction) in [(1, 0.5), (10, 0.0), (10, 1.5), (10, 10.0), (10, f64::NAN)] {
            assert!(split_eval(rows, fraction, 7).is_err());
        }
    }

    #[test]
    fn passes_are_cut_where_the_next_row_does_not_fit() {
        let cut = |lengths: &[usize], max| passes(lengths.iter().copied(), max);
        assert_eq!(cut(&[3, 3, 9, 1, 1, 1], 6), [0..2, 2..3, 3..6]);
        assert_eq!(cut(&[3, 3, 9, 1, 1, 1], 1), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6]);
        assert_eq!(cut(&[3, 3], usize::MAX).len(), 1);
        assert!(cut(&[], 6).is_empty());
    }

    #[test]
    fn passes_in_order_tile_the_rows_within_both_limits() {
        let cut = |batching, max| passes_in_order(&[3, 3, 9, 1, 1, 1], batching, max).unwrap();
        assert_eq!(cut(Batching::Samples(4), 100), [0..4, 4..6]);
        assert_eq!(cut(Batching::Samples(6), 6), [0..2, 2..3, 3..6]);
        assert_eq!(cut(Batching::Tokens(6), 100), [0..2, 2..3, 3..6]);
        assert_eq!(cut(Batching::Tokens(100), 1), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6]);
        assert!(passes_in_order(&[1], Batching::Samples(0), 9).is_err());
    }

    proptest! {
        #[test]
        fn every_row_is_packed_once_in_order_and_within_the_budget(
            lengths in proptest::collection::vec(1usize..50, 0..60),
            budget in 50usize..200,
            seed: u64,
        ) {
            let order = epoch_order(lengths.len(), seed, 0, true);
            let batches = micro_batches(&lengths, &order, Batching::Tokens(budget)).unwrap();
            let tokens = |batch: &Vec<usize>| batch.iter().map(|&row| lengths[row]).sum::<usize>();
            prop_assert_eq!(batches.concat(), order);
            prop_assert!(batches.iter().all(|batch| !batch.is_empty() && tokens(batch) <= budget));
            for pair in batches.windows(2) {
                prop_assert!(tokens(&pair[0]) + lengths[pair[1][0]] > budget, "a batch was closed too early");
            }
        }
    }
}
