// ldmatrix and mma: the last lane to arrive moves and multiplies for all 32.
//
// Order of sums in mma: every element of d adds its products one by one, k = 0, 1, ..., 15, each by a fused
// multiply-add in f32. Products of two bf16 numbers are exact in f32, so all code paths here give the same
// bits. The hardware adds in another, not documented order and truncates: its results are compared with
// tolerances, and Options::truncates_mma computes the sums as experiments have found for tensor cores
// (multiply_truncated).

#include "check.hpp"
#include "stats.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace simt {
namespace {

// The fragments of one lane.
float* d_of(const Slot& slot) { return reinterpret_cast<float*>(slot.out); }
const uint32_t* a_of(const Slot& slot) { return reinterpret_cast<const uint32_t*>(slot.in); }
const uint32_t* b_of(const Slot& slot) { return reinterpret_cast<const uint32_t*>(slot.extra); }

float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The operands as numbers: a[m][row][k], b[n][k][column].
struct Operands {
    alignas(64) float a[kMaxTileM][16][16];
    alignas(64) float b[kMaxTileN][16][8];
};

void unpack_plain(const Slot* slots, int m, int n, Operands& operands) {
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, q = lane % 4;
        const uint32_t* a = a_of(slots[lane]);
        for (int i = 0; i < m; i++) {
            for (int part = 0; part < 4; part++) {
                float* to = &operands.a[i][g + part % 2 * 8][2 * q + part / 2 * 8];
                to[0] = as_float(a[4 * i + part] << 16);
                to[1] = as_float(a[4 * i + part] & 0xffff0000u);
            }
        }
        const uint32_t* b = b_of(slots[lane]);
        for (int i = 0; i < n; i++) {
            for (int part = 0; part < 2; part++) {
                operands.b[i][2 * q + part * 8][g] = as_float(b[2 * i + part] << 16);
                operands.b[i][2 * q + part * 8 + 1][g] = as_float(b[2 * i + part] & 0xffff0000u);
            }
        }
    }
}

void multiply_plain(const Slot* slots, int m, int n, const Operands& operands) {
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, q = lane % 4;
        float* d = d_of(slots[lane]);
        for (int i = 0; i < m; i++) {
            for (int j = 0; j < n; j++) {
                for (int part = 0; part < 4; part++) {
                    float sum = d[(i * n + j) * 4 + part];
                    const float* row = operands.a[i][g + part / 2 * 8];
                    for (int k = 0; k < 16; k++) sum = fmaf(row[k], operands.b[j][k][2 * q + part % 2], sum);
                    d[(i * n + j) * 4 + part] = sum;
                }
            }
        }
    }
}

// The exponent of a bf16 number that is not 0; subnormal ones have that of the smallest normal number.
int exponent_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const int exponent = static_cast<int>(bits >> 23 & 255);
    return (exponent > 0 ? exponent : 1) - 127;
}

// 2 to the power of `exponent`, which is a normal number of f64.
double power_of_two(int exponent) {
    const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The f32 next to `value` on the side of 0.
float toward_zero(double value) {
    const float near = static_cast<float>(value);
    return fabs(static_cast<double>(near)) > fabs(value) ? nextafterf(near, 0.0f) : near;
}

// c and the products of eight pairs, as the tensor cores of A100 and of Ada are known to add them: all nine
// are exact, are aligned to the largest exponent among them, where a product has the sum of its factors'
// exponents, and lose all bits below the last bit of a 24-bit significand and one more bit; the sum of the
// rest is truncated to f32. Those of H100 take 16 pairs at once and two more bits, so they lose less.
// Sources: Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021; Khattak,
// Mikaitis, "Accurate models of NVIDIA tensor cores", 2025.
float add_truncated(float c, const float* a, const float (*b)[8], int column) {
    constexpr int kBits = 23 + 1, kNone = -10000;
    int largest = c != 0 ? exponent_of(c) : kNone;
    bool is_finite = isfinite(c);
    for (int k = 0; k < 8; k++) {
        const float w = b[k][column];
        is_finite = is_finite && isfinite(a[k]) && isfinite(w);
        if (a[k] == 0 || w == 0) continue;
        const int exponent = exponent_of(a[k]) + exponent_of(w);
        largest = exponent > largest ? exponent : largest;
    }
    if (!is_finite) {
        for (int k = 0; k < 8; k++) c = fmaf(a[k], b[k][column], c);
        return c;
    }
    if (largest == kNone) return c;
    const double units = power_of_two(kBits - largest);
    int64_t sum = static_cast<int64_t>(static_cast<double>(c) * units);
    for (int k = 0; k < 8; k++) {
        const double product = static_cast<double>(a[k]) * static_cast<double>(b[k][column]);
        sum += static_cast<int64_t>(product * units);
    }
    return toward_zero(static_cast<double>(sum) * power_of_two(largest - kBits));
}

// As multiply_plain.
void multiply_truncated(const Slot* slots, int m, int n, const Operands& operands) {
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, q = lane % 4;
        float* d = d_of(slots[lane]);
        for (int i = 0; i < m; i++) {
            for (int j = 0; j < n; j++) {
                for (int part = 0; part < 4; part++) {
                    float& sum = d[(i * n + j) * 4 + part];
                    const float* row = operands.a[i][g + part / 2 * 8];
                    for (int k = 0; k < 16; k += 8) {
                        sum = add_truncated(sum, row + k, operands.b[j] + k, 2 * q + part % 2);
                    }
                }
            }
        }
    }
}

#if defined(__x86_64__)

// Turns four rows of four words into four columns.
void turn(__m128i (&v)[4]) {
    const __m128i t0 = _mm_unpacklo_epi32(v[0], v[1]), t1 = _mm_unpacklo_epi32(v[2], v[3]);
    const __m128i t2 = _mm_unpackhi_epi32(v[0], v[1]), t3 = _mm_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm_unpacklo_epi64(t0, t1);
    v[1] = _mm_unpackhi_epi64(t0, t1);
    v[2] = _mm_unpacklo_epi64(t2, t3);
    v[3] = _mm_unpackhi_epi64(t2, t3);
}

__m128i load_words(const uint32_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
void store_floats(float* to, __m128i bits) { _mm_store_ps(to, _mm_castsi128_ps(bits)); }

// As unpack_plain for even n, four lanes at a time.
void unpack_sse(const Slot* slots, int m, int n, Operands& operands) {
    const __m128i zero = _mm_setzero_si128(), upper = _mm_set1_epi32(static_cast<int>(0xffff0000u));
    for (int g = 0; g < 8; g++) {
        for (int i = 0; i < m; i++) {
            __m128i v[4];
            for (int q = 0; q < 4; q++) v[q] = load_words(a_of(slots[4 * g + q]) + 4 * i);
            turn(v);
            for (int part = 0; part < 4; part++) {
                float* to = &operands.a[i][g + part % 2 * 8][part / 2 * 8];
                store_floats(to, _mm_unpacklo_epi16(zero, v[part]));
                store_floats(to + 4, _mm_unpackhi_epi16(zero, v[part]));
            }
        }
    }
    for (int q = 0; q < 4; q++) {
        for (int first = 0; first < 8; first += 4) {
            for (int i = 0; i < n; i += 2) {
                __m128i v[4];
                for (int g = 0; g < 4; g++) v[g] = load_words(b_of(slots[4 * (first + g) + q]) + 2 * i);
                turn(v);
                for (int part = 0; part < 4; part++) {
                    float* to = &operands.b[i + part / 2][2 * q + part % 2 * 8][first];
                    store_floats(to, _mm_slli_epi32(v[part], 16));
                    store_floats(to + 8, _mm_and_si128(v[part], upper));
                }
            }
        }
    }
}

void unpack(const Slot* slots, int m, int n, Operands& operands) {
    if (n % 2 == 0) {
        unpack_sse(slots, m, n, operands);
    } else {
        unpack_plain(slots, m, n, operands);
    }
}

// Registers cannot be indexed: loops over them have to go.
#define SIMT_UNROLL _Pragma("GCC unroll 8")

// Rows g and g + 8 of up to kN neighbouring 16x8 tiles stay in registers; a row of d is spread over the four lanes of a
// quad.
template <int kN>
__attribute__((target("avx2,fma"))) inline void multiply_rows(const Slot* quad, int fragment, const float* upper,
                                                              const float* lower, const float (*b)[16][8]) {
    __m256 top[kN], bottom[kN];
    SIMT_UNROLL
    for (int j = 0; j < kN; j++) {
        const __m128 q0 = _mm_loadu_ps(d_of(quad[0]) + fragment + 4 * j),
                     q1 = _mm_loadu_ps(d_of(quad[1]) + fragment + 4 * j);
        const __m128 q2 = _mm_loadu_ps(d_of(quad[2]) + fragment + 4 * j),
                     q3 = _mm_loadu_ps(d_of(quad[3]) + fragment + 4 * j);
        top[j] = _mm256_set_m128(_mm_movelh_ps(q2, q3), _mm_movelh_ps(q0, q1));
        bottom[j] = _mm256_set_m128(_mm_movehl_ps(q3, q2), _mm_movehl_ps(q1, q0));
    }
    for (int k = 0; k < 16; k++) {
        const __m256 u = _mm256_broadcast_ss(upper + k), l = _mm256_broadcast_ss(lower + k);
        SIMT_UNROLL
        for (int j = 0; j < kN; j++) {
            const __m256 column = _mm256_load_ps(b[j][k]);
            top[j] = _mm256_fmadd_ps(u, column, top[j]);
            bottom[j] = _mm256_fmadd_ps(l, column, bottom[j]);
        }
    }
    SIMT_UNROLL
    for (int j = 0; j < kN; j++) {
        const __m128 t0 = _mm256_castps256_ps128(top[j]), t1 = _mm256_extractf128_ps(top[j], 1);
        const __m128 b0 = _mm256_castps256_ps128(bottom[j]), b1 = _mm256_extractf128_ps(bottom[j], 1);
        _mm_storeu_ps(d_of(quad[0]) + fragment + 4 * j, _mm_movelh_ps(t0, b0));
        _mm_storeu_ps(d_of(quad[1]) + fragment + 4 * j, _mm_movehl_ps(b0, t0));
        _mm_storeu_ps(d_of(quad[2]) + fragment + 4 * j, _mm_movelh_ps(t1, b1));
        _mm_storeu_ps(d_of(quad[3]) + fragment + 4 * j, _mm_movehl_ps(b1, t1));
    }
}

__attribute__((target("avx2,fma"))) void multiply_avx2(const Slot* slots, int m, int n, const Operands& operands) {
    for (int g = 0; g < 8; g++) {
        const Slot* quad = slots + 4 * g;
        for (int i = 0; i < m; i++) {
            const float* upper = operands.a[i][g];
            const float* lower = operands.a[i][g + 8];
            int j = 0;
            for (; j + 4 <= n; j += 4) multiply_rows<4>(quad, (i * n + j) * 4, upper, lower, operands.b + j);
            for (; j + 2 <= n; j += 2) multiply_rows<2>(quad, (i * n + j) * 4, upper, lower, operands.b + j);
            for (; j < n; j++) multiply_rows<1>(quad, (i * n + j) * 4, upper, lower, operands.b + j);
        }
    }
}

const bool kHasAvx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");

// Lane 4g + q takes word q of row g of each of the four matrices.
void spread(__m128i (&rows)[4], const Slot* quad) {
    turn(rows);
    for (int q = 0; q < 4; q++) _mm_storeu_si128(reinterpret_cast<__m128i*>(quad[q].out), rows[q]);
}

__m128i row_of(const Slot* slots, int matrix, int row) {
    return _mm_load_si128(reinterpret_cast<const __m128i*>(slots[8 * matrix + row].in));
}

void load_matrices(const Slot* slots, bool transposed) {
    __m128i rows[8][4];
    for (int matrix = 0; matrix < 4; matrix++) {
        __m128i r[8];
        for (int i = 0; i < 8; i++) r[i] = row_of(slots, matrix, i);
        if (transposed) {
            __m128i s[8], t[8];
            for (int i = 0; i < 4; i++) {
                s[i] = _mm_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
                s[i + 4] = _mm_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
            }
            for (int half = 0; half < 2; half++) {
                const __m128i* p = s + 4 * half;
                t[4 * half] = _mm_unpacklo_epi32(p[0], p[1]);
                t[4 * half + 1] = _mm_unpackhi_epi32(p[0], p[1]);
                t[4 * half + 2] = _mm_unpacklo_epi32(p[2], p[3]);
                t[4 * half + 3] = _mm_unpackhi_epi32(p[2], p[3]);
                for (int i = 0; i < 2; i++) {
                    r[4 * half + 2 * i] = _mm_unpacklo_epi64(t[4 * half + i], t[4 * half + 2 + i]);
                    r[4 * half + 2 * i + 1] = _mm_unpackhi_epi64(t[4 * half + i], t[4 * half + 2 + i]);
                }
            }
        }
        for (int i = 0; i < 8; i++) rows[i][matrix] = r[i];
    }
    for (int g = 0; g < 8; g++) spread(rows[g], slots + 4 * g);
}

#else

const bool kHasAvx2 = false;
void multiply_avx2(const Slot*, int, int, const Operands&) {}
void unpack(const Slot* slots, int m, int n, Operands& operands) { unpack_plain(slots, m, n, operands); }

void load_matrices(const Slot* slots, bool transposed) {
    uint16_t matrices[4][8][8];
    for (int lane = 0; lane < 32; lane++) {
        memcpy(matrices[lane / 8][lane % 8], reinterpret_cast<const void*>(slots[lane].in), 16);
    }
    for (int lane = 0; lane < 32; lane++) {
        const int row = lane / 4, column = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            const auto& matrix = matrices[i];
            const uint32_t low = transposed ? matrix[column][row] : matrix[row][column];
            const uint32_t high = transposed ? matrix[column + 1][row] : matrix[row][column + 1];
            reinterpret_cast<uint32_t*>(slots[lane].out)[i] = low | high << 16;
        }
    }
}

#endif

}  // namespace

void ldmatrix(uint32_t* r, const void* row, bool transposed, int line) {
    Thread* thread = current_thread();
    Worker& worker = *thread->worker;
    const char* pc = SIMT_CALLER;
    if (__builtin_expect((reinterpret_cast<uintptr_t>(row) & 15) != 0, 0)) {
        char place[200];
        describe_shared(worker, row, place, sizeof place);
        fail(pc, "misaligned ldmatrix row at %s; it must be a multiple of 16", place);
    }
    if (__builtin_expect(static_cast<size_t>(static_cast<const unsigned char*>(row) - worker.smem) >= kSmemWindow, 0)) {
        char place[200];
        describe_shared(worker, row, place, sizeof place);
        fail(pc, "illegal ldmatrix row at %s", place);
    }
    if (worker.check) ldmatrix_row(*thread, row, pc);
    if (worker.stats) count_access(*thread, row, 16, pc);
    Slot& own = thread->warp->slots[thread->index % kWarpSize];
    own.in = reinterpret_cast<uint64_t>(row);
    own.out = reinterpret_cast<uint64_t>(r);
    if (meet(thread, transposed ? Op::kLdmatrixTrans : Op::kLdmatrix, 0, line, pc)) {
        load_matrices(thread->warp->slots, transposed);
        release_warp(thread);
    }
}

void mma(float* d, const uint32_t* a, const uint32_t* b, int m, int n, int line) {
    Thread* thread = current_thread();
    Warp* warp = thread->warp;
    Slot& own = warp->slots[thread->index % kWarpSize];
    own.out = reinterpret_cast<uint64_t>(d);
    own.in = reinterpret_cast<uint64_t>(a);
    own.extra = reinterpret_cast<uint64_t>(b);
    const auto shape = static_cast<uint32_t>(m << 16 | n);
    if (meet(thread, Op::kMma, shape, line, SIMT_CALLER)) {
        static thread_local Operands operands;
        unpack(warp->slots, m, n, operands);
        if (thread->worker->truncates_mma) {
            multiply_truncated(warp->slots, m, n, operands);
        } else if (kHasAvx2) {
            multiply_avx2(warp->slots, m, n, operands);
        } else {
            multiply_plain(warp->slots, m, n, operands);
        }
        if (thread->worker->stats)
            count_mma(*thread->worker, static_cast<uint64_t>(m) * static_cast<uint64_t>(n), SIMT_CALLER);
        release_warp(thread);
    }
}

}  // namespace simt
