//! Where tensors lie in one block of device memory: offsets and no memory, so that a plan runs the code of the run.
//!
//! Best fit: a request takes the smallest hole that is large enough, the lowest of equal ones, and the space above the last
//! tensor only if no hole fits. That space is never compared with holes, so offsets do not depend on the capacity: the
//! high-water mark of a dry run without an end is exactly the capacity that the same requests need. Neighbouring holes become
//! one at once.

use std::collections::{BTreeMap, BTreeSet};

/// Tensors begin at multiples of this many bytes: what `cuMemAlloc` gives, and enough for every vector load and bulk copy.
pub(super) const ALIGNMENT: u64 = 256;

/// How full an arena is, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArenaUse {
    /// Its size; that of a dry run has no end.
    pub capacity_bytes: u64,
    /// In tensors now, rounded up to their alignment.
    pub used_bytes: u64,
    /// The end of the highest tensor that ever was: the capacity that the requests so far need.
    pub high_water_bytes: u64,
}

/// A request that found no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom {
    /// Bytes asked for, rounded up to their alignment.
    pub(super) needed: u64,
    /// Free bytes in all.
    pub(super) free: u64,
    /// Free bytes in one piece.
    pub(super) largest: u64,
    /// Bytes of the arena.
    pub(super) capacity: u64,
}

/// Where tensors were while launches were recorded.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    /// Offset and length.
    ranges: Vec<(u64, u64)>,
    /// Requests up to then.
    requests: u64,
}

/// See the module text.
#[derive(Debug)]
pub(super) struct Arena {
    capacity: u64,
    /// End of the last tensor; everything above is free.
    top: u64,
    used_bytes: u64,
    high_water: u64,
    /// Length of every tensor and its number in the order of the requests, by offset.
    used: BTreeMap<u64, (u64, u64)>,
    /// Requests so far.
    requests: u64,
    /// Offset and length of every request since somebody asked for them.
    trace: Option<Vec<(u64, u64)>>,
    /// Length of every hole below `top`, by offset. No hole touches another one or `top`.
    holes: BTreeMap<u64, u64>,
    /// The holes again, as (length, offset).
    by_length: BTreeSet<(u64, u64)>,
}

impl Arena {
    /// An arena of `capacity` bytes, of which a last part that is shorter than the alignment stays unused.
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

    /// An arena in which everything finds a place, for plans.
    pub(super) fn without_end() -> Self {
        Self::new(u64::MAX)
    }

    /// The offset of `bytes` bytes. Nothing takes one alignment too, so that tensors without elements differ in address.
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

    /// From here on the places of requests are noted.
    pub(super) fn begin_trace(&mut self) {
        self.trace = Some(Vec::new());
    }

    /// The places that were given out since [`Arena::begin_trace`].
    pub(super) fn end_trace(&mut self) -> Places {
        Places { ranges: self.trace.take().unwrap_or_default(), requests: self.requests }
    }

    /// Offset of a tensor that was asked for after `places` were noted and lies on one of them.
    pub(super) fn newcomer_on(&self, places: &Places) -> Option<u64> {
        let newcomers = self.used.iter().filter(|(_, (_, request))| *request > places.requests);
        let mut offsets = newcomers.map(|(&offset, &(length, _))| (offset, offset + length));
        let meets = |start: u64, end: u64| places.ranges.iter().any(|&(o, l)| o < end && start < o + l);
        offsets.find(|&(start, end)| meets(start, end)).map(|(start, _)| start)
    }

    /// Takes back what lies at `offset`.
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

    /// How full it is.
    pub(super) fn usage(&self) -> ArenaUse {
        ArenaUse {
            capacity_bytes: self.capacity,
            used_bytes: self.used_bytes,
            high_water_bytes: self.high_water,
        }
    }

    /// Whether nothing lies in it.
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
