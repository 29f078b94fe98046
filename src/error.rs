//! The error type: the fault, its place, the expected value, and the fix.
//!
//! The user has only the message for debugging, so an input error always carries a place (path, line, field)
//! and a fix. Every error maps to one exit code of the command line: 2 input, 3 I/O, 4 numeric, 5 device, 6
//! interrupted after saving, 130 stopped with nothing to save. The table of all codes is `docs/errors.md`.
//!
//! Programs can read the parts:
//!
//! ```
//! use tanren::config::TrainConfig;
//! let pairs = [("model", "m"), ("train_file", "rows.jsonl"), ("output_dir", "runs/a"), ("lora_r", "0")];
//! let error = TrainConfig::from_pairs(pairs).unwrap_err();
//! assert_eq!((error.code(), error.exit_code()), ("CONFIG", 2));
//! assert_eq!((error.field(), error.got()), (Some("lora_r"), Some("0")));
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

/// `std::result::Result` with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// All errors of the library. `Display` gives the message in one line; methods give its parts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, flag or row that breaks a rule. Build one with [`Error::input`].
    #[error("{0}")]
    Input(Box<InputError>),
    /// The operating system refused to read or write.
    #[error("error[IO] {}: cannot {action}: {source}; fix: {}", shown(path), io_fix(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The attempted action, as a verb phrase ("read", "create the folder").
        action: &'static str,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A file or folder that a run depends on has changed since the run began.
    #[error("error[IO] {}: {what}; fix: {fix}", shown(path))]
    Changed {
        /// The file or folder.
        path: PathBuf,
        /// What happened to it.
        what: String,
        /// What to do before the next run.
        fix: &'static str,
    },
    /// An op was called with shapes that do not fit each other.
    #[error(
        "error[SHAPE] {op}: argument \"{arg}\": got {got}, expected {expected}; fix: this is a mismatch between model, adapter and batch"
    )]
    Shape {
        /// Name of the op.
        op: &'static str,
        /// Name of the argument.
        arg: &'static str,
        /// The expected shape or value.
        expected: String,
        /// The actual shape or value.
        got: String,
    },
    /// A loss, gradient or weight that is not finite.
    #[error("error[NUMERIC] {what}; fix: {fix}")]
    Numeric {
        /// The value and its place.
        what: String,
        /// What usually helps.
        fix: String,
    },
    /// A device that is missing or failed.
    #[error("error[DEVICE] {what}; fix: {fix}")]
    Device {
        /// The fault.
        what: String,
        /// What to install or pass instead.
        fix: String,
    },
    /// The user asked to stop; the state up to here is saved.
    #[error("interrupted[SAVED] stopped at step {step}; the state is in {}; go on with --resume auto", checkpoint.display())]
    Interrupted {
        /// Optimizer steps done.
        step: u64,
        /// The folder that holds the state.
        checkpoint: PathBuf,
    },
    /// The user asked to stop when there was nothing to save.
    #[error("interrupted[STOPPED] {what}")]
    Stopped {
        /// The interrupted work.
        what: String,
    },
}

impl Error {
    /// Starts an input error of class `code` ("CONFIG", "DATA", "MODEL", ...) with the rule that was broken.
    pub fn input(code: &'static str, what: impl Into<String>) -> InputError {
        InputError { code, what: shorten_to(LONG, &what.into()), ..InputError::default() }
    }

    /// An I/O error at `path` while doing `action`.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), action, source }
    }

    /// A shape error of `op`.
    pub fn shape(
        op: &'static str,
        arg: &'static str,
        expected: impl fmt::Debug,
        got: impl fmt::Debug,
    ) -> Self {
        Self::Shape { op, arg, expected: format!("{expected:?}"), got: format!("{got:?}") }
    }

    /// Exit code of the process that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input(error) if error.is_io => 3,
            Self::Input(_) | Self::Shape { .. } => 2,
            Self::Io { .. } | Self::Changed { .. } => 3,
            Self::Numeric { .. } => 4,
            Self::Device { .. } => 5,
            Self::Interrupted { .. } => 6,
            Self::Stopped { .. } => 130,
        }
    }

    /// The class of the error, one word in capitals that is stable between versions: `docs/errors.md` lists
    /// them.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Input(error) => error.code,
            Self::Io { .. } | Self::Changed { .. } => "IO",
            Self::Shape { .. } => "SHAPE",
            Self::Numeric { .. } => "NUMERIC",
            Self::Device { .. } => "DEVICE",
            Self::Interrupted { .. } => "SAVED",
            Self::Stopped { .. } => "STOPPED",
        }
    }

    /// The file or folder that it is about; of an interruption, the checkpoint with the state.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Input(error) => error.path.as_deref(),
            Self::Io { path, .. } | Self::Changed { path, .. } => Some(path),
            Self::Interrupted { checkpoint, .. } => Some(checkpoint),
            Self::Shape { .. } | Self::Numeric { .. } | Self::Device { .. } | Self::Stopped { .. } => None,
        }
    }

    /// The line of the file, from 1.
    pub fn line(&self) -> Option<usize> {
        self.as_input()?.line
    }

    /// The option, key, column or tensor that it is about; of an op, the argument.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Shape { arg, .. } => Some(arg),
            _ => self.as_input()?.field.as_deref(),
        }
    }

    /// What was there.
    pub fn got(&self) -> Option<&str> {
        match self {
            Self::Shape { got, .. } => Some(got),
            _ => self.as_input()?.got.as_deref(),
        }
    }

    /// What should have been there.
    pub fn expected(&self) -> Option<&str> {
        match self {
            Self::Shape { expected, .. } => Some(expected),
            _ => self.as_input()?.expected.as_deref(),
        }
    }

    /// What to do about it.
    pub fn fix(&self) -> Option<&str> {
        match self {
            Self::Io { source, .. } => Some(io_fix(source)),
            Self::Changed { fix, .. } => Some(fix),
            Self::Numeric { fix, .. } | Self::Device { fix, .. } => Some(fix),
            _ => self.as_input()?.fix.as_deref(),
        }
    }

    fn as_input(&self) -> Option<&InputError> {
        match self {
            Self::Input(error) => Some(error),
            _ => None,
        }
    }
}

/// An input error under construction: `error[CODE] path:line: field "x": what: got ..., expected ...; fix: ...`.
///
/// Every part may come from an untrusted file, so each is shortened and kept on one line.
///
/// ```
/// use tanren::error::Error;
/// let error: Error = Error::input("DATA", "not a string")
///     .path("rows.jsonl").line(3).field("output").got("7").expected("a string")
///     .fix("put the number in quotes").into();
/// assert_eq!(
///     error.to_string(),
///     "error[DATA] rows.jsonl:3: field \"output\": not a string: got 7, expected a string; fix: put the number in quotes"
/// );
/// ```
#[derive(Debug, Default)]
pub struct InputError {
    code: &'static str,
    what: String,
    path: Option<PathBuf>,
    line: Option<usize>,
    field: Option<String>,
    got: Option<String>,
    expected: Option<String>,
    fix: Option<String>,
    is_io: bool,
}

impl InputError {
    /// The file it is about.
    pub fn path(mut self, path: impl AsRef<Path>) -> Self {
        self.path = Some(path.as_ref().to_owned());
        self
    }

    /// The physical line of the file, from 1.
    pub fn line(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }

    /// The key, column, tensor or flag it is about.
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(shorten(&field.into()));
        self
    }

    /// What was there.
    pub fn got(mut self, got: impl fmt::Display) -> Self {
        self.got = Some(shorten(&got.to_string()));
        self
    }

    /// What should have been there.
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.expected = Some(shorten_to(LONG, &expected.to_string()));
        self
    }

    /// What the user can do.
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(shorten_to(LONG, &fix.into()));
        self
    }

    /// Classifies the error as one of the disk or the network (exit code 3), not of the user's input.
    pub fn as_io(mut self) -> Self {
        self.is_io = true;
        self
    }
}

impl From<InputError> for Error {
    fn from(error: InputError) -> Self {
        Self::Input(Box::new(error))
    }
}

impl<T> From<InputError> for Result<T> {
    fn from(error: InputError) -> Self {
        Err(error.into())
    }
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}] ", self.code)?;
        match (&self.path, self.line) {
            (Some(path), Some(line)) => write!(f, "{}:{line}: ", shown(path))?,
            (Some(path), None) => write!(f, "{}: ", shown(path))?,
            (None, Some(line)) => write!(f, "line {line}: ")?,
            (None, None) => {}
        }
        if let Some(field) = &self.field {
            write!(f, "field \"{field}\": ")?;
        }
        f.write_str(&self.what)?;
        match (&self.got, &self.expected) {
            (Some(got), Some(expected)) => write!(f, ": got {got}, expected {expected}")?,
            (Some(got), None) => write!(f, ": got {got}")?,
            (None, Some(expected)) => write!(f, ": expected {expected}")?,
            (None, None) => {}
        }
        match &self.fix {
            Some(fix) => write!(f, "; fix: {fix}"),
            None => Ok(()),
        }
    }
}

/// Maximum characters of a part of a message that contains a list or an explanation.
const LONG: usize = 800;

/// A path in a message.
fn shown(path: &Path) -> String {
    shorten_to(LONG, &path.display().to_string())
}

/// At most 200 characters of `text`, on one line and without control characters: values from files may
/// contain anything.
pub(crate) fn shorten(text: &str) -> String {
    shorten_to(200, text)
}

/// [`shorten`] to `limit` characters.
fn shorten_to(limit: usize, text: &str) -> String {
    let mut short: String = text.chars().take(limit).map(|c| if is_odd(c) { ' ' } else { c }).collect();
    if text.chars().nth(limit).is_some() {
        short.push_str("...");
    }
    short
}

/// True if a character can change the display of the text around it: control characters and direction marks.
fn is_odd(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Fixes for common I/O errors.
fn io_fix(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::NotFound => "check the path",
        ErrorKind::PermissionDenied => "check the permissions of the file and its folder",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free space or choose another --output-dir",
        ErrorKind::IsADirectory => "name a file, not a folder",
        ErrorKind::NotADirectory => "check the path: a part of it that should be a folder is a file",
        _ => "check the path and the disk",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_shortened_and_stay_on_one_line() {
        let error = Error::input("DATA", "bad").got("a\n".repeat(500));
        let text = error.to_string();
        assert!(text.len() < 300 && !text.contains('\n'), "{text}");
    }

    #[test]
    fn no_part_of_a_message_can_flood_or_move_the_terminal() {
        let evil = "\u{1b}[2J\u{202e}a\n".repeat(300_000);
        let error =
            Error::input("DATA", &*evil).path(&evil).field(&*evil).got(&evil).expected(&evil).fix(&*evil);
        let text = error.to_string();
        assert!(text.len() < 5000, "{} bytes", text.len());
        assert!(!text.contains(['\u{1b}', '\n', '\u{202e}']), "{text}");
        let io = Error::io(&evil, "read", std::io::ErrorKind::NotFound.into()).to_string();
        assert!(io.len() < 2000 && !io.contains(['\u{1b}', '\n']), "{io}");
    }

    #[test]
    fn exit_codes_follow_the_contract() {
        assert_eq!(Error::from(Error::input("X", "y")).exit_code(), 2);
        assert_eq!(Error::from(Error::input("X", "y").as_io()).exit_code(), 3);
        assert_eq!(Error::io("p", "read", std::io::ErrorKind::NotFound.into()).exit_code(), 3);
        let changed = Error::Changed { path: "p".into(), what: "the file has changed".into(), fix: "wait" };
        assert_eq!(changed.exit_code(), 3);
        assert_eq!(changed.to_string(), "error[IO] p: the file has changed; fix: wait");
        assert_eq!(Error::Numeric { what: String::new(), fix: String::new() }.exit_code(), 4);
        assert_eq!(Error::Interrupted { step: 1, checkpoint: "c".into() }.exit_code(), 6);
        assert_eq!(Error::Stopped { what: String::new() }.exit_code(), 130);
    }

    #[test]
    fn an_error_gives_its_parts() {
        let error = Error::input("DATA", "not a string").path("rows.jsonl").line(3).field("output").got(7);
        let error = Error::from(error.expected("a string").fix("put it in quotes"));
        assert_eq!(
            (error.code(), error.path(), error.line()),
            ("DATA", Some(Path::new("rows.jsonl")), Some(3))
        );
        assert_eq!((error.field(), error.got()), (Some("output"), Some("7")));
        assert_eq!((error.expected(), error.fix()), (Some("a string"), Some("put it in quotes")));
        let error = Error::io("p", "read", std::io::ErrorKind::NotFound.into());
        assert_eq!((error.code(), error.path()), ("IO", Some(Path::new("p"))));
        assert_eq!((error.line(), error.fix()), (None, Some("check the path")));
        let error = Error::shape("op", "x", [1], [2]);
        assert_eq!((error.code(), error.field(), error.got()), ("SHAPE", Some("x"), Some("[2]")));
        assert_eq!(error.expected(), Some("[1]"));
        let error = Error::Interrupted { step: 1, checkpoint: "c".into() };
        assert_eq!((error.code(), error.path(), error.fix()), ("SAVED", Some(Path::new("c")), None));
        let error = Error::Device { what: "w".into(), fix: "f".into() };
        assert_eq!((error.code(), error.fix()), ("DEVICE", Some("f")));
    }
}
