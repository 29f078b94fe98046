// Activations: h = act(gate) up or act(x), and their gradients, which overwrite their inputs.
//
// SwiGLU with gate and up in tensors of their own has kernels of its own (swiglu_*); the others (activation_*) take the function
// as a parameter, which is the same for every thread, and inputs with a row stride, so that gate and up may be halves of one
// tensor.
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
#include "common/activation.cuh"
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

// Parameters of activation_fwd_bf16.
struct ActivationFwdParams {
    const bf16* gate;          // [rows, any], the input of the function
    const bf16* up;            // [rows, any]; null: no factor
    bf16* h;                   // [rows, cols], overwritten
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
    int32_t stride;            // elements from a row of gate, and of up, to the next
    int32_t act;               // the function: see activation_of
};

// Parameters of activation_bwd_bf16.
struct ActivationBwdParams {
    bf16* dh;                  // [rows, cols]: becomes h
    bf16* gate;                // [rows, any]: becomes its gradient
    bf16* up;                  // [rows, any]: becomes its gradient; null: no factor
    const int32_t* live_rows;  // rows there are; null: all
    int32_t rows;              // capacity, in rows
    int32_t cols;              // a multiple of 8
    int32_t stride;            // elements from a row of gate, and of up, to the next
    int32_t act;               // the function: see activation_of
};

// Elements from the start of gate and of h to a piece of this thread.
struct ActivationPlace {
    int64_t input;
    int64_t output;
    bool is_there;

    DEVICE ActivationPlace(int i, int32_t rows, int32_t cols, int32_t stride) {
        const uint32_t piece = (blockIdx.x * kSwigluPieces + i) * kSwigluThreads + threadIdx.x;
        const uint32_t pieces = static_cast<uint32_t>(cols) / 8, row = piece / pieces;
        const int64_t column = static_cast<int64_t>(piece - row * pieces) * 8;
        is_there = row < static_cast<uint32_t>(rows);
        input = static_cast<int64_t>(row) * stride + column;
        output = static_cast<int64_t>(row) * cols + column;
    }
};

KERNEL(activation_fwd_bf16, ActivationFwdParams, 256, 4) {
    const int32_t rows = rows_there_are(p.live_rows, p.rows);
    NO_UNROLL for (int i = 0; i < kSwigluPieces; i++) {
        const ActivationPlace place(i, rows, p.cols, p.stride);
        if (!place.is_there) continue;
        const Vec16 gate = load16_constant(p.gate + place.input);
        const Vec16 up = p.up != nullptr ? load16_constant(p.up + place.input) : ones16();
        Vec16 h;
        UNROLL for (int j = 0; j < 4; j++) {
            h.word[j] = pack_bf16(activation_of(p.act, low_of(gate, j)).value * low_of(up, j),
                                  activation_of(p.act, high_of(gate, j)).value * high_of(up, j));
        }
        store16(p.h + place.output, h);
    }
}

KERNEL(activation_bwd_bf16, ActivationBwdParams, 256, 4) {
    const int32_t rows = rows_there_are(p.live_rows, p.rows);
    NO_UNROLL for (int i = 0; i < kSwigluPieces; i++) {
        const ActivationPlace place(i, rows, p.cols, p.stride);
        if (!place.is_there) continue;
        Vec16 dh = load16(p.dh + place.output), gate = load16(p.gate + place.input);
        Vec16 up = p.up != nullptr ? load16(p.up + place.input) : ones16();
        UNROLL for (int j = 0; j < 4; j++) {
            const ActivationAt low = activation_of(p.act, low_of(gate, j)), high = activation_of(p.act, high_of(gate, j));
            const float dh_low = low_of(dh, j), dh_high = high_of(dh, j), up_low = low_of(up, j), up_high = high_of(up, j);
            dh.word[j] = pack_bf16(low.value * up_low, high.value * up_high);
            gate.word[j] = pack_bf16(dh_low * up_low * low.slope, dh_high * up_high * high.slope);
            up.word[j] = pack_bf16(dh_low * low.value, dh_high * high.value);
        }
        store16(p.dh + place.output, dh);
        store16(p.gate + place.input, gate);
        if (p.up != nullptr) store16(p.up + place.input, up);
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
