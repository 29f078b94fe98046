//! Jinja's filters with the behaviour of Jinja2. Results that are generators there can be read only once and
//! cannot be printed, here too.

use std::cmp::Ordering;

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, State, Value, filters};

use super::convert::{Arguments, Given, Number, items, number, type_name};
use super::format::percent_filter;
use super::json::tojson;
use super::methods::{Method, capitalize, center, has_method, lines, replace, strip};
use super::text::{capitalized, is_namespace, str};
use super::{check_len, fail, operators};

pub(super) fn install(environment: &mut Environment<'static>) {
    // Filters of the engine that Jinja2 lacks or defines differently.
    for name in ["bool", "chain", "lines", "split", "zip", "pprint", "escape", "e", "urlencode"] {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
    texts(environment);
    numbers(environment);
    generators(environment);
    lists(environment);
    environment.add_filter("tojson", tojson);
}

fn texts(environment: &mut Environment<'static>) {
    environment.add_filter("string", |value: &Value| str(value));
    environment.add_filter("upper", |value: &Value| Ok::<_, Error>(str(value)?.to_uppercase()));
    environment.add_filter("lower", |value: &Value| Ok::<_, Error>(str(value)?.to_lowercase()));
    environment.add_filter("capitalize", |value: &Value| capitalize(&str(value)?));
    environment.add_filter("title", |value: &Value| title(&str(value)?));
    environment.add_filter("trim", |value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("trim", arguments)?;
        let chars = arguments.next("chars").filter(|chars| !chars.is_none());
        arguments.end()?;
        strip(&str(value)?, "strip", chars.as_ref()).map(str::to_owned)
    });
    environment.add_filter("center", |value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("center", arguments)?;
        let width = usize::try_from(arguments.int("width", 80)?).unwrap_or(0);
        arguments.end()?;
        let text = str(value)?;
        let len = text.chars().count();
        check_len(1, width)?;
        Ok::<_, Error>(center(&text, width.saturating_sub(len), width.max(len), " "))
    });
    environment.add_filter("replace", |value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("replace", arguments)?;
        let (old, new) = (str(&arguments.required("old")?)?, str(&arguments.required("new")?)?);
        let count = arguments.int("count", -1)?;
        arguments.end()?;
        replace(&str(value)?, &old, &new, count)
    });
    environment.add_filter("safe", |value: &Value| Ok::<_, Error>(Value::from_safe_string(str(value)?)));
    environment.add_filter("indent", indent);
    environment.add_filter("format", |value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("format", arguments)?;
        let values = arguments.rest();
        percent_filter(&str(value)?, values, arguments.by_name())
    });
    environment.add_filter("join", |value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("join", arguments)?;
        let between = arguments.next("d").map_or(Ok(String::new()), |d| str(&d))?;
        let attribute = arguments.next("attribute").filter(|name| !name.is_none());
        arguments.end()?;
        let parts = items(value)?
            .iter()
            .map(|item| str(&attribute_of(item, attribute.as_ref())?))
            .collect::<Result<Vec<_>, _>>()?;
        check_len(between.len(), parts.len())?;
        Ok::<_, Error>(parts.join(&between))
    });
    environment.add_filter("wordcount", |value: &Value| {
        // `\w+`, for texts where it is certain to match Python's.
        let text = str(value)?;
        if !text.is_ascii() {
            return Err(super::unsupported("wordcount of text that is not ASCII"));
        }
        Ok(text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count())
    });
}

/// Words begin after white space, hyphens and opening brackets.
fn title(text: &str) -> Result<String, Error> {
    let is_between = |c: char| c.is_whitespace() || "-({[<".contains(c) || ('\u{1c}'..='\u{1f}').contains(&c);
    let begin = |c: char, result: &mut String| {
        result.extend(c.to_uppercase());
        Ok(())
    };
    capitalized(text, begin, |c| !is_between(c))
}

fn indent(value: &Value, arguments: Given) -> Result<String, Error> {
    let mut arguments = Arguments::new("indent", arguments)?;
    let width = arguments.next("width").unwrap_or(Value::from(4));
    let (first, blank) = (arguments.truth("first", false), arguments.truth("blank", false));
    arguments.end()?;
    let space = match (width.as_str(), number(&width)) {
        (Some(text), _) => text.to_owned(),
        (_, Some(Number::Int(width))) if width <= 10_000 => " ".repeat(usize::try_from(width).unwrap_or(0)),
        _ => return Err(fail(format!("indent: a width of {}", str(&width)?))),
    };
    let text = value.as_str().ok_or_else(|| fail(format!("indent: a {} is not a str", type_name(value))))?;
    let text = text.to_owned() + "\n";
    let all = lines(&text, false);
    check_len(space.len() + 1, all.len())?;
    let mut result = if first { space.clone() } else { String::new() };
    for (idx, line) in all.iter().enumerate() {
        if idx > 0 {
            result.push('\n');
            result.push_str(if blank || !line.is_empty() { &space } else { "" });
        }
        result.push_str(line);
    }
    Ok(result)
}

fn numbers(environment: &mut Environment<'static>) {
    environment.add_filter("int", |value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("int", arguments)?;
        let default = arguments.next("default").unwrap_or(Value::from(0));
        let base = arguments.int("base", 10)?;
        arguments.end()?;
        if base != 10 {
            return Err(super::unsupported("int with a base other than 10"));
        }
        let from_float = |float: f64| {
            if float.is_finite() && float.abs() < 1e38 {
                Ok(Number::Int(float as i128).value())
            } else {
                Err(fail("int: too large"))
            }
        };
        match (value.as_str(), number(value)) {
            (_, Some(Number::Int(int))) => Ok(Number::Int(int).value()),
            (_, Some(Number::Float(float))) => from_float(float),
            (Some(text), _) => match (parse(text, false), parse(text, true)) {
                (Some(number), _) => Ok(number.value()),
                (None, Some(number)) => from_float(number.float()),
                _ => Ok(default),
            },
            _ if value.is_undefined() => Err(fail("int: the value is undefined")),
            _ => Ok(default),
        }
    });
    environment.add_filter("float", |value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("float", arguments)?;
        let default = arguments.next("default").unwrap_or(Value::from(0.0));
        arguments.end()?;
        if value.is_undefined() {
            return Err(fail("float: the value is undefined"));
        }
        let found = number(value).or_else(|| parse(value.as_str()?, true));
        Ok::<_, Error>(found.map_or(default, |number| Value::from(number.float())))
    });
    environment.add_filter("abs", |value: &Value| match number(value) {
        Some(Number::Int(int)) => Ok(Number::Int(int.saturating_abs()).value()),
        Some(Number::Float(float)) => Ok(Value::from(float.abs())),
        None => Err(fail(format!("abs: a {} has no absolute value", type_name(value)))),
    });
    environment.add_filter("round", round);
    environment.add_filter("sum", |value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("sum", arguments)?;
        let attribute = arguments.next("attribute").filter(|name| !name.is_none());
        let start = arguments.next("start").unwrap_or(Value::from(0));
        arguments.end()?;
        items(value)?
            .iter()
            .try_fold(start, |sum, item| operators::add(&sum, &attribute_of(item, attribute.as_ref())?))
    });
}

/// A number as Python reads it from text: white space around it, `_` between digits.
fn parse(text: &str, float: bool) -> Option<Number> {
    let text = text.trim();
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let between = |(at, _): (usize, &str)| digit(at.checked_sub(1)) && digit(Some(at + 1));
    if !text.match_indices('_').all(between) {
        return None;
    }
    let plain = text.replace('_', "");
    if !float {
        return plain.parse().ok().map(Number::Int);
    }
    plain.parse().ok().map(Number::Float)
}

fn round(value: &Value, arguments: Given) -> Result<Value, Error> {
    let mut arguments = Arguments::new("round", arguments)?;
    let precision = arguments.int("precision", 0)?;
    let method = arguments.next("method").map_or(Ok("common".to_owned()), |method| str(&method))?;
    arguments.end()?;
    let Ok(digits) = usize::try_from(precision) else { return Err(super::unsupported("round to tens")) };
    if digits > 300 {
        return Err(super::unsupported("round to more than 300 digits"));
    }
    let number =
        number(value).ok_or_else(|| fail(format!("round: a {} cannot be rounded", type_name(value))))?;
    match (method.as_str(), number) {
        ("common", Number::Int(int)) => Ok(Number::Int(int).value()),
        // The nearest decimal, ties to the even digit, of the exact value.
        ("common", Number::Float(float)) => {
            let rounded = format!("{float:.digits$}").parse::<f64>();
            Ok(Value::from(rounded.unwrap_or(float)))
        }
        ("ceil" | "floor", number) => {
            let factor = 10f64.powi(i32::try_from(precision).unwrap_or(0));
            let scaled = number.float() * factor;
            Ok(Value::from(if method == "ceil" { scaled.ceil() } else { scaled.floor() } / factor))
        }
        _ => Err(fail(format!("round: the method {method:?} is not known"))),
    }
}

/// Filters with the same items in the engine as in Jinja2, except that the engine returns a list instead of a
/// generator.
fn generators(environment: &mut Environment<'static>) {
    for (name, keep) in [("select", true), ("reject", false)] {
        environment.add_filter(name, move |state: &mut State, value: &Value, arguments: Given| {
            chosen(state, items_if_any(value)?, &arguments.into_values(), |item| Ok(item.clone()), keep)
        });
    }
    for (name, keep) in [("selectattr", true), ("rejectattr", false)] {
        environment.add_filter(name, move |state: &mut State, value: &Value, arguments: Given| {
            let arguments = arguments.into_values();
            let (attribute, test) =
                arguments.split_first().ok_or_else(|| fail(format!("{name}: no attribute")))?;
            chosen(state, items_if_any(value)?, test, |item| attribute_of(item, Some(attribute)), keep)
        });
    }
    environment.add_filter("map", map);
    environment.add_filter("unique", |state: &State, value: Value, kwargs: minijinja::value::Kwargs| {
        let all = items(&value)?;
        if let Some(bad) = all.iter().find(|item| item.kind() == ValueKind::Map || operators::is_list(item)) {
            return Err(fail(format!("unique: a {} cannot be compared that way", type_name(bad))));
        }
        one_shot(filters::unique(state, Value::from(all), kwargs)?)
    });
    environment.add_filter("items", |value: &Value| {
        if value.kind() != ValueKind::Map && !value.is_undefined() {
            return Err(fail(format!("items: a {} has none", type_name(value))));
        }
        let pair =
            |key: Value| Ok(minijinja::value::Tuple::from(vec![key.clone(), value.get_item(&key)?]).into());
        let pairs = items(value)?.into_iter().map(pair).collect::<Result<Vec<Value>, Error>>()?;
        Ok(Value::make_one_shot_iterator(pairs.into_iter()))
    });
    environment.add_filter("reverse", |value: &Value| match value.as_str() {
        Some(text) => Ok(Value::from(text.chars().rev().collect::<String>())),
        None if value.kind() == ValueKind::Iterable => {
            Err(super::unsupported("reverse of a generator or view"))
        }
        None => {
            let mut all = items(value)?;
            all.reverse();
            Ok(Value::make_one_shot_iterator(all.into_iter()))
        }
    });
    environment.add_filter("slice", |state: &State, value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("slice", arguments)?;
        let count = usize::try_from(arguments.int("slices", 0)?).unwrap_or(0);
        let fill = arguments.next("fill_with").filter(|fill| !fill.is_none());
        arguments.end()?;
        check_len(32, count)?;
        one_shot(filters::slice(state, Value::from(items(value)?), count, fill)?)
    });
    environment.add_filter("batch", |value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("batch", arguments)?;
        let count = usize::try_from(arguments.int("linecount", 0)?).unwrap_or(0);
        let fill = arguments.next("fill_with").filter(|fill| !fill.is_none());
        arguments.end()?;
        if count == 0 {
            return Err(fail("batch: a size of zero"));
        }
        check_len(32, count)?;
        let all = items(value)?;
        let row = |row: &[Value]| {
            let mut row = row.to_vec();
            if let Some(fill) = &fill {
                row.resize(count, fill.clone());
            }
            Value::from(row)
        };
        let rows: Vec<Value> = all.chunks(count).map(row).collect();
        Ok(Value::make_one_shot_iterator(rows.into_iter()))
    });
}

/// The items; empty for a false value.
fn items_if_any(value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_true() { items(value) } else { Ok(Vec::new()) }
}

/// The items for which the test of `of` gives `keep`; without a test, the truth value decides.
fn chosen(
    state: &mut State,
    all: Vec<Value>,
    test: &[Value],
    of: impl Fn(&Value) -> Result<Value, Error>,
    keep: bool,
) -> Result<Value, Error> {
    let mut result = Vec::new();
    for item in all {
        let value = of(&item)?;
        let passes = match test.split_first() {
            None => value.is_true(),
            Some((name, rest)) => {
                let name = name.as_str().ok_or_else(|| fail("select: the name of a test is no str"))?;
                let arguments: Vec<Value> = std::iter::once(value).chain(rest.iter().cloned()).collect();
                state.perform_test(name, &arguments)?
            }
        };
        if passes == keep {
            result.push(item);
        }
    }
    Ok(Value::make_one_shot_iterator(result.into_iter()))
}

fn map(state: &mut State, value: &Value, arguments: Given) -> Result<Value, Error> {
    let all = items_if_any(value)?;
    let mut named = Arguments::new("map", Rest(arguments.0.clone()))?;
    let arguments = arguments.into_values();
    let mut result = Vec::with_capacity(all.len());
    if named.by_name().is_some_and(|named| named.has("attribute")) && named.rest().is_empty() {
        let attribute = named.required("attribute")?;
        let default = named.next("default");
        named.end()?;
        for item in &all {
            let found = attribute_of(item, Some(&attribute))?;
            result.push(default.clone().filter(|_| found.is_undefined()).unwrap_or(found));
        }
    } else {
        let (name, rest) = arguments.split_first().ok_or_else(|| fail("map: no filter and no attribute"))?;
        let name = name.as_str().ok_or_else(|| fail("map: the name of a filter is no str"))?;
        for item in all {
            let arguments: Vec<Value> = std::iter::once(item).chain(rest.iter().cloned()).collect();
            result.push(state.apply_filter(name, &arguments)?);
        }
    }
    Ok(Value::make_one_shot_iterator(result.into_iter()))
}

fn one_shot(value: Value) -> Result<Value, Error> {
    Ok(Value::make_one_shot_iterator(items(&value)?.into_iter()))
}

fn lists(environment: &mut Environment<'static>) {
    // An attribute, never an item.
    environment.add_filter("attr", |value: &Value, name: &str| match value.kind() {
        _ if has_method(value, name) => Ok(Value::from_object(Method)),
        ValueKind::Undefined => Err(fail("attr: the value is undefined")),
        ValueKind::Plain => value.get_attr(name),
        ValueKind::Map if is_namespace(value) => value.get_attr(name),
        _ => Ok(Value::UNDEFINED),
    });
    environment.add_filter(
        "groupby",
        |value: Value, attribute: Option<&str>, kwargs: minijinja::value::Kwargs| {
            // The engine sorts values that Python refuses to compare.
            let all = items(&value)?;
            let path = match attribute {
                Some(path) => Value::from(path),
                None => kwargs.peek::<Value>("attribute")?,
            };
            let case = kwargs.peek::<Option<bool>>("case_sensitive")?.unwrap_or(false);
            let default = kwargs.peek::<Option<Value>>("default")?;
            let key = |item: &Value| {
                let found = attribute_of(item, Some(&path))?;
                Ok(vec![default.clone().filter(|_| found.is_undefined()).unwrap_or(found)])
            };
            let keyed = keyed(all.clone(), case, key)?;
            if keyed.len() > 1 && keyed.iter().any(|(key, _)| key.iter().any(Value::is_undefined)) {
                return Err(fail("groupby: an item lacks the attribute"));
            }
            sorted(keyed, false)?;
            filters::groupby(Value::from(all), attribute, kwargs)
        },
    );
    environment.add_filter("list", |value: &Value| Ok::<_, Error>(Value::from(items(value)?)));
    for name in ["length", "count"] {
        environment.add_filter(name, |value: &Value| match value.kind() {
            ValueKind::Undefined => Ok(0),
            ValueKind::String => Ok(value.as_str().unwrap_or_default().chars().count()),
            _ => value.len().ok_or_else(|| fail(format!("length: a {} has none", type_name(value)))),
        });
    }
    environment.add_filter("first", |value: &Value| {
        Ok::<_, Error>(items(value)?.into_iter().next().unwrap_or(Value::UNDEFINED))
    });
    environment.add_filter("last", |value: &Value| {
        if value.kind() == ValueKind::Iterable && value.len().is_none() {
            return Err(super::unsupported("last of a generator"));
        }
        Ok(items(value)?.into_iter().next_back().unwrap_or(Value::UNDEFINED))
    });
    environment.add_filter("sort", |value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("sort", arguments)?;
        let (reverse, case) = (arguments.truth("reverse", false), arguments.truth("case_sensitive", false));
        let attribute = arguments.next("attribute").filter(|name| !name.is_none());
        arguments.end()?;
        let keyed = keyed(items(value)?, case, |item| sort_keys(item, attribute.as_ref()))?;
        let sorted = sorted(keyed, reverse)?;
        Ok::<_, Error>(Value::from(sorted.into_iter().map(|(_, item)| item).collect::<Vec<_>>()))
    });
    environment.add_filter("dictsort", |value: &Value, arguments: Given| {
        let mut arguments = Arguments::new("dictsort", arguments)?;
        let case = arguments.truth("case_sensitive", false);
        let by = arguments.next("by").map_or(Ok("key".to_owned()), |by| str(&by))?;
        let reverse = arguments.truth("reverse", false);
        arguments.end()?;
        if value.kind() != ValueKind::Map || !matches!(by.as_str(), "key" | "value") {
            return Err(fail("dictsort: not a dict, or not by key or value"));
        }
        let idx = usize::from(by == "value");
        let pair =
            |key: Value| Ok(minijinja::value::Tuple::from(vec![key.clone(), value.get_item(&key)?]).into());
        let pairs = items(value)?.into_iter().map(pair).collect::<Result<Vec<Value>, Error>>()?;
        let keyed = keyed(pairs, case, |pair| Ok(vec![pair.get_item_by_index(idx)?]))?;
        Ok::<_, Error>(Value::from(
            sorted(keyed, reverse)?.into_iter().map(|(_, pair)| pair).collect::<Vec<_>>(),
        ))
    });
    for (name, wanted) in [("min", Ordering::Less), ("max", Ordering::Greater)] {
        environment.add_filter(name, move |value: &Value, arguments: Given| {
            let mut arguments = Arguments::new(name, arguments)?;
            let case = arguments.truth("case_sensitive", false);
            let attribute = arguments.next("attribute").filter(|name| !name.is_none());
            arguments.end()?;
            let mut best: Option<(Vec<Value>, Value)> = None;
            for (key, item) in
                keyed(items(value)?, case, |item| Ok(vec![attribute_of(item, attribute.as_ref())?]))?
            {
                let better = match &best {
                    Some((other, _)) => operators::compare("<", &key[0], &other[0])? == Some(wanted),
                    None => true,
                };
                if better {
                    best = Some((key, item));
                }
            }
            Ok::<_, Error>(best.map_or(Value::UNDEFINED, |(_, item)| item))
        });
    }
}

/// `item.a.b` for the attribute `"a.b"`; numbers are indices.
fn attribute_of(item: &Value, attribute: Option<&Value>) -> Result<Value, Error> {
    let Some(attribute) = attribute else { return Ok(item.clone()) };
    let Some(path) = attribute.as_str() else { return super::sequence::item(item, attribute) };
    path.split('.').try_fold(item.clone(), |value, part| {
        let key = part.parse::<i64>().map_or_else(|_| Value::from(part), Value::from);
        super::sequence::item(&value, &key)
    })
}

fn sort_keys(item: &Value, attribute: Option<&Value>) -> Result<Vec<Value>, Error> {
    match attribute.and_then(Value::as_str) {
        Some(names) if names.contains(',') => {
            names.split(',').map(|name| attribute_of(item, Some(&Value::from(name)))).collect()
        }
        _ => Ok(vec![attribute_of(item, attribute)?]),
    }
}

type Keyed = Vec<(Vec<Value>, Value)>;

/// Items with their sort keys; texts in lower case unless `case` is set.
fn keyed(
    all: Vec<Value>,
    case: bool,
    key: impl Fn(&Value) -> Result<Vec<Value>, Error>,
) -> Result<Keyed, Error> {
    let fold = |key: Value| match key.as_str() {
        Some(text) if !case => Value::from(text.to_lowercase()),
        _ => key,
    };
    let with_key = |item: Value| Ok((key(&item)?.into_iter().map(fold).collect(), item));
    all.into_iter().map(with_key).collect()
}

/// Sorted as Python does, which keeps equal items in their order, in reverse too.
fn sorted(all: Keyed, reverse: bool) -> Result<Keyed, Error> {
    merge_sort(all, &|(a, _), (b, _)| {
        for (a, b) in a.iter().zip(b).filter(|(a, b)| !operators::equal(a, b)) {
            match operators::compare("<", a, b)? {
                Some(Ordering::Equal) => {}
                Some(ordering) => return Ok(if reverse { ordering.reverse() } else { ordering }),
                None => return Err(fail("NaN cannot be sorted")),
            }
        }
        Ok(Ordering::Equal)
    })
}

/// A stable sort whose comparison can fail.
pub(super) fn merge_sort<T>(
    mut left: Vec<T>,
    compare: &impl Fn(&T, &T) -> Result<Ordering, Error>,
) -> Result<Vec<T>, Error> {
    if left.len() < 2 {
        return Ok(left);
    }
    let right = left.split_off(left.len() / 2);
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let mut left = merge_sort(left, compare)?.into_iter().peekable();
    let mut right = merge_sort(right, compare)?.into_iter().peekable();
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        merged.extend(if compare(a, b)? == Ordering::Greater { right.next() } else { left.next() });
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}
