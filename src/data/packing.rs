//! Order and grouping of the rows: shuffle, evaluation split, micro-batches of a number of samples or of tokens.
//!
//! All of it is a pure function of seed and epoch, so a resumed run needs no more than its position.

use serde::Serialize;

pub use super::collate::{Choices, collate, collate_choices, collate_shared};
use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};

/// What fills a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum BatchBy {
    /// A number of rows.
    Samples(usize),
    /// As many rows as fit into a number of tokens.
    Tokens(usize),
}

/// Cuts `order` into micro-batches, keeping it: with [`BatchBy::Samples`] consecutive rows and a short last batch, with
/// [`BatchBy::Tokens`] each batch takes rows as long as they fit. `lengths[row]` is in tokens.
///
/// # Errors
/// [`Error::Input`] if a batch may hold nothing, if a row alone is longer than the token budget, or if `order` names a row
/// that has no length.
pub fn micro_batches(lengths: &[usize], order: &[usize], by: BatchBy) -> Result<Vec<Vec<usize>>> {
    if let Some(&row) = order.iter().find(|&&row| row >= lengths.len()) {
        return Error::input("DATA", format!("row {row} of the order does not exist")).into();
    }
    match by {
        BatchBy::Samples(0) => Error::input("CONFIG", "a micro-batch of no samples")
            .field("batch_size")
            .got(0)
            .expected("1 or more")
            .fix("set --batch-size")
            .into(),
        BatchBy::Samples(samples) => Ok(order.chunks(samples).map(<[usize]>::to_vec).collect()),
        BatchBy::Tokens(budget) => by_tokens(lengths, order, budget),
    }
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
        let batches = micro_batches(&[1; 5], &[4, 3, 2, 1, 0], BatchBy::Samples(2)).unwrap();
        assert_eq!(batches, [vec![4, 3], vec![2, 1], vec![0]]);
    }

    #[test]
    fn tokens_are_filled_in_order() {
        let batches = micro_batches(&[3, 3, 4, 10, 1], &[0, 1, 2, 3, 4], BatchBy::Tokens(10)).unwrap();
        assert_eq!(batches, [vec![0, 1, 2], vec![3], vec![4]]);
    }

    #[test]
    fn impossible_batches_are_errors() {
        let error = micro_batches(&[3, 11], &[0, 1], BatchBy::Tokens(10)).unwrap_err().to_string();
        assert!(
            error.contains("got 11 tokens, expected at most 10; fix: raise --tokens-per-batch"),
            "{error}"
        );
        assert!(micro_batches(&[1], &[0], BatchBy::Samples(0)).is_err());
        assert!(micro_batches(&[1], &[1], BatchBy::Samples(1)).is_err());
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

    proptest! {
        #[test]
        fn every_row_is_packed_once_in_order_and_within_the_budget(
            lengths in proptest::collection::vec(1usize..50, 0..60),
            budget in 50usize..200,
            seed: u64,
        ) {
            let order = epoch_order(lengths.len(), seed, 0, true);
            let batches = micro_batches(&lengths, &order, BatchBy::Tokens(budget)).unwrap();
            let tokens = |batch: &Vec<usize>| batch.iter().map(|&row| lengths[row]).sum::<usize>();
            prop_assert_eq!(batches.concat(), order);
            prop_assert!(batches.iter().all(|batch| !batch.is_empty() && tokens(batch) <= budget));
            for pair in batches.windows(2) {
                prop_assert!(tokens(&pair[0]) + lengths[pair[1][0]] > budget, "a batch was closed too early");
            }
        }
    }
}
