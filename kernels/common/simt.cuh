// The primitives that kernels may use: one set of names, for the GPU (ptx.cuh) and for the emulator
// (../simt/host.hpp).
//
// A kernel file includes this header first and nothing of CUDA itself. The same file is then compiled twice: by nvcc for the
// GPU, and by a C++17 compiler for the emulator, which runs one fiber per thread and checks what it does. Rules that keep both
// readings the same:
//   * All 32 lanes of a warp reach every warp-wide call (masks are full); threads of a block are a multiple of 32.
//   * Shared memory is declared with DYNAMIC_SMEM or STATIC_SMEM and with nothing else.
//   * 8 and 16 bytes at a time move only through load8, load16, store8, store16 and cp_async16; no memcpy, no struct copies between memories.
//   * Products and sums that must round in the same way are written with fmaf: neither compiler contracts a * b + c by itself.
//   * A kernel is KERNEL(symbol, Params, threads, min_blocks) { body using p }: one params struct, passed by value.
//   * Params structs are plain: pointers, fixed-width integers, float, arrays of these, and structs of these. The build script
//     reads them (one `type name;` a line), generates their Rust twins, and both compilers assert sizes and offsets.
#pragma once

#include <stdint.h>

// A bfloat16 number: the upper half of an f32. Own type, because the same code must compile without CUDA headers.
struct bf16 {
    uint16_t bits;
};

// Eight bytes.
struct alignas(8) Vec8 {
    uint32_t word[2];
};

// Sixteen bytes: eight bf16 or four f32.
struct alignas(16) Vec16 {
    uint32_t word[4];
};

#if defined(__CUDACC__)
#include "ptx.cuh"
#else
#include "../simt/host.hpp"
#endif

// log2(e): exp(x) is fast_exp2(x * kLog2E).
constexpr float kLog2E = 1.442695040888963407f;

// The number of live rows of a tensor with capacity for `capacity` rows: the value at `live_rows`, or all of
// them if it is null. Grids are sized for the capacity, so that one graph serves batches of any size; blocks
// without rows return at once.
DEVICE int32_t rows_there_are(const int32_t* live_rows, int32_t capacity) {
    return live_rows == nullptr ? capacity : *live_rows;
}
