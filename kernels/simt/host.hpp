// The emulator's side of simt.cuh: the twins of ptx.cuh, on top of the runtime.
//
// Included inside the namespace that the generated translation unit opens around all kernels, one for the fast and one
// for the checked compilation, so that no function here is merged across the two. The runtime's own part is abi.hpp,
// included before.
#pragma once

#if !defined(SIMT_FLAVOUR)
#error "kernels are compiled for the emulator through the file that build/emulated.rs generates"
#endif

#define KERNEL(symbol, Params, threads, min_blocks) \
    static void symbol(const Params p); \
    static ::simt::Kernel simt_kernel_##symbol = { \
        #symbol, \
        [](const void* params) { symbol(*static_cast<const Params*>(params)); }, \
        sizeof(Params), \
        threads, \
        nullptr, \
    }; \
    [[maybe_unused]] static const bool simt_registered_##symbol = \
        ::simt::register_kernel(::simt::SIMT_FLAVOUR, &simt_kernel_##symbol); \
    static_assert((threads) % 32 == 0 && (threads) <= 1024 && (min_blocks) > 0, "launch bounds"); \
    static void symbol(const Params p)

#define DEVICE inline __attribute__((always_inline))
#define UNROLL
#define UNROLL_2
#define NO_UNROLL

#define DYNAMIC_SMEM(name) unsigned char* const name = ::simt::dynamic_smem()
#define STATIC_SMEM(type, name, count) \
    static const char simt_site_##name = 0; \
    type(&name)[count] = *static_cast<type(*)[count]>(::simt::static_smem(&simt_site_##name, sizeof(type) * (count)))

// ---- built-in names of CUDA ----

#if defined(SIMT_CHECK)
#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())
#else
#define threadIdx (::simt::current->thread_index)
#define blockIdx (::simt::current->block->block_index)
#define blockDim (::simt::current->block->block_size)
#define gridDim (::simt::current->block->grid_size)
#endif

DEVICE void __syncthreads(int line = __builtin_LINE()) { ::simt::barrier(line); }
DEVICE void __syncwarp(int line = __builtin_LINE()) { ::simt::sync_warp(line); }
DEVICE void __threadfence() { ::simt::fence(); }

DEVICE int atomicAdd(int* address, int value) {
    return static_cast<int>(::simt::atomic_add32(address, static_cast<uint32_t>(value)));
}
DEVICE unsigned atomicAdd(unsigned* address, unsigned value) { return ::simt::atomic_add32(address, value); }
DEVICE unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
    return ::simt::atomic_add64(address, value);
}
// Sums of floats in an order that changes from run to run are not allowed in kernels.
float atomicAdd(float* address, float value) = delete;
double atomicAdd(double* address, double value) = delete;

DEVICE int min(int a, int b) { return b < a ? b : a; }
DEVICE int max(int a, int b) { return a < b ? b : a; }
DEVICE unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
DEVICE unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
DEVICE int64_t min(int64_t a, int64_t b) { return b < a ? b : a; }
DEVICE int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }
DEVICE uint64_t min(uint64_t a, uint64_t b) { return b < a ? b : a; }
DEVICE uint64_t max(uint64_t a, uint64_t b) { return a < b ? b : a; }

// Correctly rounded except for the division; the hardware's error is 2 units in the last place.
DEVICE float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }

// ---- numbers ----

// The bits of a number and back.
DEVICE uint32_t float_bits(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}
DEVICE float bits_float(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

DEVICE float to_float(bf16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }

DEVICE bf16 to_bf16(float x) {
    const uint32_t bits = float_bits(x);
    // As cvt.rn.bf16.f32: to nearest even, and one NaN for all.
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return bf16{static_cast<uint16_t>(is_nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

DEVICE uint32_t pack_bf16(float low, float high) {
    return to_bf16(low).bits | static_cast<uint32_t>(to_bf16(high).bits) << 16;
}

DEVICE float low_bf16(uint32_t pair) { return bits_float(pair << 16); }
DEVICE float high_bf16(uint32_t pair) { return bits_float(pair & 0xffff0000u); }

DEVICE float fast_exp2(float x) {
    const float result = exp2f(x);
    return result < FLT_MIN ? 0.0f : result;
}

DEVICE uint32_t mul_hi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32); }

// ---- memory ----

DEVICE Vec16 load16(const void* address) {
#if defined(SIMT_CHECK)
    Vec16 value;
    ::simt::checked_load16(&value, address);
    return value;
#else
    if (__builtin_expect(reinterpret_cast<uintptr_t>(address) & 15, 0)) ::simt::misaligned(address, 16);
    return *static_cast<const Vec16*>(address);
#endif
}

DEVICE void store16(void* address, Vec16 value) {
#if defined(SIMT_CHECK)
    ::simt::checked_store16(address, &value);
#else
    if (__builtin_expect(reinterpret_cast<uintptr_t>(address) & 15, 0)) ::simt::misaligned(address, 16);
    *static_cast<Vec16*>(address) = value;
#endif
}

DEVICE Vec8 load8(const void* address) {
#if defined(SIMT_CHECK)
    Vec8 value;
    ::simt::checked_load8(&value, address);
    return value;
#else
    if (__builtin_expect(reinterpret_cast<uintptr_t>(address) & 7, 0)) ::simt::misaligned(address, 8);
    return *static_cast<const Vec8*>(address);
#endif
}

DEVICE void store8(float* address, float first, float second) {
    const float pair[2] = {first, second};
#if defined(SIMT_CHECK)
    ::simt::checked_store8(address, pair);
#else
    if (__builtin_expect(reinterpret_cast<uintptr_t>(address) & 7, 0)) ::simt::misaligned(address, 8);
    __builtin_memcpy(address, pair, sizeof pair);
#endif
}

DEVICE Vec16 load16_constant(const void* address) { return load16(address); }

DEVICE uint32_t smem_address(const void* shared) { return ::simt::smem_offset(shared); }
DEVICE void cp_async16(void* shared, const void* global, bool valid) { ::simt::cp_async16(shared, global, valid); }
DEVICE void cp_async_commit() { ::simt::cp_async_commit(); }
template <int kPending>
DEVICE void cp_async_wait() {
    ::simt::cp_async_wait(kPending);
}

// ---- warps ----

DEVICE uint32_t lane_id() { return threadIdx.x & 31; }

// The value of lane `source` of the warp; a number of 4 or 8 bytes.
template <typename T>
DEVICE T simt_shuffle(T value, uint32_t source, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = ::simt::shuffle(bits, source, line);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T>
DEVICE T shfl(T value, int lane, int line = __builtin_LINE()) {
    return simt_shuffle(value, static_cast<uint32_t>(lane) & 31, line);
}
template <typename T>
DEVICE T shfl_xor(T value, int mask, int line = __builtin_LINE()) {
    return simt_shuffle(value, lane_id() ^ (static_cast<uint32_t>(mask) & 31), line);
}
template <typename T>
DEVICE T shfl_down(T value, int delta, int line = __builtin_LINE()) {
    const uint32_t source = lane_id() + (static_cast<uint32_t>(delta) & 31);
    return simt_shuffle(value, source < 32 ? source : lane_id(), line);
}
DEVICE uint32_t warp_ballot(bool predicate, int line = __builtin_LINE()) { return ::simt::ballot(predicate, line); }

DEVICE float warp_sum(float x, int line = __builtin_LINE()) { return ::simt::reduce(x, ::simt::kWarpSum, line); }
DEVICE float warp_max(float x, int line = __builtin_LINE()) { return ::simt::reduce(x, ::simt::kWarpMax, line); }
DEVICE float quad_sum(float x, int line = __builtin_LINE()) { return ::simt::reduce(x, ::simt::kQuadSum, line); }
DEVICE float quad_max(float x, int line = __builtin_LINE()) { return ::simt::reduce(x, ::simt::kQuadMax, line); }

// ---- tensor cores ----

DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row, int line = __builtin_LINE()) {
    ::simt::ldmatrix(r, row, false, line);
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, int line = __builtin_LINE()) {
    ::simt::ldmatrix(r, row, true, line);
}

DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line = __builtin_LINE()) {
    ::simt::mma(d, a, b, 1, 1, line);
}

template <int kM, int kN>
DEVICE void mma_tile(float (&d)[kM][kN][4], const uint32_t (&a)[kM][4], const uint32_t (&b)[kN][2],
                     int line = __builtin_LINE()) {
    static_assert(kM <= ::simt::kMaxTileM && kN <= ::simt::kMaxTileN,
                  "the emulator's scratch is smaller than this tile");
    ::simt::mma(&d[0][0][0], &a[0][0], &b[0][0], kM, kN, line);
}
