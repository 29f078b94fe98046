// Every warp-wide primitive once, on raw bits: what the emulator does can be compared with the tables of the PTX ISA,
// and one day with a GPU.
#pragma once

#include "common/simt.cuh"

struct TestPrimitivesParams {
    const uint32_t* words;   // [32]
    const float* numbers;    // [32]
    const bf16* matrices;    // [4, 8, 8]
    const bf16* a;           // [16, 16]
    const bf16* b;           // [16, 8]
    uint32_t* out;           // [24, 32]
};

constexpr int kPrimitives = 24;

// out[i, lane] = what the lane gets from primitive i. One warp.
DEVICE void primitives(const TestPrimitivesParams& p) {
    STATIC_SMEM(bf16, tile, 4 * 8 * 8);
    STATIC_SMEM(uint32_t, copied, 32 * 4);
    const int lane = static_cast<int>(lane_id()), g = lane / 4, q = lane % 4;
    uint32_t result[kPrimitives];
    const uint32_t word = p.words[lane];
    const float number = p.numbers[lane];
    result[0] = shfl(word, 5);
    result[1] = shfl_xor(word, 9);
    result[2] = shfl_down(word, 3);
    result[3] = warp_ballot((word & 1) != 0);
    result[4] = float_bits(warp_sum(number));
    result[5] = float_bits(warp_max(number));
    result[6] = float_bits(quad_sum(number));
    result[7] = float_bits(quad_max(number));

    store16(tile + lane * 8, load16(p.matrices + lane * 8));
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, tile + lane * 8);
    for (int i = 0; i < 4; i++) result[8 + i] = r[i];
    ldmatrix_x4_trans(r, tile + lane * 8);
    for (int i = 0; i < 4; i++) result[12 + i] = r[i];

    const auto pair = [](const bf16* first, int step) {
        return first[0].bits | static_cast<uint32_t>(first[step].bits) << 16;
    };
    const uint32_t a[4] = {pair(p.a + g * 16 + 2 * q, 1), pair(p.a + (g + 8) * 16 + 2 * q, 1),
                           pair(p.a + g * 16 + 2 * q + 8, 1), pair(p.a + (g + 8) * 16 + 2 * q + 8, 1)};
    const uint32_t b[2] = {pair(p.b + 2 * q * 8 + g, 8), pair(p.b + (2 * q + 8) * 8 + g, 8)};
    float d[4] = {1, 2, 3, 4};
    mma_m16n8k16(d, a, b);
    for (int i = 0; i < 4; i++) result[16 + i] = float_bits(d[i]);

    // Odd lanes copy nothing, and get zeros.
    cp_async16(copied + lane * 4, p.words + lane / 4 * 4, lane % 2 == 0);
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = 0; i < 4; i++) result[20 + i] = copied[lane * 4 + i];
    for (int i = 0; i < kPrimitives; i++) p.out[i * 32 + lane] = result[i];
}
