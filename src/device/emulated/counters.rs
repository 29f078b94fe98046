//! Counters of shared and global memory accesses by source line, compared with the minimum for the same
//! bytes.
//!
//! The model is the textbook's: 32 banks of 4 bytes, sectors of 32 bytes. Use it as a lint (`shared_ratio() == 1.0`), not as a
//! prediction of time.

use std::collections::BTreeMap;

use super::places::Place;

/// Sums over accesses. The layout is that of `simt::Counts`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passes over the banks of shared memory.
    pub wavefronts: u64,
    /// The least possible number of them.
    pub ideal_wavefronts: u64,
    /// 32-byte sectors of global memory.
    pub sectors: u64,
    /// The least possible number of them.
    pub ideal_sectors: u64,
    /// Bytes of global memory that threads accessed, counted once per access.
    pub global_bytes: u64,
    /// Tile products of the tensor cores, m16n8k16.
    pub mma: u64,
}

impl Counts {
    /// 1 without bank conflicts, 2 if accesses take twice the minimum, and so on. 1 without any access.
    pub fn shared_ratio(&self) -> f64 {
        ratio(self.wavefronts, self.ideal_wavefronts)
    }

    /// 1 if all touched sectors are used in full, 2 if twice as many bytes move as are used, and so on.
    pub fn sector_ratio(&self) -> f64 {
        ratio(self.sectors, self.ideal_sectors)
    }

    /// Operations of the tensor cores; a multiply-add is two.
    pub fn mma_flops(&self) -> u64 {
        self.mma * (2 * 16 * 8 * 16)
    }

    fn add(&mut self, other: &Self) {
        self.wavefronts += other.wavefronts;
        self.ideal_wavefronts += other.ideal_wavefronts;
        self.sectors += other.sectors;
        self.ideal_sectors += other.ideal_sectors;
        self.global_bytes += other.global_bytes;
        self.mma += other.mma;
    }
}

fn ratio(count: u64, ideal: u64) -> f64 {
    if ideal == 0 { 1.0 } else { count as f64 / ideal as f64 }
}

/// Sums of one kernel, over all its launches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelCounters {
    /// Over all lines.
    pub total: Counts,
    /// By the line of the access.
    pub lines: BTreeMap<Place, Counts>,
}

impl KernelCounters {
    /// The largest [`Counts::shared_ratio`] of a line.
    pub fn worst_shared_ratio(&self) -> f64 {
        self.lines.values().map(Counts::shared_ratio).fold(1.0, f64::max)
    }

    /// The largest [`Counts::sector_ratio`] of a line.
    pub fn worst_sector_ratio(&self) -> f64 {
        self.lines.values().map(Counts::sector_ratio).fold(1.0, f64::max)
    }
}

/// Sums by the name of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// The kernels that ran.
    pub kernels: BTreeMap<String, KernelCounters>,
}

impl Counters {
    /// The sums of a kernel; zeros if it did not run.
    pub fn kernel(&self, symbol: &str) -> KernelCounters {
        self.kernels.get(symbol).cloned().unwrap_or_default()
    }

    pub(super) fn add(&mut self, symbol: &str, place: Place, counts: &Counts) {
        let kernel = self.kernels.entry(symbol.to_owned()).or_default();
        kernel.total.add(counts);
        kernel.lines.entry(place).or_default().add(counts);
    }
}
