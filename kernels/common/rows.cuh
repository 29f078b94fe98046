// Rows of bf16 in registers, for kernels that are bound by memory: 16 bytes at a time, and sums over a row in one
// order everywhere.
//
// Columns are divided into groups of 1,024, stretches of 128 and pieces of 8 (16 bytes). Lane 4 * w + q of a
// warp holds pieces q, 4 + q, 8 + q and 12 + q of stretch w of a group: the same places as lane q of a quad
// of warp w has in the LoRA down-projections (lora_down.cuh). A sum over a row adds the pieces of a lane in
// order, group by group, then the four lanes of a quad, then the eight stretches in pairs. Kernels with
// either layout therefore agree in every bit.
#pragma once

#include "simt.cuh"

constexpr int kGroupColumns = 1024;
constexpr int kStretchColumns = 128;
constexpr int kRowWarps = 8;

// The two numbers of word `i` of a piece.
DEVICE float low_of(const Vec16& x, int i) { return low_bf16(x.word[i]); }
DEVICE float high_of(const Vec16& x, int i) { return high_bf16(x.word[i]); }

DEVICE Vec16 zero16() { return Vec16{{0, 0, 0, 0}}; }

// Copies a row of `columns` numbers, a multiple of 8, with the 128 threads of a block.
DEVICE void copy_row(bf16* to, const bf16* from, int columns) {
    UNROLL_2 for (int column = threadIdx.x * 8; column < columns; column += 128 * 8) {
        store16(to + column, load16_constant(from + column));
    }
}

// sum + the squares of a piece.
DEVICE float add_squares(float sum, const Vec16& x) {
    UNROLL for (int i = 0; i < 4; i++) {
        sum = fmaf(low_of(x, i), low_of(x, i), sum);
        sum = fmaf(high_of(x, i), high_of(x, i), sum);
    }
    return sum;
}

// sum + the products x w z of three pieces.
DEVICE float add_products(float sum, const Vec16& x, const Vec16& w, const Vec16& z) {
    UNROLL for (int i = 0; i < 4; i++) {
        sum = fmaf(low_of(x, i) * low_of(w, i), low_of(z, i), sum);
        sum = fmaf(high_of(x, i) * high_of(w, i), high_of(z, i), sum);
    }
    return sum;
}

// x + z, rounded.
DEVICE Vec16 add_pieces(const Vec16& x, const Vec16& z) {
    Vec16 y;
    UNROLL for (int i = 0; i < 4; i++) y.word[i] = pack_bf16(low_of(x, i) + low_of(z, i), high_of(x, i) + high_of(z, i));
    return y;
}

// x scale w, rounded: the output of an RMSNorm.
DEVICE Vec16 scale_piece(const Vec16& x, float scale, const Vec16& w) {
    Vec16 y;
    UNROLL for (int i = 0; i < 4; i++) {
        y.word[i] = pack_bf16(low_of(x, i) * scale * low_of(w, i), high_of(x, i) * scale * high_of(w, i));
    }
    return y;
}

// add + scale (dy w - x pull), rounded: the gradient of an RMSNorm and of its input's other uses.
DEVICE Vec16 norm_gradient(const Vec16& dy, const Vec16& w, const Vec16& x, float scale, float pull, const Vec16& add) {
    Vec16 dx;
    UNROLL for (int i = 0; i < 4; i++) {
        const float low = fmaf(low_of(dy, i), low_of(w, i), -(low_of(x, i) * pull));
        const float high = fmaf(high_of(dy, i), high_of(w, i), -(high_of(x, i) * pull));
        dx.word[i] = pack_bf16(fmaf(scale, low, low_of(add, i)), fmaf(scale, high, high_of(add, i)));
    }
    return dx;
}

// Sum over the eight stretches of a group from the sums of quads, in every lane.
DEVICE float stretches_sum(float x) {
    x += shfl_xor(x, 4);
    x += shfl_xor(x, 8);
    return x + shfl_xor(x, 16);
}

// Column of piece `part` (0..3) of this lane in group `group`.
DEVICE int64_t lane_column(int group, int part) {
    const int lane = lane_id();
    return static_cast<int64_t>(group) * kGroupColumns + (lane >> 2) * kStretchColumns + part * 32 + (lane & 3) * 8;
}

// The rows of a block of eight warps: one warp per group of columns of a row (at most eight warps, which then
// have kGroups each), and as many rows as there are warps for. Remaining warps have no row and only take part
// in the barriers.
template <int kGroups>
struct RowTeam {
    int64_t row;
    int first_group;  // of this warp; its others are 8 and more further
    int num_groups;   // of a row
    int first_sum;    // of this row in shared memory
    bool active;

    DEVICE RowTeam(int32_t cols, int32_t rows) {
        const int warp = threadIdx.x / 32;
        num_groups = (cols + kGroupColumns - 1) / kGroupColumns;
        const int warps = num_groups < kRowWarps ? num_groups : kRowWarps;
        const int place = warp / warps, places = kRowWarps / warps;
        row = static_cast<int64_t>(blockIdx.x) * places + place;
        first_group = warp % warps;
        first_sum = place * num_groups;
        active = place < places && row < rows;
    }

    // The sum over the row from the sums of this lane, by group. All threads of the block call it.
    DEVICE float sum(const float (&of_lane)[kGroups], float* sums) const {
        const int lane = lane_id();
        if (active) {
            UNROLL for (int i = 0; i < kGroups; i++) {
                const int group = first_group + i * kRowWarps;
                if (group < num_groups) sums[(first_sum + group) * 32 + lane] = of_lane[i];
            }
        }
        __syncthreads();
        float total = 0;
        if (active) {
            NO_UNROLL for (int group = 0; group < num_groups; group++) total += sums[(first_sum + group) * 32 + lane];
        }
        return stretches_sum(quad_sum(total));
    }
};
