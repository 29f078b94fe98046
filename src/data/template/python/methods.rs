//! The methods of strings, lists and dictionaries.

use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, Rest, Tuple, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::convert::{Arguments, Given, Number, items, number, type_name};
use super::format::braces;
use super::text::is_namespace;
use super::{check_len, fail, operators, text, unsupported};

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_function("py_attr", |value: &Value, name: &str| {
        if has_method(value, name) { Ok(Value::from_object(Method)) } else { value.get_attr(name) }
    });
    environment.add_function("py_call", |state: &mut State, value: &Value, name: &str, arguments: Given| {
        let copy = Rest(arguments.0.clone());
        let of = |kind| Arguments::new(format!("{kind}.{name}"), copy);
        match value.kind() {
            ValueKind::String => string(value.as_str().unwrap_or_default(), name, of("str")?),
            ValueKind::Seq => list(value, name, of("list")?),
            ValueKind::Map if is_dict(value) => dict(value, name, of("dict")?),
            ValueKind::Undefined => Err(fail(format!("an undefined value has no method {name}"))),
            _ => value.call_method(state, name, &arguments.into_values()),
        }
    });
}

/// A method that is named but not called: it is defined, and supports no other operation.
#[derive(Debug)]
pub(super) struct Method;

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

const CHANGES: &[&str] = &[
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
];

/// True if Python finds a method before it looks for a key.
pub(super) fn has_method(value: &Value, name: &str) -> bool {
    const LIST: &[&str] = &[
        "append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort",
    ];
    const DICT: &[&str] = &[
        "clear",
        "copy",
        "fromkeys",
        "get",
        "items",
        "keys",
        "pop",
        "popitem",
        "setdefault",
        "update",
        "values",
    ];
    match value.kind() {
        ValueKind::Map => is_dict(value) && DICT.contains(&name),
        ValueKind::Seq if value.is_tuple() => matches!(name, "count" | "index"),
        ValueKind::Seq => LIST.contains(&name),
        ValueKind::String => {
            let shared = ["count", "index"];
            super::super::rewrite::METHODS.contains(&name)
                && (shared.contains(&name) || !(LIST.contains(&name) || DICT.contains(&name)))
        }
        _ => false,
    }
}

/// Excludes namespaces and loop variables.
fn is_dict(value: &Value) -> bool {
    let of_engine =
        |object: &minijinja::value::DynObject| object.type_name().to_ascii_lowercase().contains("loop");
    !is_namespace(value) && !value.as_object().is_some_and(of_engine)
}

fn no_method(of: &str, name: &str) -> Error {
    if CHANGES.contains(&name) {
        return fail(format!("{of}.{name} changes a value, which templates may not do"));
    }
    unsupported(format!("{of}.{name}"))
}

fn dict(value: &Value, name: &str, mut arguments: Arguments) -> Result<Value, Error> {
    let keys = items(value)?;
    let pairs =
        || keys.iter().map(|key| Ok((key.clone(), value.get_item(key)?))).collect::<Result<Vec<_>, Error>>();
    let view = |list: Vec<Value>| Value::make_iterable(move || list.clone().into_iter());
    let result = match name {
        "get" => {
            let (key, default) = (arguments.required("key")?, arguments.next("default"));
            let found = keys.iter().find(|other| operators::equal(other, &key));
            match found {
                Some(key) => value.get_item(key)?,
                None => default.unwrap_or(Value::from(())),
            }
        }
        "items" => {
            view(pairs()?.into_iter().map(|(key, value)| Tuple::from(vec![key, value]).into()).collect())
        }
        "keys" => view(keys),
        "values" => view(pairs()?.into_iter().map(|(_, value)| value).collect()),
        "copy" => value.clone(),
        _ => return Err(no_method("dict", name)),
    };
    arguments.end()?;
    Ok(result)
}

fn list(value: &Value, name: &str, mut arguments: Arguments) -> Result<Value, Error> {
    let all = items(value)?;
    let result = match name {
        "count" => {
            let wanted = arguments.required("value")?;
            all.iter().filter(|item| operators::equal(item, &wanted)).count().into()
        }
        "index" => {
            let wanted = arguments.required("value")?;
            let found = all.iter().position(|item| operators::equal(item, &wanted));
            found.ok_or_else(|| fail("list.index: the value is not in the list"))?.into()
        }
        "copy" if !value.is_tuple() => value.clone(),
        _ => return Err(no_method("list", name)),
    };
    arguments.end()?;
    Ok(result)
}

fn string(text: &str, name: &str, mut arguments: Arguments) -> Result<Value, Error> {
    let result: Value = match name {
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "casefold" if text.is_ascii() => text.to_lowercase().into(),
        "capitalize" => capitalize(text)?.into(),
        "title" => title(text)?.into(),
        "swapcase" if text.is_ascii() => text.chars().map(swapped).collect::<String>().into(),
        "strip" | "lstrip" | "rstrip" => {
            let chars = arguments.next("chars").filter(|chars| !chars.is_none());
            strip(text, name, chars.as_ref())?.into()
        }
        "split" | "rsplit" => split(text, name == "rsplit", &mut arguments)?,
        "splitlines" => {
            let keep = arguments.truth("keepends", false);
            lines(text, keep).into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => partition(text, name, &arguments.text("sep")?)?,
        "join" => {
            let parts = items(&arguments.required("iterable")?)?;
            let wrong = |part: &Value| fail(format!("str.join: a {} is not a str", type_name(part)));
            let parts = parts
                .iter()
                .map(|part| part.as_str().ok_or_else(|| wrong(part)))
                .collect::<Result<Vec<_>, _>>()?;
            check_len(text.len(), parts.len())?;
            parts.join(text).into()
        }
        "replace" => {
            let (old, new) = (arguments.text("old")?, arguments.text("new")?);
            replace(text, &old, &new, arguments.int("count", -1)?)?.into()
        }
        "removeprefix" => text.strip_prefix(&*arguments.text("prefix")?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(&*arguments.text("suffix")?).unwrap_or(text).into(),
        "startswith" | "endswith" => affix(text, name, &mut arguments)?.into(),
        "find" | "rfind" | "index" | "rindex" | "count" => find(text, name, &mut arguments)?,
        "center" | "ljust" | "rjust" | "zfill" => pad(text, name, &mut arguments)?.into(),
        "format" => return braces(text, &mut arguments).map(Value::from),
        _ if name.starts_with("is") => is(text, name)?.into(),
        _ => return Err(no_method("str", name)),
    };
    arguments.end()?;
    Ok(result)
}

pub(super) fn capitalize(text: &str) -> Result<String, Error> {
    let mut chars = text.chars();
    let mut result = String::with_capacity(text.len());
    if let Some(first) = chars.next() {
        push_title_case(first, &mut result)?;
    }
    Ok(result + &chars.as_str().to_lowercase())
}

/// Title case; of the few ligatures (`ﬁ`) only the first letter is upper case.
fn push_title_case(c: char, result: &mut String) -> Result<(), Error> {
    // Letters with a separate title case, for which there is no table here.
    if matches!(c, 'ŉ' | 'Ǆ'..='ǌ' | 'Ǳ'..='ǳ' | 'ა'..='ჿ' | '\u{1f80}'..='\u{1fff}') {
        return Err(unsupported(format!("the title case of {c:?}")));
    }
    let mut upper = c.to_uppercase();
    result.extend(upper.next());
    result.extend(upper.flat_map(char::to_lowercase));
    Ok(())
}

/// `str.title`: upper case after anything that is no letter, lower case otherwise.
fn title(text: &str) -> Result<String, Error> {
    text::capitalized(text, push_title_case, |c| c.is_lowercase() || c.is_uppercase())
}

fn swapped(c: char) -> char {
    if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
}

/// White space as defined by `str.strip` and `str.split`: four control characters more than elsewhere.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// `text.strip(chars)` and its one-sided forms.
pub(super) fn strip<'t>(text: &'t str, name: &str, chars: Option<&Value>) -> Result<&'t str, Error> {
    let chars = match chars {
        None => None,
        Some(chars) => {
            let wrong = || fail(format!("str.{name}: a {} is not a str", type_name(chars)));
            Some(chars.as_str().ok_or_else(wrong)?)
        }
    };
    let drop = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if name == "rstrip" { text } else { text.trim_start_matches(drop) };
    Ok(if name == "lstrip" { text } else { text.trim_end_matches(drop) })
}

fn split(text: &str, from_right: bool, arguments: &mut Arguments) -> Result<Value, Error> {
    let separator = arguments.next("sep").filter(|sep| !sep.is_none());
    let most = usize::try_from(arguments.int("maxsplit", -1)?).unwrap_or(usize::MAX);
    let parts = most.saturating_add(1);
    let Some(separator) = separator else { return Ok(split_space(text, from_right, most)) };
    let Some(separator) = separator.as_str() else {
        return Err(fail(format!("str.split: a {} is not a str", type_name(&separator))));
    };
    if separator.is_empty() {
        return Err(fail("str.split: the separator is empty"));
    }
    let mut list: Vec<Value> = if from_right {
        text.rsplitn(parts, separator).map(Value::from).collect()
    } else {
        text.splitn(parts, separator).map(Value::from).collect()
    };
    if from_right {
        list.reverse();
    }
    Ok(list.into())
}

/// Splits at white space, at most `most` times.
fn split_space(text: &str, from_right: bool, most: usize) -> Value {
    let mut rest = text.trim_matches(is_space);
    let mut words: Vec<Value> = Vec::new();
    while !rest.is_empty() {
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(cut) = cut.filter(|_| words.len() < most) else {
            // White space at the other end is removed too, unless the last word is a remainder.
            words.push(rest.into());
            break;
        };
        if from_right {
            let len = rest[cut..].chars().next().map_or(1, char::len_utf8);
            words.push(rest[cut + len..].into());
            rest = rest[..cut].trim_end_matches(is_space);
        } else {
            words.push(rest[..cut].into());
            rest = rest[cut..].trim_start_matches(is_space);
        }
    }
    if from_right {
        words.reverse();
    }
    words.into()
}

/// `str.splitlines`, which knows more line ends than `\n`.
pub(super) fn lines(text: &str, keep: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let (mut start, mut at) = (0, 0);
    while let Some(c) = text[at..].chars().next() {
        let ends = matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        );
        let len = if text[at..].starts_with("\r\n") { 2 } else { c.len_utf8() };
        at += len;
        if ends {
            lines.push(&text[start..if keep { at } else { at - len }]);
            start = at;
        }
    }
    if start < text.len() {
        lines.push(&text[start..]);
    }
    lines
}

fn partition(text: &str, name: &str, separator: &str) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(fail(format!("str.{name}: the separator is empty")));
    }
    let parts = match name {
        "partition" => {
            text.split_once(separator).map_or([text, "", ""], |(head, tail)| [head, separator, tail])
        }
        _ => text.rsplit_once(separator).map_or(["", "", text], |(head, tail)| [head, separator, tail]),
    };
    Ok(Tuple::from(parts.map(Value::from).to_vec()).into())
}

/// `text.replace(old, new, count)`; all of them if `count` is negative.
pub(super) fn replace(text: &str, old: &str, new: &str, count: i128) -> Result<String, Error> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    check_len(new.len().max(1), found.min(count).saturating_add(text.len() / new.len().max(1) + 1))?;
    Ok(text.replacen(old, new, count))
}

/// Byte range of `[start:end]` in characters.
fn window(text: &str, arguments: &mut Arguments) -> Result<(usize, std::ops::Range<usize>, bool), Error> {
    let len = text.chars().count() as i128;
    let (start, end) = (arguments.int("start", 0)?, arguments.int("end", len)?);
    let from_end = |bound: i128| if bound < 0 { (bound + len).max(0) } else { bound };
    let (start, end) = (from_end(start), from_end(end).min(len));
    let byte = |chars: i128| {
        let chars = usize::try_from(chars).unwrap_or(usize::MAX);
        text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at)
    };
    let possible = start <= end;
    let range = if possible { byte(start)..byte(end) } else { 0..0 };
    Ok((usize::try_from(start).unwrap_or(usize::MAX), range, possible))
}

fn affix(text: &str, name: &str, arguments: &mut Arguments) -> Result<bool, Error> {
    let wanted = arguments.required("prefix")?;
    let (_, range, possible) = window(text, arguments)?;
    let wrong =
        |value: &Value| fail(format!("str.{name}: a {} is not a str or a tuple of them", type_name(value)));
    let all = if wanted.is_tuple() { items(&wanted)? } else { vec![wanted] };
    for affix in &all {
        let affix = affix.as_str().ok_or_else(|| wrong(affix))?;
        let part = &text[range.clone()];
        if possible && if name == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) } {
            return Ok(true);
        }
    }
    Ok(false)
}

fn find(text: &str, name: &str, arguments: &mut Arguments) -> Result<Value, Error> {
    let wanted = arguments.text("sub")?;
    let (start, range, possible) = window(text, arguments)?;
    let part = &text[range];
    if name == "count" {
        let count = if wanted.is_empty() { part.chars().count() + 1 } else { part.matches(&*wanted).count() };
        return Ok(if possible { count } else { 0 }.into());
    }
    let found = if name.starts_with('r') { part.rfind(&*wanted) } else { part.find(&*wanted) };
    match found.filter(|_| possible) {
        Some(at) => Ok((start + part[..at].chars().count()).into()),
        None if name.ends_with("find") => Ok((-1).into()),
        None => Err(fail(format!("str.{name}: {wanted:?} is not in the text"))),
    }
}

fn pad(text: &str, name: &str, arguments: &mut Arguments) -> Result<String, Error> {
    let width = arguments.required("width")?;
    let Some(Number::Int(width)) = number(&width) else {
        return Err(fail(format!("str.{name}: a {} is not an int", type_name(&width))));
    };
    let fill = match name {
        "zfill" => "0".to_owned(),
        _ => arguments.next("fillchar").map_or(Ok(" ".to_owned()), |fill| text::str(&fill))?,
    };
    if fill.chars().count() != 1 {
        return Err(fail(format!("str.{name}: the fill character is {fill:?}")));
    }
    let len = text.chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(len);
    check_len(fill.len(), missing)?;
    let pad = |count: usize| fill.repeat(count);
    Ok(match name {
        "ljust" => format!("{text}{}", pad(missing)),
        "rjust" => format!("{}{text}", pad(missing)),
        "zfill" => match text.strip_prefix(['-', '+']) {
            Some(digits) => format!("{}{}{digits}", &text[..1], pad(missing)),
            None => format!("{}{text}", pad(missing)),
        },
        _ => center(text, missing, len + missing, &fill),
    })
}

/// `str.center`. CPython puts an odd fill character on the left if the width is odd, else on the right.
pub(super) fn center(text: &str, missing: usize, width: usize, fill: &str) -> String {
    let left = missing / 2 + (missing & width & 1);
    format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))
}

fn is(text: &str, name: &str) -> Result<bool, Error> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let cased =
        |test: fn(char) -> bool, other: fn(char) -> bool| text.chars().any(test) && !text.chars().any(other);
    Ok(match name {
        "isascii" => text.is_ascii(),
        "isspace" => all(is_space),
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        "isprintable" => text.chars().all(text::is_printable),
        // For other scripts the answer depends on tables that are not included.
        "isdigit" | "isdecimal" | "isnumeric" if text.chars().all(|c| c.is_ascii() || !c.is_numeric()) => {
            all(|c| c.is_ascii_digit())
        }
        "isalpha" if text.chars().all(|c| c.is_ascii() || is_letter(c)) => all(char::is_alphabetic),
        "isalnum" if text.chars().all(|c| c.is_ascii() || is_letter(c)) => all(char::is_alphanumeric),
        "isidentifier" if text.is_ascii() => {
            all(|c| c.is_ascii_alphanumeric() || c == '_') && !text.starts_with(|c: char| c.is_ascii_digit())
        }
        "istitle" if text.is_ascii() => text.chars().any(char::is_alphabetic) && title(text)? == text,
        _ => return Err(unsupported(format!("str.{name} of this text"))),
    })
}

/// Letters of the scripts in which Python and Unicode's "Alphabetic" agree.
fn is_letter(c: char) -> bool {
    matches!(c, 'À'..='ö' | 'ø'..='ʯ' | 'Ͱ'..='ͳ' | 'Α'..='Ω' | 'α'..='ω' | 'А'..='я' | 'ぁ'..='ゖ' | 'ァ'..='ヺ' | '一'..='鿿' | '가'..='힣')
}
