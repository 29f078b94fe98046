//! Ctrl-C and termination: the first requests an orderly end, the second ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use super::console::Console;
use crate::error::{Error, Result};

/// Exit code after a second signal: that of an interrupted program in shells.
const NOW: i32 = 130;

/// The flag that the signal handlers set.
#[derive(Debug, Clone)]
pub(super) struct Stop {
    asked: Arc<AtomicBool>,
    told: Arc<AtomicBool>,
    console: Arc<Console>,
}

impl Stop {
    /// Catches SIGINT and SIGTERM from here on. SIGHUP is not handled, because `nohup` ignores it.
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

    /// True if the run should end; prints a note the first time.
    pub(super) fn asked(&self) -> bool {
        let asked = self.asked.load(Ordering::Relaxed);
        if asked && !self.told.swap(true, Ordering::Relaxed) {
            self.console.note("stopping; press Ctrl-C again to quit at once");
        }
        asked
    }

    /// The same check as a closure for a run.
    pub(super) fn question(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let stop = self.clone();
        Arc::new(move || stop.asked())
    }
}

/// Makes writes beyond the limit of `ulimit -f` fail with an error, as on a full disk, instead of ending the process.
pub(super) fn survive_file_size_limit() {
    // Any handler is enough. Without one the signal ends the process, the default of the system.
    let _ = flag::register(SIGXFSZ, Arc::default());
}
