// Small kernels for the emulator's own tests: elementwise, a row reduction, a transpose.
#pragma once

#include "common/simt.cuh"
#include "bugs.cuh"

// Makes the compiler believe that memory has changed, so that a loop over it stays.
DEVICE void fence_compiler() { asm volatile("" ::: "memory"); }

struct TestAddParams {
    const float* x;
    const float* y;
    float* z;
    int64_t count;
};

// z = x + y.
template <Bug kBug>
DEVICE void add(const TestAddParams& p) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (kBug == kOnePast ? i > p.count : kBug != kNoBound && i >= p.count) return;
    float sum = p.x[i] + p.y[i];
    if (kBug == kOneBefore && i == 0) p.z[-1] = sum;
    if (kBug == kFarWrite) p.z[int64_t{1} << 44] = sum;
    if (kBug == kSameElement) p.z[i / 2] = 1;
    if (kBug == kSameElementAcrossBlocks) p.z[threadIdx.x] = 1;
    if (kBug == kInPlace) const_cast<float*>(p.x)[i] = sum + p.x[(i + 256) % p.count];
    if (kBug == kForEver && i == 7) {
        while (bits_float(float_bits(p.x[i]) & 0) == 0) fence_compiler();
    }
    if (kBug == kWaitsForABlock && blockIdx.x == 0) {
        while (float_bits(p.z[p.count - 1]) == 0) fence_compiler();
    }
    if (kBug == kDivisionByZero) sum = static_cast<float>(static_cast<int>(p.count) / static_cast<int>(threadIdx.y));
    if (kBug == kDeepStack) {
        volatile float local[20000];
        for (int j = 0; j < 20000; j++) local[j] = sum;
        sum = local[static_cast<int>(i)];
    }
    const bf16* const half = reinterpret_cast<const bf16*>(p.x + i) - (i > 0);
    if (kBug == kMisalignedWord) sum = *reinterpret_cast<const float*>(half);
    p.z[i] = sum;
}

struct TestRowsParams {
    const float* x;   // [rows, columns]
    float* y;         // [columns], the last row of x
    int64_t rows;
    int64_t columns;  // a multiple of the threads
};

// Copies the last row, of matrices with more than 2^31 elements too.
template <Bug kBug>
DEVICE void last_row(const TestRowsParams& p) {
    const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t at = (p.rows - 1) * p.columns + column;
    p.y[column] = p.x[kBug == kOverflow ? static_cast<int32_t>(at) : at];
}

struct TestNormParams {
    const bf16* x;      // [rows, columns]
    const bf16* weight; // [columns]
    bf16* y;            // [rows, columns]
    int32_t rows;
    int32_t columns;    // a multiple of 8
    float eps;
    int32_t unused;
};

// y = x / sqrt(mean(x^2) + eps) * weight, one block of 128 threads per row.
template <Bug kBug>
DEVICE void norm(const TestNormParams& p) {
    STATIC_SMEM(float, partial, 4);
    const bf16* const x = p.x + static_cast<int64_t>(blockIdx.x) * p.columns;
    float sum = 0;
    if (kBug == kEarlyReturn && static_cast<int>(threadIdx.x) * 8 >= p.columns) return;
    const int end = kBug == kLoopOnePast ? p.columns + 1 : p.columns;
    for (int i = static_cast<int>(threadIdx.x) * 8; i < end; i += 128 * 8) {
        const Vec16 v = load16_constant(x + i + (kBug == kMisalignedVector ? 1 : 0));
        if (kBug == kBarrierPerTrip) __syncthreads();
        for (int j = 0; j < 4; j++) {
            sum = fmaf(low_bf16(v.word[j]), low_bf16(v.word[j]), sum);
            sum = fmaf(high_bf16(v.word[j]), high_bf16(v.word[j]), sum);
        }
    }
    if (kBug != kDivergentShuffle || lane_id() < 24) sum = warp_sum(sum);
    int slot = static_cast<int>(threadIdx.x / 32);
    if (kBug == kSharedOnePast) slot++;
    if (kBug == kSharedFar) slot += 4096 * p.rows;
    if (lane_id() == 0 && (kBug != kUnwrittenSlot || slot < 3)) partial[slot] = sum;
    if (kBug == kTwoBarriers && threadIdx.x < 64) {
        __syncthreads();
    } else if (kBug != kNoBarrier && (kBug != kDivergentBarrier || threadIdx.x < 64)) {
        __syncthreads();
    }
    const float total = (partial[0] + partial[1]) + (partial[2] + partial[3]);
    const float scale = 1.0f / sqrtf(total / static_cast<float>(p.columns) + p.eps);
    bf16* const y = p.y + static_cast<int64_t>(blockIdx.x) * p.columns;
    if (kBug == kReadsOutput && to_float(y[threadIdx.x]) == 0.0f) return;
    for (int i = static_cast<int>(threadIdx.x) * 8; i < p.columns; i += 128 * 8) {
        const Vec16 v = load16_constant(x + i), w = load16_constant(p.weight + i);
        Vec16 out;
        for (int j = 0; j < 4; j++) {
            out.word[j] = pack_bf16(low_bf16(v.word[j]) * scale * low_bf16(w.word[j]),
                                    high_bf16(v.word[j]) * scale * high_bf16(w.word[j]));
        }
        store16(y + i, out);
    }
}

struct TestTransposeParams {
    const float* x;  // [rows, columns]
    float* y;        // [columns, rows]
    int32_t rows;
    int32_t columns;
};

// y = x^T in tiles of 32x32, two by every warp; rows of 33 floats keep columns off one bank.
template <Bug kBug>
DEVICE void transpose(const TestTransposeParams& p) {
    constexpr int kRow = kBug == kUnpadded ? 32 : 33;
    STATIC_SMEM(float, tiles, 4 * 32 * kRow);
    const int lane = static_cast<int>(lane_id()), warp = static_cast<int>(threadIdx.x) / 32;
    float* const tile = tiles + warp * 32 * kRow;
    const int first_column = (static_cast<int>(blockIdx.x) * 4 + warp) * 32;
    for (int part = 0; part < 2; part++) {
        const int first_row = (static_cast<int>(blockIdx.y) * 2 + part) * 32;
        for (int i = 0; i < 32; i++) {
            const int row = first_row + i, column = first_column + lane;
            if (row >= p.rows || column >= p.columns) continue;
            const float value = p.x[static_cast<int64_t>(row) * p.columns + column];
            if (kBug == kNoTile) {
                p.y[static_cast<int64_t>(column) * p.rows + row] = value;
            } else {
                tile[i * kRow + lane] = value;
            }
        }
        if (kBug != kNoSyncwarp) __syncwarp();
        for (int i = 0; i < 32 && kBug != kNoTile; i++) {
            const int row = first_row + lane, column = first_column + i;
            if (row >= p.rows || column >= p.columns) continue;
            p.y[static_cast<int64_t>(column) * p.rows + row] = tile[lane * kRow + i];
        }
        if (kBug != kNoSyncwarpInLoop) __syncwarp();
    }
}

struct TestSumParams {
    const float* x;
    float* partial;     // one of each block
    float* total;
    uint32_t* tickets;  // 0 before the launch
    int64_t count;
};

// total = sum of x. Every block writes its part and takes a ticket; the last one adds up, in the order of the blocks.
template <Bug kBug>
DEVICE void sum(const TestSumParams& p) {
    STATIC_SMEM(float, parts, 4);
    STATIC_SMEM(uint32_t, ticket, 1);
    float own = 0;
    const int64_t step = static_cast<int64_t>(gridDim.x) * 128;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x; i < p.count; i += step) own += p.x[i];
    if (kBug == kPlainTotalInBlock && blockIdx.x == 0) *p.total = *p.total + own;
    own = warp_sum(own);
    if (kBug == kPlainSharedTotal) {
        if (threadIdx.x == 0) parts[0] = parts[1] = parts[2] = parts[3] = 0;
        __syncthreads();
        if (lane_id() == 0) parts[0] += own;
    } else if (lane_id() == 0) {
        parts[threadIdx.x / 32] = own;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const float part = (parts[0] + parts[1]) + (parts[2] + parts[3]);
        p.partial[blockIdx.x] = part;
        if (kBug == kPlainTotal) *p.total = *p.total + part;
        if (kBug != kNoReleaseFence) __threadfence();
        if (kBug == kPlainTicket) {
            ticket[0] = *p.tickets;
            *p.tickets = ticket[0] + 1;
        } else {
            ticket[0] = atomicAdd(p.tickets, 1u);
        }
        if (kBug != kNoAcquireFence) __threadfence();
    }
    if (kBug != kNoTicketBarrier) __syncthreads();
    if (ticket[0] + 1 != gridDim.x) return;
    if (threadIdx.x == 0) {
        float total = 0;
        for (uint32_t i = 0; i < gridDim.x; i++) total += p.partial[i];
        *p.total = total;
        *p.tickets = 0;
    }
}
