//! How the head is cut into chunks, tiles and parts of the vocabulary on a GPU: pure functions, with values to print and to test.
//!
//! The product for the logits has enough tiles to fill any GPU. The product for the gradient has not, if rows
//! and hidden columns are few; so it is split along the vocabulary (split-k), into the fewest parts that
//! nearly fill the waves. Where shared memory limits 128 x 128 (`ops::tiles`: sm_80 and sm_90), tiles are 128
//! x 256 if their waves are shorter.

use super::GPU_LOGITS_BYTES;
use crate::device::arch::Chip;
use crate::device::kernels::Kernel;
use crate::ops::tiles::{Shape, block_times, efficiency};

/// Chunks are whole tile rows.
const CHUNK_UNIT: usize = 128;
/// Maximum rows of a chunk; more would not be faster.
const MAX_CHUNK: usize = 1024;
/// Rows of logits are padded to a multiple of 16 bytes.
const ROW_UNIT: usize = 8;
/// Tokens per k-step of the product with W.
const STEP: usize = 32;
/// Minimum k-steps of a part of the vocabulary.
const MIN_STEPS: usize = 4;
/// Bytes per k-step of one row or column of a tile.
const STEP_BYTES: usize = 64;
/// Tile columns that are walked together.
const GROUP: usize = 8;
/// Fill of the waves at which no more parts are tried.
const FULL: f64 = 0.9;
/// Elements of a block of the last kernel.
const REDUCE_ELEMENTS: usize = 1024;
/// The compiled tiles.
const WIDE: Shape = Shape { size: [128, 256], warps: [2, 4] };
const LARGE: Shape = Shape { size: [128, 128], warps: [2, 4] };
const SMALL: Shape = Shape { size: [64, 64], warps: [2, 2] };

/// The shape of the problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Rows of x, or the capacity for rows.
    pub rows: usize,
    /// Columns of x.
    pub hidden_size: usize,
    /// Rows of W.
    pub vocab_size: usize,
}

/// Overrides of the plan's choice, for tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Rows of a chunk.
    pub chunk_rows: Option<usize>,
    /// Rows and columns of a tile: 128 x 128, 128 x 256 or 64 x 64.
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

/// The plan for `problem`, with the overrides of `wanted` where there is a kernel for them.
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
    let gains_by_width = efficiency(chip.arch, WIDE) > efficiency(chip.arch, LARGE);
    let is_wide = |large_time: f64, wide_time: f64| match wanted.tile {
        Some(tile) => tile == [128, 256],
        None => gains_by_width && wide_time < large_time,
    };
    let time = |product: &Product, shape: Shape, parts: usize| {
        let blocks = product.tiles_m * product.tiles_n * parts;
        let times = block_times(blocks, sms, product.kernel.min_blocks() as usize);
        (times * product.tile[0] * product.tile[1]) as f64 / parts as f64 / efficiency(chip.arch, shape)
    };
    let logits = {
        let of = |kernel, tile| product(kernel, tile, chunk_rows, vocab_size);
        let large = of(Kernel::LinearCrossEntropyLogits128x128, LARGE);
        let wide = of(Kernel::LinearCrossEntropyLogits128x256, WIDE);
        match is_small(vocab_size, sms) {
            true => of(Kernel::LinearCrossEntropyLogits64x64, SMALL),
            false if is_wide(time(&large, LARGE, 1), time(&wide, WIDE, 1)) => wide,
            false => large,
        }
    };
    let steps = vocab_size.div_ceil(STEP).max(1);
    let (dx, parts) = {
        let of = |kernel: Kernel, tile| {
            let product = product(kernel, tile, chunk_rows, hidden_size);
            let at_once = sms * kernel.min_blocks() as usize;
            let tiles = product.tiles_m * product.tiles_n;
            (product, wanted.splits.unwrap_or_else(|| splits(tiles, at_once, steps / MIN_STEPS)))
        };
        let large = of(Kernel::LinearCrossEntropyDx128x128, LARGE);
        let wide = of(Kernel::LinearCrossEntropyDx128x256, WIDE);
        match is_small(hidden_size, 0) {
            true => of(Kernel::LinearCrossEntropyDx64x64, SMALL),
            false if is_wide(time(&large.0, LARGE, large.1), time(&wide.0, WIDE, wide.1)) => wide,
            false => large,
        }
    };
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

fn product(kernel: Kernel, shape: Shape, rows: usize, columns: usize) -> Product {
    let tile @ [m, n] = shape.size;
    let stages = if shape == WIDE { 4 } else { 3 };
    let tiles_n = columns.div_ceil(n);
    Product {
        kernel,
        tile,
        dynamic_smem: (stages * STEP_BYTES * (m + n)) as u32,
        tiles_m: rows.div_ceil(m),
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

    /// Where tensor cores are fast, tiles are wide; an RTX 3080 has the finer ones whatever the shape.
    #[test]
    fn tiles_are_wide_on_an_h200() {
        let h200 = Chip { arch: Arch::Sm90, multiprocessors: 132 };
        for (hidden_size, splits) in [(1024, 8), (2048, 4), (4096, 2)] {
            let problem = Problem { rows: 2176, hidden_size, vocab_size: 151_936 };
            let plan = plan(&problem, Wanted::default(), h200);
            assert_eq!(plan.logits.kernel, Kernel::LinearCrossEntropyLogits128x256);
            assert_eq!((plan.logits.tiles_m, plan.logits.tiles_n), (4, 594));
            assert_eq!((plan.dx.kernel, plan.splits), (Kernel::LinearCrossEntropyDx128x256, splits));
        }
        for rows in [65, 129, 400, 2176] {
            for (hidden_size, vocab_size) in [(72, 300), (896, 151_936), (1024, 128_256), (2560, 50_257)] {
                let plan = of(rows, hidden_size, vocab_size);
                assert!(plan.logits.tile != [128, 256] && plan.dx.tile != [128, 256], "{plan:?}");
            }
        }
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
