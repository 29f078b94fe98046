//! Serialises calls of the driver, and refuses all calls after a sticky error.
//!
//! Calls that return at once hold a lock, so that no call can follow one that fails. Calls that block on the
//! GPU or on a compiler take as long as a step or longer. They run without the lock; otherwise a thread that
//! waits for a result would stop the thread that queues the next work. The price is a short window after a
//! blocking call has failed and before the error is recorded: a call that another thread has already begun
//! still reaches the driver. Every call that begins after an error was returned to any caller is refused.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Fault, codes};
use crate::device::launch::Launch;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Calls {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The first sticky error.
    failed: Option<Fault>,
    /// The last kernel that was launched, for messages: a later call reports an error inside it.
    last_launch: Option<Launch>,
}

impl Calls {
    /// Makes a call that returns at once, unless a sticky error has occurred.
    pub(super) fn make(&self, function: &'static str, call: impl FnOnce() -> u32) -> Result<(), Fault> {
        let mut state = self.lock();
        state.check()?;
        let code = call();
        state.note(function, code)
    }

    /// Makes a call that may block, unless a sticky error has occurred. Other calls proceed meanwhile.
    pub(super) fn wait(&self, function: &'static str, call: impl FnOnce() -> u32) -> Result<(), Fault> {
        self.lock().check()?;
        let code = call();
        self.lock().note(function, code)
    }

    /// Sets the kernel that messages name; `None` after a graph launch, since it is not known which kernel of
    /// the graph failed.
    pub(super) fn launched(&self, launch: Option<Launch>) {
        self.lock().last_launch = launch;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> Result<(), Fault> {
        self.failed.map_or(Ok(()), Err)
    }

    /// Records the result of a call. Of several sticky errors the first one is kept.
    fn note(&mut self, function: &'static str, code: u32) -> Result<(), Fault> {
        if code == 0 {
            return Ok(());
        }
        let fault = Fault { function, code, last_launch: self.last_launch };
        if codes::lookup(code).sticky {
            return Err(*self.failed.get_or_insert(fault));
        }
        Err(fault)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::device::kernels::Kernel;

    /// Long enough for any machine; a test that passes does not wait for it.
    const LONG: Duration = Duration::from_secs(60);

    /// Runs `meanwhile` while another thread blocks in a call that ends with `code`; returns the result of
    /// that call.
    fn while_one_waits(calls: &Calls, code: u32, meanwhile: impl FnOnce()) -> Result<(), Fault> {
        let (begun, has_begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let waiting = scope.spawn(move || {
                calls.wait("cuEventSynchronize", || {
                    begun.send(()).unwrap();
                    // Ends the call even if `meanwhile` has failed.
                    let _ = may_end.recv_timeout(LONG);
                    code
                })
            });
            has_begun.recv_timeout(LONG).unwrap();
            meanwhile();
            drop(end);
            waiting.join().unwrap()
        })
    }

    fn launch() -> Launch {
        Launch { kernel: Kernel::SelfTest, grid: [1, 1, 1], dynamic_smem: 0 }
    }

    #[test]
    fn calls_go_on_while_one_waits() {
        let calls = Calls::default();
        let mut made = 0;
        let result = while_one_waits(&calls, 0, || {
            // From a third thread, so that a held lock fails the test instead of blocking it.
            let (done, is_done) = mpsc::channel();
            thread::scope(|scope| {
                scope.spawn(|| {
                    calls
                        .make("cuLaunchKernel", || {
                            made += 1;
                            0
                        })
                        .unwrap();
                    calls.launched(Some(launch()));
                    done.send(()).unwrap();
                });
                is_done.recv_timeout(LONG / 4).expect("a call while another one waits");
            });
        });
        assert!(result.is_ok() && made == 1);
    }

    #[test]
    fn a_wait_that_fails_for_good_is_the_last_call() {
        let calls = Calls::default();
        let fault = while_one_waits(&calls, 700, || {
            calls.make("cuLaunchKernel", || 0).unwrap();
            calls.launched(Some(launch()));
        })
        .unwrap_err();
        // The kernel that was started last, though that was during the wait.
        assert_eq!(
            (fault.function, fault.code, fault.last_launch),
            ("cuEventSynchronize", 700, Some(launch()))
        );
        let refused = calls.make("cuMemAlloc_v2", || panic!("a call after a sticky error")).unwrap_err();
        assert_eq!((refused.function, refused.code), ("cuEventSynchronize", 700));
        let refused = calls.wait("cuMemFree_v2", || panic!("a wait after a sticky error")).unwrap_err();
        assert_eq!((refused.function, refused.code), ("cuEventSynchronize", 700));
    }

    #[test]
    fn the_first_of_two_sticky_errors_stays_and_others_pass() {
        let calls = Calls::default();
        assert_eq!(calls.wait("cuMemFree_v2", || 1).unwrap_err().code, 1);
        assert!(calls.make("cuMemFree_v2", || 0).is_ok());
        let late = while_one_waits(&calls, 719, || {
            assert_eq!(calls.make("cuLaunchKernel", || 700).unwrap_err().code, 700);
        });
        assert_eq!(late.unwrap_err().code, 700);
        assert_eq!(calls.wait("cuStreamSynchronize", || 0).unwrap_err().function, "cuLaunchKernel");
    }
}
