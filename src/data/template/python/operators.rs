//! The operators of expressions.

use std::cmp::Ordering;

use minijinja::tests::is_sameas;
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Environment, Error, Value};

use super::convert::{Number, items, number, type_name};
use super::format::percent;
use super::sequence::Range;
use super::text::is_namespace;
use super::{check_len, fail, text, unsupported};

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_function("py_add", |a: &Value, b: &Value| add(a, b));
    environment.add_function("py_sub", |a: &Value, b: &Value| {
        arithmetic("-", a, b, i128::checked_sub, |a, b| Ok(a - b))
    });
    environment.add_function("py_mul", |a: &Value, b: &Value| mul(a, b));
    environment.add_function("py_div", |a: &Value, b: &Value| div(a, b));
    environment.add_function("py_floordiv", |a: &Value, b: &Value| {
        arithmetic("//", a, b, |a, b| Some(div_mod(a, b)?.0), |a, b| Ok(float_div_mod(a, b)?.0))
    });
    environment.add_function("py_mod", |a: &Value, b: &Value| match a.as_str() {
        Some(template) => percent(template, b),
        None => arithmetic("%", a, b, |a, b| Some(div_mod(a, b)?.1), |a, b| Ok(float_div_mod(a, b)?.1)),
    });
    environment.add_function("py_pow", |a: &Value, b: &Value| pow(a, b));
    environment.add_function("py_concat", |a: &Value, b: &Value| {
        let (a, b) = (text::str(a)?, text::str(b)?);
        check_len(a.len() + b.len(), 1)?;
        Ok(a + &b)
    });
    environment.add_function("py_neg", |a: &Value| match number(a) {
        Some(Number::Int(int)) => int.checked_neg().map(|int| Number::Int(int).value()).ok_or_else(too_large),
        Some(Number::Float(float)) => Ok(Value::from(-float)),
        None => Err(fail(format!("- cannot be applied to a {}", type_name(a)))),
    });
    environment.add_function("py_pos", |a: &Value| match number(a) {
        Some(number) => Ok(number.value()),
        None => Err(fail(format!("+ cannot be applied to a {}", type_name(a)))),
    });
    environment.add_function("py_eq", |a: &Value, b: &Value| equal(a, b));
    environment.add_function("py_ne", |a: &Value, b: &Value| !equal(a, b));
    environment.add_function("py_lt", |a: &Value, b: &Value| Ok(compare("<", a, b)? == Some(Ordering::Less)));
    environment
        .add_function("py_gt", |a: &Value, b: &Value| Ok(compare(">", a, b)? == Some(Ordering::Greater)));
    environment.add_function("py_le", |a: &Value, b: &Value| {
        Ok(matches!(compare("<=", a, b)?, Some(Ordering::Less | Ordering::Equal)))
    });
    environment.add_function("py_ge", |a: &Value, b: &Value| {
        Ok(matches!(compare(">=", a, b)?, Some(Ordering::Greater | Ordering::Equal)))
    });
    environment.add_function("py_in", |a: &Value, b: &Value| contains(b, a));
    environment.add_function("py_not_in", |a: &Value, b: &Value| contains(b, a).map(|found| !found));
}

fn too_large() -> Error {
    unsupported("a number this large")
}

fn mismatch(operator: &str, a: &Value, b: &Value) -> Error {
    fail(format!("{operator} cannot be applied to a {} and a {}", type_name(a), type_name(b)))
}

fn arithmetic(
    operator: &str,
    a: &Value,
    b: &Value,
    ints: impl Fn(i128, i128) -> Option<i128>,
    floats: impl Fn(f64, f64) -> Result<f64, Error>,
) -> Result<Value, Error> {
    match (number(a), number(b)) {
        (Some(Number::Int(a)), Some(Number::Int(b))) => {
            if b == 0 && matches!(operator, "%" | "//") {
                return Err(fail("division by zero"));
            }
            ints(a, b).map(|int| Number::Int(int).value()).ok_or_else(too_large)
        }
        (Some(a), Some(b)) => floats(a.float(), b.float()).map(Value::from),
        _ => Err(mismatch(operator, a, b)),
    }
}

pub(super) fn add(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        check_len(a.len() + b.len(), 1)?;
        return Ok([a, b].concat().into());
    }
    let is_seq = |value: &Value| value.is_tuple() || is_list(value);
    if is_seq(a) && is_seq(b) && a.is_tuple() == b.is_tuple() {
        let mut all = items(a)?;
        all.extend(items(b)?);
        return Ok(if a.is_tuple() { Tuple::from(all).into() } else { all.into() });
    }
    arithmetic("+", a, b, i128::checked_add, |a, b| Ok(a + b))
}

/// A list, which cannot be a key.
pub(super) fn is_list(value: &Value) -> bool {
    value.kind() == ValueKind::Seq && !value.is_tuple() && value.downcast_object_ref::<Range>().is_none()
}

fn mul(a: &Value, b: &Value) -> Result<Value, Error> {
    for (value, times) in [(a, b), (b, a)] {
        let Some(Number::Int(times)) = number(times) else { continue };
        let times = usize::try_from(times.max(0)).map_err(|_| too_large())?;
        if let Some(text) = value.as_str() {
            check_len(text.len(), times)?;
            return Ok(text.repeat(times).into());
        }
        if value.is_tuple() || is_list(value) {
            let once = items(value)?;
            // A value takes about 32 bytes.
            check_len(once.len().max(1) * 32, times)?;
            let all: Vec<Value> = once.iter().cloned().cycle().take(once.len() * times).collect();
            return Ok(if value.is_tuple() { Tuple::from(all).into() } else { all.into() });
        }
    }
    arithmetic("*", a, b, i128::checked_mul, |a, b| Ok(a * b))
}

fn div(a: &Value, b: &Value) -> Result<Value, Error> {
    let (Some(x), Some(y)) = (number(a), number(b)) else { return Err(mismatch("/", a, b)) };
    if y.float() == 0.0 {
        return Err(fail("division by zero"));
    }
    // Beyond this a quotient of integers differs from that of the nearest floats.
    let exact = |number| !matches!(number, Number::Int(int) if int.unsigned_abs() > 1 << 53);
    if exact(x) && exact(y) { Ok(Value::from(x.float() / y.float())) } else { Err(too_large()) }
}

fn div_mod(a: i128, b: i128) -> Option<(i128, i128)> {
    let (quotient, remainder) = (a.checked_div(b)?, a.checked_rem(b)?);
    if remainder != 0 && (remainder < 0) != (b < 0) {
        Some((quotient - 1, remainder + b))
    } else {
        Some((quotient, remainder))
    }
}

/// CPython's `float_divmod`.
fn float_div_mod(a: f64, b: f64) -> Result<(f64, f64), Error> {
    if b == 0.0 {
        return Err(fail("division by zero"));
    }
    let mut remainder = a % b;
    let mut quotient = (a - remainder) / b;
    if remainder == 0.0 {
        remainder = 0.0f64.copysign(b);
    } else if (remainder < 0.0) != (b < 0.0) {
        remainder += b;
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return Ok((0.0f64.copysign(a / b), remainder));
    }
    let floor = quotient.floor();
    Ok((if quotient - floor > 0.5 { floor + 1.0 } else { floor }, remainder))
}

fn pow(a: &Value, b: &Value) -> Result<Value, Error> {
    match (number(a), number(b)) {
        (Some(Number::Int(a)), Some(Number::Int(b))) if b >= 0 => {
            let power = u32::try_from(b).ok().and_then(|b| a.checked_pow(b));
            power.map(|int| Number::Int(int).value()).ok_or_else(too_large)
        }
        (Some(a), Some(b)) => {
            let power = a.float().powf(b.float());
            if power.is_finite() { Ok(Value::from(power)) } else { Err(fail("the power is not a number")) }
        }
        _ => Err(mismatch("**", a, b)),
    }
}

/// `a == b`.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    if let (Some(a), Some(b)) = (number(a), number(b)) {
        return order(a, b) == Some(Ordering::Equal);
    }
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return a == b;
    }
    match (a.kind(), b.kind()) {
        (ValueKind::Seq, ValueKind::Seq) => {
            let kind = |value: &Value| (value.is_tuple(), value.downcast_object_ref::<Range>().is_some());
            let (Ok(x), Ok(y)) = (items(a), items(b)) else { return false };
            kind(a) == kind(b) && x.len() == y.len() && x.iter().zip(&y).all(|(x, y)| equal(x, y))
        }
        (ValueKind::Map, ValueKind::Map) if !is_namespace(a) && !is_namespace(b) => {
            let (Ok(x), Ok(y)) = (items(a), items(b)) else { return false };
            let same = |key: &Value| match (a.get_item(key), b.get_item(key)) {
                (Ok(x), Ok(y)) => !y.is_undefined() && equal(&x, &y),
                _ => false,
            };
            x.len() == y.len() && x.iter().all(same)
        }
        // These values are equal only to themselves.
        (ValueKind::Map | ValueKind::Iterable | ValueKind::Plain, _) => is_sameas(a, b),
        _ => a == b,
    }
}

fn order(a: Number, b: Number) -> Option<Ordering> {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => Some(a.cmp(&b)),
        (Number::Float(a), Number::Float(b)) => a.partial_cmp(&b),
        (Number::Int(a), Number::Float(b)) => int_and_float(a, b),
        (Number::Float(a), Number::Int(b)) => int_and_float(b, a).map(Ordering::reverse),
    }
}

/// Exact, because an int may have more digits than a float.
fn int_and_float(int: i128, float: f64) -> Option<Ordering> {
    match (int as f64).partial_cmp(&float)? {
        Ordering::Equal if float.abs() < 1e38 => Some(int.cmp(&(float as i128))),
        ordering => Some(ordering),
    }
}

/// The order of `a` and `b`; `None` if one is NaN.
pub(super) fn compare(operator: &str, a: &Value, b: &Value) -> Result<Option<Ordering>, Error> {
    if let (Some(a), Some(b)) = (number(a), number(b)) {
        return Ok(order(a, b));
    }
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return Ok(Some(a.cmp(b)));
    }
    if (a.is_tuple() && b.is_tuple()) || (is_list(a) && is_list(b)) {
        let (x, y) = (items(a)?, items(b)?);
        for (x, y) in x.iter().zip(&y) {
            if !equal(x, y) {
                return compare(operator, x, y);
            }
        }
        return Ok(Some(x.len().cmp(&y.len())));
    }
    Err(mismatch(operator, a, b))
}

/// `value in container`.
pub(super) fn contains(container: &Value, value: &Value) -> Result<bool, Error> {
    match (container.kind(), value.as_str()) {
        (ValueKind::String, Some(part)) => Ok(container.as_str().unwrap_or_default().contains(part)),
        (ValueKind::String, None) => Err(fail(format!("a {} cannot be in a str", type_name(value)))),
        (ValueKind::Map, _) if matches!(value.kind(), ValueKind::Map) || is_list(value) => {
            Err(fail(format!("a {} cannot be a key", type_name(value))))
        }
        (ValueKind::Map, _) => Ok(items(container)?.iter().any(|key| equal(key, value))),
        _ => Ok(items(container)?.iter().any(|item| equal(item, value))),
    }
}
