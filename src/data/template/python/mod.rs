//! What templates take from Python and `transformers`: how values are written, operators, methods, filters and tests.
//!
//! Models are trained on text that Jinja2 wrote, so everything that can end up in a text is done here as Python does it, and
//! what cannot be the same (the address of a generator, a set in its own order) is an error that names it. What changes a
//! value in place is an error too, as in the sandbox of `transformers`.

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

/// Longest text that one operation may make.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// Adds all of it to `environment`.
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

/// An error for what Python does and we do not.
fn unsupported(what: impl std::fmt::Display) -> Error {
    fail(format!("{what} is not supported in chat templates"))
}

/// `count` repetitions of `len` bytes, if that is a reasonable text.
fn check_len(len: usize, count: usize) -> Result<(), Error> {
    match len.checked_mul(count) {
        Some(total) if total <= MAX_TEXT_BYTES => Ok(()),
        _ => Err(fail(format!("a text would have more than {MAX_TEXT_BYTES} bytes"))),
    }
}
