//! The GPU architectures that kernels are compiled for, and how many blocks fit on one of their multiprocessors.
//!
//! Sources: CUDA C++ programming guide, technical specifications per compute capability; the rules of allocation are those of
//! `cuda_occupancy.h` in the CUDA toolkit.

use std::fmt;

/// An architecture that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// A100, A30.
    Sm80,
    /// GeForce RTX 30, A40, A10.
    Sm86,
    /// GeForce RTX 40, L40, L4.
    Sm89,
    /// H100, H200.
    Sm90,
    /// GeForce RTX 50.
    Sm120,
}

/// The properties of a device that kernel plans depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chip {
    /// Architecture of the multiprocessors.
    pub arch: Arch,
    /// Number of multiprocessors.
    pub multiprocessors: u32,
}

impl Chip {
    /// The chip that kernels are tuned for.
    pub const RTX_3080: Self = Self { arch: Arch::Sm86, multiprocessors: 68 };
}

/// Resources of a multiprocessor, and the limits of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Warps that can be resident.
    pub warps: u32,
    /// Blocks that can be resident.
    pub blocks: u32,
    /// Registers of 32 bits, for one block or several.
    pub registers: u32,
    /// Bytes of shared memory for all resident blocks.
    pub smem: u32,
    /// Maximum bytes of shared memory of one block, static and dynamic together.
    pub smem_per_block: u32,
}

/// Allocation unit of registers, per warp.
const REGISTER_UNIT: u32 = 256;

/// A multiprocessor has this many schedulers, each with its own share of registers.
const SCHEDULERS: u32 = 4;

/// Allocation unit of shared memory, in bytes per block.
const SMEM_UNIT: u32 = 128;

/// Bytes of shared memory that the system reserves per block.
const SMEM_RESERVED: u32 = 1024;

/// Maximum registers per thread.
pub const MAX_REGISTERS: u32 = 255;

/// Maximum threads per block.
pub const MAX_THREADS: u32 = 1024;

impl Arch {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [Self::Sm80, Self::Sm86, Self::Sm89, Self::Sm90, Self::Sm120];

    /// The architecture of this compute capability, if it has machine code. Other GPUs run the PTX; GPUs
    /// older than 8.0 are not supported.
    pub fn of(major: u32, minor: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.number() == 10 * major + minor)
    }

    /// 86 for sm_86.
    pub const fn number(self) -> u32 {
        match self {
            Self::Sm80 => 80,
            Self::Sm86 => 86,
            Self::Sm89 => 89,
            Self::Sm90 => 90,
            Self::Sm120 => 120,
        }
    }

    /// The limits of the multiprocessors of this architecture.
    pub const fn limits(self) -> Limits {
        let (warps, blocks, smem_kib) = match self {
            Self::Sm80 => (64, 32, 164),
            Self::Sm86 => (48, 16, 100),
            Self::Sm89 | Self::Sm120 => (48, 24, 100),
            Self::Sm90 => (64, 32, 228),
        };
        let smem = smem_kib << 10;
        Limits { warps, blocks, registers: 65_536, smem, smem_per_block: smem - SMEM_RESERVED }
    }

    /// Multiply-adds of bf16 with sums in f32 that `mma.sync` makes per cycle on one multiprocessor: 312
    /// TFLOP/s of an A100 (108 multiprocessors, 1.41 GHz), 59.5 of an RTX 3080 (68, 1.71 GHz), 165 of an RTX
    /// 4090 (128, 2.52 GHz), 113 of an RTX 5080 (84, 2.617 GHz). The rate of Hopper's sheet is that of
    /// `wgmma`; `mma.sync` makes about half of it. Where GeForce and professional cards share an
    /// architecture, the rate is that of the GeForce.
    pub const fn mma_per_clock(self) -> u32 {
        match self {
            Self::Sm80 | Self::Sm90 => 1024,
            _ => 256,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.number())
    }
}

/// How many blocks of `threads` threads with `registers` registers each and `smem` bytes of shared memory (static and dynamic)
/// are resident on one multiprocessor at a time; 0 if not even one fits.
pub fn occupancy(arch: Arch, threads: u32, registers: u32, smem: u32) -> u32 {
    let limits = arch.limits();
    let fits = threads <= MAX_THREADS && registers <= MAX_REGISTERS && smem <= limits.smem_per_block;
    if threads == 0 || !fits {
        return 0;
    }
    let warps = threads.div_ceil(32);
    let registers_per_warp = (32 * registers).next_multiple_of(REGISTER_UNIT);
    // The warps of a block are spread evenly over all schedulers, which matters for blocks that fill the
    // registers.
    if registers_per_warp * warps.next_multiple_of(SCHEDULERS) > limits.registers {
        return 0;
    }
    // 0 registers mean no limit. The registers of a warp belong to one scheduler.
    let by_registers = (limits.registers / SCHEDULERS)
        .checked_div(registers_per_warp)
        .map_or(limits.blocks, |warps_per_scheduler| SCHEDULERS * warps_per_scheduler / warps);
    let by_smem = limits.smem / (smem + SMEM_RESERVED).next_multiple_of(SMEM_UNIT);
    limits.blocks.min(limits.warps / warps).min(by_registers).min(by_smem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Arch::{Sm80, Sm86, Sm89, Sm90, Sm120};

    /// Values of `cudaOccMaxActiveBlocksPerMultiprocessor` in `cuda_occupancy.h` of CUDA 13.0, with the largest carve-out. All
    /// 1,843,200 combinations of architecture, warps, registers and 40 to 83 sizes of shared memory were compared once.
    #[test]
    fn blocks_per_multiprocessor_are_those_of_the_cuda_calculator() {
        for (arch, threads, registers, smem, blocks) in [
            // Limited by threads and blocks only.
            (Sm80, 32, 32, 0, 32),
            (Sm86, 64, 32, 0, 16),
            (Sm89, 64, 32, 0, 24),
            (Sm90, 1024, 32, 0, 2),
            (Sm120, 64, 32, 0, 24),
            (Sm120, 1024, 32, 0, 1),
            // Limited by registers: 65,536, divided among four schedulers.
            (Sm86, 256, 128, 0, 2),
            (Sm86, 256, 129, 0, 1),
            (Sm80, 96, 200, 0, 2),
            (Sm86, 128, 255, 0, 2),
            (Sm86, 1024, 64, 0, 1),
            (Sm86, 1024, 65, 0, 0),
            (Sm90, 384, 168, 0, 1),
            // Limited by shared memory, of which the system takes one more KiB per block.
            (Sm86, 256, 128, 48 << 10, 2),
            (Sm86, 256, 128, 49 << 10, 2),
            (Sm86, 256, 128, (49 << 10) + 1, 1),
            (Sm86, 128, 40, 99 << 10, 1),
            (Sm86, 128, 40, (99 << 10) + 1, 0),
            (Sm120, 256, 40, 99 << 10, 1),
        ] {
            let got = occupancy(arch, threads, registers, smem);
            assert_eq!(got, blocks, "{arch}: {threads} threads, {registers} registers, {smem} bytes");
        }
    }

    #[test]
    fn blocks_that_fit_nowhere_are_none() {
        for (threads, registers) in [(0, 32), (1025, 32), (32, 256), (u32::MAX, u32::MAX)] {
            assert_eq!(occupancy(Sm90, threads, registers, 0), 0);
        }
        assert_eq!(occupancy(Sm90, 32, 32, u32::MAX), 0);
        assert_eq!(occupancy(Sm90, 32, 0, 0), 32);
    }

    /// TFLOP/s of the sheets over multiprocessors and clock: 1,024 and 256 within a hundredth.
    #[test]
    fn rates_of_tensor_cores_are_those_of_the_sheets() {
        for (arch, tflops, multiprocessors, ghz) in [
            (Sm80, 312.0, 108.0, 1.41),
            (Sm86, 59.5, 68.0, 1.71),
            (Sm89, 165.2, 128.0, 2.52),
            (Sm120, 112.6, 84.0, 2.617),
        ] {
            let per_clock = tflops * 1e3 / 2.0 / multiprocessors / ghz;
            assert!((per_clock / f64::from(arch.mma_per_clock()) - 1.0).abs() < 0.01, "{arch}: {per_clock}");
        }
        assert_eq!(Sm90.mma_per_clock(), Sm80.mma_per_clock());
    }

    #[test]
    fn a_compute_capability_has_one_architecture_or_none() {
        for arch in Arch::ALL {
            assert_eq!(Arch::of(arch.number() / 10, arch.number() % 10), Some(arch));
            assert_eq!(arch.to_string(), format!("sm_{}", arch.number()));
        }
        assert_eq!(Arch::of(8, 7), None);
    }
}
