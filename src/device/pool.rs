//! The memory that tensors come from and go back to.
//!
//! Training asks for the same few sizes again and again; the system would hand out zeroed pages each time
//! (measured: about 3% of a step). The pool keeps freed buffers and never holds more than the peak of the
//! bytes in use.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::class::{ByClass, Class};

/// Bytes of tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In use now.
    pub live_bytes: u64,
    /// In use at the peak.
    pub peak_bytes: u64,
    /// Memory with another owner (the weights file), in use now.
    pub borrowed_bytes: u64,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Pool {
    state: Mutex<State>,
    /// Granularity of buffer sizes, in bytes.
    granularity: u64,
}

#[derive(Debug, Default)]
struct State {
    memory: MemoryUse,
    /// Bytes in use by class, now and at the peak.
    live: ByClass,
    peak: ByClass,
    /// Capacity (words) of all buffers, allocated and free.
    held_words: usize,
    /// Peak of the allocated capacity.
    peak_words: usize,
    used_words: usize,
    /// Free buffers by capacity.
    free: BTreeMap<usize, Vec<Vec<u64>>>,
}

impl Pool {
    /// A pool whose buffers are counted in multiples of `granularity` bytes.
    pub(super) fn new(granularity: u64) -> Self {
        Self { state: Mutex::default(), granularity }
    }

    /// A buffer of at least `words` words with unspecified (initialised) content; `None` if the system has no
    /// memory for it.
    pub(super) fn take(&self, words: usize) -> Option<Vec<u64>> {
        let capacity = size_class(words);
        let mut state = self.lock();
        let reusable = state.free.range(capacity..=capacity + capacity / 4).next().map(|(&c, _)| c);
        let buffer = reusable.and_then(|c| {
            let buffers = state.free.get_mut(&c)?;
            let buffer = buffers.pop();
            if buffers.is_empty() {
                state.free.remove(&c);
            }
            buffer
        });
        // Tried first, because `vec!` aborts the process if memory runs out. Only `vec!` gets zeroed pages
        // without touching them.
        if buffer.is_none() && Vec::<u64>::new().try_reserve_exact(capacity).is_err() {
            return None;
        }
        let got = buffer.as_ref().map_or(capacity, Vec::len);
        state.used_words += got;
        state.peak_words = state.peak_words.max(state.used_words);
        Some(match buffer {
            Some(buffer) => buffer,
            None => {
                state.held_words += got;
                // Never hold more than the peak: the largest free buffers are dropped first.
                while state.held_words > state.peak_words {
                    let Some((capacity, mut buffers)) = state.free.pop_last() else { break };
                    buffers.pop();
                    state.held_words -= capacity;
                    if !buffers.is_empty() {
                        state.free.insert(capacity, buffers);
                    }
                }
                drop(state);
                vec![0; got]
            }
        })
    }

    /// Takes a buffer back.
    pub(super) fn give(&self, buffer: Vec<u64>) {
        let mut state = self.lock();
        state.used_words -= buffer.len();
        state.free.entry(buffer.len()).or_default().push(buffer);
    }

    /// Counts a buffer of `bytes` bytes as in use.
    pub(super) fn count(&self, class: Class, bytes: u64) {
        let bytes = bytes.next_multiple_of(self.granularity);
        let mut state = self.lock();
        state.memory.live_bytes += bytes;
        *state.live.get_mut(class) += bytes;
        if state.memory.live_bytes > state.memory.peak_bytes {
            state.memory.peak_bytes = state.memory.live_bytes;
            state.peak = state.live;
        }
    }

    /// Counts a buffer as no longer in use.
    pub(super) fn discount(&self, class: Class, bytes: u64) {
        let bytes = bytes.next_multiple_of(self.granularity);
        let mut state = self.lock();
        state.memory.live_bytes -= bytes;
        *state.live.get_mut(class) -= bytes;
    }

    /// Changes the count of memory with another owner.
    pub(super) fn count_borrowed(&self, bytes: u64, in_use: bool) {
        let borrowed = &mut self.lock().memory.borrowed_bytes;
        *borrowed = if in_use { *borrowed + bytes } else { *borrowed - bytes };
    }

    pub(super) fn memory(&self) -> MemoryUse {
        self.lock().memory
    }

    /// Bytes by class at the peak.
    pub(super) fn peak_by_class(&self) -> ByClass {
        self.lock().peak
    }

    pub(super) fn reset_peak(&self) {
        let mut state = self.lock();
        state.memory.peak_bytes = state.memory.live_bytes;
        state.peak = state.live;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rounds up to 1/8 of the next lower power of two, so that similar sizes share buffers (at most 12.5% more
/// memory).
fn size_class(words: usize) -> usize {
    let step = (words.max(64) / 8 + 1).next_power_of_two() / 2;
    words.max(8).div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_waste_at_most_an_eighth() {
        for words in (64..100_000).chain([1 << 30, (1 << 30) + 1]) {
            let class = size_class(words);
            assert!(class >= words && class <= words + words / 8 + 8, "{words} {class}");
        }
    }

    #[test]
    fn the_pool_never_holds_more_than_was_used_at_once() {
        let pool = Pool::new(1);
        for words in [1000, 5000, 200, 70_000, 3, 65_000, 900] {
            let buffer = pool.take(words).unwrap();
            assert!(buffer.len() >= words);
            pool.give(buffer);
            let state = pool.lock();
            assert!(state.held_words <= state.peak_words, "{state:?}");
        }
    }
}
