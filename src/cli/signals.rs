//! Ctrl-C and termination: the first asks for an orderly end, the second ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use super::console::Console;
use crate::error::{Error, Result};

/// Exit code after a second signal, as shells have it for an interrupted program.
const NOW: i32 = 130;

/// Whether somebody wants the program to end.
#[derive(Debug, Clone)]
pub(super) struct Stop {
    asked: Arc<AtomicBool>,
    told: Arc<AtomicBool>,
    console: Arc<Console>,
}

impl Stop {
    /// Catches SIGINT and SIGTERM from here on. SIGHUP is left alone: `nohup` asks to ignore it.
    ///
    /// # Errors
    /// [`Error::Device`] if the system refuses.
    pub(super) fn install(console: &Arc<Console>) -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag unset and sets it, the second finds it set and exits.
            flag::register_conditional_shutdown(signal, NOW, Arc::clone(&asked))
                .and_then(|_| flag::register(signal, Arc::clone(&asked)))
                .map_err(|e| Error::Device {
                    what: format!("cannot catch signals: {e}"),
                    fix: "run without a wrapper that forbids signal handlers".into(),
                })?;
        }
        Ok(Self { asked, told: Arc::default(), console: Arc::clone(console) })
    }

    /// True if the run should end; says so the first time.
    pub(super) fn asked(&self) -> bool {
        let asked = self.asked.load(Ordering::Relaxed);
        if asked && !self.told.swap(true, Ordering::Relaxed) {
            self.console.note("stopping after this pass; press Ctrl-C again to quit now");
        }
        asked
    }

    /// The same as a function that a run can keep.
    pub(super) fn question(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let stop = self.clone();
        Arc::new(move || stop.asked())
    }
}

/// Makes writes beyond the limit of `ulimit -f` fail with an error, as on a full disk, instead of ending the process.
pub(super) fn survive_file_size_limit() {
    // A handler is enough, whatever it does. Without it the limit kills, which is the default of the system.
    let _ = flag::register(SIGXFSZ, Arc::default());
}
