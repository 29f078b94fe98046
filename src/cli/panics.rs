//! The panic handler: a panic is a bug in tanren, so the user gets one line to report and a special exit
//! code.
//!
//! Some panics are expected (those of the tokenizer library, which its wrapper turns into errors), so the
//! hook prints nothing; the message of a panic that ends the program is printed here. `RUST_BACKTRACE` brings
//! Rust's own output back.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use super::console::Console;

/// Exit code of an internal error (`EX_SOFTWARE` of sysexits).
const INTERNAL: u8 = 70;

/// Runs `work` and returns its exit code, or on a panic prints the explanation and returns that of an
/// internal error.
pub(super) fn contained(console: &Console, work: impl FnOnce() -> u8) -> u8 {
    let last: Arc<Mutex<String>> = Arc::default();
    let seen = Arc::clone(&last);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = describe(info);
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            usual(info);
        }
    }));
    let result = catch_unwind(AssertUnwindSafe(work));
    drop(std::panic::take_hook());
    result.unwrap_or_else(|_| {
        console.clear();
        let what = last.lock().unwrap_or_else(PoisonError::into_inner);
        console.note(format_args!(
            "error[INTERNAL] internal error, please report: {what}; fix: run it again with RUST_BACKTRACE=1 and add the output"
        ));
        INTERNAL
    })
}

/// Message and place of a panic, on one line.
fn describe(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
    let text = text.replace(char::is_control, " ");
    match info.location() {
        Some(place) => format!("{text} ({}:{})", place.file(), place.line()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_exit_code_and_other_codes_pass() {
        let console = Console::new();
        assert_eq!(contained(&console, || 3), 3);
        assert_eq!(contained(&console, || panic!("on purpose")), INTERNAL);
    }
}
