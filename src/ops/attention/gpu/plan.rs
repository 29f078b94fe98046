//! Which kernels compute attention on a GPU, in how many blocks: pure functions of heads and of the capacity for tiles.
//!
//! Blocks are numbered with the heads of one tile as neighbours, so that heads that share a key head hit the
//! L2 cache together; the heaviest tiles come first, so that the last blocks are short.

use super::launch;
use crate::device::kernels::Kernel;
use crate::device::{Device, Launch};
use crate::error::{Error, Result};
use crate::ops::attention::{Heads, OP};

/// Rows of a query tile and of a key tile.
pub(super) const TILE: usize = 64;
/// Keys that a block of the dq kernels loads per stage, and its number of stages.
const DQ_KEYS: usize = 32;
const DQ_STAGES: usize = 2;
/// Number of stages of the dkv kernels, and bytes of the statistics of a query.
const DKV_STAGES: usize = 2;
const STATS_BYTES: usize = 8;

/// Capacity of the work lists in query tiles and key tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TileCapacity {
    /// Query tiles.
    pub(super) tiles: usize,
    /// Key tiles.
    pub(super) key_tiles: usize,
}

/// The kernels for one head_dim, with windows or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernels {
    head_dim: usize,
    has_window: bool,
    forward: Kernel,
    dq: Kernel,
    dkv: Kernel,
}

/// Table rows of the kernels for heads of some sizes, without windows and with them.
macro_rules! kernels {
    ($($head_dim:literal: $forward:ident $dq:ident $dkv:ident, $with:ident $dq_with:ident $dkv_with:ident;)+) => {
        &[$(
            Kernels {
                head_dim: $head_dim,
                has_window: false,
                forward: Kernel::$forward,
                dq: Kernel::$dq,
                dkv: Kernel::$dkv,
            },
            Kernels {
                head_dim: $head_dim,
                has_window: true,
                forward: Kernel::$with,
                dq: Kernel::$dq_with,
                dkv: Kernel::$dkv_with,
            },
        )+]
    };
}

const KERNELS: &[Kernels] = kernels!(
    16: AttentionFwdBf16D16 AttentionBwdDqBf16D16 AttentionBwdDkvBf16D16,
        AttentionFwdBf16D16Window AttentionBwdDqBf16D16Window AttentionBwdDkvBf16D16Window;
    32: AttentionFwdBf16D32 AttentionBwdDqBf16D32 AttentionBwdDkvBf16D32,
        AttentionFwdBf16D32Window AttentionBwdDqBf16D32Window AttentionBwdDkvBf16D32Window;
    48: AttentionFwdBf16D48 AttentionBwdDqBf16D48 AttentionBwdDkvBf16D48,
        AttentionFwdBf16D48Window AttentionBwdDqBf16D48Window AttentionBwdDkvBf16D48Window;
    64: AttentionFwdBf16D64 AttentionBwdDqBf16D64 AttentionBwdDkvBf16D64,
        AttentionFwdBf16D64Window AttentionBwdDqBf16D64Window AttentionBwdDkvBf16D64Window;
    72: AttentionFwdBf16D72 AttentionBwdDqBf16D72 AttentionBwdDkvBf16D72,
        AttentionFwdBf16D72Window AttentionBwdDqBf16D72Window AttentionBwdDkvBf16D72Window;
    80: AttentionFwdBf16D80 AttentionBwdDqBf16D80 AttentionBwdDkvBf16D80,
        AttentionFwdBf16D80Window AttentionBwdDqBf16D80Window AttentionBwdDkvBf16D80Window;
    96: AttentionFwdBf16D96 AttentionBwdDqBf16D96 AttentionBwdDkvBf16D96,
        AttentionFwdBf16D96Window AttentionBwdDqBf16D96Window AttentionBwdDkvBf16D96Window;
    112: AttentionFwdBf16D112 AttentionBwdDqBf16D112 AttentionBwdDkvBf16D112,
        AttentionFwdBf16D112Window AttentionBwdDqBf16D112Window AttentionBwdDkvBf16D112Window;
    128: AttentionFwdBf16D128 AttentionBwdDqBf16D128 AttentionBwdDkvBf16D128,
        AttentionFwdBf16D128Window AttentionBwdDqBf16D128Window AttentionBwdDkvBf16D128Window;
);

/// The kernels for this head_dim.
///
/// # Errors
/// [`Error::Device`] if there are none for it; the message lists the supported sizes.
pub(super) fn kernels(device: &Device, head_dim: usize, has_window: bool) -> Result<&'static Kernels> {
    let fits = |kernels: &&Kernels| kernels.head_dim == head_dim && kernels.has_window == has_window;
    let sizes = || KERNELS.iter().step_by(2).map(|kernels| kernels.head_dim.to_string()).collect::<Vec<_>>();
    KERNELS.iter().find(fits).ok_or_else(|| Error::Device {
        what: format!(
            "{}: {OP} has no kernel for a head_dim of {head_dim}, only for {}",
            device.label(),
            sizes().join(", ")
        ),
        fix: "compute on the cpu, or use a model with one of these".into(),
    })
}

/// Bytes of a row of one head in shared memory: swizzled where that is a power of 2, else an odd number of 16-byte pieces, for columns in
/// multiples of 16.
fn row_bytes(kernels: &Kernels) -> usize {
    match kernels.head_dim.is_power_of_two() {
        true => kernels.head_dim * 2,
        false => ((kernels.head_dim.next_multiple_of(16) / 8) | 1) * 16,
    }
}

/// Bytes of 64 rows of one head.
fn tile_bytes(kernels: &Kernels) -> usize {
    TILE * row_bytes(kernels)
}

/// Shared memory holds one tile of keys and one of values. No launch if the capacity is 0.
pub(super) fn forward(kernels: &Kernels, heads: &Heads, capacity: TileCapacity) -> Option<Launch> {
    launch(kernels.forward, capacity.tiles * heads.num_attention_heads, 2 * tile_bytes(kernels))
}

/// Shared memory holds two stages of 32 keys and their values.
pub(super) fn dq(kernels: &Kernels, heads: &Heads, capacity: TileCapacity) -> Option<Launch> {
    let stage = 2 * DQ_KEYS * row_bytes(kernels);
    launch(kernels.dq, capacity.tiles * heads.num_attention_heads, DQ_STAGES * stage)
}

/// Shared memory holds keys and values of the block, and two stages of queries, dO and their statistics.
pub(super) fn dkv(kernels: &Kernels, heads: &Heads, capacity: TileCapacity) -> Option<Launch> {
    let stage = 2 * tile_bytes(kernels) + TILE * STATS_BYTES;
    let smem = 2 * tile_bytes(kernels) + DKV_STAGES * stage;
    launch(kernels.dkv, capacity.key_tiles * heads.num_key_value_heads, smem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::arch::{Arch, occupancy};

    const CAPACITY: TileCapacity = TileCapacity { tiles: 40, key_tiles: 50 };

    #[test]
    fn plans_are_their_kernels_budgets_and_grids_are_made_for_the_rooms() {
        let heads =
            |head_dim| Heads { num_attention_heads: 8, num_key_value_heads: 2, head_dim, softmax_scale: 1.0 };
        for kernels in KERNELS {
            let heads = heads(kernels.head_dim);
            let launches = [
                forward(kernels, &heads, CAPACITY),
                dq(kernels, &heads, CAPACITY),
                dkv(kernels, &heads, CAPACITY),
            ];
            for (launch, blocks) in launches.into_iter().flatten().zip([40 * 8, 40 * 8, 50 * 2]) {
                assert_eq!(launch.grid, [blocks, 1, 1], "{launch}");
                assert_eq!(launch.dynamic_smem, launch.kernel.budget().smem, "{launch}");
            }
            assert_eq!(launches.iter().flatten().count(), 3);
        }
        let none = TileCapacity { tiles: 0, key_tiles: 0 };
        assert_eq!(forward(&KERNELS[0], &heads(16), none), None);
    }

    #[test]
    fn two_blocks_of_queries_and_one_of_keys_fit_at_the_largest_head_dim() {
        let resident = |kernel: Kernel| {
            occupancy(Arch::Sm86, kernel.threads(), kernel.budget().registers, kernel.budget().smem)
        };
        let Some(Kernels { forward, dq, dkv, .. }) = KERNELS.iter().find(|kernels| kernels.head_dim == 128)
        else {
            panic!("no kernels")
        };
        assert_eq!([*forward, *dq, *dkv].map(resident), [2, 2, 1]);
    }
}
