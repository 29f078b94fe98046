//! What chat templates take from Python and `transformers`: `tojson`, `raise_exception`, `strftime_now`, string methods.
//!
//! Models are trained on text that Python wrote, so `tojson` must give the bytes of
//! `json.dumps(x, ensure_ascii=False)`: `", "` and `": "` as separators, and Python's notation of floats.

use std::io;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// The day of `strftime_now` unless the variable `today` is given: the date that Llama 3 templates fall back to themselves.
const DEFAULT_TODAY: &str = "2024-07-26";

/// Widest accepted indentation of `tojson`.
const MAX_INDENT: usize = 32;

/// Adds all of it to `environment`.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Methods that `minijinja_contrib` lacks or does in another way; everything else goes there.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), "title", []) = (value.as_str(), name, args) {
        return Ok(title(text).into());
    }
    let (Some(text), Some(arg)) = (value.as_str(), args.first().and_then(Value::as_str)) else {
        return unknown_method_callback(state, value, name, args);
    };
    let list = |parts: &[&str]| parts.iter().copied().map(Value::from).collect::<Value>();
    match name {
        "removeprefix" => Ok(text.strip_prefix(arg).unwrap_or(text).into()),
        "removesuffix" => Ok(text.strip_suffix(arg).unwrap_or(text).into()),
        "partition" => Ok(match text.split_once(arg) {
            Some((head, tail)) => list(&[head, arg, tail]),
            None => list(&[text, "", ""]),
        }),
        "rpartition" => Ok(match text.rsplit_once(arg) {
            Some((head, tail)) => list(&[head, arg, tail]),
            None => list(&["", "", text]),
        }),
        "rsplit" if !arg.is_empty() => {
            let most = args.get(1).and_then(Value::as_i64).and_then(|n| usize::try_from(n).ok());
            let mut parts: Vec<&str> = match most {
                Some(most) => text.rsplitn(most.saturating_add(1), arg).collect(),
                None => text.rsplit(arg).collect(),
            };
            parts.reverse();
            Ok(list(&parts))
        }
        _ => unknown_method_callback(state, value, name, args),
    }
}

/// `str.title`: upper case after anything that is no letter, lower case otherwise.
fn title(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            result.extend(c.to_lowercase());
        } else {
            result.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    result
}

fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // `ensure_ascii=False` is what transformers passes by itself; separators and sorting do not occur in published templates.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let bytes = match indent {
        None => to_bytes(value, Python { inner: CompactFormatter, spaced: true })?,
        Some(width) if width <= MAX_INDENT => {
            let spaces = " ".repeat(width);
            to_bytes(value, Python { inner: PrettyFormatter::with_indent(spaces.as_bytes()), spaced: false })?
        }
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the indentation is too wide"));
        }
    };
    let text = String::from_utf8(bytes).map_err(|_| Error::from(ErrorKind::BadSerialization))?;
    Ok(Value::from(text))
}

fn to_bytes<F: Formatter>(value: &Value, formatter: F) -> Result<Vec<u8>, Error> {
    if value.kind() == ValueKind::Undefined {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is undefined"));
    }
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, formatter);
    value
        .serialize(&mut serializer)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "tojson: not a JSON value").with_source(e))?;
    Ok(bytes)
}

/// `json.dumps`: spaces after separators unless the inner formatter breaks lines, and `repr` of floats.
struct Python<F> {
    inner: F,
    spaced: bool,
}

impl<F: Formatter> Formatter for Python<F> {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float_repr(value).as_bytes())
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.begin_array(writer)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if self.spaced && !first {
            return writer.write_all(b", ");
        }
        self.inner.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.begin_object(writer)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if self.spaced && !first {
            return writer.write_all(b", ");
        }
        self.inner.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        if self.spaced {
            return writer.write_all(b": ");
        }
        self.inner.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_object_value(writer)
    }
}

/// Python's `repr(float)`: shortest digits, exponent form below 1e-4 and from 1e16 on, with a sign and two digits.
fn float_repr(value: f64) -> String {
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

fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    let today = state.lookup("today").and_then(|day| day.as_str().map(str::to_owned));
    strftime(today.as_deref().unwrap_or(DEFAULT_TODAY), format).ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: cannot format {format:?}"))
    })
}

/// `format` at midnight of `day` (`YYYY-MM-DD`), in English.
fn strftime(day: &str, format: &str) -> Option<String> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    let mut parts = day.splitn(3, '-').map(|part| part.parse::<usize>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1583..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Sakamoto's method for the day of the week.
    let shifted = year - usize::from(month < 3);
    let offset = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4][month - 1];
    let weekday = DAYS[(shifted + shifted / 4 - shifted / 100 + shifted / 400 + offset + day) % 7];
    let month_name = MONTHS[month - 1];
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next()? {
            'Y' => text.push_str(&format!("{year:04}")),
            'y' => text.push_str(&format!("{:02}", year % 100)),
            'm' => text.push_str(&format!("{month:02}")),
            'd' => text.push_str(&format!("{day:02}")),
            'e' => text.push_str(&format!("{day:2}")),
            'B' => text.push_str(month_name),
            'b' | 'h' => text.push_str(&month_name[..3]),
            'A' => text.push_str(weekday),
            'a' => text.push_str(&weekday[..3]),
            'F' => text.push_str(&format!("{year:04}-{month:02}-{day:02}")),
            'H' | 'M' | 'S' => text.push_str("00"),
            '%' => text.push('%'),
            _ => return None,
        }
    }
    Some(text)
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
        ];
        for (value, text) in cases {
            assert_eq!(float_repr(value), text);
        }
    }

    #[test]
    fn dates_are_pinned() {
        assert_eq!(strftime("2024-07-26", "%d %b %Y").as_deref(), Some("26 Jul 2024"));
        assert_eq!(
            strftime("2025-02-28", "%A, %B %e, %y %H:%M %% %F").as_deref(),
            Some("Friday, February 28, 25 00:00 % 2025-02-28")
        );
        for (day, format) in
            [("2024-07-26", "%Q"), ("2024-07-26", "%"), ("2024-13-01", "%Y"), ("today", "%Y")]
        {
            assert_eq!(strftime(day, format), None);
        }
    }
}
