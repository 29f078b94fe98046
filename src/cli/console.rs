//! All output goes through here, because a failed write must never affect a run.
//!
//! `println!` panics when its stream is full or closed: a training that was saved would end as a failure. So
//! write errors are dropped; a stream that fails is reported once on the other one.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::units::{bytes, harmless, seconds};
use crate::session::Notice;

/// Time between two progress lines if there is no bar.
const PLAIN_PAUSE: Duration = Duration::from_secs(10);

/// The two output streams, and the progress bar on one of them.
#[derive(Debug)]
pub(super) struct Console {
    out_is_terminal: bool,
    err_is_terminal: bool,
    /// Set when standard output failed; nothing more is written to it.
    out_failed: AtomicBool,
    live: Mutex<Option<Live>>,
    /// Speed of the current download.
    pace: Mutex<Option<Pace>>,
}

/// The progress bar.
#[derive(Debug)]
struct Live {
    what: &'static str,
    /// `None` if standard error is not a terminal.
    bar: Option<ProgressBar>,
    last_line: Instant,
}

/// Download speed of a file, averaged since its first report.
#[derive(Debug)]
struct Pace {
    file: String,
    start: Instant,
    /// Bytes on disk at the first report.
    first: u64,
}

impl Pace {
    /// `MiB, 12.3 MiB/s, 1m 05s left: model.safetensors`.
    fn detail(&self, elapsed: Duration, done: u64, total: u64) -> String {
        let (arrived, secs) = (done.saturating_sub(self.first), elapsed.as_secs_f64());
        if arrived == 0 || secs < 0.5 {
            return format!("MiB: {}", self.file);
        }
        let speed = arrived as f64 / secs;
        let left = seconds(total.saturating_sub(done) as f64 / speed);
        format!("MiB, {}/s, {left} left: {}", bytes(speed as u64), self.file)
    }
}

/// A state of progress.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress<'a> {
    /// Label; another label starts a new bar.
    pub(super) what: &'static str,
    /// So far.
    pub(super) done: u64,
    /// In all.
    pub(super) total: u64,
    /// Detail for the end of the line.
    pub(super) detail: &'a str,
}

impl Console {
    pub(super) fn new() -> Self {
        Self {
            out_is_terminal: std::io::stdout().is_terminal(),
            err_is_terminal: std::io::stderr().is_terminal(),
            out_failed: AtomicBool::new(false),
            live: Mutex::new(None),
            pace: Mutex::new(None),
        }
    }

    /// True if standard output is a terminal, which can underline.
    pub(super) fn out_is_terminal(&self) -> bool {
        self.out_is_terminal
    }

    /// Whether progress is shown as a bar.
    pub(super) fn has_bar(&self) -> bool {
        self.err_is_terminal
    }

    /// A line of results. Control characters, which names and texts of files may contain, are escaped.
    pub(super) fn line(&self, text: impl Display) {
        self.styled(harmless(&text.to_string(), true));
    }

    /// A line of results without escaping, for text with our own styles.
    pub(super) fn styled(&self, text: impl Display) {
        if self.out_failed.load(Ordering::Relaxed) {
            return;
        }
        let written = self.above_bar(|| writeln!(std::io::stdout().lock(), "{text}"));
        if let Err(error) = written
            && !self.out_failed.swap(true, Ordering::Relaxed)
            // A closed pipe (`| head`) is not reported.
            && error.kind() != ErrorKind::BrokenPipe
        {
            self.note(format_args!("note: standard output cannot be written ({error}); going on without it"));
        }
    }

    /// Several lines of results.
    pub(super) fn lines(&self, lines: impl IntoIterator<Item = impl Display>) {
        for line in lines {
            self.line(line);
        }
    }

    /// A heading, with an empty line before it.
    pub(super) fn heading(&self, text: impl Display) {
        self.line("");
        self.line(text);
    }

    /// A line about the run.
    pub(super) fn note(&self, text: impl Display) {
        // A single write, so that lines of several processes on one terminal do not mix.
        let text = format!("{}\n", harmless(&text.to_string(), true));
        let _ = self.above_bar(|| std::io::stderr().lock().write_all(text.as_bytes()));
    }

    /// Prints the notices common to training and scoring.
    pub(super) fn notice(&self, notice: Notice) {
        match notice {
            Notice::Note(text) => self.note(format_args!("note: {text}")),
            Notice::Warning(text) => self.note(format_args!("warning: {text}")),
            Notice::Device(text) => self.note(format_args!("device: {text}")),
            Notice::Loading { done, total } => self.loading(done, total),
            Notice::Downloading { file, done, total } => self.downloading(&file, done, total),
            Notice::Tokenising { done, total } => {
                self.progress(Progress {
                    what: "tokenising",
                    done: done as u64,
                    total: total as u64,
                    detail: "",
                });
            }
        }
    }

    /// Moves the bar or, if there is none, prints a line from time to time.
    pub(super) fn progress(&self, progress: Progress<'_>) {
        let Progress { what, done, total, detail } = progress;
        let mut live = self.lock();
        if live.as_ref().is_none_or(|live| live.what != what) {
            clear(&mut live);
            let bar = self.err_is_terminal.then(|| bar(what, total));
            *live = Some(Live { what, bar, last_line: Instant::now() });
        }
        let Some(Live { bar, last_line, .. }) = live.as_mut() else { return };
        if let Some(bar) = bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(detail.to_owned());
        } else if last_line.elapsed() >= PLAIN_PAUSE {
            *last_line = Instant::now();
            let _ = writeln!(std::io::stderr().lock(), "{what} {done}/{total} {detail}");
        }
        if done >= total {
            clear(&mut live);
        }
    }

    /// The progress of a download, given in bytes, with its speed and the time that is left.
    fn downloading(&self, file: &str, done: u64, total: u64) {
        let detail = {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            if pace.as_ref().is_none_or(|pace| pace.file != file || done < pace.first) {
                *pace = Some(Pace { file: file.to_owned(), start: Instant::now(), first: done });
            }
            pace.as_ref().map_or_else(String::new, |pace| pace.detail(pace.start.elapsed(), done, total))
        };
        let [done, total] = [done, total].map(|bytes| bytes.div_ceil(1 << 20));
        self.progress(Progress { what: "downloading", done, total, detail: &detail });
    }

    /// The progress of loading weights, given in bytes.
    pub(super) fn loading(&self, done: u64, total: u64) {
        let [done, total] = [done, total].map(|bytes| bytes.div_ceil(1 << 20));
        self.progress(Progress { what: "loading", done, total, detail: "MiB" });
    }

    /// Removes the bar.
    pub(super) fn clear(&self) {
        clear(&mut self.lock());
    }

    /// Runs `write` while the bar is hidden.
    fn above_bar<R>(&self, write: impl FnOnce() -> R) -> R {
        let live = self.lock();
        match live.as_ref().and_then(|live| live.bar.as_ref()) {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn clear(live: &mut Option<Live>) {
    if let Some(Live { bar: Some(bar), .. }) = live.take() {
        bar.finish_and_clear();
    }
}

fn bar(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.with_style(style).with_prefix(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_shows_speed_and_time_left() {
        let pace = Pace { file: "model.safetensors".into(), start: Instant::now(), first: 100 << 20 };
        let detail =
            |secs, done: u64, total: u64| pace.detail(Duration::from_secs(secs), done << 20, total << 20);
        // Bytes of an earlier download do not count for the speed.
        assert_eq!(detail(0, 100, 1000), "MiB: model.safetensors");
        assert_eq!(detail(10, 200, 1000), "MiB, 10.0 MiB/s, 1m 20s left: model.safetensors");
    }
}
