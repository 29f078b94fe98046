// Every primitive of simt.cuh once, on raw bits. A GPU and the emulator must agree on the results: to the
// bit, or within the error that the instruction set allows. The expected results are in
// ../tests/golden/primitives/.
#include "common/simt.cuh"

// Inputs of the primitives, by case, and their results.
struct PrimitivesParams {
    const uint32_t* words;  // [cases, 32]
    const float* numbers;   // [cases, 32]
    const bf16* matrices;   // [cases, 4, 8, 8], for ldmatrix
    const bf16* a;          // [cases, 16, 16], for mma
    const bf16* b;          // [cases, 16, 8]
    uint32_t* out;          // [cases, 32 primitives, 32 lanes]
};

// Two neighbours of a matrix in one register.
DEVICE uint32_t primitive_pair(const bf16* first, int step) {
    return first[0].bits | static_cast<uint32_t>(first[step].bits) << 16;
}

// One warp for each case. The order of the results is that of the table in src/device/primitives.rs.
KERNEL(primitives, PrimitivesParams, 32, 1) {
    STATIC_SMEM(bf16, tile, 4 * 8 * 8);
    STATIC_SMEM(uint32_t, copied, 32 * 4);
    const int lane = static_cast<int>(lane_id()), g = lane / 4, q = lane % 4;
    const int64_t which = blockIdx.x;
    const uint32_t* words = p.words + which * 32;
    const uint32_t word = words[lane];
    const float number = p.numbers[which * 32 + lane];
    uint32_t* out = p.out + which * 32 * 32 + lane;
    const float next = shfl_xor(number, 1);
    out[0 * 32] = shfl(word, 5);
    out[1 * 32] = shfl_xor(word, 9);
    out[2 * 32] = shfl_down(word, 3);
    out[3 * 32] = warp_ballot((word & 1) != 0);
    out[4 * 32] = float_bits(warp_sum(number));
    out[5 * 32] = float_bits(warp_max(number));
    out[6 * 32] = float_bits(quad_sum(number));
    out[7 * 32] = float_bits(quad_max(number));

    store16(tile + lane * 8, load16(p.matrices + which * 256 + lane * 8));
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, tile + lane * 8);
    UNROLL for (int i = 0; i < 4; i++) out[(8 + i) * 32] = r[i];
    ldmatrix_x4_trans(r, tile + lane * 8);
    UNROLL for (int i = 0; i < 4; i++) out[(12 + i) * 32] = r[i];

    const bf16* a = p.a + which * 256;
    const bf16* b = p.b + which * 128;
    const uint32_t a_pairs[4] = {primitive_pair(a + g * 16 + 2 * q, 1), primitive_pair(a + (g + 8) * 16 + 2 * q, 1),
                                 primitive_pair(a + g * 16 + 2 * q + 8, 1),
                                 primitive_pair(a + (g + 8) * 16 + 2 * q + 8, 1)};
    const uint32_t b_pairs[2] = {primitive_pair(b + 2 * q * 8 + g, 8), primitive_pair(b + (2 * q + 8) * 8 + g, 8)};
    float d[4] = {1, 2, 3, 4};
    mma_m16n8k16(d, a_pairs, b_pairs);
    UNROLL for (int i = 0; i < 4; i++) out[(16 + i) * 32] = float_bits(d[i]);

    // Odd lanes copy nothing, and get zeros.
    cp_async16(copied + lane * 4, words + lane / 4 * 4, lane % 2 == 0);
    cp_async_commit();
    cp_async_wait<0>();
    UNROLL for (int i = 0; i < 4; i++) out[(20 + i) * 32] = copied[lane * 4 + i];

    out[24 * 32] = to_bf16(number).bits;
    out[25 * 32] = pack_bf16(number, next);
    out[26 * 32] = mul_hi(word, words[31 - lane]);
    out[27 * 32] = float_bits(fmaf(number, next, 1.0f));
    out[28 * 32] = float_bits(sqrtf(number));
    out[29 * 32] = float_bits(1.0f / number);
    out[30 * 32] = float_bits(rsqrtf(number));
    out[31 * 32] = float_bits(fast_exp2(number));
}
