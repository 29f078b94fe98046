// Shared code of the attention kernels: the work lists that the host builds for a batch, and tiles of a head
// in shared memory.
//
// A query tile is up to 64 query rows of one segment, with the ranges of key rows that they see; a key tile
// is up to 64 key rows of one segment, with the query tiles that see it. Both lists have a fixed capacity and
// hold their length in memory, so one graph serves batches of any size; that length takes the place of the
// live rows of other kernels. Causal masks and windows compare the packed row of a query with the row of a key,
// so query rows may be any rows of the batch.
#pragma once

#include "common/gemm_tile.cuh"

constexpr int kAttentionRows = 64;

// Query rows that see the same ranges. The heaviest tiles come first, so that the last blocks of a launch are
// short.
struct AttentionTile {
    int32_t row_start;    // first row of q, o, lse
    int32_t row_end;      // one past the last row, at most 64 further
    int32_t range_start;  // first entry of ranges
    int32_t range_end;    // one past the last entry
};

// A run of key rows, never empty. All queries of the tile see those up to unmasked_end; each sees at least the first
// one. In a window a query sees the keys at most `reach` rows from its own, and unmasked_end means nothing.
struct AttentionRange {
    int32_t key_start;     // first row of k and v
    int32_t key_end;       // one past the last row
    int32_t unmasked_end;  // keys from here on are seen by queries whose packed row is not before theirs
    int32_t reach;         // of a window; 0 without
};

// The query side of a batch.
struct AttentionQueries {
    const AttentionTile* tiles;    // [num_tiles]
    const int32_t* num_tiles;      // number of tiles
    const AttentionRange* ranges;  // by tile
    const int32_t* packed_rows;    // [num_tiles, 64] row in the batch of every query; INT_MAX for missing queries of a tile
};

// Key rows, and the query tiles that see them.
struct AttentionKeyTile {
    int32_t key_start;    // first row of k and v
    int32_t key_end;      // one past the last row, at most 64 further
    int32_t visit_start;  // first entry of visits
    int32_t visit_end;    // one past the last entry
};

// Copies rows first .. first + kRows of one head (`source` is its first column) to a tile; rows from `end` on become 0
// and are not read. The swizzle is that of a `columns` tile of kDim, which serves ldmatrix in both directions.
template <int kRows, int kDim, int kThreads>
DEVICE void load_head_rows(unsigned char* tile, const bf16* source, int64_t stride, int first, int end) {
    constexpr int kPieces = kDim / 8, kStep = kThreads / kPieces, kCount = (kRows + kStep - 1) / kStep;
    static_assert(kStep % 8 == 0, "the swizzle repeats every 8 rows");
    const int row = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces;
    const bf16* const from = source + (first + row) * stride + piece * 8;
    unsigned char* const to = tile + columns_offset<kDim>(row, piece);
    UNROLL for (int i = 0; i < kCount; i++) {
        if (kRows % kStep != 0 && row + i * kStep >= kRows) break;
        cp_async16(to + i * kStep * (kDim * 2), from + i * kStep * stride, first + row + i * kStep < end);
    }
}

// A 16 x 16 fragment of A: rows `row`.. and the 16 elements of a head from 16 * slice on.
template <int kDim>
DEVICE void load_a_rows(uint32_t (&a)[4], const unsigned char* tile, int row, int slice) {
    const int lane = lane_id();
    ldmatrix_x4(a, tile + columns_offset<kDim>(row + (lane & 15), slice * 2 + (lane >> 4)));
}

// B with a column for every row of the tile: contraction along the head.
template <int kDim, int kN>
DEVICE void load_b_rows(uint32_t (&b)[kN][2], const unsigned char* tile, int row, int slice) {
    const int lane = lane_id(), outer = row + (lane & 7) + ((lane >> 4) << 3), piece = slice * 2 + ((lane >> 3) & 1);
    UNROLL for (int n = 0; n < kN; n += 2) {
        uint32_t r[4];
        ldmatrix_x4(r, tile + columns_offset<kDim>(outer + n * 8, piece));
        b[n][0] = r[0], b[n][1] = r[1], b[n + 1][0] = r[2], b[n + 1][1] = r[3];
    }
}

// B with a row for every row of the tile: contraction along 16 rows, columns from 8 * piece on.
template <int kDim, int kN>
DEVICE void load_b_columns(uint32_t (&b)[kN][2], const unsigned char* tile, int row, int piece) {
    const int lane = lane_id();
    UNROLL for (int n = 0; n < kN; n += 2) {
        uint32_t r[4];
        ldmatrix_x4_trans(r, tile + columns_offset<kDim>(row + (lane & 15), piece + n + (lane >> 4)));
        b[n][0] = r[0], b[n][1] = r[1], b[n + 1][0] = r[2], b[n + 1][1] = r[3];
    }
}

// Accumulators of 16 rows of a head, in chunks of at most 64 columns: one chunk of B is in registers at a time.
template <int kDim>
struct HeadRows {
    static constexpr int kChunk = kDim < 64 ? kDim / 8 : 8, kChunks = kDim / 8 / kChunk;
    float acc[kChunks][1][kChunk][4] = {};

    // += a (rows `row`.. of the tile): 16 rows of the result, 16 terms.
    DEVICE void add(const uint32_t (&a)[1][4], const unsigned char* tile, int row) {
        UNROLL for (int c = 0; c < kChunks; c++) {
            uint32_t b[kChunk][2];
            load_b_columns<kDim>(b, tile, row, c * kChunk);
            mma_tile(acc[c], a, b);
        }
    }

    // Multiplies the rows g and g + 8 of the fragments.
    DEVICE void scale(float low, float high) {
        UNROLL for (int c = 0; c < kChunks; c++) {
            UNROLL for (int n = 0; n < kChunk; n++) {
                acc[c][0][n][0] *= low, acc[c][0][n][1] *= low;
                acc[c][0][n][2] *= high, acc[c][0][n][3] *= high;
            }
        }
    }

    // Rounds to bf16, into rows `row`.. of a tile.
    DEVICE void to_tile(unsigned char* tile, int row) const {
        const int lane = lane_id(), group = lane >> 2, quad = lane & 3;
        UNROLL for (int c = 0; c < kChunks; c++) {
            UNROLL for (int n = 0; n < kChunk; n++) {
                const float(&from)[4] = acc[c][0][n];
                unsigned char* const at = tile + columns_offset<kDim>(row + group, c * kChunk + n) + quad * 4;
                *reinterpret_cast<uint32_t*>(at) = pack_bf16(from[0], from[1]);
                // Eight rows further the swizzle is the same.
                *reinterpret_cast<uint32_t*>(at + 8 * kDim * 2) = pack_bf16(from[2], from[3]);
            }
        }
    }
};

// Copies rows of a tile to rows first .. end of one head, with the lanes of `kThreads` threads, of which this is number
// `thread`.
template <int kRows, int kDim, int kThreads>
DEVICE void store_head_rows(bf16* target, int64_t stride, int first, int end, const unsigned char* tile, int row,
                            int thread) {
    constexpr int kPieces = kDim / 8;
    UNROLL for (int i = thread; i < kRows * kPieces; i += kThreads) {
        const int r = i / kPieces, piece = i % kPieces;
        if (first + r < end) {
            store16(target + (first + r) * stride + piece * 8, load16(tile + columns_offset<kDim>(row + r, piece)));
        }
    }
}

// The 16 rows of a query tile that a warp of four takes. Early rows see less of the diagonal than late ones,
// and the number of a warp determines its tensor core. So every second block takes its rows in reverse order
// (every second group of four blocks: the numbers of blocks on one multiprocessor differ by the number of
// multiprocessors, 68 or 132).
DEVICE int query_rows_of_warp() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    return (blockIdx.x / 4 % 2 == 0 ? warp : 3 - warp) * 16;
}

// A block's way through the ranges of its query tile, of which there is at least one, kKeys keys at a time.
template <int kKeys, bool kWindow>
struct KeyWalk {
    const AttentionRange* const ranges;
    int range;
    int range_end;
    int key;
    int key_end;
    int unmasked_end;
    int reach;

    DEVICE void start(const AttentionTile& tile) {
        range = tile.range_start, range_end = tile.range_end;
        open();
    }

    DEVICE bool is_done() const { return range == range_end; }

    DEVICE void next() {
        key += kKeys;
        if (key >= key_end && ++range != range_end) open();
    }

    DEVICE void open() {
        const AttentionRange& now = ranges[range];
        key = now.key_start, key_end = now.key_end, unmasked_end = now.unmasked_end;
        if constexpr (kWindow) reach = now.reach;
    }

    // True if some query of the tile does not see all kKeys keys.
    DEVICE bool is_masked() const { return kWindow || key + kKeys > unmasked_end; }

    // Number of keys from `key` on up to the last one that the query with this packed row sees.
    DEVICE int visible(int packed_row) const {
        if constexpr (kWindow) return (packed_row >= key_end - reach ? key_end : packed_row + reach + 1) - key;
        const int seen = packed_row < unmasked_end ? unmasked_end : packed_row < key_end ? packed_row + 1 : key_end;
        return seen - key;
    }

    // Number of keys from `key` on before the first one that the query with this packed row sees.
    DEVICE int hidden(int packed_row) const { return kWindow ? packed_row - reach - key : 0; }
};
