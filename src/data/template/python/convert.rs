//! Conversion of template values to numbers, lists and arguments.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Error, Value};

use super::fail;

/// A Python number; `True` and `False` are 1 and 0.
#[derive(Debug, Clone, Copy)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub(super) fn float(self) -> f64 {
        match self {
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }

    pub(super) fn value(self) -> Value {
        match self {
            Self::Int(int) => i64::try_from(int).map_or_else(|_| Value::from(int), Value::from),
            Self::Float(float) => Value::from(float),
        }
    }
}

pub(super) fn number(value: &Value) -> Option<Number> {
    match value.kind() {
        ValueKind::Bool => Some(Number::Int(value.is_true().into())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Number::Int),
        ValueKind::Number => f64::try_from(value.clone()).ok().map(Number::Float),
        _ => None,
    }
}

/// The name of the type in messages.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "undefined value",
        ValueKind::None => "None",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Seq if value.is_tuple() => "tuple",
        ValueKind::Seq => "list",
        ValueKind::Map => "dict",
        _ => "object",
    }
}

/// The items that a `for` loop over the value visits.
pub(super) fn items(value: &Value) -> Result<Vec<Value>, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(Vec::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().chars().map(Value::from).collect()),
        ValueKind::Map => {
            let keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
            // 1, 1.0 and True are equal keys in Python.
            let mut numbers: Vec<f64> = keys.iter().filter_map(number).map(Number::float).collect();
            numbers.sort_by(f64::total_cmp);
            numbers.dedup();
            match keys.iter().filter(|key| number(key).is_some()).count() == numbers.len() {
                true => Ok(keys),
                false => Err(fail("a dict has two keys that are equal in Python")),
            }
        }
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.checked().collect::<Result<Vec<_>, _>>(),
        _ => Err(fail(format!("a value of type {} cannot be iterated", type_name(value)))),
    }
}

/// The arguments of a call in the form of the engine.
pub(super) type Given = Rest<ValueOrKwargs>;

/// The arguments of a call, by position and name.
pub(super) struct Arguments {
    what: String,
    by_position: std::vec::IntoIter<Value>,
    by_name: Option<Kwargs>,
    /// Names of the keyword arguments that were read so far.
    used: Vec<String>,
}

impl Arguments {
    pub(super) fn new(what: impl Into<String>, arguments: Given) -> Result<Self, Error> {
        let mut arguments = arguments.into_values();
        let by_name = match arguments.last() {
            Some(last) if last.is_kwargs() => Some(Kwargs::try_from(last.clone())?),
            _ => None,
        };
        if by_name.is_some() {
            arguments.pop();
        }
        Ok(Self { what: what.into(), by_position: arguments.into_iter(), by_name, used: Vec::new() })
    }

    /// The next argument, which can also be given by `name`.
    pub(super) fn next(&mut self, name: &str) -> Option<Value> {
        if let Some(value) = self.by_position.next() {
            return Some(value);
        }
        let value = self.by_name.as_ref()?.get::<Value>(name).ok().filter(|value| !value.is_undefined())?;
        self.used.push(name.to_owned());
        Some(value)
    }

    pub(super) fn required(&mut self, name: &str) -> Result<Value, Error> {
        let missing = format!("{}: the argument {name:?} is missing", self.what);
        self.next(name).ok_or_else(|| fail(missing))
    }

    pub(super) fn text(&mut self, name: &str) -> Result<String, Error> {
        let value = self.required(name)?;
        let wrong = || fail(format!("{}: {name} is a {} and not a str", self.what, type_name(&value)));
        value.as_str().map(str::to_owned).ok_or_else(wrong)
    }

    /// A whole number; `default` if it is not given or None.
    pub(super) fn int(&mut self, name: &str, default: i128) -> Result<i128, Error> {
        match self.next(name) {
            None => Ok(default),
            Some(value) if value.is_none() => Ok(default),
            Some(value) => match number(&value) {
                Some(Number::Int(int)) => Ok(int),
                _ => Err(fail(format!("{}: {name} is a {} and not an int", self.what, type_name(&value)))),
            },
        }
    }

    pub(super) fn truth(&mut self, name: &str, default: bool) -> bool {
        self.next(name).map_or(default, |value| value.is_true())
    }

    pub(super) fn rest(&mut self) -> Vec<Value> {
        self.by_position.by_ref().collect()
    }

    pub(super) fn by_name(&self) -> Option<&Kwargs> {
        self.by_name.as_ref()
    }

    /// Refuses arguments that were not read.
    pub(super) fn end(mut self) -> Result<(), Error> {
        if self.by_position.next().is_some() {
            return Err(fail(format!("{}: too many arguments", self.what)));
        }
        match &self.by_name {
            Some(named) => match named.args().find(|name| !self.used.iter().any(|used| used == name)) {
                Some(name) => Err(fail(format!("{}: the argument {name:?} is not known", self.what))),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }
}
