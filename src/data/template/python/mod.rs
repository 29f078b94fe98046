//! Python and `transformers` semantics for templates: printing of values, operators, methods, filters and
//! tests.
//!
//! Models are trained on text rendered by Jinja2, so every operation that can affect the text behaves as in
//! Python. Operations that cannot be reproduced (the address of a generator, the order of a set) are errors
//! that name them. Operations that change a value in place are errors too, as in the sandbox of
//! `transformers`.

mod convert;
mod date;
mod filters;
mod format;
mod json;
mod methods;
mod operators;
mod predicates;
mod sequence;
mod text;

use minijinja::{Environment, Error, ErrorKind, Value};

/// Maximum length of the text that one operation produces.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// Adds all of them to `environment`.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(|output, _, value| {
        output.write_str(&text::str(value)?).map_err(|e| Error::from(ErrorKind::WriteFailure).with_source(e))
    });
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", date::strftime_now);
    operators::install(environment);
    methods::install(environment);
    filters::install(environment);
    predicates::install(environment);
    sequence::install(environment);
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(fail(message))
}

/// An error of the template.
fn fail(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// An error for a Python feature that is not supported.
fn unsupported(what: impl std::fmt::Display) -> Error {
    fail(format!("{what} is not supported in chat templates"))
}

/// The length of `count` repetitions of `len` bytes, if it is within the limit.
fn check_len(len: usize, count: usize) -> Result<(), Error> {
    match len.checked_mul(count) {
        Some(total) if total <= MAX_TEXT_BYTES => Ok(()),
        _ => Err(fail(format!("a text would have more than {MAX_TEXT_BYTES} bytes"))),
    }
}
