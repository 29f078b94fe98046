// The GPU side of simt.cuh: the only file with inline PTX. Every function here has a twin in ../simt/host.hpp.
//
// Sources: PTX ISA (cp.async, ldmatrix, mma.sync.m16n8k16, cvt, ex2.approx); CUDA C++ programming guide (shuffles, votes).
#pragma once

#define KERNEL(symbol, Params, threads, min_blocks) \
    extern "C" __global__ void __launch_bounds__(threads, min_blocks) symbol(const __grid_constant__ Params p)

// Functions that kernels share.
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_2 _Pragma("unroll 2")
#define NO_UNROLL _Pragma("unroll 1")

// Shared memory whose size is given at the launch, 128-byte aligned; `name` is an `unsigned char*`. Declared once for all
// kernels: declarations inside functions of C and of C++ linkage would be two variables.
extern __shared__ __align__(128) unsigned char dynamic_smem_bytes[];
#define DYNAMIC_SMEM(name) unsigned char* const name = dynamic_smem_bytes
// Shared memory of a fixed size, 16-byte aligned; `name` is a `type[count]`.
#define STATIC_SMEM(type, name, count) __shared__ __align__(16) type name[count]

// threadIdx, blockIdx, blockDim, gridDim, __syncthreads() and __syncwarp() are CUDA's own.

// ---- numbers ----

DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

// Rounds to nearest even.
DEVICE bf16 to_bf16(float x) {
    bf16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
}

// Two rounded numbers in one register, `low` in the lower half.
DEVICE uint32_t pack_bf16(float low, float high) {
    uint32_t result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

DEVICE float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
DEVICE float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// The bits of a number and back.
DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
DEVICE float bits_float(uint32_t x) { return __uint_as_float(x); }

// 2^x, with the hardware's error of 2 units in the last place; denormal results are 0.
DEVICE float fast_exp2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// The upper 32 bits of the 64-bit product.
DEVICE uint32_t mul_hi(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// ---- memory ----

// `address` is 16-byte aligned, in shared or global memory.
DEVICE Vec16 load16(const void* address) {
    const uint4 v = *static_cast<const uint4*>(address);
    return Vec16{{v.x, v.y, v.z, v.w}};
}

DEVICE void store16(void* address, Vec16 value) {
    *static_cast<uint4*>(address) = make_uint4(value.word[0], value.word[1], value.word[2], value.word[3]);
}

// Two words at an 8-byte aligned address.
DEVICE Vec8 load8(const void* address) {
    const uint2 v = *static_cast<const uint2*>(address);
    return Vec8{{v.x, v.y}};
}

// Two f32 at an 8-byte aligned address.
DEVICE void store8(float* address, float first, float second) {
    *reinterpret_cast<float2*>(address) = make_float2(first, second);
}

// As load16, for global memory that is not written during the launch.
DEVICE Vec16 load16_constant(const void* address) {
    const uint4 v = __ldg(static_cast<const uint4*>(address));
    return Vec16{{v.x, v.y, v.z, v.w}};
}

DEVICE uint32_t smem_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Starts a copy of 16 bytes from global to shared memory, both 16-byte aligned; writes zeros and reads nothing if not `valid`.
DEVICE void cp_async16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// Closes a group of copies of this thread.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kPending` of this thread's latest groups are in flight. Copies of other threads also
// need a barrier.
template <int kPending>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- warps ----

DEVICE uint32_t lane_id() { return threadIdx.x & 31; }

template <typename T>
DEVICE T shfl(T value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}
template <typename T>
DEVICE T shfl_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <typename T>
DEVICE T shfl_down(T value, int delta) {
    return __shfl_down_sync(0xffffffffu, value, delta);
}
DEVICE uint32_t warp_ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

// Sum over the warp, the same bits in every lane: butterfly with distances 16, 8, 4, 2, 1.
DEVICE float warp_sum(float x) {
    UNROLL for (int distance = 16; distance > 0; distance >>= 1) x += shfl_xor(x, distance);
    return x;
}
DEVICE float warp_max(float x) {
    UNROLL for (int distance = 16; distance > 0; distance >>= 1) x = fmaxf(x, shfl_xor(x, distance));
    return x;
}
// Over the four lanes 4i .. 4i + 3, which hold one row of an mma accumulator.
DEVICE float quad_sum(float x) {
    x += shfl_xor(x, 2);
    return x + shfl_xor(x, 1);
}
DEVICE float quad_max(float x) {
    x = fmaxf(x, shfl_xor(x, 2));
    return fmaxf(x, shfl_xor(x, 1));
}

// ---- tensor cores ----

// Four 8x8 matrices of bf16. Lane l passes the address (16-byte aligned, shared) of row l % 8 of matrix l / 8; lane l receives in
// r[i] the elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1) of matrix i.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_address(row))
                 : "memory");
}

// As ldmatrix_x4, every matrix transposed: lane l receives (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_address(row))
                 : "memory");
}

// d += a b for a[16, 16], b[16, 8] of bf16 and d[16, 8] of f32, spread over the warp. With g = lane / 4 and q = lane % 4:
// a[0] = (g, 2q..), a[1] = (g + 8, 2q..), a[2] = (g, 2q + 8..), a[3] = (g + 8, 2q + 8..) as (row, column pair);
// b[0] = rows 2q, 2q + 1 of column g, b[1] = rows 2q + 8, 2q + 9; d[0..1] = (g, 2q..), d[2..3] = (g + 8, 2q..).
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// kM x kN products of one k-slice. On the emulator this is one meeting of the warp instead of kM * kN.
template <int kM, int kN>
DEVICE void mma_tile(float (&d)[kM][kN][4], const uint32_t (&a)[kM][4], const uint32_t (&b)[kN][2]) {
    UNROLL for (int m = 0; m < kM; m++) {
        UNROLL for (int n = 0; n < kN; n++) mma_m16n8k16(d[m][n], a[m], b[n]);
    }
}
