// SwiGLU: h = silu(gate) up, and its gradients, which overwrite their inputs.
//
// With sigma = 1 / (1 + exp(-gate)): silu = gate sigma, dgate = dh up sigma (1 + gate (1 - sigma)), dup = dh
// silu. The backward pass overwrites dh with h, since the gradients of the next product's adapter need h, and
// gate and up are in registers. All tensors are [rows, cols], numbers bf16, arithmetic f32, one rounding at a
// store. A thread has two pieces of 16 bytes of every input under way.
//
// The _lora kernels also compute the down-projections of the layer that reads h (xa of down_proj), or of the
// layers that take the results as dy (dxa of gate_proj and up_proj): 32 rows per block, in the layout of
// lora_down.cuh.
#include "common/simt.cuh"
#include "common/swiglu.cuh"
#include "lora_down.cuh"

// Parameters of swiglu_fwd_bf16.
struct SwigluFwdParams {
    const bf16* gate;          // [rows, cols]
    const bf16* up;            // [rows, cols]
    bf16* h;                   // [rows, cols], overwritten
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
};

// Parameters of swiglu_bwd_bf16.
struct SwigluBwdParams {
    bf16* dh;                  // [rows, cols]: becomes h
    bf16* gate;                // [rows, cols]: becomes dgate
    bf16* up;                  // [rows, cols]: becomes dup
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
};

// Parameters of swiglu_fwd_bf16_lora*.
struct SwigluFwdLoraParams {
    SwigluFwdParams swiglu;  // as without
    LoraProject project;     // of h
};

// Parameters of swiglu_bwd_bf16_lora.
struct SwigluBwdLoraParams {
    SwigluBwdParams swiglu;  // as without
    LoraProject project;     // of dgate and dup: two layers
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

// Rows of h, computed on demand.
struct SwigluFwdRows {
    static constexpr bool kDeliversAllRows = true, kDeliversStretches = false, kKeepsRows = false;
    const SwigluFwdParams& p;
    DownRows rows;
    bool is_stored;

    DEVICE void part(Vec16 (&x)[1][4], const DownRange&, int64_t stretch, int part) const {
        const int64_t column = stretch + part * 32 + (lane_id() & 3) * 8;
        Vec16 gate[4], up[4];
        UNROLL for (int i = 0; i < 4; i++) {
            const int64_t at = rows.at(i) * static_cast<int64_t>(p.cols) + column;
            x[0][i] = zero16();
            if (column >= p.cols || rows.at(i) >= rows.end) continue;
            if (is_stored) {
                x[0][i] = load16(p.h + at);
            } else {
                gate[i] = load16_constant(p.gate + at), up[i] = load16_constant(p.up + at);
            }
        }
        UNROLL for (int i = 0; i < 4; i++) {
            if (is_stored || column >= p.cols || rows.at(i) >= rows.end) continue;
            x[0][i] = swiglu_piece(gate[i], up[i]);
            store16(p.h + rows.at(i) * static_cast<int64_t>(p.cols) + column, x[0][i]);
        }
    }
};

// Rows of dgate and dup.
struct SwigluBwdRows {
    static constexpr bool kDeliversAllRows = true, kDeliversStretches = false, kKeepsRows = false;
    const SwigluBwdParams& p;
    DownRows rows;
    bool is_stored;

    DEVICE void part(Vec16 (&x)[2][4], const DownRange&, int64_t stretch, int part) const {
        const int64_t column = stretch + part * 32 + (lane_id() & 3) * 8;
        Vec16 dh[4];
        UNROLL for (int i = 0; i < 4; i++) {
            const int64_t at = rows.at(i) * static_cast<int64_t>(p.cols) + column;
            x[0][i] = zero16(), x[1][i] = zero16();
            if (column >= p.cols || rows.at(i) >= rows.end) continue;
            x[0][i] = load16(p.gate + at), x[1][i] = load16(p.up + at);
            if (!is_stored) dh[i] = load16(p.dh + at);
        }
        UNROLL for (int i = 0; i < 4; i++) {
            const int64_t at = rows.at(i) * static_cast<int64_t>(p.cols) + column;
            if (is_stored || column >= p.cols || rows.at(i) >= rows.end) continue;
            swiglu_gradient(dh[i], x[0][i], x[1][i]);
            store16(p.dh + at, dh[i]);
            store16(p.gate + at, x[0][i]);
            store16(p.up + at, x[1][i]);
        }
    }
};

template <bool kDropout>
DEVICE void swiglu_fwd_lora(const SwigluFwdLoraParams& p) {
    STATIC_SMEM(float, sums, kDownSumsBytes<4> / 4);
    const DownRows rows(static_cast<int>(blockIdx.x), rows_there_are(p.swiglu.live_rows, p.swiglu.rows));
    if (rows.first >= rows.end) return;
    SwigluFwdRows source{p.swiglu, rows, false};
    down_all<4, 1, kDropout>(p.project, rows, p.swiglu.cols, source, sums);
}

KERNEL(swiglu_fwd_bf16_lora, SwigluFwdLoraParams, 256, 1) { swiglu_fwd_lora<false>(p); }

KERNEL(swiglu_fwd_bf16_lora_dropout, SwigluFwdLoraParams, 256, 1) { swiglu_fwd_lora<true>(p); }

KERNEL(swiglu_bwd_bf16_lora, SwigluBwdLoraParams, 256, 1) {
    STATIC_SMEM(float, sums, kDownSumsBytes<4> / 4);
    const DownRows rows(static_cast<int>(blockIdx.x), rows_there_are(p.swiglu.live_rows, p.swiglu.rows));
    if (rows.first >= rows.end) return;
    SwigluBwdRows source{p.swiglu, rows, false};
    down_all<4, 2, false>(p.project, rows, p.swiglu.cols, source, sums);
}
