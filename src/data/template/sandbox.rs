//! Runs a template in a child process, so that exhausting memory, stack or time cannot harm this process.
//!
//! No limit inside the interpreter is enough: two dozen doublings of a string, a huge indentation or a value
//! that contains itself abort the process that renders them. So the program starts itself again with a hidden
//! argument, and the two processes exchange lines of JSON, one per request and one per answer. Answers start
//! with a fixed tag; other lines are ignored.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Failure, Scene, compile_raw, context, render_raw};
use crate::error::{Error, Result};

/// Limit of the child's address space.
const MEMORY_BYTES: u64 = 512 << 20;

/// Limit of processor seconds per request. It matters only for an orphaned child; a live parent stops
/// earlier, after [`WALL`].
const CPU_SECONDS: u64 = 5;

/// Time limit of one rendering.
const WALL: Duration = Duration::from_secs(2);

/// Time limit for starting the child and compiling the template (the binary may have to be read from a cold
/// disk).
const START: Duration = Duration::from_secs(20);

/// Marks the lines of the protocol.
const TAG: &str = "\u{1}tanren-template ";

/// Maximum length of a line read from the child: more than it can hold in its memory as text.
const MAX_LINE_BYTES: u64 = MEMORY_BYTES;

/// How to start a process that calls [`serve_template`].
#[derive(Debug, Clone)]
pub struct HelperCommand {
    /// The program, usually the running one.
    pub program: PathBuf,
    /// Its arguments, usually one hidden subcommand.
    pub args: Vec<OsString>,
}

/// A template that runs in a child process. Requests from several threads take turns.
#[derive(Debug)]
pub struct SandboxedTemplate {
    origin: String,
    helper: Mutex<Helper>,
}

impl SandboxedTemplate {
    /// Starts the child and compiles `source` in it. `origin` names the template in errors.
    ///
    /// # Errors
    /// [`Error::Io`] if the helper cannot be started, [`Error::Input`] of class TEMPLATE if the template does not compile or
    /// kills the child.
    pub fn spawn(command: &HelperCommand, source: &str, origin: &str) -> Result<Self> {
        let helper = Helper::start(command)
            .map_err(|e| Error::io(&command.program, "start the template process", e))?;
        let template = Self { origin: origin.to_owned(), helper: Mutex::new(helper) };
        let request = Request::Compile { source: source.to_owned() };
        let compiled = template.ask(&[request], START).pop().unwrap_or_else(|| Ok(String::new()));
        compiled.map(|_| template)
    }

    /// The text of a conversation; the variables are those of [`ChatTemplate::render`](super::ChatTemplate::render).
    ///
    /// # Errors
    /// [`Error::Input`] of class TEMPLATE if the template fails, takes more than 2 seconds, writes more than 16 times the input
    /// plus 1 MiB, or kills its process. After a timeout or a death every further call fails.
    pub fn render(&self, scene: &Scene<'_>) -> Result<String> {
        self.render_all(&[*scene]).pop().unwrap_or_else(|| Ok(String::new()))
    }

    /// The text of each scene, in order. The child renders the next one while this process reads the previous
    /// one.
    ///
    /// # Errors
    /// For each scene, as [`SandboxedTemplate::render`].
    pub fn render_all(&self, scenes: &[Scene<'_>]) -> Vec<Result<String>> {
        let requests: Vec<Request> =
            scenes.iter().map(|scene| Request::Render { context: context(scene) }).collect();
        self.ask(&requests, WALL)
    }

    /// The answers to all requests, each within `limit`.
    fn ask(&self, requests: &[Request], limit: Duration) -> Vec<Result<String>> {
        // A poisoned lock means that another thread panicked between two requests; the child is not touched by that.
        let mut helper = self.helper.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = helper.ask(requests, limit).into_iter();
        answers.map(|answer| answer.map_err(|failure| failure.into_error(&self.origin))).collect()
    }
}

/// The child's side: sets the limits of this process, then answers requests until its input ends. Call it
/// from a hidden subcommand that does nothing else.
///
/// # Errors
/// [`Error::Input`] if a limit cannot be set, [`Error::Io`] if the parent is gone.
pub fn serve_template(stdin: impl BufRead, mut stdout: impl Write) -> Result<()> {
    limit(Resource::As, MEMORY_BYTES)?;
    limit(Resource::Core, 0)?;
    let gone = |e| Error::io("stdin/stdout", "talk to the parent process", e);
    let mut busy = Duration::ZERO;
    let mut template = None;
    for line in stdin.lines() {
        // This process has one thread, so its processor time is at most the time it was busy.
        limit_soft(Resource::Cpu, busy.as_secs() + 1 + CPU_SECONDS)?;
        let start = Instant::now();
        let answer = match serde_json::from_str(&line.map_err(gone)?) {
            Ok(Request::Compile { source }) => compile_raw(&source).map(|compiled| {
                template = Some(compiled);
                String::new()
            }),
            Ok(Request::Render { context }) => match &template {
                Some(template) => render_raw(template, &context),
                None => Err(Failure { what: "no template was compiled".into(), line: None }),
            },
            Err(error) => Err(Failure { what: format!("request not understood: {error}"), line: None }),
        };
        let answer = match answer {
            Ok(text) => Answer::Text(text),
            Err(failure) => Answer::Failure(failure),
        };
        let json = serde_json::to_string(&answer).map_err(|e| gone(e.into()))?;
        // The first line end closes whatever else was printed on this line.
        writeln!(stdout, "\n{TAG}{json}").and_then(|()| stdout.flush()).map_err(gone)?;
        busy += start.elapsed();
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
enum Request {
    Compile { source: String },
    Render { context: Value },
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Text(String),
    Failure(Failure),
}

/// The running child and the two threads that keep its pipes moving, so that neither side can block the other.
#[derive(Debug)]
struct Helper {
    child: Child,
    requests: Sender<String>,
    answers: Receiver<String>,
    dead: bool,
}

impl Helper {
    fn start(command: &HelperCommand) -> std::io::Result<Self> {
        let mut child = Command::new(&command.program)
            .args(&command.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // The output of a dying child (stack overflow, failed allocation) is dropped; our own error is
            // clearer.
            .stderr(Stdio::null())
            // The parent handles Ctrl-C; the child ends when its input ends.
            .process_group(0)
            .spawn()?;
        let (requests, to_write) = channel::<String>();
        let (to_read, answers) = channel::<String>();
        let no_pipe = || std::io::Error::other("no pipe to the template process");
        let mut stdin = child.stdin.take().ok_or_else(no_pipe)?;
        let mut stdout = BufReader::new(child.stdout.take().ok_or_else(no_pipe)?);
        thread::spawn(move || {
            for request in to_write {
                if writeln!(stdin, "{request}").and_then(|()| stdin.flush()).is_err() {
                    return;
                }
            }
        });
        thread::spawn(move || {
            let mut line = Vec::new();
            loop {
                line.clear();
                match stdout.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
                let text = String::from_utf8_lossy(&line);
                let answer = text.split_once(TAG).map(|(_, json)| json.to_owned());
                if answer.is_some_and(|json| to_read.send(json).is_err()) {
                    return;
                }
            }
        });
        Ok(Self { child, requests, answers, dead: false })
    }

    fn ask(&mut self, requests: &[Request], limit: Duration) -> Vec<std::result::Result<String, Failure>> {
        let mut sent = Vec::with_capacity(requests.len());
        for request in requests {
            let json = serde_json::to_string(request);
            // If the writer has ended, the child has too, which reading detects.
            sent.push(json.map(|json| drop(self.requests.send(json))));
        }
        let answer = |sent: serde_json::Result<()>| {
            sent.map_err(|e| failure(format!("request not written: {e}")))?;
            self.receive(limit)
        };
        sent.into_iter().map(answer).collect()
    }

    fn receive(&mut self, limit: Duration) -> std::result::Result<String, Failure> {
        if self.dead {
            return Err(failure("its process has ended after an earlier failure"));
        }
        let what = match self.answers.recv_timeout(limit) {
            Ok(json) => match serde_json::from_str(&json) {
                Ok(Answer::Text(text)) => return Ok(text),
                Ok(Answer::Failure(failure)) => return Err(failure),
                Err(error) => format!("its process answered nonsense ({error})"),
            },
            Err(RecvTimeoutError::Timeout) => format!("it took more than {} seconds", limit.as_secs()),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
                format!(
                    "it brought its process down ({status}); it may take too much memory or nest without end"
                )
            }
        };
        self.stop();
        Err(failure(what))
    }

    fn stop(&mut self) {
        self.dead = true;
        // Both fail only for a child that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.stop();
    }
}

fn failure(what: impl Into<String>) -> Failure {
    Failure { what: what.into(), line: None }
}

fn limit(resource: Resource, value: u64) -> Result<()> {
    set_limit(resource, Rlimit { current: Some(value), maximum: Some(value) })
}

fn limit_soft(resource: Resource, value: u64) -> Result<()> {
    set_limit(resource, Rlimit { current: Some(value), maximum: None })
}

fn set_limit(resource: Resource, limit: Rlimit) -> Result<()> {
    // A lower hard limit may be in force already (a container, a shell); then it is kept.
    let hard = rustix::process::getrlimit(resource).maximum;
    let least = |value: Option<u64>| match (value, hard) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    setrlimit(resource, Rlimit { current: least(limit.current), maximum: least(limit.maximum) })
        .map_err(|e| Error::io("template process", "limit the resources", e.into()))
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
pub(in crate::data) mod tests;
