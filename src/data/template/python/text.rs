//! `str` and `repr`: how Python writes a value.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::convert::{Number, number};
use super::sequence::Range;
use super::{MAX_TEXT_BYTES, fail, unsupported};

/// Maximum nesting of values.
const MAX_DEPTH: usize = 200;

/// `str(value)`; empty for an undefined value, as in Jinja.
pub(super) fn str(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => repr(value),
    }
}

/// `text` in lower case except for the first character of every word, which `begin` writes; `is_inside` tells
/// the characters of a word.
pub(super) fn capitalized(
    text: &str,
    begin: impl Fn(char, &mut String) -> Result<(), Error>,
    is_inside: impl Fn(char) -> bool,
) -> Result<String, Error> {
    let mut result = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => result.extend(c.to_lowercase()),
            false => begin(c, &mut result)?,
        }
        inside = is_inside(c);
    }
    Ok(result)
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut result = String::new();
    write_repr(value, &mut result, 0)?;
    Ok(result)
}

fn write_repr(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH || out.len() > MAX_TEXT_BYTES {
        return Err(fail("the value is too deep or too large to be written"));
    }
    if let Some(range) = value.downcast_object_ref::<Range>() {
        out.push_str(&range.repr());
        return Ok(());
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => match number(value) {
            Some(Number::Int(int)) => out.push_str(&int.to_string()),
            Some(Number::Float(float)) => out.push_str(&float_repr(float)),
            None => return Err(unsupported("a number this large")),
        },
        ValueKind::String if value.is_safe() => {
            out.push_str("Markup(");
            write_quoted(value.as_str().unwrap_or_default(), out);
            out.push(')');
        }
        ValueKind::String => write_quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut count = 0;
            for (idx, item) in value.try_iter()?.enumerate() {
                out.push_str(if idx > 0 { ", " } else { "" });
                write_repr(&item, out, depth + 1)?;
                count += 1;
            }
            out.push_str(if value.is_tuple() && count == 1 { "," } else { "" });
            out.push(close);
        }
        ValueKind::Map if !is_namespace(value) => {
            out.push('{');
            for (idx, key) in value.try_iter()?.enumerate() {
                out.push_str(if idx > 0 { ", " } else { "" });
                write_repr(&key, out, depth + 1)?;
                out.push_str(": ");
                write_repr(&value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        // Python prints the address of these.
        kind => {
            return Err(unsupported(format!(
                "writing a value of the kind {kind} (a generator, view or function)"
            )));
        }
    }
    Ok(())
}

/// True for the result of `namespace()`.
pub(super) fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("Namespace"))
}

/// A string literal: in single quotes unless it has some and no double quotes.
fn write_quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            // Writing into a string cannot fail.
            c if u32::from(c) < 0x100 => drop(write!(out, "\\x{:02x}", u32::from(c))),
            c if u32::from(c) < 0x1_0000 => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => drop(write!(out, "\\U{:08x}", u32::from(c))),
        }
    }
    out.push(quote);
}

/// The characters that special tokens of the data are marked with.
pub(super) fn is_mark(c: char) -> bool {
    ('\u{F8A0}'..='\u{F8FF}').contains(&c)
}

/// `str.isprintable` of one character: all but separators, controls, formats and those for private use.
pub(super) fn is_printable(c: char) -> bool {
    if c == ' ' || is_mark(c) {
        return true;
    }
    let format = matches!(u32::from(c),
        0xe000..=0xf8ff | 0xf_0000.. |
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2 | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e
        | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0x110bd | 0x110cd | 0x13430..=0x1343f | 0x1bca0..=0x1bca3
        | 0x1d173..=0x1d17a | 0xe0001..=0xe007f);
    !(c.is_control() || c.is_whitespace() || format)
}

/// `repr(float)`: shortest digits, exponent form below 1e-4 and from 1e16 on, with a sign and two digits.
pub(super) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(power) if value != 0.0 && !(-4..16).contains(&power) => {
            let sign = if power < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", power.abs())
        }
        _ if value.fract() == 0.0 => format!("{value:.1}"),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        // repr() of CPython 3.
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (123456789.125, "123456789.125"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ];
        for (value, text) in cases {
            assert_eq!(float_repr(value), text);
        }
    }
}
