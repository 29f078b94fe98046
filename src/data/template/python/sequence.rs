//! `range`, subscripts and slices.

use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Environment, Error, Value};

use super::convert::{Arguments, Given, Number, items, number, type_name};
use super::fail;
use super::methods::{Method, has_method};

/// Maximum length of a range, as in the sandbox of Jinja.
const MAX_RANGE: usize = 100_000;

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_function("range", |arguments: Given| Range::of(arguments));
    environment.add_function("py_item", item);
    // The engine would treat None as an empty list.
    environment.add_function("py_iter", |value: Value| match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => Ok(value),
        _ => items(&value).map(Value::from),
    });
    environment.add_function(
        "py_slice",
        |value: &Value, start: &Value, stop: &Value, step: Option<Value>| {
            slice(value, start, stop, &step.unwrap_or(Value::from(())))
        },
    );
}

/// What `range` returns: a sequence that is written as a call.
#[derive(Debug)]
pub(super) struct Range {
    start: i128,
    stop: i128,
    step: i128,
    len: usize,
}

impl Range {
    fn of(arguments: Given) -> Result<Value, Error> {
        let count = arguments.len();
        let mut arguments = Arguments::new("range", arguments)?;
        let first = arguments.required("start")?;
        let int = |value: &Value| match number(value) {
            Some(Number::Int(int)) => Ok(int),
            _ => Err(fail(format!("range: a {} is not an int", type_name(value)))),
        };
        let (start, stop) =
            if count == 1 { (0, int(&first)?) } else { (int(&first)?, int(&arguments.required("stop")?)?) };
        let step = arguments.int("step", 1)?;
        arguments.end()?;
        if step == 0 {
            return Err(fail("range: the step is zero"));
        }
        match usize::try_from(steps(start, stop, step)) {
            Ok(len) if len <= MAX_RANGE => Ok(Value::from_object(Self { start, stop, step, len })),
            _ => Err(fail(format!("range: more than {MAX_RANGE} numbers"))),
        }
    }

    /// The range of every `step`-th index from `first` to before `end`.
    fn part(&self, first: i128, end: i128, step: i128) -> Self {
        let at = |idx: i128| self.start.saturating_add(self.step.saturating_mul(idx));
        let (start, stop, step) = (at(first), at(end), self.step.saturating_mul(step));
        Self { start, stop, step, len: usize::try_from(steps(start, stop, step)).unwrap_or(0) }
    }

    pub(super) fn repr(&self) -> String {
        let Self { start, stop, step, .. } = self;
        if *step == 1 { format!("range({start}, {stop})") } else { format!("range({start}, {stop}, {step})") }
    }
}

/// The number of values from `start` to before `stop`.
fn steps(start: i128, stop: i128, step: i128) -> i128 {
    let (distance, width) = if step > 0 {
        (stop.saturating_sub(start), step)
    } else {
        (start.saturating_sub(stop), step.saturating_neg())
    };
    distance.max(0).saturating_add(width - 1) / width
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let idx = key.as_usize().filter(|idx| *idx < self.len)?;
        Some(Number::Int(self.start + self.step * idx as i128).value())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.len)
    }
}

/// `value[key]`: an item, or else an attribute, or else undefined.
pub(super) fn item(value: &Value, key: &Value) -> Result<Value, Error> {
    let at = |len: usize| match number(key) {
        Some(Number::Int(idx)) => usize::try_from(if idx < 0 { idx + len as i128 } else { idx }).ok(),
        _ => None,
    };
    let method = || match key.as_str() {
        Some(name) if has_method(value, name) => Value::from_object(Method),
        _ => Value::UNDEFINED,
    };
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            let found = at(text.chars().count()).and_then(|idx| text.chars().nth(idx));
            Ok(found.map_or_else(method, Value::from))
        }
        ValueKind::Seq => match at(value.len().unwrap_or(0)) {
            Some(idx) if idx < value.len().unwrap_or(0) => value.get_item_by_index(idx),
            _ => Ok(method()),
        },
        ValueKind::Map if number(key).is_none() => {
            let found = value.get_item(key)?;
            Ok(if found.is_undefined() { method() } else { found })
        }
        // 1, 1.0 and True are one key.
        ValueKind::Map => {
            let same = items(value)?.into_iter().find(|other| super::operators::equal(other, key));
            same.map_or(Ok(Value::UNDEFINED), |key| value.get_item(&key))
        }
        ValueKind::Undefined => Err(fail("an undefined value has no items")),
        ValueKind::Iterable => Ok(Value::UNDEFINED),
        _ => Ok(value.get_item(key).unwrap_or(Value::UNDEFINED)),
    }
}

fn slice(value: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    let bound = |bound: &Value| match number(bound) {
        _ if bound.is_none() => Ok(None),
        Some(Number::Int(int)) => Ok(Some(int)),
        _ => Err(fail(format!("a slice from, to or by a {}", type_name(bound)))),
    };
    let text = value.as_str();
    let all: Vec<Value> = match value.kind() {
        ValueKind::String | ValueKind::Seq => items(value)?,
        _ => return Err(fail(format!("a {} cannot be sliced", type_name(value)))),
    };
    let (start, stop, step) = (bound(start)?, bound(stop)?, bound(step)?.unwrap_or(1));
    if step == 0 {
        return Err(fail("the step of a slice is zero"));
    }
    let len = all.len() as i128;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: i128| (if bound < 0 { bound.saturating_add(len) } else { bound }).clamp(low, high);
    let first = start.map_or(if step > 0 { low } else { high }, clamp);
    let end = stop.map_or(if step > 0 { high } else { low }, clamp);
    if let Some(range) = value.downcast_object_ref::<Range>() {
        return Ok(Value::from_object(range.part(first, end, step)));
    }
    let mut chosen = Vec::new();
    let mut at = first;
    while if step > 0 { at < end } else { at > end } {
        chosen.extend(usize::try_from(at).ok().and_then(|at| all.get(at)).cloned());
        at = at.saturating_add(step);
    }
    Ok(if text.is_some() {
        chosen.iter().filter_map(Value::as_str).collect::<String>().into()
    } else if value.is_tuple() {
        Tuple::from(chosen).into()
    } else {
        chosen.into()
    })
}
