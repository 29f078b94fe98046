//! Jinja's tests (`x is string`) with the results of Jinja2.

use std::cmp::Ordering;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Value};

use super::convert::{Number, number, type_name};
use super::text::is_namespace;
use super::{fail, operators, text};

pub(super) fn install(environment: &mut Environment<'static>) {
    // A test that Jinja2 lacks is an error there.
    for name in ["startingwith", "endingwith", "safe", "int"] {
        environment.remove_test(name);
    }
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Undefined) || is_mapping(value)
    });
    environment.add_test("iterable", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Iterable | ValueKind::Undefined
        ) || is_mapping(value)
    });
    environment.add_test("mapping", |value: &Value| is_mapping(value));
    environment.add_test("number", |value: &Value| number(value).is_some());
    environment.add_test("integer", |value: &Value| value.kind() == ValueKind::Number && value.is_integer());
    environment.add_test("float", |value: &Value| value.kind() == ValueKind::Number && !value.is_integer());
    environment.add_test("string", |value: &Value| value.kind() == ValueKind::String);
    environment.add_test("odd", |value: &Value| Ok(remainder(value, 2)? == 1.0));
    environment.add_test("even", |value: &Value| Ok(remainder(value, 2)? == 0.0));
    environment.add_test("divisibleby", |value: &Value, by: &Value| match number(by) {
        Some(Number::Int(by)) if by != 0 => Ok(remainder(value, by)? == 0.0),
        _ => Err(fail(format!("divisibleby: a {} is not a number to divide by", type_name(by)))),
    });
    environment.add_test("lower", |value: &Value| {
        let text = text::str(value)?;
        Ok(text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase))
    });
    environment.add_test("upper", |value: &Value| {
        let text = text::str(value)?;
        Ok(text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase))
    });
    for name in ["eq", "equalto", "=="] {
        environment.add_test(name, |a: &Value, b: &Value| operators::equal(a, b));
    }
    for name in ["ne", "!="] {
        environment.add_test(name, |a: &Value, b: &Value| !operators::equal(a, b));
    }
    for name in ["lt", "lessthan", "<"] {
        environment.add_test(name, |a: &Value, b: &Value| ordered("<", a, b, &[Ordering::Less]));
    }
    for name in ["le", "<="] {
        environment
            .add_test(name, |a: &Value, b: &Value| ordered("<=", a, b, &[Ordering::Less, Ordering::Equal]));
    }
    for name in ["gt", "greaterthan", ">"] {
        environment.add_test(name, |a: &Value, b: &Value| ordered(">", a, b, &[Ordering::Greater]));
    }
    for name in ["ge", ">="] {
        environment.add_test(name, |a: &Value, b: &Value| {
            ordered(">=", a, b, &[Ordering::Greater, Ordering::Equal])
        });
    }
    environment.add_test("in", |a: &Value, b: &Value| operators::contains(b, a));
}

fn is_mapping(value: &Value) -> bool {
    value.kind() == ValueKind::Map && !is_namespace(value)
}

fn ordered(operator: &str, a: &Value, b: &Value, wanted: &[Ordering]) -> Result<bool, Error> {
    Ok(operators::compare(operator, a, b)?.is_some_and(|ordering| wanted.contains(&ordering)))
}

fn remainder(value: &Value, by: i128) -> Result<f64, Error> {
    match number(value) {
        Some(Number::Int(int)) => Ok(int.rem_euclid(by.abs()) as f64),
        Some(Number::Float(float)) => Ok(float.rem_euclid(by.abs() as f64)),
        None => Err(fail(format!("% cannot be applied to a {} and an int", type_name(value)))),
    }
}
