//! Counters of the work done: calls, floating-point operations and bytes by op; launches by kernel and grid.

use std::collections::BTreeMap;

use super::launch::Launch;

/// Cost of one call of an op, by its formula.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: u64,
    /// Bytes of its operands, each read or written once.
    pub bytes: u64,
    /// Kernel launches on a GPU, counted by the ledger: those between the record of this call and the next.
    pub launches: u64,
}

impl Work {
    /// The cost of a call, before its launches.
    pub fn new(flops: u64, bytes: u64) -> Self {
        Self { flops, bytes, launches: 0 }
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.bytes += other.bytes;
        self.launches += other.launches;
    }
}

/// Sums by op name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    entries: BTreeMap<&'static str, (u64, Work)>,
    launches: BTreeMap<Launch, u64>,
    /// The op to which launches are counted.
    current: Option<&'static str>,
}

impl Ledger {
    /// Adds one call.
    pub fn add(&mut self, op: &'static str, work: Work) {
        let (calls, sum) = self.entries.entry(op).or_default();
        *calls += 1;
        *sum += work;
        self.current = Some(op);
    }

    /// Adds the counts of another ledger.
    pub(super) fn merge(&mut self, other: &Self) {
        for (op, (calls, work)) in &other.entries {
            let (own_calls, own) = self.entries.entry(op).or_default();
            *own_calls += calls;
            *own += *work;
        }
        for (launch, count) in &other.launches {
            *self.launches.entry(*launch).or_default() += count;
        }
        self.current = other.current;
    }

    /// Counts a launch for the op that was recorded last.
    pub(super) fn add_launch(&mut self, launch: &Launch) {
        *self.launches.entry(*launch).or_default() += 1;
        if let Some((_, work)) = self.current.and_then(|op| self.entries.get_mut(op)) {
            work.launches += 1;
        }
    }

    /// Number of launches by kernel, grid and shared memory.
    pub fn launches(&self) -> impl Iterator<Item = (Launch, u64)> + '_ {
        self.launches.iter().map(|(&launch, &count)| (launch, count))
    }

    /// `(op, calls, cost)` in the order of their names.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64, Work)> + '_ {
        self.entries.iter().map(|(&op, &(calls, work))| (op, calls, work))
    }

    /// Sum over all ops.
    pub fn total(&self) -> Work {
        let mut total = Work::default();
        for (_, work) in self.entries.values() {
            total += *work;
        }
        total
    }
}
