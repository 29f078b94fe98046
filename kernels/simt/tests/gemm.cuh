// c = a b^T for the emulator's own tests: tiles of 128x128x32, three stages of cp.async, ldmatrix, mma.
#pragma once

#include "common/simt.cuh"
#include "bugs.cuh"

struct TestGemmParams {
    const bf16* a;  // [m, k]
    const bf16* b;  // [n, k]
    bf16* c;        // [m, n]
    int32_t m;
    int32_t n;
    int32_t k;      // a multiple of 8
    int32_t unused;
};

constexpr int kGemmTile = 128;
constexpr int kGemmDepth = 32;
constexpr int kGemmStages = 3;
constexpr int kGemmThreads = 256;
// Bytes of one operand of one stage, and of a row of it.
constexpr int kGemmRowBytes = kGemmDepth * 2;
constexpr int kGemmOperandBytes = kGemmTile * kGemmRowBytes;
constexpr int kGemmStageBytes = 2 * kGemmOperandBytes;
// The result goes through shared memory; 8 more elements per row spread its rows over the banks.
constexpr int kGemmOutRow = kGemmTile + 8;

// Where the 16 bytes `chunk` of `row` lie: eight rows that ldmatrix reads at once fall on different banks.
template <Bug kBug>
DEVICE int gemm_offset(int row, int chunk) {
    return row * kGemmRowBytes + (kBug == kNoSwizzle ? chunk : chunk ^ (row >> 1 & 3)) * 16;
}

template <Bug kBug>
DEVICE void gemm_load(const TestGemmParams& p, unsigned char* stage, int tile_m, int tile_n, int step) {
    const int per_operand = kGemmTile * (kGemmRowBytes / 16);
    for (int i = static_cast<int>(threadIdx.x); i < 2 * per_operand; i += kGemmThreads) {
        const bool is_b = i >= per_operand;
        const int row = i % per_operand / 4, chunk = i % 4;
        const int at = (is_b ? tile_n : tile_m) * kGemmTile + row;
        const int column = step * kGemmDepth + chunk * 8;
        const bool valid = at < (is_b || kBug == kNoRowBound ? p.n : p.m) && column < p.k;
        const bf16* from = is_b ? p.b : p.a;
        if (valid) from += static_cast<int64_t>(at) * p.k + column;
        if (kBug == kMisalignedCopy) from += 4;
        cp_async16(stage + (is_b ? kGemmOperandBytes : 0) + gemm_offset<kBug>(row, chunk), from, valid);
    }
}

template <Bug kBug>
DEVICE void gemm(const TestGemmParams& p) {
    DYNAMIC_SMEM(smem);
    const int lane = static_cast<int>(lane_id()), warp = static_cast<int>(threadIdx.x) / 32;
    const int warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
    const int tile_n = static_cast<int>(blockIdx.x), tile_m = static_cast<int>(blockIdx.y);
    const int steps = (p.k + kGemmDepth - 1) / kGemmDepth;

    float d[4][4][4] = {};
    for (int stage = 0; stage < kGemmStages - 1; stage++) {
        if (stage < steps) gemm_load<kBug>(p, smem + stage * kGemmStageBytes, tile_m, tile_n, stage);
        cp_async_commit();
    }
    NO_UNROLL for (int step = 0; step < steps; step++) {
        const int ahead = step + kGemmStages - 1;
        const int free = kBug == kPrefetchIntoRead ? step : ahead;
        unsigned char* const to = smem + (kBug == kStageBeyondEnd ? free : free % kGemmStages) * kGemmStageBytes;
        if (kBug == kPrefetchBeforeBarrier && ahead < steps) gemm_load<kBug>(p, to, tile_m, tile_n, ahead);
        cp_async_wait<kGemmStages - 2 + (kBug == kWaitOffByOne)>();
        if (kBug != kNoLoopBarrier) __syncthreads();
        if (kBug != kPrefetchBeforeBarrier && ahead < steps) gemm_load<kBug>(p, to, tile_m, tile_n, ahead);
        if (kBug != kNoCommit) cp_async_commit();

        const unsigned char* const a_stage = smem + step % kGemmStages * kGemmStageBytes;
        const unsigned char* const b_stage = a_stage + kGemmOperandBytes;
        UNROLL for (int slice = 0; slice < 2; slice++) {
            uint32_t a[4][4], b[4][2];
            UNROLL for (int i = 0; i < 4; i++) {
                const int flipped = kBug == kWrongSwizzle ? 1 : 0;
                const unsigned char* const row =
                    a_stage + gemm_offset<kBug>(warp_m + i * 16 + lane % 16, (slice * 2 + lane / 16) ^ flipped);
                if (kBug == kTransposedFragment) {
                    ldmatrix_x4_trans(a[i], row);
                } else if (kBug != kDivergentLdmatrix || lane < 16) {
                    ldmatrix_x4(a[i], row);
                }
            }
            UNROLL for (int j = 0; j < 4; j += 2) {
                uint32_t r[4];
                const int row = warp_n + j * 8 + lane % 8 + lane / 16 * 8;
                ldmatrix_x4(r, b_stage + gemm_offset<kBug>(row, slice * 2 + lane / 8 % 2));
                b[j][0] = r[kBug == kSwappedFragments ? 1 : 0];
                b[j][1] = r[kBug == kSwappedFragments ? 0 : 1];
                b[j + 1][0] = r[2];
                b[j + 1][1] = r[3];
            }
            if (kBug == kDivergentMma && lane < 16) {
                mma_m16n8k16(d[0][0], a[0], b[0]);
            } else {
                mma_tile(d, a, b);
            }
        }
    }

    // Every stage has been read and no copy is under way before the memory gets its second use.
    cp_async_wait<0>();
    if (kBug != kNoReuseBarrier) __syncthreads();
    bf16* const out = reinterpret_cast<bf16*>(smem);
    UNROLL for (int i = 0; i < 4; i++) {
        UNROLL for (int j = 0; j < 4; j++) {
            UNROLL for (int half = 0; half < 2; half++) {
                const int row = warp_m + i * 16 + lane / 4 + half * 8, column = warp_n + j * 8 + lane % 4 * 2;
                const uint32_t pair = pack_bf16(d[i][j][2 * half], d[i][j][2 * half + 1]);
                if (kBug == kDirectStores) {
                    const int at = tile_m * kGemmTile + row, first = tile_n * kGemmTile + column;
                    bf16* const to = p.c + static_cast<int64_t>(at) * p.n + first;
                    if (at < p.m && first < p.n) *reinterpret_cast<uint32_t*>(to) = pair;
                } else {
                    *reinterpret_cast<uint32_t*>(out + row * kGemmOutRow + column) = pair;
                }
            }
        }
    }
    if (kBug == kDirectStores) return;
    if (kBug != kNoResultBarrier) __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kGemmTile * kGemmTile / 8; i += kGemmThreads) {
        const int row = i / (kGemmTile / 8), column = i % (kGemmTile / 8) * 8;
        const int at = tile_m * kGemmTile + row, first = tile_n * kGemmTile + column;
        if (kBug != kNoResultBound && at >= p.m) continue;
        bf16* const to = p.c + static_cast<int64_t>(at) * p.n + first;
        if (p.n % 8 == 0) {
            if (first < p.n) store16(to, load16(out + row * kGemmOutRow + column));
        } else {
            for (int e = 0; e < 8 && first + e < p.n; e++) to[e] = out[row * kGemmOutRow + column + e];
        }
    }
}
