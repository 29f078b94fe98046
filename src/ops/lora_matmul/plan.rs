//! How a LoRA matmul is cut into blocks on a GPU: pure functions of shapes and architecture, with values to print and to test.
//!
//! The large products choose a tile by the time that its waves take (`ops::tiles`): the area of its blocks,
//! in whole and partial waves, over the share of the tensor cores' rate that the tile reaches on the
//! architecture. On an RTX 3080 (68 multiprocessors, two 128 x 128 blocks each) 2,176 rows are 17 tile rows:
//! with 1,024 columns that is one full wave, and any multiple of both fills whole waves. There 128 x 256
//! never beats 128 x 128, whose waves are cut finer at the same rate; on an A100 or H200 it is chosen for
//! every product with enough tiles. The projections are bound by memory bandwidth; they only need enough
//! blocks.

use crate::device::arch::{Chip, occupancy};
use crate::device::kernels::Kernel;
use crate::ops::tiles::{Shape, block_times, efficiency};

/// Ranks are padded with zeros to a multiple of this.
pub const RANK_UNIT: usize = 16;
/// `features` of every matrix are a multiple of this, so that rows are a multiple of 16 bytes.
pub const FEATURE_UNIT: usize = 8;
/// Maximum layers of a group, which go through one launch: q, k, v.
pub const MAX_LAYERS: usize = 3;
/// Maximum factor gradients per launch: two for each of the seven layers of a decoder block.
pub const MAX_GRADIENTS: usize = 14;

/// Bytes of a k-step of one row or column of a tile: 32 numbers of bf16.
const STEP_BYTES: u32 = 64;
/// Tile columns that are walked together, row by row: 8 columns of 128 weights share the L2 cache of 5 MB with the rows of x.
const GROUP: usize = 8;
/// Columns that share the Philox calls of a dropout mask.
const MASK_COLUMNS: usize = 128;
/// Rows per block of the down kernels.
const DOWN_ROWS: usize = 32;
/// Features per block of the grad kernels.
pub(super) const GRAD_FEATURES: usize = 64;
/// Rows per step of the grad kernels.
const GRAD_STEP: usize = 32;
/// Stages of the grad kernels.
const GRAD_STAGES: u32 = 4;

/// The shape of the problem: layers that share their input, or one alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Rows of x and y.
    pub rows: usize,
    /// Columns of x.
    pub in_features: usize,
    /// Columns of y by layer; 1 to [`MAX_LAYERS`] of them.
    pub out_features: Vec<usize>,
    /// The largest rank of any adapter; 0 without adapters.
    pub rank: usize,
    /// Dropout on the adapters' input.
    pub dropout: bool,
    /// Overrides the choice of the tile, if there is a kernel with this tile.
    pub tile: Option<[usize; 2]>,
}

impl Problem {
    /// Columns of `xa` and `dxa` for one layer.
    pub fn rank_stride(&self) -> usize {
        self.rank.next_multiple_of(RANK_UNIT)
    }

    /// Columns of `xa` and `dxa` over all layers.
    pub fn xa_columns(&self) -> usize {
        self.rank_stride() * self.out_features.len()
    }
}

/// A launch of a product with tiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TiledPlan {
    /// The kernel, which has the tile in its name.
    pub kernel: Kernel,
    /// Rows and columns of a tile.
    pub tile: [usize; 2],
    /// Stages of the ring of tiles.
    pub stages: u32,
    /// Bytes of dynamic shared memory.
    pub dynamic_smem: u32,
    /// Tile rows.
    pub tiles_m: usize,
    /// Tile columns, over all layers.
    pub tiles_n: usize,
    /// Tile columns that are walked together.
    pub group: usize,
    /// Blocks that are resident on one multiprocessor.
    pub blocks_per_sm: u32,
    /// Blocks divided by the blocks that run at once. 2.06 waves take nearly as long as 3.
    pub waves: f64,
    /// Share of the multiprocessors' time spent on real (unpadded) rows and columns, over full and partial
    /// waves.
    pub utilisation: f64,
}

/// A launch of projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarrowPlan {
    /// The kernel, which has the ranks of a block in its name.
    pub kernel: Kernel,
    /// Blocks.
    pub grid: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_smem: u32,
    /// Blocks along the ranks of a layer.
    pub rank_chunks: usize,
}

/// A compiled tile.
#[derive(Debug, Clone, Copy)]
struct Tile {
    kernel: Kernel,
    shape: Shape,
    /// Stages of the ring.
    stages: u32,
    /// Bytes of shared memory behind the ring.
    beside: u32,
}

impl Tile {
    const fn new(kernel: Kernel, size: [usize; 2], warps: [usize; 2], stages: u32) -> Self {
        Self { kernel, shape: Shape { size, warps }, stages, beside: 0 }
    }

    /// The dropout mask of a layer takes 16 bytes per row and stretch of columns.
    const fn with_mask(self) -> Self {
        let [rows, columns] = self.shape.size;
        Self { beside: (16 * rows * columns.div_ceil(MASK_COLUMNS)) as u32, ..self }
    }
}

/// The plan of `y = x W^T + xa B^T` for all layers.
pub fn forward(problem: &Problem, chip: Chip) -> TiledPlan {
    let tiles = [
        Tile::new(Kernel::LoraMatmulFwdBf16128x128, [128, 128], [2, 4], 3),
        Tile::new(Kernel::LoraMatmulFwdBf16128x256, [128, 256], [2, 4], 4),
        Tile::new(Kernel::LoraMatmulFwdBf1664x64, [64, 64], [2, 2], 3),
    ];
    best(&tiles, problem, &problem.out_features, chip)
}

/// The plan of `dx = sum dy W + mask(dxa A)`.
pub fn dx(problem: &Problem, chip: Chip) -> TiledPlan {
    let tiles = if problem.dropout {
        [
            Tile::new(Kernel::LoraMatmulDxBf16128x128Dropout, [128, 128], [4, 4], 3).with_mask(),
            Tile::new(Kernel::LoraMatmulDxBf16128x256Dropout, [128, 256], [2, 4], 3).with_mask(),
            Tile::new(Kernel::LoraMatmulDxBf1664x64Dropout, [64, 64], [2, 2], 3).with_mask(),
        ]
    } else {
        [
            Tile::new(Kernel::LoraMatmulDxBf16128x128, [128, 128], [2, 4], 3),
            Tile::new(Kernel::LoraMatmulDxBf16128x256, [128, 256], [2, 4], 4),
            Tile::new(Kernel::LoraMatmulDxBf1664x64, [64, 64], [2, 2], 3),
        ]
    };
    best(&tiles, problem, &[problem.in_features], chip)
}

/// The plan of `xa = scaling * dropout(x) A^T` (or of `dxa = scaling * dy B`, which has no dropout) for `layers` layers.
pub fn down(problem: &Problem, layers: usize, dropout: bool) -> NarrowPlan {
    let (ranks, kernel) = match (ranks_per_block(problem.rank), dropout) {
        (16, false) => (16, Kernel::LoraMatmulDownBf16R16),
        (16, true) => (16, Kernel::LoraMatmulDownBf16R16Dropout),
        (32, false) => (32, Kernel::LoraMatmulDownBf16R32),
        (32, true) => (32, Kernel::LoraMatmulDownBf16R32Dropout),
        (_, false) => (64, Kernel::LoraMatmulDownBf16R64),
        (_, true) => (64, Kernel::LoraMatmulDownBf16R64Dropout),
    };
    let rank_chunks = problem.rank_stride().div_ceil(ranks);
    let grid = [(layers * rank_chunks) as u32, problem.rows.div_ceil(DOWN_ROWS) as u32, 1];
    NarrowPlan { kernel, grid, dynamic_smem: 0, rank_chunks }
}

/// The plan of `dA` and `dB` of rank at most `rank` over matrices with these numbers of `features` (every `dy`, and x for every
/// layer). A block takes 64 features and all rows: the gradients of a decoder block make enough of them.
pub fn grad(rank: usize, features: &[usize], dropout: bool) -> NarrowPlan {
    let (ranks, kernel) = match (ranks_per_block(rank), dropout) {
        (16, false) => (16, Kernel::LoraMatmulGradBf16R16),
        (16, true) => (16, Kernel::LoraMatmulGradBf16R16Dropout),
        (32, false) => (32, Kernel::LoraMatmulGradBf16R32),
        (32, true) => (32, Kernel::LoraMatmulGradBf16R32Dropout),
        (_, false) => (64, Kernel::LoraMatmulGradBf16R64),
        (_, true) => (64, Kernel::LoraMatmulGradBf16R64Dropout),
    };
    let rank_chunks = rank.next_multiple_of(RANK_UNIT).div_ceil(ranks);
    let columns: usize = features.iter().map(|f| f.div_ceil(GRAD_FEATURES)).sum();
    let dynamic_smem = GRAD_STAGES * (GRAD_STEP * (GRAD_FEATURES + ranks) * 2) as u32;
    NarrowPlan { kernel, grid: [columns as u32, rank_chunks as u32, 1], dynamic_smem, rank_chunks }
}

/// Ranks that one block of a projection handles.
fn ranks_per_block(rank: usize) -> usize {
    match rank {
        0..=16 => 16,
        17..=32 => 32,
        _ => 64,
    }
}

/// The tile with the shortest waves; the first of equals.
fn best(tiles: &[Tile], problem: &Problem, columns: &[usize], chip: Chip) -> TiledPlan {
    let rows = problem.rows;
    let wanted = |tile: &&Tile| problem.tile.is_none_or(|wanted| wanted == tile.shape.size);
    let tiles = if tiles.iter().any(|tile| wanted(&tile)) {
        tiles.iter().filter(wanted).copied().collect()
    } else {
        tiles.to_vec()
    };
    let plans =
        tiles.iter().map(|tile| (tiled(tile, rows, columns, chip), efficiency(chip.arch, tile.shape)));
    let sms = chip.multiprocessors as usize;
    let time = |(plan, efficiency): &(TiledPlan, f64)| -> f64 {
        let [m, n] = plan.tile;
        let times = block_times(plan.tiles_m * plan.tiles_n, sms, plan.blocks_per_sm as usize);
        // A single division of an integer, so equal times compare equal.
        (times * m * n) as f64 / efficiency
    };
    let mut plans: Vec<_> = plans.collect();
    plans.sort_by(|a, b| time(a).total_cmp(&time(b)));
    plans[0].0
}

fn tiled(tile: &Tile, rows: usize, columns: &[usize], chip: Chip) -> TiledPlan {
    let &Tile { kernel, shape: Shape { size: [m, n], .. }, stages, beside } = tile;
    let ring = beside + stages * STEP_BYTES * (m + n) as u32;
    // The result is staged in the same shared memory, with rows padded by 16 bytes.
    let result = (m * (2 * n + 16)) as u32;
    let dynamic_smem = ring.max(result);
    let tiles_m = rows.div_ceil(m);
    let tiles_n: usize = columns.iter().map(|c| c.div_ceil(n)).sum();
    let blocks_per_sm =
        occupancy(chip.arch, kernel.threads(), kernel.budget().registers, dynamic_smem).max(1);
    let sms = chip.multiprocessors as usize;
    let at_once = sms * blocks_per_sm as usize;
    let blocks = tiles_m * tiles_n;
    let time = block_times(blocks, sms, blocks_per_sm as usize);
    let useful = (rows * columns.iter().sum::<usize>()) as f64;
    TiledPlan {
        kernel,
        tile: [m, n],
        stages,
        dynamic_smem,
        tiles_m,
        tiles_n,
        group: GROUP.min(tiles_n),
        blocks_per_sm,
        waves: blocks as f64 / at_once as f64,
        utilisation: useful / (time * sms * m * n).max(1) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::arch::Arch;

    const RTX_3080: Chip = Chip::RTX_3080;
    const A100: Chip = Chip { arch: Arch::Sm80, multiprocessors: 108 };
    const H200: Chip = Chip { arch: Arch::Sm90, multiprocessors: 132 };

    fn problem(rows: usize, in_features: usize, out_features: &[usize]) -> Problem {
        Problem {
            rows,
            in_features,
            out_features: out_features.to_vec(),
            rank: 16,
            dropout: false,
            tile: None,
        }
    }

    #[test]
    fn multiples_of_2176_rows_fill_an_rtx_3080() {
        for rows in [2176, 4352, 8704] {
            for outs in [&[1024][..], &[2048, 1024, 1024], &[3072, 3072], &[6144, 6144], &[4096]] {
                let plan = forward(&problem(rows, 1024, outs), RTX_3080);
                assert_eq!(plan.utilisation, 1.0, "{rows} {outs:?} {plan:?}");
                assert_eq!(plan.waves.fract(), 0.0, "{rows} {outs:?} {plan:?}");
            }
            assert_eq!(dx(&problem(rows, 2048, &[2048]), RTX_3080).utilisation, 1.0);
        }
        // A power of two does not.
        let plan = forward(&problem(2048, 1024, &[1024]), RTX_3080);
        assert!((0.93..0.95).contains(&plan.utilisation), "{plan:?}");
    }

    #[test]
    fn a_few_rows_get_small_tiles() {
        let plan = forward(&problem(32, 1024, &[1024]), RTX_3080);
        assert_eq!(plan.kernel, Kernel::LoraMatmulFwdBf1664x64);
        assert_eq!((plan.tiles_m, plan.tiles_n), (1, 16));
    }

    /// Columns of the outputs of the layers of Qwen3-0.6B to 8B, group by group.
    const GROUPS: [&[usize]; 10] = [
        &[2048, 1024, 1024],
        &[1024],
        &[3072, 3072],
        &[2048],
        &[6144, 6144],
        &[4096, 1024, 1024],
        &[2560],
        &[9728, 9728],
        &[4096],
        &[12288, 12288],
    ];

    /// The choice before wide tiles for dx and rates by architecture: waves alone, and 0.85 for 64 x 64.
    fn by_waves(rows: usize, columns: &[usize], has_wide: bool) -> [usize; 2] {
        let time = |[m, n]: [usize; 2], per_sm: usize, rate: f64| {
            let blocks = rows.div_ceil(m) * columns.iter().map(|c| c.div_ceil(n)).sum::<usize>();
            let times = blocks / (68 * per_sm) * per_sm + (blocks % (68 * per_sm)).div_ceil(68);
            (times * m * n) as f64 / rate
        };
        let mut best = ([128, 128], time([128, 128], 2, 1.0));
        for (tile, time) in [([128, 256], time([128, 256], 1, 1.0)), ([64, 64], time([64, 64], 4, 0.85))] {
            if time < best.1 && (has_wide || tile != [128, 256]) {
                best = (tile, time);
            }
        }
        best.0
    }

    #[test]
    fn an_rtx_3080_keeps_its_tiles_whatever_the_rows() {
        for rows in (1..=4400).step_by(7).chain([2176, 4352]) {
            for outs in GROUPS {
                let problem = problem(rows, outs[0], outs);
                assert_eq!(forward(&problem, RTX_3080).tile, by_waves(rows, outs, true), "{rows} {outs:?}");
                let plan = dx(&problem, RTX_3080);
                assert_eq!(plan.tile, by_waves(rows, &outs[..1], false), "{rows} {outs:?}");
                let masked = dx(&Problem { dropout: true, ..problem }, RTX_3080);
                assert!(masked.tile != [128, 256], "{rows} {outs:?} {masked:?}");
            }
        }
    }

    #[test]
    fn an_h200_has_wide_tiles_where_there_are_enough_of_them() {
        for chip in [A100, H200] {
            for rows in [2176, 4096, 4224, 8192] {
                for outs in [&[3072, 3072][..], &[4096], &[6144, 6144], &[12288, 12288]] {
                    let problem = problem(rows, outs[0], outs);
                    assert_eq!(
                        forward(&problem, chip).kernel,
                        Kernel::LoraMatmulFwdBf16128x256,
                        "{rows} {outs:?}"
                    );
                    let masked = dx(&Problem { dropout: true, in_features: 4096, ..problem.clone() }, chip);
                    assert_eq!(masked.kernel, Kernel::LoraMatmulDxBf16128x256Dropout, "{rows} {outs:?}");
                }
                let plan = dx(&problem(rows, 4096, &[1024]), chip);
                assert_eq!(plan.kernel, Kernel::LoraMatmulDxBf16128x256, "{rows}");
            }
        }
        // 68 wide tiles leave half of its multiprocessors without work; 136 of 128 x 128 give four of them two.
        let few = forward(&problem(2176, 1024, &[1024]), H200);
        assert_eq!((few.kernel, few.tiles_m * few.tiles_n), (Kernel::LoraMatmulFwdBf16128x256, 68));
        let fewer = forward(&problem(2048, 1024, &[1024]), H200);
        assert_eq!((fewer.kernel, fewer.tiles_m * fewer.tiles_n), (Kernel::LoraMatmulFwdBf16128x128, 128));
        assert_eq!(forward(&problem(32, 1024, &[1024]), H200).kernel, Kernel::LoraMatmulFwdBf1664x64);
    }

    #[test]
    fn plans_stay_within_the_budgets_of_their_kernels() {
        for chip in [RTX_3080, A100, H200] {
            for rows in [1, 17, 127, 128, 129, 507, 2176, 4352] {
                for (rank, dropout) in [(1, false), (16, true), (17, false), (64, true), (200, false)] {
                    let problem = Problem { rank, dropout, ..problem(rows, 1024, &[2048, 1024, 1024]) };
                    for plan in [forward(&problem, chip), dx(&problem, chip)] {
                        assert!(plan.dynamic_smem <= plan.kernel.budget().smem, "{plan:?}");
                        let fits =
                            plan.kernel.threads() * plan.kernel.min_blocks() * plan.kernel.budget().registers;
                        assert!(fits <= 65_536, "{plan:?}");
                        assert!(plan.utilisation > 0.0 && plan.utilisation <= 1.0, "{plan:?}");
                    }
                    let grad = grad(rank, &[2048, 1024, 1024, 1024, 1024, 1024], dropout);
                    assert!(grad.dynamic_smem <= grad.kernel.budget().smem);
                    assert!(grad.grid[0] == 112 && grad.rank_chunks * 64 >= rank, "{grad:?}");
                    let down = down(&problem, 3, dropout);
                    assert!(down.grid[1] as usize * DOWN_ROWS >= rows && down.rank_chunks * 64 >= rank);
                }
            }
        }
    }

    #[test]
    fn grids_of_the_largest_problems_are_legal() {
        let problem = Problem { rank: 512, ..problem((1 << 31) / 4096, 4096, &[152_064]) };
        let plan = forward(&problem, H200);
        assert!(plan.tiles_m * plan.tiles_n < 1 << 31);
        let down = down(&problem, 1, false);
        assert!(down.grid[1] <= 65_535);
        let grad = grad(problem.rank, &[152_064, 4096], false);
        assert!(grad.grid[0] < 1 << 31 && grad.grid[1] <= 65_535);
    }
}
