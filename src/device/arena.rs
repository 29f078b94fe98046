//! Allocator of offsets in one block of device memory. It holds no memory itself, so a plan runs the same
//! code as the run.
//!
//! Best fit: a request takes the smallest hole that is large enough, the lowest of equal ones, and the space
//! above the last tensor only if no hole fits. That space is never compared with holes, so offsets do not
//! depend on the capacity: the high-water mark of a dry run with unlimited capacity is exactly the capacity
//! that the same requests need. Neighbouring holes are merged at once.

use std::collections::{BTreeMap, BTreeSet};

/// Alignment of tensors in bytes: that of `cuMemAlloc`, and enough for every vector load and bulk copy.
pub(super) const ALIGNMENT: u64 = 256;

/// Usage of an arena, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArenaUse {
    /// Size of the arena; unlimited in a dry run.
    pub capacity_bytes: u64,
    /// Bytes in live tensors, rounded up to their alignment.
    pub used_bytes: u64,
    /// The highest end of any tensor so far: the capacity that the requests so far need.
    pub high_water_bytes: u64,
}

/// A request that did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom {
    /// Bytes asked for, rounded up to their alignment.
    pub(super) needed: u64,
    /// Total free bytes.
    pub(super) free: u64,
    /// Bytes of the largest contiguous free range.
    pub(super) largest: u64,
    /// Bytes of the arena.
    pub(super) capacity: u64,
}

/// The places of tensors while launches were recorded.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    /// Offset and length.
    ranges: Vec<(u64, u64)>,
    /// Number of requests up to the end of the recording.
    requests: u64,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Arena {
    capacity: u64,
    /// End of the last tensor; everything above is free.
    top: u64,
    used_bytes: u64,
    high_water: u64,
    /// By offset: the length of every tensor and the number of its request.
    used: BTreeMap<u64, (u64, u64)>,
    /// Number of requests so far.
    requests: u64,
    /// Offset and length of every request since [`Arena::begin_trace`].
    trace: Option<Vec<(u64, u64)>>,
    /// Length of every hole below `top`, by offset. No hole touches another one or `top`.
    holes: BTreeMap<u64, u64>,
    /// The holes again, as (length, offset).
    by_length: BTreeSet<(u64, u64)>,
}

impl Arena {
    /// An arena of `capacity` bytes, rounded down to the alignment.
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity: capacity - capacity % ALIGNMENT,
            top: 0,
            used_bytes: 0,
            high_water: 0,
            used: BTreeMap::new(),
            requests: 0,
            trace: None,
            holes: BTreeMap::new(),
            by_length: BTreeSet::new(),
        }
    }

    /// An arena of unlimited capacity, for plans.
    pub(super) fn without_end() -> Self {
        Self::new(u64::MAX)
    }

    /// Allocates `bytes` bytes and returns their offset. A request of 0 bytes takes one alignment unit, so
    /// that empty tensors differ in address.
    pub(super) fn take(&mut self, bytes: u64) -> Result<u64, NoRoom> {
        let length = bytes.max(1).checked_next_multiple_of(ALIGNMENT);
        let Some(length) = length else { return Err(self.no_room(bytes)) };
        let offset = match self.by_length.range((length, 0)..).next().copied() {
            Some((hole, offset)) => {
                self.remove_hole(offset, hole);
                if hole > length {
                    self.add_hole(offset + length, hole - length);
                }
                offset
            }
            None if length <= self.capacity - self.top => {
                let offset = self.top;
                self.top += length;
                offset
            }
            None => return Err(self.no_room(length)),
        };
        self.requests += 1;
        self.used.insert(offset, (length, self.requests));
        if let Some(trace) = &mut self.trace {
            trace.push((offset, length));
        }
        self.used_bytes += length;
        self.high_water = self.high_water.max(self.top);
        Ok(offset)
    }

    /// Starts to trace the places of requests.
    pub(super) fn begin_trace(&mut self) {
        self.trace = Some(Vec::new());
    }

    /// The places that were given out since [`Arena::begin_trace`].
    pub(super) fn end_trace(&mut self) -> Places {
        Places { ranges: self.trace.take().unwrap_or_default(), requests: self.requests }
    }

    /// Offset of a live tensor that was requested after `places` were traced and overlaps one of them.
    pub(super) fn newcomer_on(&self, places: &Places) -> Option<u64> {
        let newcomers = self.used.iter().filter(|(_, (_, request))| *request > places.requests);
        let mut offsets = newcomers.map(|(&offset, &(length, _))| (offset, offset + length));
        let meets = |start: u64, end: u64| places.ranges.iter().any(|&(o, l)| o < end && start < o + l);
        offsets.find(|&(start, end)| meets(start, end)).map(|(start, _)| start)
    }

    /// Frees the tensor at `offset`.
    pub(super) fn give(&mut self, offset: u64) {
        let Some((length, _)) = self.used.remove(&offset) else {
            debug_assert!(false, "no tensor begins at {offset}");
            return;
        };
        self.used_bytes -= length;
        let (mut start, mut end) = (offset, offset + length);
        if let Some((&before, &hole)) = self.holes.range(..offset).next_back()
            && before + hole == start
        {
            self.remove_hole(before, hole);
            start = before;
        }
        if let Some(&hole) = self.holes.get(&end) {
            self.remove_hole(end, hole);
            end += hole;
        }
        match end == self.top {
            true => self.top = start,
            false => self.add_hole(start, end - start),
        }
    }

    /// The usage of the arena.
    pub(super) fn usage(&self) -> ArenaUse {
        ArenaUse {
            capacity_bytes: self.capacity,
            used_bytes: self.used_bytes,
            high_water_bytes: self.high_water,
        }
    }

    /// True if no tensor is in the arena.
    pub(super) fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    fn no_room(&self, needed: u64) -> NoRoom {
        let largest_hole = self.by_length.last().map_or(0, |&(length, _)| length);
        NoRoom {
            needed,
            free: self.capacity - self.used_bytes,
            largest: largest_hole.max(self.capacity - self.top),
            capacity: self.capacity,
        }
    }

    fn add_hole(&mut self, offset: u64, length: u64) {
        self.holes.insert(offset, length);
        self.by_length.insert((length, offset));
    }

    fn remove_hole(&mut self, offset: u64, length: u64) {
        self.holes.remove(&offset);
        self.by_length.remove(&(length, offset));
    }
}

#[cfg(test)]
#[path = "arena_tests.rs"]
mod tests;
