//! Rows of token ids made elsewhere: ids and labels of one length, padding taken off.

use serde_json::Value;

use super::fields::{Row, array, wrong_type};
use crate::batch::IGNORE_INDEX;
use crate::data::record::Body;
use crate::error::{Error, Result};

pub(super) fn body(row: &mut Row) -> Result<Body> {
    let mut input_ids = numbers(row, "input_ids", "a token id (0 to 4294967295)", |n| u32::try_from(n).ok())?;
    let mut labels = numbers(row, "labels", "a token id, or -100 where not supervised", |n| {
        (n == IGNORE_INDEX || u32::try_from(n).is_ok()).then_some(n)
    })?;
    same_length("labels", "labels", labels.len(), input_ids.len())?;
    if row.says("attention_mask") {
        let mask = numbers(row, "attention_mask", "0 or 1", |n| u8::try_from(n).ok().filter(|n| *n < 2))?;
        same_length("attention_mask", "numbers", mask.len(), input_ids.len())?;
        unpad(&mask, &mut input_ids, &mut labels)?;
    }
    Ok(Body::Tokenised { input_ids, labels })
}

/// Takes the padding at both ends off, which is where the mask is 0.
fn unpad(mask: &[u8], input_ids: &mut Vec<u32>, labels: &mut Vec<i64>) -> Result<()> {
    let start = mask.iter().position(|&there| there == 1).unwrap_or(mask.len());
    let end = mask.iter().rposition(|&there| there == 1).map_or(start, |last| last + 1);
    let refuse =
        |what: &str, field: String, fix: &str| Error::input("DATA", what).field(field).fix(fix).into();
    if let Some(hole) = mask[start..end].iter().position(|&there| there == 0) {
        let at = format!("attention_mask[{}]", start + hole);
        return refuse("a 0 between tokens that count", at, "take the token out of the row");
    }
    let padding = (0..start).chain(end..mask.len());
    if let Some(i) = padding.clone().find(|&i| labels[i] != IGNORE_INDEX) {
        return refuse("a label at a padded position", format!("labels[{i}]"), "write -100 there");
    }
    *input_ids = input_ids[start..end].to_vec();
    *labels = labels[start..end].to_vec();
    Ok(())
}

fn same_length(field: &str, what: &str, got: usize, tokens: usize) -> Result<()> {
    if got == tokens {
        return Ok(());
    }
    Error::input("DATA", "wrong length")
        .field(field)
        .got(format!("{got} {what}"))
        .expected(format!("{tokens}, one per token of \"input_ids\""))
        .fix("give one number per token; labels are -100 where not supervised, and not shifted")
        .into()
}

fn numbers<T>(row: &mut Row, key: &str, expected: &str, accept: impl Fn(i64) -> Option<T>) -> Result<Vec<T>> {
    let one = |(i, value): (usize, Value)| {
        value.as_i64().and_then(&accept).ok_or_else(|| {
            let error = wrong_type("wrong number", &value, expected).field(format!("{key}[{i}]"));
            error.fix("write the rows again with the tokenizer of this model").into()
        })
    };
    array(row, key)?.into_iter().enumerate().map(one).collect()
}
