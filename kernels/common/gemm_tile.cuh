// Tiles of a bf16 matrix product: from global memory through swizzled shared memory into mma fragments.
//
// A block computes a kM x kN tile of the result with kWarpsM x kWarpsN warps, in k-steps of 32. Two layouts of operands:
//   rows:    [outer][32 k]: k runs along the row, 64 bytes a row. A of every product, B of x W^T.
//   columns: [32 k][outer]: k runs down the rows. B of dy W, and both LoRA factors.
// Swizzles make ldmatrix free of bank conflicts without padding: its eight rows of 16 bytes must fall into the eight different
// 16-byte places of the 128 bytes that the banks serve at once. Where n rows share 128 bytes, piece c of row i goes to place
// c ^ (i / n) % (8 / n): n is 2 in `rows` tiles, 1 in `columns` tiles of 64 or more, 4 and 2 in those of 16 and 32.
#pragma once

#include "simt.cuh"

constexpr int kStepK = 32;

// Byte offset of the 16-byte piece `piece` (0..3) of row `row` in a `rows` tile.
DEVICE int rows_offset(int row, int piece) { return row * 64 + ((piece ^ ((row >> 1) & 3)) << 4); }

// Byte offset of the 16-byte piece `piece` of row `k` in a `columns` tile of kOuter columns.
template <int kOuter>
DEVICE int columns_offset(int k, int piece) {
    constexpr int kShared = kOuter >= 64 ? 1 : 64 / kOuter;
    return k * (kOuter * 2) + ((piece ^ ((k / kShared) & (8 / kShared - 1))) << 4);
}

// Copies `rows` tiles of kRows x 32, from left to right: rows first.. of a matrix with `stride` elements per row. Rows outside
// valid_start..valid_end and columns beyond the `left` ones become 0. Every thread moves pieces of one column of the tile.
template <int kRows, int kThreads>
struct RowsLoader {
    static constexpr int kCount = kRows * 4 / kThreads;
    static_assert(kRows * 4 % kThreads == 0, "whole pieces per thread");

    const bf16* source;
    int64_t row_step;
    int offset;
    int column;
    uint32_t valid;

    DEVICE void start(const bf16* matrix, int64_t stride, int first, int valid_start, int valid_end) {
        const int thread = threadIdx.x, row = thread / 4, piece = thread % 4;
        column = piece * 8;
        source = matrix + (first + row) * stride + column;
        row_step = stride * (kThreads / 4);
        offset = rows_offset(row, piece);
        valid = 0;
        UNROLL for (int i = 0; i < kCount; i++) {
            const int at = first + row + i * (kThreads / 4);
            valid |= (at >= valid_start && at < valid_end ? 1u : 0u) << i;
        }
    }

    // Rows of a thread lie kThreads / 4 (a multiple of 8) apart, so they share their swizzle.
    DEVICE void load(unsigned char* tile, int left) {
        static_assert(kThreads % 32 == 0, "the swizzle repeats every 8 rows");
        const bool inside = column < left;
        UNROLL for (int i = 0; i < kCount; i++) {
            cp_async16(tile + offset + i * (kThreads / 4) * 64, source + i * row_step, inside && ((valid >> i) & 1));
        }
        source += kStepK;
    }
};

// Copies `columns` tiles of 32 x kOuter, from top to bottom: columns first.. (up to column_end) of a matrix with `stride` elements
// per row (fewer than 2^26, so that a tile's offsets are 32 bits). Rows beyond the `left` ones become 0.
template <int kOuter, int kThreads>
struct ColumnsLoader {
    static constexpr int kPieces = kOuter / 8;
    static constexpr int kRowStep = kThreads / kPieces < kStepK ? kThreads / kPieces : kStepK;
    static constexpr int kCount = kStepK / kRowStep;
    // Threads beyond one pass over a narrow tile have nothing to copy.
    static constexpr int kActive = kRowStep * kPieces;
    static_assert(kThreads % kPieces == 0 && kStepK % kRowStep == 0 && kRowStep % 8 == 0, "whole rows per pass");

    const bf16* source;
    int64_t row_step;
    int offset;
    int row;

    DEVICE void start(const bf16* matrix, int64_t stride, int first, int column_end) {
        const int thread = threadIdx.x, piece = thread % kPieces;
        row = thread / kPieces;
        row_step = stride * kRowStep;
        source = matrix + (row * static_cast<int>(stride) + first + piece * 8);
        offset = columns_offset<kOuter>(row, piece);
        // Columns beyond the end are treated as rows beyond the end.
        if (first + piece * 8 >= column_end) row = 1 << 30;
    }

    DEVICE void load(unsigned char* tile, int left) {
        if (kActive < kThreads && threadIdx.x >= kActive) return;
        UNROLL for (int i = 0; i < kCount; i++) {
            cp_async16(tile + offset + i * kRowStep * (kOuter * 2), source + i * row_step, row + i * kRowStep < left);
        }
        source += kCount * row_step;
    }
};

// The ring of stages for asynchronous copies. A step is: landed(), copies into fill() and a commit,
// arithmetic on use().
template <int kStages, int kStageBytes>
struct StageRing {
    unsigned char* const smem;
    int next_fill = 0;
    int next_use = 0;

    // The stage to copy to.
    DEVICE unsigned char* fill() {
        unsigned char* const stage = smem + next_fill * kStageBytes;
        next_fill = next_fill + 1 == kStages ? 0 : next_fill + 1;
        return stage;
    }

    // The stage to compute with.
    DEVICE unsigned char* use() {
        unsigned char* const stage = smem + next_use * kStageBytes;
        next_use = next_use + 1 == kStages ? 0 : next_use + 1;
        return stage;
    }

    // Waits for the oldest copies of all threads. After the barrier no thread reads the previous stage any
    // more, which is the next to be filled.
    static DEVICE void landed() {
        cp_async_wait<kStages - 2>();
        __syncthreads();
    }
};

// One warp's share of the tile: kMmaM * 16 rows and kMmaN * 8 columns, accumulated in f32.
template <int kM, int kN, int kWarpsM, int kWarpsN>
struct WarpTile {
    static constexpr int kThreads = kWarpsM * kWarpsN * 32;
    static constexpr int kMmaM = kM / kWarpsM / 16;
    static constexpr int kMmaN = kN / kWarpsN / 8;
    // Bytes of a stage: of A, and of A followed by B.
    static constexpr int kBytesA = kM * kStepK * 2;
    static constexpr int kStageBytes = kBytesA + kN * kStepK * 2;
    static_assert(kM % (kWarpsM * 16) == 0 && kN % (kWarpsN * 16) == 0, "whole fragments per warp");

    // First row and column of this warp in the tile.
    static DEVICE int first_row() { return static_cast<int>(threadIdx.x / 32) / kWarpsN * (kMmaM * 16); }
    static DEVICE int first_column() { return static_cast<int>(threadIdx.x / 32) % kWarpsN * (kMmaN * 8); }

    static DEVICE void load_a(uint32_t (&a)[kMmaM][4], const unsigned char* tile, int slice) {
        const int lane = lane_id(), row = first_row() + (lane & 15), piece = slice * 2 + (lane >> 4);
        UNROLL for (int m = 0; m < kMmaM; m++) ldmatrix_x4(a[m], tile + rows_offset(row + m * 16, piece));
    }

    // B of a `rows` tile: two columns of fragments at a time.
    static DEVICE void load_b_rows(uint32_t (&b)[kMmaN][2], const unsigned char* tile, int slice) {
        const int lane = lane_id(), outer = first_column() + (lane & 7) + ((lane >> 4) << 3);
        const int piece = slice * 2 + ((lane >> 3) & 1);
        UNROLL for (int n = 0; n < kMmaN; n += 2) {
            uint32_t r[4];
            ldmatrix_x4(r, tile + rows_offset(outer + n * 8, piece));
            b[n][0] = r[0], b[n][1] = r[1], b[n + 1][0] = r[2], b[n + 1][1] = r[3];
        }
    }

    // B of a `columns` tile.
    static DEVICE void load_b_columns(uint32_t (&b)[kMmaN][2], const unsigned char* tile, int slice) {
        const int lane = lane_id(), k = slice * 16 + (lane & 15), piece = first_column() / 8 + (lane >> 4);
        UNROLL for (int n = 0; n < kMmaN; n += 2) {
            uint32_t r[4];
            ldmatrix_x4_trans(r, tile + columns_offset<kN>(k, piece + n));
            b[n][0] = r[0], b[n][1] = r[1], b[n + 1][0] = r[2], b[n + 1][1] = r[3];
        }
    }

    // Adds the product of one stage: A in a `rows` tile, followed by B in a `rows` or `columns` tile.
    template <bool kColumns>
    static DEVICE void multiply(float (&acc)[kMmaM][kMmaN][4], const unsigned char* stage) {
        uint32_t a[kMmaM][4], b[kMmaN][2];
        UNROLL for (int slice = 0; slice < 2; slice++) {
            load_a(a, stage, slice);
            if constexpr (kColumns) {
                load_b_columns(b, stage + kBytesA, slice);
            } else {
                load_b_rows(b, stage + kBytesA, slice);
            }
            mma_tile(acc, a, b);
        }
    }

    // Adds a product of `k` columns of A, for which the loaders were started. Copies run ahead by kStages - 1
    // steps; all have landed at the end.
    template <bool kColumns, int kStages, typename LoaderA, typename LoaderB>
    static DEVICE void product(float (&acc)[kMmaM][kMmaN][4], unsigned char* smem, LoaderA& from_a, LoaderB& from_b, int k) {
        StageRing<kStages, kStageBytes> ring = {smem};
        int left = k;
        const auto issue = [&] {
            unsigned char* stage = ring.fill();
            if (left > 0) {
                from_a.load(stage, left);
                from_b.load(stage + kBytesA, left);
                left -= kStepK;
            }
            cp_async_commit();
        };
        UNROLL for (int i = 0; i < kStages - 1; i++) issue();
        NO_UNROLL for (int done = 0; done < k; done += kStepK) {
            ring.landed();
            issue();
            multiply<kColumns>(acc, ring.use());
        }
        cp_async_wait<0>();
    }

    // Rounds the tile to bf16 and writes it to `y` (row stride `stride`), rows and columns cut off at the ends. The tile passes
    // through shared memory, 16 bytes of padding a row: stores of whole 16-byte pieces fill whole sectors, which the
    // fragments (4 bytes a lane) would not. All copies into `smem` must have landed. `bias` is null or [column_end].
    static DEVICE void store(const float (&acc)[kMmaM][kMmaN][4], unsigned char* smem, bf16* y, int64_t stride, int row,
                             int row_end, int column, int column_end, const bf16* bias) {
        constexpr int kRowBytes = kN * 2 + 16;
        const int lane = lane_id(), group = lane >> 2, pair = (lane & 3) * 2;
        __syncthreads();
        UNROLL for (int n = 0; n < kMmaN; n++) {
            const int c = first_column() + n * 8 + pair;
            float low = 0, high = 0;
            if (bias != nullptr && column + c < column_end) {
                low = to_float(bias[column + c]);
                high = to_float(bias[column + c + 1]);
            }
            UNROLL for (int m = 0; m < kMmaM; m++) {
                unsigned char* at = smem + (first_row() + m * 16 + group) * kRowBytes + c * 2;
                *reinterpret_cast<uint32_t*>(at) = pack_bf16(acc[m][n][0] + low, acc[m][n][1] + high);
                *reinterpret_cast<uint32_t*>(at + 8 * kRowBytes) = pack_bf16(acc[m][n][2] + low, acc[m][n][3] + high);
            }
        }
        __syncthreads();
        constexpr int kPieces = kN / 8;
        for (int i = threadIdx.x; i < kM * kPieces; i += kThreads) {
            const int r = i / kPieces, c = i % kPieces * 8;
            if (row + r < row_end && column + c < column_end) {
                store16(y + (row + r) * stride + column + c, load16(smem + r * kRowBytes + c * 2));
            }
        }
    }
};

// Tile (m, n) of block `index`: groups of `group` tile columns, walked row by row, so that the blocks that run at the same time
// share rows of A and columns of B in the L2 cache.
struct TilePlace {
    int m;
    int n;
};
DEVICE TilePlace tile_place(int index, int tiles_m, int tiles_n, int group) {
    const int per_group = group * tiles_m, first = index / per_group * group;
    const int width = tiles_n - first < group ? tiles_n - first : group;
    const int within = index % per_group;
    return {within / width, first + within % width};
}
