//! Rows of token ids made elsewhere: with labels of their tokens, or one of the whole sequence; padding taken off.

use serde_json::Value;

use super::fields::{Row, array, wrong_type};
use crate::batch::IGNORE_INDEX;
use crate::data::record::{Body, RowLabel};
use crate::error::{Error, Result};

pub(super) fn body(row: &mut Row) -> Result<Body> {
    let mut input_ids = numbers(row, "input_ids", "a token id (0 to 4294967295)", |n| u32::try_from(n).ok())?;
    if !row.says("labels") {
        return labelled(row, input_ids);
    }
    let mut labels = numbers(row, "labels", "a token id, or -100 where not supervised", |n| {
        (n == IGNORE_INDEX || u32::try_from(n).is_ok()).then_some(n)
    })?;
    same_length("labels", "labels", labels.len(), input_ids.len())?;
    if let Some(kept) = unpadded(row, input_ids.len())? {
        let padding = (0..kept.start).chain(kept.end..input_ids.len());
        if let Some(i) = padding.clone().find(|&i| labels[i] != IGNORE_INDEX) {
            let fix = "write -100 there";
            return Error::input("DATA", "a label at a padded position")
                .field(format!("labels[{i}]"))
                .fix(fix)
                .into();
        }
        input_ids = input_ids[kept.clone()].to_vec();
        labels = labels[kept].to_vec();
    }
    Ok(Body::Tokenised { input_ids, labels })
}

/// A sequence with a label as a whole, or without any.
fn labelled(row: &mut Row, mut input_ids: Vec<u32>) -> Result<Body> {
    row.remove("labels");
    let mut token_type_ids = Vec::new();
    if row.says("token_type_ids") {
        token_type_ids = numbers(row, "token_type_ids", "a token type (0, 1)", |n| u32::try_from(n).ok())?;
        same_length("token_type_ids", "numbers", token_type_ids.len(), input_ids.len())?;
    }
    if let Some(kept) = unpadded(row, input_ids.len())? {
        if !token_type_ids.is_empty() {
            token_type_ids = token_type_ids[kept.clone()].to_vec();
        }
        input_ids = input_ids[kept].to_vec();
    }
    let label = match row.remove("label") {
        None | Some(Value::Null) => None,
        Some(value) => Some(label(&value)?),
    };
    Ok(Body::Labelled { input_ids, token_type_ids, label })
}

fn label(value: &Value) -> Result<RowLabel> {
    let expected = "a number, the name of a class, or a list of numbers";
    let wrong = |value: &Value, field: String, fix: &str| -> Error {
        wrong_type("wrong label", value, expected).field(field).fix(fix).into()
    };
    match value {
        Value::String(name) => Ok(RowLabel::Name(name.clone())),
        Value::Number(number) => match number.as_f64() {
            Some(number) if (number as f32).is_finite() => Ok(RowLabel::Number(number)),
            _ => Err(wrong(value, "label".to_owned(), "write a number that fits single precision")),
        },
        Value::Array(items) => {
            let one = |(i, item): (usize, &Value)| {
                let number = item.as_f64().filter(|number| (*number as f32).is_finite());
                number.ok_or_else(|| {
                    wrong(item, format!("label[{i}]"), "write one number per output of the head")
                })
            };
            items.iter().enumerate().map(one).collect::<Result<_>>().map(RowLabel::Numbers)
        }
        other => Err(wrong(other, "label".to_owned(), "write 0 or 1 for false and true")),
    }
}

/// The tokens that are no padding, where the row has a mask: padding at both ends is where it is 0.
fn unpadded(row: &mut Row, tokens: usize) -> Result<Option<std::ops::Range<usize>>> {
    if !row.says("attention_mask") {
        return Ok(None);
    }
    let mask = numbers(row, "attention_mask", "0 or 1", |n| u8::try_from(n).ok().filter(|n| *n < 2))?;
    same_length("attention_mask", "numbers", mask.len(), tokens)?;
    let start = mask.iter().position(|&there| there == 1).unwrap_or(mask.len());
    let end = mask.iter().rposition(|&there| there == 1).map_or(start, |last| last + 1);
    match mask[start..end].iter().position(|&there| there == 0) {
        None => Ok(Some(start..end)),
        Some(hole) => Error::input("DATA", "a 0 between tokens that count")
            .field(format!("attention_mask[{}]", start + hole))
            .fix("take the token out of the row")
            .into(),
    }
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
