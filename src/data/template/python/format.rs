//! `'%s' % x`, the `format` filter and `'{}'.format(x)`, as far as templates need them.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};

use super::convert::{Arguments, Number, items, number, type_name};
use super::operators::is_list;
use super::{check_len, fail, text, unsupported};

/// Widest field.
const MAX_WIDTH: usize = 10_000;

/// `template % values`.
pub(super) fn percent(template: &str, values: &Value) -> Result<Value, Error> {
    let all = if values.is_tuple() { items(values)? } else { vec![values.clone()] };
    let is_dict = values.kind() == ValueKind::Map;
    let names = if is_dict { Some(values) } else { None };
    // CPython accepts unused values if they are a mapping or have indices.
    percent_with(template, all, is_dict || is_list(values), |name| {
        names.and_then(|names| names.get_attr(name).ok())
    })
    .map(Value::from)
}

/// The `format` filter: `values` by position or by name.
pub(super) fn percent_filter(
    template: &str,
    values: Vec<Value>,
    names: Option<&Kwargs>,
) -> Result<String, Error> {
    let named = names.filter(|names| names.args().next().is_some());
    if named.is_some() && !values.is_empty() {
        return Err(fail("format: arguments by position and by name together"));
    }
    percent_with(template, values, named.is_some(), |name| {
        named.and_then(|named| named.get::<Value>(name).ok())
    })
}

fn percent_with(
    template: &str,
    values: Vec<Value>,
    more_is_fine: bool,
    by_name: impl Fn(&str) -> Option<Value>,
) -> Result<String, Error> {
    let mut values = values.into_iter();
    let mut out = String::new();
    let mut rest = template;
    let mut named = false;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let mut name = None;
        if let Some(after) = rest.strip_prefix('(') {
            let (inside, after) =
                after.split_once(')').ok_or_else(|| fail("format: a name is not closed"))?;
            name = Some(inside);
            rest = after;
        }
        let len = rest.find(|c| !matches!(c, '-' | '+' | ' ' | '#' | '0')).unwrap_or(rest.len());
        let (flags, after) = rest.split_at(len);
        let (width, after) = digits(after)?;
        let (precision, after) = match after.strip_prefix('.') {
            Some(after) => digits(after).map(|(precision, after)| (Some(precision.unwrap_or(0)), after))?,
            None => (None, after),
        };
        let kind = after.chars().next().ok_or_else(|| fail("format: the text ends after %"))?;
        rest = &after[kind.len_utf8()..];
        if kind == '%' && flags.is_empty() && width.is_none() {
            out.push('%');
            continue;
        }
        let value = match name {
            Some(name) => {
                named = true;
                by_name(name).filter(|value| !value.is_undefined())
            }
            None => values.next(),
        };
        let value = value.ok_or_else(|| fail("format: not enough arguments"))?;
        let spec = Spec {
            align: if flags.contains('-') { Some('<') } else { None },
            sign: flags.chars().find(|c| *c == '+').or(flags.chars().find(|c| *c == ' ')),
            zero: flags.contains('0') && !flags.contains('-'),
            fill: ' ',
            comma: false,
            width: width.unwrap_or(0),
            precision,
        };
        if flags.contains('#') {
            return Err(unsupported("the flag # of a format"));
        }
        out.push_str(&match kind {
            's' => spec.pad_text(&text::str(&value)?),
            'r' => spec.pad_text(&text::repr(&value)?),
            'c' => match (value.as_str(), number(&value)) {
                (Some(text), _) if text.chars().count() == 1 => spec.pad_text(text),
                _ => return Err(unsupported("%c of this value")),
            },
            'd' | 'i' | 'u' => match number(&value) {
                Some(Number::Int(int)) => spec.pad_number(int < 0, int.unsigned_abs().to_string()),
                Some(Number::Float(float)) if float.is_finite() && float.abs() < 1e30 => {
                    spec.pad_number(float.trunc() < 0.0, format!("{:.0}", float.trunc().abs()))
                }
                _ => return Err(fail(format!("format: %{kind} of a {}", type_name(&value)))),
            },
            'x' | 'X' | 'o' => match number(&value) {
                Some(Number::Int(int)) => {
                    let digits = int.unsigned_abs();
                    let digits = match kind {
                        'x' => format!("{digits:x}"),
                        'X' => format!("{digits:X}"),
                        _ => format!("{digits:o}"),
                    };
                    spec.pad_number(int < 0, digits)
                }
                _ => return Err(fail(format!("format: %{kind} of a {}", type_name(&value)))),
            },
            'f' | 'F' => match number(&value) {
                Some(value) => spec.pad_fixed(value.float())?,
                None => return Err(fail(format!("format: %{kind} of a {}", type_name(&value)))),
            },
            other => return Err(unsupported(format!("%{other} in a format"))),
        });
        check_len(out.len(), 1)?;
    }
    out.push_str(rest);
    if values.next().is_some() && !more_is_fine && !named {
        return Err(fail("format: not all arguments are used"));
    }
    Ok(out)
}

fn digits(text: &str) -> Result<(Option<usize>, &str), Error> {
    let len = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(len);
    if digits.is_empty() {
        return Ok((None, rest));
    }
    match digits.parse() {
        Ok(width) if width <= MAX_WIDTH => Ok((Some(width), rest)),
        _ => Err(fail(format!("format: a width of more than {MAX_WIDTH}"))),
    }
}

/// A format specification.
struct Spec {
    align: Option<char>,
    sign: Option<char>,
    zero: bool,
    fill: char,
    comma: bool,
    width: usize,
    precision: Option<usize>,
}

impl Spec {
    fn pad_text(&self, text: &str) -> String {
        let text: String = text.chars().take(self.precision.unwrap_or(usize::MAX)).collect();
        self.pad(&text, '>')
    }

    fn pad_fixed(&self, value: f64) -> Result<String, Error> {
        if !value.is_finite() {
            return Err(unsupported("formatting a float that is not finite"));
        }
        let digits = format!("{:.*}", self.precision.unwrap_or(6), value.abs());
        let spec = Self { precision: None, ..*self };
        Ok(spec.pad_number(value.is_sign_negative(), digits))
    }

    fn pad_number(&self, negative: bool, mut digits: String) -> String {
        if let Some(least) = self.precision {
            digits = format!("{}{digits}", "0".repeat(least.saturating_sub(digits.len())));
        }
        if self.comma {
            let whole = digits.find('.').unwrap_or(digits.len());
            for at in (1..whole).rev().filter(|at| (whole - at).is_multiple_of(3)) {
                digits.insert(at, ',');
            }
        }
        let sign = if negative { "-".to_owned() } else { self.sign.map_or(String::new(), String::from) };
        if self.zero && self.align.is_none() {
            let missing = self.width.saturating_sub(sign.len() + digits.len());
            return format!("{sign}{}{digits}", "0".repeat(missing));
        }
        self.pad(&(sign + &digits), '>')
    }

    fn pad(&self, text: &str, default: char) -> String {
        let missing = self.width.saturating_sub(text.chars().count());
        let fill = |count: usize| self.fill.to_string().repeat(count);
        match self.align.unwrap_or(default) {
            '<' => format!("{text}{}", fill(missing)),
            '^' => format!("{}{text}{}", fill(missing / 2), fill(missing - missing / 2)),
            _ => format!("{}{text}", fill(missing)),
        }
    }
}

/// `template.format(...)`.
pub(super) fn braces(template: &str, arguments: &mut Arguments) -> Result<String, Error> {
    let values = arguments.rest();
    let mut next = 0;
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        let closed = if brace == "{" { rest.split_once('}') } else { None };
        let (field, after) = closed.ok_or_else(|| fail("str.format: a single brace"))?;
        rest = after;
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (field, conversion) = match field.split_once('!') {
            Some((field, conversion)) => (field, Some(conversion)),
            None => (field, None),
        };
        let value = if field.is_empty() {
            next += 1;
            values.get(next - 1).cloned()
        } else if let Ok(idx) = field.parse::<usize>() {
            values.get(idx).cloned()
        } else if field.contains(['.', '[', '{']) {
            return Err(unsupported(format!("{{{field}}} in str.format")));
        } else {
            arguments.by_name().and_then(|named| named.get::<Value>(field).ok())
        };
        let value = value.filter(|value| !value.is_undefined());
        let value = value.ok_or_else(|| fail(format!("str.format: no argument for {{{field}}}")))?;
        out.push_str(&match conversion {
            None => laid_out(&value, spec)?,
            Some("s") => laid_out(&text::str(&value)?.into(), spec)?,
            Some("r") => laid_out(&text::repr(&value)?.into(), spec)?,
            Some(other) => return Err(unsupported(format!("!{other} in str.format"))),
        });
        check_len(out.len(), 1)?;
    }
    Ok(out + rest)
}

/// `format(value, spec)`.
fn laid_out(value: &Value, spec: &str) -> Result<String, Error> {
    if spec.is_empty() {
        return text::str(value);
    }
    let refuse = || unsupported(format!("the format {spec:?}"));
    let chars: Vec<char> = spec.chars().collect();
    let is_align = |c: Option<&char>| c.copied().filter(|c| matches!(c, '<' | '>' | '^'));
    let (fill, align, used) = match (is_align(chars.get(1)), is_align(chars.first())) {
        (Some(align), _) => (chars[0], Some(align), 2),
        (None, Some(align)) => (' ', Some(align), 1),
        _ => (' ', None, 0),
    };
    let rest: String = chars[used..].iter().collect();
    let (sign, rest) = match rest.strip_prefix(['+', '-', ' ']) {
        Some(after) => (rest.chars().next().filter(|sign| *sign != '-'), after),
        None => (None, rest.as_str()),
    };
    let zero = rest.starts_with('0');
    let (width, rest) = digits(rest)?;
    let (comma, rest) = rest.strip_prefix(',').map_or((false, rest), |rest| (true, rest));
    let (precision, rest) = match rest.strip_prefix('.') {
        Some(after) => digits(after)?,
        None => (None, rest),
    };
    let spec = Spec { align, sign, zero, fill, comma, width: width.unwrap_or(0), precision };
    match (rest, value.as_str(), number(value)) {
        ("" | "s", Some(text), _) if sign.is_none() && !zero && !comma => {
            let text: String = text.chars().take(precision.unwrap_or(usize::MAX)).collect();
            Ok(spec.pad(&text, '<'))
        }
        ("" | "d", None, Some(Number::Int(int)))
            if precision.is_none() && (rest == "d" || value.is_integer()) =>
        {
            Ok(spec.pad_number(int < 0, int.unsigned_abs().to_string()))
        }
        ("f" | "F", None, Some(number)) => spec.pad_fixed(number.float()),
        _ => Err(refuse()),
    }
}
