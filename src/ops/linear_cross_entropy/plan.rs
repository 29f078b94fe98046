//! How the head is cut into chunks, tiles and parts of the vocabulary on a GPU: pure functions, with values to print and to test.
//!
//! The logits have tiles enough for any GPU; a gradient of few rows and hidden columns has not, so its blocks divide the
//! vocabulary among themselves, in the fewest parts that nearly fill the waves.

use super::GPU_LOGITS_BYTES;
use crate::device::arch::Chip;
use crate::device::kernels::Kernel;

/// Chunks are whole tile rows.
const CHUNK_UNIT: usize = 128;
/// More rows than this gain nothing.
const MAX_CHUNK: usize = 1024;
/// Rows of logits are made of whole 16-byte pieces.
const ROW_UNIT: usize = 8;
/// Tokens that a step of the product with W takes.
const STEP: usize = 32;
/// A part of the vocabulary is at least so many steps long.
const MIN_STEPS: usize = 4;
/// Bytes of a step of one row or column of a tile.
const STEP_BYTES: usize = 64;
/// Stages of the rings.
const STAGES: usize = 3;
/// Tile columns that are walked together.
const GROUP: usize = 8;
/// Waves this full are full enough.
const FULL: f64 = 0.9;
/// Elements of a block of the last kernel.
const REDUCE_ELEMENTS: usize = 1024;

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Rows of x, or room for them.
    pub rows: usize,
    /// Columns of x.
    pub hidden_size: usize,
    /// Rows of W.
    pub vocab_size: usize,
}

/// What to use instead of the plan's choice: for tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Rows of a chunk.
    pub chunk_rows: Option<usize>,
    /// Rows and columns of a tile: 128 x 128 or 64 x 64.
    pub tile: Option<[usize; 2]>,
    /// Parts of the vocabulary.
    pub splits: Option<usize>,
}

/// A product of tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// The kernel, which has the tile in its name.
    pub kernel: Kernel,
    /// Rows and columns of a tile.
    pub tile: [usize; 2],
    /// Bytes of dynamic shared memory.
    pub dynamic_smem: u32,
    /// Tile rows of a chunk.
    pub tiles_m: usize,
    /// Tile columns.
    pub tiles_n: usize,
    /// Tile columns that are walked together.
    pub group: usize,
}

/// The whole op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Rows whose logits exist at once.
    pub chunk_rows: usize,
    /// Chunks.
    pub num_chunks: usize,
    /// Columns of the logits in memory.
    pub stride: usize,
    /// `x W^T`.
    pub logits: Product,
    /// `dz W`, one part of the vocabulary.
    pub dx: Product,
    /// Parts of the vocabulary.
    pub splits: usize,
    /// Tokens of a part.
    pub split_tokens: usize,
    /// Blocks of the sum over the parts.
    pub reduce_blocks: usize,
}

/// The plan for `problem`, with what is `wanted` where there is a kernel for it.
pub fn plan(problem: &Problem, wanted: Wanted, chip: Chip) -> Plan {
    let Problem { rows, hidden_size, vocab_size } = *problem;
    let stride = vocab_size.next_multiple_of(ROW_UNIT);
    let fitting = GPU_LOGITS_BYTES / 2 / stride.max(1) / CHUNK_UNIT * CHUNK_UNIT;
    let chunk_rows = wanted.chunk_rows.unwrap_or(fitting.clamp(CHUNK_UNIT, MAX_CHUNK)).min(rows).max(1);
    let sms = chip.multiprocessors as usize;
    let is_small = |columns: usize, min_blocks: usize| match wanted.tile {
        Some(tile) => tile == [64, 64],
        None => {
            let blocks = chunk_rows.div_ceil(128) * columns.div_ceil(128);
            chunk_rows <= 64 || columns <= 64 || blocks < min_blocks
        }
    };
    let logits = match is_small(vocab_size, sms) {
        true => product(Kernel::LinearCrossEntropyLogits64x64, 64, chunk_rows, vocab_size),
        false => product(Kernel::LinearCrossEntropyLogits128x128, 128, chunk_rows, vocab_size),
    };
    let dx = match is_small(hidden_size, 0) {
        true => product(Kernel::LinearCrossEntropyDx64x64, 64, chunk_rows, hidden_size),
        false => product(Kernel::LinearCrossEntropyDx128x128, 128, chunk_rows, hidden_size),
    };
    let steps = vocab_size.div_ceil(STEP).max(1);
    let at_once = sms * dx.kernel.min_blocks() as usize;
    let parts = wanted.splits.unwrap_or_else(|| splits(dx.tiles_m * dx.tiles_n, at_once, steps / MIN_STEPS));
    let split_tokens = steps.div_ceil(parts.max(1)) * STEP;
    Plan {
        chunk_rows,
        num_chunks: rows.div_ceil(chunk_rows),
        stride,
        logits,
        dx,
        // No part without tokens.
        splits: vocab_size.div_ceil(split_tokens).max(1),
        split_tokens,
        reduce_blocks: (chunk_rows * hidden_size).div_ceil(REDUCE_ELEMENTS).max(1),
    }
}

/// The fewest parts with which `tiles` nearly fill waves of `at_once` blocks, or those that fill them best.
fn splits(tiles: usize, at_once: usize, most: usize) -> usize {
    let filled = |parts: usize| {
        let blocks = tiles.max(1) * parts;
        blocks as f64 / (blocks.div_ceil(at_once) * at_once) as f64
    };
    let most = most.min((at_once / tiles.max(1)).max(32)).max(1);
    let best = (1..=most).map(filled).fold(0.0, f64::max);
    (1..=most).find(|&parts| filled(parts) >= best.min(FULL)).unwrap_or(1)
}

fn product(kernel: Kernel, tile: usize, rows: usize, columns: usize) -> Product {
    let tiles_n = columns.div_ceil(tile);
    Product {
        kernel,
        tile: [tile; 2],
        dynamic_smem: (STAGES * STEP_BYTES * 2 * tile) as u32,
        tiles_m: rows.div_ceil(tile),
        tiles_n,
        group: GROUP.min(tiles_n).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::arch::Arch;

    fn of(rows: usize, hidden_size: usize, vocab_size: usize) -> Plan {
        plan(&Problem { rows, hidden_size, vocab_size }, Wanted::default(), Chip::RTX_3080)
    }

    #[test]
    fn chunks_of_qwen_are_512_rows_and_fill_the_card() {
        let plan = of(2176, 1024, 151_936);
        assert_eq!((plan.chunk_rows, plan.num_chunks, plan.stride), (512, 5, 151_936));
        assert_eq!(plan.logits.kernel, Kernel::LinearCrossEntropyLogits128x128);
        assert_eq!((plan.logits.tiles_m, plan.logits.tiles_n), (4, 1187));
        // 32 tiles in 4 parts are 128 blocks of the 136 that run at once.
        assert_eq!((plan.dx.tiles_m * plan.dx.tiles_n, plan.splits), (32, 4));
        assert!(plan.splits * plan.split_tokens >= 151_936 && plan.split_tokens.is_multiple_of(32));
        assert_eq!(of(2176, 4096, 151_936).splits, 1);
    }

    #[test]
    fn few_rows_get_small_tiles_and_many_parts() {
        let plan = of(2, 1024, 151_936);
        assert_eq!((plan.logits.tile, plan.dx.tile, plan.chunk_rows), ([64, 64], [64, 64], 2));
        assert!(plan.splits >= 15, "{plan:?}");
    }

    #[test]
    fn every_token_is_in_one_part_and_grids_are_legal() {
        for chip in [Chip::RTX_3080, Chip { arch: Arch::Sm90, multiprocessors: 132 }] {
            for (rows, hidden_size, vocab_size) in
                [(1, 8, 1), (17, 64, 100), (129, 136, 1000), (9000, 4096, 262_144)]
            {
                let plan = plan(&Problem { rows, hidden_size, vocab_size }, Wanted::default(), chip);
                assert!(plan.splits * plan.split_tokens >= vocab_size, "{plan:?}");
                assert!((plan.splits - 1) * plan.split_tokens < vocab_size, "{plan:?}");
                assert!(plan.num_chunks * plan.chunk_rows >= rows && plan.splits <= 65_535, "{plan:?}");
                for product in [plan.logits, plan.dx] {
                    assert!(product.dynamic_smem <= product.kernel.budget().smem, "{plan:?}");
                }
            }
        }
    }
}
