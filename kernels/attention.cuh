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

// A tile of rows of one head, each of kDim columns. Widths of a power of 2 are swizzled; the rows of others are an odd number of 16-byte
// pieces apart, so that 8 rows of one piece are in 8 different places of the banks, too. A width that is no multiple of 16 (72) has zeros
// up to the next one: they add nothing to a product along the head, and are never stored.
template <int kDim>
struct HeadTile {
    static constexpr bool kSwizzled = (kDim & (kDim - 1)) == 0;
    static constexpr int kColumns = (kDim + 15) / 16 * 16, kPieces = kColumns / 8;
    static constexpr int kRowBytes = kSwizzled ? kDim * 2 : (kPieces | 1) * 16;

    // Byte offset of a piece of a row.
    static DEVICE int offset(int row, int piece) {
        if constexpr (kSwizzled) return columns_offset<kDim>(row, piece);
        return row * kRowBytes + (piece << 4);
    }
};

// The pieces of kRows rows of a tile that is not swizzled, as its threads take them: half a warp has 8 rows of 2 pieces, so that 8 lanes
// after each other touch 8 rows, and lanes 8 apart the two halves of a sector.
template <int kDim, int kRows, int kThreads, typename Visit>
DEVICE void each_piece(int thread, Visit&& visit) {
    constexpr int kPairs = HeadTile<kDim>::kPieces / 2, kUnits = kRows / 8 * kPairs, kStep = kThreads / 16;
    static_assert(kRows % 8 == 0 && kThreads % 16 == 0, "whole units");
    UNROLL for (int i = 0; i < (kUnits + kStep - 1) / kStep; i++) {
        const int unit = thread / 16 + i * kStep;
        if (kUnits % kStep != 0 && unit >= kUnits) break;
        visit(unit / kPairs * 8 + (thread & 7), unit % kPairs * 2 + (thread >> 3 & 1));
    }
}

// Copies rows first .. first + kRows of one head (`source` is its first column) to a tile; rows from `end` on become 0
// and are not read. The layout serves ldmatrix in both directions.
template <int kRows, int kDim, int kThreads>
DEVICE void load_head_rows(unsigned char* tile, const bf16* source, int64_t stride, int first, int end) {
    using Tile = HeadTile<kDim>;
    if constexpr (Tile::kSwizzled) {
        constexpr int kPieces = kDim / 8, kStep = kThreads / kPieces, kCount = (kRows + kStep - 1) / kStep;
        static_assert(kStep % 8 == 0, "the swizzle repeats every 8 rows");
        const int row = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces;
        const bf16* const from = source + (first + row) * stride + piece * 8;
        unsigned char* const to = tile + Tile::offset(row, piece);
        UNROLL for (int i = 0; i < kCount; i++) {
            if (kRows % kStep != 0 && row + i * kStep >= kRows) break;
            cp_async16(to + i * kStep * (kDim * 2), from + i * kStep * stride, first + row + i * kStep < end);
        }
    } else {
        each_piece<kDim, kRows, kThreads>(static_cast<int>(threadIdx.x), [&](int row, int piece) {
            const bool is_there = first + row < end && piece * 8 < kDim;
            cp_async16(tile + Tile::offset(row, piece), source + (first + row) * stride + piece * 8, is_there);
        });
    }
}

// A 16 x 16 fragment of A: rows `row`.. and the 16 elements of a head from 16 * slice on.
template <int kDim>
DEVICE void load_a_rows(uint32_t (&a)[4], const unsigned char* tile, int row, int slice) {
    const int lane = lane_id();
    ldmatrix_x4(a, tile + HeadTile<kDim>::offset(row + (lane & 15), slice * 2 + (lane >> 4)));
}

// B with a column for every row of the tile: contraction along the head.
template <int kDim, int kN>
DEVICE void load_b_rows(uint32_t (&b)[kN][2], const unsigned char* tile, int row, int slice) {
    const int lane = lane_id(), outer = row + (lane & 7) + ((lane >> 4) << 3), piece = slice * 2 + ((lane >> 3) & 1);
    UNROLL for (int n = 0; n < kN; n += 2) {
        uint32_t r[4];
        ldmatrix_x4(r, tile + HeadTile<kDim>::offset(outer + n * 8, piece));
        b[n][0] = r[0], b[n][1] = r[1], b[n + 1][0] = r[2], b[n + 1][1] = r[3];
    }
}

// B with a row for every row of the tile: contraction along 16 rows, columns from 8 * piece on.
template <int kDim, int kN>
DEVICE void load_b_columns(uint32_t (&b)[kN][2], const unsigned char* tile, int row, int piece) {
    const int lane = lane_id();
    UNROLL for (int n = 0; n < kN; n += 2) {
        uint32_t r[4];
        ldmatrix_x4_trans(r, tile + HeadTile<kDim>::offset(row + (lane & 15), piece + n + (lane >> 4)));
        b[n][0] = r[0], b[n][1] = r[1], b[n + 1][0] = r[2], b[n + 1][1] = r[3];
    }
}

// Accumulators of 16 rows of a head, in chunks of at most 64 columns: one chunk of B is in registers at a time.
template <int kDim>
struct HeadRows {
    static constexpr int kTiles = HeadTile<kDim>::kPieces;
    static constexpr int kChunk = kTiles <= 6 ? kTiles : kTiles % 8 == 0 ? 8 : kTiles % 6 == 0 ? 6 : 2, kChunks = kTiles / kChunk;
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
                unsigned char* const at = tile + HeadTile<kDim>::offset(row + group, c * kChunk + n) + quad * 4;
                *reinterpret_cast<uint32_t*>(at) = pack_bf16(from[0], from[1]);
                // Eight rows further the swizzle is the same.
                *reinterpret_cast<uint32_t*>(at + 8 * HeadTile<kDim>::kRowBytes) = pack_bf16(from[2], from[3]);
            }
        }
    }
};

// Copies rows of a tile to rows first .. end of one head, with the lanes of `kThreads` threads, of which this is number
// `thread`.
template <int kRows, int kDim, int kThreads>
DEVICE void store_head_rows(bf16* target, int64_t stride, int first, int end, const unsigned char* tile, int row,
                            int thread) {
    using Tile = HeadTile<kDim>;
    const auto store = [&](int r, int piece) {
        if (first + r < end && piece * 8 < kDim) {
            store16(target + (first + r) * stride + piece * 8, load16(tile + Tile::offset(row + r, piece)));
        }
    };
    if constexpr (Tile::kSwizzled) {
        constexpr int kPieces = kDim / 8;
        UNROLL for (int i = thread; i < kRows * kPieces; i += kThreads) store(i / kPieces, i % kPieces);
    } else {
        each_piece<kDim, kRows, kThreads>(thread, store);
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
