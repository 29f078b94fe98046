// Small kernels for the emulator's own tests: elementwise, a row reduction, a transpose.
#pragma once

#include "common/simt.cuh"
#include "bugs.cuh"

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
    if (i < p.count) p.z[i] = p.x[i] + p.y[i];
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
    for (int i = static_cast<int>(threadIdx.x) * 8; i < p.columns; i += 128 * 8) {
        const Vec16 v = load16_constant(x + i);
        for (int j = 0; j < 4; j++) {
            sum = fmaf(low_bf16(v.word[j]), low_bf16(v.word[j]), sum);
            sum = fmaf(high_bf16(v.word[j]), high_bf16(v.word[j]), sum);
        }
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    const float total = (partial[0] + partial[1]) + (partial[2] + partial[3]);
    const float scale = 1.0f / sqrtf(total / static_cast<float>(p.columns) + p.eps);
    bf16* const y = p.y + static_cast<int64_t>(blockIdx.x) * p.columns;
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

// y = x^T in tiles of 32x32, one warp per tile and four tiles per block; rows of 33 floats keep columns off one bank.
template <Bug kBug>
DEVICE void transpose(const TestTransposeParams& p) {
    STATIC_SMEM(float, tiles, 4 * 32 * 33);
    const int lane = static_cast<int>(lane_id()), warp = static_cast<int>(threadIdx.x) / 32;
    float* const tile = tiles + warp * 32 * 33;
    const int first_column = (static_cast<int>(blockIdx.x) * 4 + warp) * 32, first_row = static_cast<int>(blockIdx.y) * 32;
    for (int i = 0; i < 32; i++) {
        const int row = first_row + i, column = first_column + lane;
        if (row < p.rows && column < p.columns) tile[i * 33 + lane] = p.x[static_cast<int64_t>(row) * p.columns + column];
    }
    __syncwarp();
    for (int i = 0; i < 32; i++) {
        const int row = first_row + lane, column = first_column + i;
        if (row < p.rows && column < p.columns) p.y[static_cast<int64_t>(column) * p.rows + row] = tile[lane * 33 + i];
    }
}
