//! `tojson` as `transformers` defines it: Python's `json.dumps` with `ensure_ascii=False`.

use std::cmp::Ordering;
use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::convert::{Arguments, Given, Number, items, number, type_name};
use super::filters::merge_sort;
use super::text::{float_repr, is_mark, is_namespace};
use super::{MAX_TEXT_BYTES, fail, operators};

/// Maximum indentation.
const MAX_INDENT: i128 = 32;

/// Maximum nesting of values.
const MAX_DEPTH: usize = 200;

struct Style {
    ascii: bool,
    indent: Option<String>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
}

pub(super) fn tojson(value: &Value, arguments: Given) -> Result<String, Error> {
    let mut arguments = Arguments::new("tojson", arguments)?;
    let ascii = arguments.truth("ensure_ascii", false);
    let indent = match arguments.next("indent") {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => match (indent.as_str(), number(&indent)) {
            (Some(text), _) if text.len() as i128 <= MAX_INDENT => Some(text.to_owned()),
            (_, Some(Number::Int(width))) if width <= MAX_INDENT => {
                Some(" ".repeat(usize::try_from(width).unwrap_or(0)))
            }
            _ => return Err(fail("tojson: the indentation is too wide")),
        },
    };
    let (between_items, after_key) = match arguments.next("separators").filter(|given| !given.is_none()) {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(given) => match items(&given)?.as_slice() {
            [item, key] => match (item.as_str(), key.as_str()) {
                (Some(item), Some(key)) => (item.to_owned(), key.to_owned()),
                _ => return Err(fail("tojson: separators are two strings")),
            },
            _ => return Err(fail("tojson: separators are two strings")),
        },
    };
    let sort_keys = arguments.truth("sort_keys", false);
    arguments.end()?;
    let mut out = String::new();
    Style { ascii, indent, between_items, after_key, sort_keys }.write(value, &mut out, 0)?;
    Ok(out)
}

impl Style {
    fn write(&self, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH || out.len() > MAX_TEXT_BYTES {
            return Err(fail("tojson: the value is too deep or too large"));
        }
        match value.kind() {
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => out.push_str(&plain(value)?),
            ValueKind::Seq if value.downcast_object_ref::<super::sequence::Range>().is_none() => {
                let all = items(value)?;
                self.write_all(&all, ['[', ']'], out, depth, |item, out| self.write(item, out, depth + 1))?;
            }
            ValueKind::Map if !is_namespace(value) => {
                let keys = items(value)?;
                let keys = if self.sort_keys { sorted(keys)? } else { keys };
                self.write_all(&keys, ['{', '}'], out, depth, |key, out| {
                    match key.as_str() {
                        Some(text) => self.write_text(text, out),
                        None => self.write_text(&plain(key)?, out),
                    }
                    out.push_str(&self.after_key);
                    self.write(&value.get_item(key)?, out, depth + 1)
                })?;
            }
            _ => return Err(fail(format!("tojson: a value of type {} has no JSON", type_name(value)))),
        }
        Ok(())
    }

    fn write_all(
        &self,
        all: &[Value],
        [open, close]: [char; 2],
        out: &mut String,
        depth: usize,
        write: impl Fn(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        for (idx, item) in all.iter().enumerate() {
            if idx > 0 {
                out.push_str(&self.between_items);
            }
            line(out, depth + 1);
            write(item, out)?;
        }
        if !all.is_empty() {
            line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn write_text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                // Writing into a string cannot fail.
                c if c < ' ' => drop(write!(out, "\\u{:04x}", u32::from(c))),
                // Marks in special tokens of the data are removed later, so each must stay a single
                // character.
                c if self.ascii && c >= '\u{7f}' && !is_mark(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `null`, `true`, `false` or a number, as a value or as a key.
fn plain(value: &Value) -> Result<String, Error> {
    Ok(match (value.kind(), number(value)) {
        (ValueKind::None, _) => "null".into(),
        (ValueKind::Bool, _) => value.is_true().to_string(),
        (_, Some(Number::Int(int))) => int.to_string(),
        (_, Some(Number::Float(float))) if float.is_nan() => "NaN".into(),
        (_, Some(Number::Float(float))) if float.is_infinite() => {
            if float > 0.0 {
                "Infinity".into()
            } else {
                "-Infinity".into()
            }
        }
        (_, Some(Number::Float(float))) => float_repr(float),
        _ => return Err(fail(format!("tojson: a key of type {} has no JSON", type_name(value)))),
    })
}

fn sorted(keys: Vec<Value>) -> Result<Vec<Value>, Error> {
    merge_sort(keys, &|a, b| Ok(operators::compare("<", a, b)?.unwrap_or(Ordering::Equal)))
}
