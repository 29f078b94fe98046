//! The share of the tensor cores' rate that the tiles of the large products reach, by counting: pure
//! functions of shape and architecture.
//!
//! The tensor cores of a multiprocessor take an `mma` of 16 x 8 x 16 in 2,048 / [`Arch::mma_per_clock`] cycles: 2 on sm_80 and sm_90,
//! 8 on a GeForce. Its operands pass through shared memory, which moves a wavefront of 128 bytes a cycle. Per slice of k (16 numbers,
//! 32 bytes a row) a block writes every row and column of its tile once (`cp.async`), and each of its warps reads the rows and
//! columns of its own part (`ldmatrix`). The wavefronts of an mma are these bytes over 128 and over the mma of the slice:
//!
//! | tile, warps | written | read | sum | over the cycles of an mma, sm_80 and sm_90 | GeForce |
//! |---|---|---|---|---|---|
//! | 128 x 256, 2 x 4 | 0.375 | 1.0 | 1.375 | 0.69 | 0.17 |
//! | 128 x 128, 2 x 4 | 0.5 | 1.5 | 2.0 | 1.0 | 0.25 |
//! | 128 x 128, 4 x 4 | 0.5 | 2.0 | 2.5 | 1.25 | 0.31 |
//! | 64 x 64, 2 x 2 | 1.0 | 2.0 | 3.0 | 1.5 | 0.38 |
//!
//! The counts are exact (a test compares them with the emulator's counters). Two assumptions, neither of them
//! measured, turn the counts into a rate: [`SMEM_SHARE`] and [`SMALL_TILE`].

use crate::device::arch::Arch;

/// Multiply-adds per mma.
const MMA: usize = 16 * 8 * 16;
/// Bytes per slice of k of one row or column of a tile.
const SLICE_BYTES: usize = 16 * 2;
/// Bytes that shared memory moves per cycle.
const WAVEFRONT_BYTES: usize = 128;
/// Share of its peak wavefront rate that shared memory reaches while reads, writes and tensor cores
/// interleave at random. Assumed.
const SMEM_SHARE: f64 = 0.8;
/// Efficiency of a 64 x 64 block on every architecture: per product it fetches twice the bytes of 128 x 128
/// from the L2 cache, and fills its ring and stores its result four times as often. Assumed.
const SMALL_TILE: f64 = 0.85;

/// A tile of a block and how its warps divide it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Rows and columns.
    pub(super) size: [usize; 2],
    /// Warps along the rows and along the columns.
    pub(super) warps: [usize; 2],
}

impl Shape {
    /// The mma of a slice of k.
    pub(super) const fn mma(self) -> usize {
        let [rows, columns] = self.size;
        rows * columns * 16 / MMA
    }

    /// Wavefronts of shared memory of a slice of k, written and read.
    pub(super) const fn wavefronts(self) -> usize {
        let ([rows, columns], [along_rows, along_columns]) = (self.size, self.warps);
        // Each row is read by the warps that share it, which lie along the columns.
        let (written, read) = (rows + columns, rows * along_columns + columns * along_rows);
        (written + read) * SLICE_BYTES / WAVEFRONT_BYTES
    }
}

/// Share of the tensor cores' rate that tiles of this shape reach in full waves; see the module text.
pub(super) fn efficiency(arch: Arch, shape: Shape) -> f64 {
    let cycles = (MMA * shape.mma()) as f64 / f64::from(arch.mma_per_clock());
    let by_smem = (SMEM_SHARE * cycles / shape.wavefronts() as f64).min(1.0);
    let [rows, columns] = shape.size;
    if rows * columns <= 64 * 64 { SMALL_TILE * by_smem } else { by_smem }
}

/// How long `blocks` blocks take on a chip where each of `multiprocessors` has `per_sm` of them at a time, in units of one block
/// on one multiprocessor. A multiprocessor works on all its blocks at once, so a full wave takes `per_sm`, and the last, partly
/// filled wave as many as the fullest multiprocessor has.
pub(super) fn block_times(blocks: usize, multiprocessors: usize, per_sm: usize) -> usize {
    let at_once = multiprocessors * per_sm;
    blocks / at_once * per_sm + (blocks % at_once).div_ceil(multiprocessors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Arch::{Sm80, Sm86, Sm89, Sm90, Sm120};

    const WIDE: Shape = Shape { size: [128, 256], warps: [2, 4] };
    const LARGE: Shape = Shape { size: [128, 128], warps: [2, 4] };
    const MASKED: Shape = Shape { size: [128, 128], warps: [4, 4] };
    const SMALL: Shape = Shape { size: [64, 64], warps: [2, 2] };

    #[test]
    fn counts_are_those_by_hand() {
        // A warp of 64 x 64 reads 128 rows of 32 bytes: 32 wavefronts for 32 mma. A block writes 384 of them for 256: 96.
        assert_eq!((WIDE.mma(), WIDE.wavefronts()), (256, 8 * 32 + 96));
        // A warp of 64 x 32 reads 96 rows for 16 mma.
        assert_eq!((LARGE.mma(), LARGE.wavefronts()), (128, 8 * 24 + 64));
        // A warp of 32 x 32 reads 64 rows for 8 mma.
        assert_eq!((MASKED.mma(), MASKED.wavefronts()), (128, 16 * 16 + 64));
        assert_eq!((SMALL.mma(), SMALL.wavefronts()), (32, 4 * 16 + 32));
    }

    #[test]
    fn shared_memory_limits_where_tensor_cores_are_fast() {
        for arch in [Sm80, Sm90] {
            // Cycles and wavefronts of an mma: 2 and 1.375, 2, 2.5, 3.
            assert_eq!(efficiency(arch, WIDE), 1.0);
            assert_eq!(efficiency(arch, LARGE), 0.8);
            assert_eq!(efficiency(arch, MASKED), 0.64);
            assert!((efficiency(arch, SMALL) - 0.85 * 0.8 * 2.0 / 3.0).abs() < 1e-12);
            // A reading of the machine code by hand found 0.5.
            assert!((efficiency(arch, SMALL) / 0.5 - 1.0).abs() < 0.1);
        }
        for arch in [Sm86, Sm89, Sm120] {
            let of = [WIDE, LARGE, MASKED, SMALL].map(|shape| efficiency(arch, shape));
            assert_eq!(of, [1.0, 1.0, 1.0, 0.85], "{arch}");
        }
    }

    #[test]
    fn waves_take_the_blocks_of_the_fullest_multiprocessor() {
        // 68 multiprocessors with two blocks each.
        for (blocks, times) in [(0, 0), (1, 1), (68, 1), (69, 2), (136, 2), (137, 3), (204, 3), (272, 4)] {
            assert_eq!(block_times(blocks, 68, 2), times, "{blocks}");
        }
        assert_eq!(block_times(69, 68, 1), 2);
    }
}
