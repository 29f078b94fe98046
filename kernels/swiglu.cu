// SwiGLU: h = silu(gate) up, and its gradients, which overwrite what they are made of.
//
// With sigma = 1 / (1 + exp(-gate)): silu = gate sigma, dgate = dh up sigma (1 + gate (1 - sigma)), dup = dh silu. The backward
// pass leaves h where dh was, since the gradients of the next product's adapter need it and gate and up are at hand. All tensors are
// [rows, cols], numbers bf16, arithmetic f32, one rounding at a store. A thread has two pieces of 16 bytes of every input under way.
#include "common/simt.cuh"
#include "common/swiglu.cuh"

// Parameters of swiglu_fwd_bf16.
struct SwigluFwdParams {
    const bf16* gate;          // [rows, cols]
    const bf16* up;            // [rows, cols]
    bf16* h;                   // [rows, cols], overwritten
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // room for
    int32_t cols;              // a multiple of 8
};

// Parameters of swiglu_bwd_bf16.
struct SwigluBwdParams {
    bf16* dh;                  // [rows, cols]: becomes h
    bf16* gate;                // [rows, cols]: becomes dgate
    bf16* up;                  // [rows, cols]: becomes dup
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // room for
    int32_t cols;              // a multiple of 8
};

constexpr int kSwigluThreads = 256;
constexpr int kSwigluPieces = 2;

KERNEL(swiglu_fwd_bf16, SwigluFwdParams, 256, 4) {
    const int64_t end = static_cast<int64_t>(rows_there_are(p.live_rows, p.rows)) * p.cols;
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * kSwigluThreads * kSwigluPieces + threadIdx.x) * 8;
    Vec16 gate[kSwigluPieces], up[kSwigluPieces];
    UNROLL for (int i = 0; i < kSwigluPieces; i++) {
        const int64_t at = first + i * kSwigluThreads * 8;
        if (at < end) gate[i] = load16_constant(p.gate + at), up[i] = load16_constant(p.up + at);
    }
    UNROLL for (int i = 0; i < kSwigluPieces; i++) {
        const int64_t at = first + i * kSwigluThreads * 8;
        if (at < end) store16(p.h + at, swiglu_piece(gate[i], up[i]));
    }
}

KERNEL(swiglu_bwd_bf16, SwigluBwdParams, 256, 4) {
    const int64_t end = static_cast<int64_t>(rows_there_are(p.live_rows, p.rows)) * p.cols;
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * kSwigluThreads * kSwigluPieces + threadIdx.x) * 8;
    Vec16 dh[kSwigluPieces], gate[kSwigluPieces], up[kSwigluPieces];
    UNROLL for (int i = 0; i < kSwigluPieces; i++) {
        const int64_t at = first + i * kSwigluThreads * 8;
        if (at < end) dh[i] = load16(p.dh + at), gate[i] = load16(p.gate + at), up[i] = load16(p.up + at);
    }
    UNROLL for (int i = 0; i < kSwigluPieces; i++) {
        const int64_t at = first + i * kSwigluThreads * 8;
        if (at >= end) continue;
        swiglu_gradient(dh[i], gate[i], up[i]);
        store16(p.dh + at, dh[i]);
        store16(p.gate + at, gate[i]);
        store16(p.up + at, up[i]);
    }
}
