// The trained part of a head for labels: pooling over the rows of a sequence, linear layers with an optional tanh, and the
// gradient of the loss. One row per sequence, so there are few rows and everything here is small beside a block of the model:
// plain loops in a fixed order, sums in f32.
//
//   pool       y[i] = mean(x[rows of sequence i]), and back
//   forward    y = act(x W^T + b): a warp makes an output for four rows, so that it reads W once for them
//   dx         dx = dz W, with dz = dy act'(z): a block per row
//   grad       dW += dz^T x, db += sum(dz): a block per output, rows in order
//   loss       dz of the loss: a warp per sequence
//
// W and x are bf16, logits f32; gradients of W and b are f32 and added to.
#include "common/rows.cuh"
#include "common/simt.cuh"

// The rows that belong to a sequence.
struct LabelRange {
    int32_t first;
    int32_t end;
};

// What a sequence is labelled with.
struct LabelEntry {
    float weight;   // of its loss; 0 without a label
    int32_t label;  // its class; 0 where numbers are
};

// Parameters of label_head_pool_bf16 and label_head_pool_bwd_bf16.
struct LabelPoolParams {
    const bf16* from;          // x [any, cols]; back: dy [sequences, cols]
    const LabelRange* ranges;  // [sequences]
    bf16* to;                  // y [sequences, cols]; back: dx [any, cols], rows of sequences are overwritten
    const int32_t* live_rows;  // sequences there are
    int32_t rows;              // capacity, in sequences
    int32_t cols;              // a multiple of 8
};

// Parameters of label_head_fwd_bf16.
struct LabelForwardParams {
    const bf16* x;             // [rows, in_features]
    const bf16* weight;        // [out_features, in_features]
    const bf16* bias;          // [out_features]; null: none
    bf16* y;                   // [rows, out_features], overwritten; null: not wanted
    float* logits;             // the same, not rounded; null: not wanted
    const int32_t* live_rows;  // rows there are
    int32_t rows;              // capacity, in rows
    int32_t in_features;       // a multiple of 8
    int32_t out_features;
    int32_t has_tanh;          // 1: y = tanh(...)
};

// Parameters of label_head_dx_bf16 and label_head_grad_bf16.
struct LabelBackwardParams {
    const bf16* x;             // [rows, in_features]
    const bf16* y;             // [rows, out_features], the output; read with tanh only
    const bf16* dy;            // [rows, out_features]
    const bf16* weight;        // [out_features, in_features]
    bf16* dx;                  // [rows, in_features], overwritten
    float* d_weight;           // [out_features, in_features], added to
    float* d_bias;             // [out_features], added to; null: none
    const int32_t* live_rows;  // rows there are
    int32_t rows;              // capacity, in rows
    int32_t in_features;       // a multiple of 8
    int32_t out_features;
    int32_t has_tanh;          // 1: the layer ends with tanh
};

// Parameters of label_head_loss.
struct LabelLossParams {
    const float* logits;        // [rows, out_features]
    const LabelEntry* entries;  // [rows]
    const float* numbers;       // [rows, out_features], where labels are numbers
    const float* weights;       // [out_features], of classes or of positive targets; null: all 1
    bf16* d_logits;             // [rows, out_features], overwritten
    const int32_t* live_rows;   // rows there are
    int32_t rows;               // capacity, in rows
    int32_t out_features;
    int32_t kind;               // 0 cross-entropy, 1 binary cross-entropy, 2 squared error, 3 squared error of the sigmoid
    float smoothing;            // share of the cross-entropy that goes to all classes alike
};

constexpr int kHeadThreads = 128;

// The natural exponential.
DEVICE float label_head_exp(float x) { return fast_exp2(x * 1.44269504f); }

KERNEL(label_head_pool_bf16, LabelPoolParams, 128, 8) {
    const int64_t row = blockIdx.x;
    if (row >= rows_there_are(p.live_rows, p.rows)) return;
    const int first = p.ranges[row].first, end = p.ranges[row].end;
    const float share = 1.0f / static_cast<float>(end - first);
    NO_UNROLL for (int column = threadIdx.x * 8; column < p.cols; column += kHeadThreads * 8) {
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        NO_UNROLL for (int from = first; from < end; from++) {
            const Vec16 x = load16_constant(p.from + static_cast<int64_t>(from) * p.cols + column);
            UNROLL for (int i = 0; i < 4; i++) {
                sum[2 * i] += low_of(x, i);
                sum[2 * i + 1] += high_of(x, i);
            }
        }
        Vec16 y;
        UNROLL for (int i = 0; i < 4; i++) y.word[i] = pack_bf16(sum[2 * i] * share, sum[2 * i + 1] * share);
        store16(p.to + row * p.cols + column, y);
    }
}

KERNEL(label_head_pool_bwd_bf16, LabelPoolParams, 128, 8) {
    const int64_t row = blockIdx.x;
    if (row >= rows_there_are(p.live_rows, p.rows)) return;
    const int first = p.ranges[row].first, end = p.ranges[row].end;
    const float share = 1.0f / static_cast<float>(end - first);
    NO_UNROLL for (int column = threadIdx.x * 8; column < p.cols; column += kHeadThreads * 8) {
        const Vec16 dy = load16_constant(p.from + row * p.cols + column);
        Vec16 dx;
        UNROLL for (int i = 0; i < 4; i++) dx.word[i] = pack_bf16(low_of(dy, i) * share, high_of(dy, i) * share);
        NO_UNROLL for (int to = first; to < end; to++) {
            store16(p.to + static_cast<int64_t>(to) * p.cols + column, dx);
        }
    }
}

constexpr int kHeadRows = 4;

// Block x has four outputs, one a warp; block y four rows.
KERNEL(label_head_fwd_bf16, LabelForwardParams, 128, 8) {
    const int output = static_cast<int>(blockIdx.x) * 4 + static_cast<int>(threadIdx.x / 32);
    const int first = static_cast<int>(blockIdx.y) * kHeadRows;
    const int rows = rows_there_are(p.live_rows, p.rows);
    if (first >= rows || output >= p.out_features) return;
    float sum[kHeadRows] = {0, 0, 0, 0};
    const bf16* const weight = p.weight + static_cast<int64_t>(output) * p.in_features;
    NO_UNROLL for (int column = static_cast<int>(lane_id()) * 8; column < p.in_features; column += 32 * 8) {
        const Vec16 w = load16_constant(weight + column);
        UNROLL for (int r = 0; r < kHeadRows; r++) {
            if (first + r >= rows) continue;
            const Vec16 x = load16_constant(p.x + static_cast<int64_t>(first + r) * p.in_features + column);
            UNROLL for (int i = 0; i < 4; i++) {
                sum[r] = fmaf(low_of(x, i), low_of(w, i), sum[r]);
                sum[r] = fmaf(high_of(x, i), high_of(w, i), sum[r]);
            }
        }
    }
    const float bias = p.bias != nullptr ? to_float(p.bias[output]) : 0.0f;
    UNROLL for (int r = 0; r < kHeadRows; r++) {
        float y = warp_sum(sum[r]) + bias;
        if (lane_id() != 0 || first + r >= rows) continue;
        if (p.has_tanh != 0) y = 1.0f - 2.0f / (1.0f + label_head_exp(2.0f * y));
        const int64_t place = static_cast<int64_t>(first + r) * p.out_features + output;
        if (p.y != nullptr) p.y[place] = to_bf16(y);
        if (p.logits != nullptr) p.logits[place] = y;
    }
}

// Gradient before the activation.
DEVICE float label_head_dz(const LabelBackwardParams& p, int64_t place) {
    const float dy = to_float(p.dy[place]);
    if (p.has_tanh == 0) return dy;
    const float y = to_float(p.y[place]);
    return dy * (1.0f - y * y);
}

KERNEL(label_head_dx_bf16, LabelBackwardParams, 128, 8) {
    const int64_t row = blockIdx.x;
    if (row >= rows_there_are(p.live_rows, p.rows)) return;
    NO_UNROLL for (int column = threadIdx.x * 8; column < p.in_features; column += kHeadThreads * 8) {
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        NO_UNROLL for (int output = 0; output < p.out_features; output++) {
            const float dz = label_head_dz(p, row * p.out_features + output);
            const Vec16 w = load16_constant(p.weight + static_cast<int64_t>(output) * p.in_features + column);
            UNROLL for (int i = 0; i < 4; i++) {
                sum[2 * i] = fmaf(dz, low_of(w, i), sum[2 * i]);
                sum[2 * i + 1] = fmaf(dz, high_of(w, i), sum[2 * i + 1]);
            }
        }
        Vec16 dx;
        UNROLL for (int i = 0; i < 4; i++) dx.word[i] = pack_bf16(sum[2 * i], sum[2 * i + 1]);
        store16(p.dx + row * p.in_features + column, dx);
    }
}

KERNEL(label_head_grad_bf16, LabelBackwardParams, 128, 8) {
    const int output = static_cast<int>(blockIdx.x);
    const int rows = rows_there_are(p.live_rows, p.rows);
    NO_UNROLL for (int column = threadIdx.x * 8; column < p.in_features; column += kHeadThreads * 8) {
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        NO_UNROLL for (int row = 0; row < rows; row++) {
            const float dz = label_head_dz(p, static_cast<int64_t>(row) * p.out_features + output);
            const Vec16 x = load16_constant(p.x + static_cast<int64_t>(row) * p.in_features + column);
            UNROLL for (int i = 0; i < 4; i++) {
                sum[2 * i] = fmaf(dz, low_of(x, i), sum[2 * i]);
                sum[2 * i + 1] = fmaf(dz, high_of(x, i), sum[2 * i + 1]);
            }
        }
        float* const to = p.d_weight + static_cast<int64_t>(output) * p.in_features + column;
        UNROLL for (int half = 0; half < 2; half++) {
            Vec16 old = load16(to + 4 * half);
            UNROLL for (int i = 0; i < 4; i++) old.word[i] = float_bits(bits_float(old.word[i]) + sum[4 * half + i]);
            store16(to + 4 * half, old);
        }
    }
    if (p.d_bias != nullptr && threadIdx.x == 0) {
        float sum = 0;
        NO_UNROLL for (int row = 0; row < rows; row++) sum += label_head_dz(p, static_cast<int64_t>(row) * p.out_features + output);
        p.d_bias[output] += sum;
    }
}

// The logistic function; the power of a large argument is infinite, and the quotient 0 then.
DEVICE float logistic(float z) { return 1.0f / (1.0f + label_head_exp(-z)); }

KERNEL(label_head_loss, LabelLossParams, 256, 4) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
    if (row >= rows_there_are(p.live_rows, p.rows)) return;
    const int lane = static_cast<int>(lane_id());
    const float* const z = p.logits + row * p.out_features;
    bf16* const dz = p.d_logits + row * p.out_features;
    const float factor = p.entries[row].weight;
    if (p.kind != 0) {
        const float* const targets = p.numbers + row * p.out_features;
        NO_UNROLL for (int output = lane; output < p.out_features; output += 32) {
            const float t = targets[output];
            float slope = 2.0f * (z[output] - t);
            if (p.kind != 2) {
                const float s = logistic(z[output]);
                const float positive = p.kind == 1 && p.weights != nullptr ? p.weights[output] : 1.0f;
                slope = p.kind == 1 ? (1.0f - t) * s - positive * t * (1.0f - s) : 2.0f * (s - t) * s * (1.0f - s);
            }
            // Without a label the numbers are those of nobody.
            dz[output] = to_bf16(factor == 0.0f ? 0.0f : factor * slope);
        }
        return;
    }
    // With shares q of the classes: loss = sum q (lse - z), slope = softmax sum(q) - q.
    const int label = p.entries[row].label;
    const float even = p.smoothing / static_cast<float>(p.out_features);
    float largest = -__builtin_huge_valf(), total = 0;
    NO_UNROLL for (int output = lane; output < p.out_features; output += 32) {
        const float weight = p.weights != nullptr ? p.weights[output] : 1.0f;
        largest = fmaxf(largest, z[output]);
        total += weight * (even + (output == label ? 1.0f - p.smoothing : 0.0f));
    }
    largest = warp_max(largest);
    total = warp_sum(total);
    float sum = 0;
    NO_UNROLL for (int output = lane; output < p.out_features; output += 32) sum += label_head_exp(z[output] - largest);
    sum = warp_sum(sum);
    NO_UNROLL for (int output = lane; output < p.out_features; output += 32) {
        const float weight = p.weights != nullptr ? p.weights[output] : 1.0f;
        const float share = weight * (even + (output == label ? 1.0f - p.smoothing : 0.0f));
        const float slope = total * (label_head_exp(z[output] - largest) / sum) - share;
        dz[output] = to_bf16(factor == 0.0f ? 0.0f : factor * slope);
    }
}
